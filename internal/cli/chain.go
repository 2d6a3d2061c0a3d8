package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A tree is a file with those whose parent it is, or should be.
type tree struct {
	*vhdx.Link
	Children []*tree `json:"children,omitempty"`
}

func newChain() *cobra.Command {
	var options []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "chain [flags] IMAGE|DIRECTORY...",
		Short: "Show which image is the parent of which",
		Long: `Show images and their parents as a tree, parents first. For a DIRECTORY, show all images in it. Each child has a link to its
parent: "linked"; "parent missing"; "parent changed" if the parent is another disk or was written after the child was
created; "parent unusable" if the parent is damaged or in use.`,
		Example: `  vhdxfs chain child.avhdx
  vhdxfs chain /srv/vm`,
		Args: someArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := openOptions(options)
			if err != nil {
				return err
			}
			args, err = imagesNamed(args)
			if err != nil {
				return err
			}
			paths, err := imagesIn(args)
			if err != nil {
				return err
			}
			confineReader(cmd.Context(), paths, o)
			f := newForest()
			for _, path := range paths {
				var k *vhdx.Link
				err := beside(cmd, o, []string{path}, func(o vhdx.Options) (err error) {
					k, err = vhdx.Chain(path, o)
					if locked := k.Locked(); err == nil && locked != nil {
						return locked
					}
					return err
				})
				if err != nil && k.Locked() == nil { // else the tree says it
					if len(args) == 1 && args[0] == path {
						return err
					}
					k = &vhdx.Link{Path: path, Problem: err.Error()}
				}
				f.add(k)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), f.roots)
			} else {
				err = f.print(cmd.OutOrStdout(), sizesOf(cmd))
			}
			if err == nil && f.broken {
				err = &statusError{statusWarnings, nil} // the tree says it
			}
			return err
		},
		ValidArgsFunction: completeImage,
	}
	addJSON(cmd, &asJSON)
	addImageOptions(cmd, &options)
	return cmd
}

// imagesIn replaces directories by the images in them.
func imagesIn(args []string) ([]string, error) {
	var paths []string
	for _, arg := range args {
		st, err := os.Stat(arg)
		switch {
		case err != nil:
			return nil, err
		case !st.IsDir():
			paths = append(paths, arg)
			continue
		}
		entries, err := os.ReadDir(arg)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && slices.Contains(imageExtensions, strings.ToLower(strings.TrimPrefix(filepath.Ext(e.Name()), "."))) {
				paths = append(paths, filepath.Join(arg, e.Name()))
			}
		}
	}
	return paths, nil
}

// A forest puts chains together where they share files.
type forest struct {
	roots  []*tree
	nodes  map[string]*tree // by absolute path
	broken bool
}

func newForest() *forest { return &forest{roots: []*tree{}, nodes: map[string]*tree{}} }

// add adds a chain and returns the node of its first file.
func (f *forest) add(k *vhdx.Link) *tree {
	key, err := filepath.Abs(k.Path)
	if err != nil {
		key = k.Path
	}
	if n := f.nodes[key]; n != nil {
		return n
	}
	parent := k.Parent
	f.broken = f.broken || k.Problem != "" || k.State != "" && k.State != vhdx.Linked
	own := *k
	own.Parent = nil // it is above
	n := &tree{Link: &own}
	f.nodes[key] = n
	if parent == nil {
		f.roots = append(f.roots, n)
		return n
	}
	p := f.add(parent)
	p.Children = append(p.Children, n)
	return n
}

func (f *forest) print(w io.Writer, size sizeWriter) error {
	for _, n := range f.roots {
		if err := n.print(w, size, "", ""); err != nil {
			return err
		}
	}
	return nil
}

// print writes the tree, its own line behind first, those of its children behind rest.
func (n *tree) print(w io.Writer, size sizeWriter, first, rest string) error {
	what := "cannot be checked"
	if n.Type != "" {
		what = fmt.Sprintf("%s, disk %s, file %s", n.Type, size(n.DiskSize), size(n.FileSize))
		if n.Log != vhdx.LogClean {
			what += ", not closed cleanly"
		}
	}
	if n.State != "" {
		what += ": " + string(n.State)
	}
	if _, err := fmt.Fprintf(w, "%s%s  %s\n", first, printable(n.Path), what); err != nil {
		return err
	}
	if n.Problem != "" {
		bar := "  "
		if len(n.Children) > 0 {
			bar = "│ "
		}
		if _, err := fmt.Fprintf(w, "%s%s  %s\n", rest, bar, oneLine(n.Problem)); err != nil {
			return err
		}
	}
	for i, c := range n.Children {
		branch, below := "├── ", "│   "
		if i == len(n.Children)-1 {
			branch, below = "└── ", "    "
		}
		if err := c.print(w, size, rest+branch, rest+below); err != nil {
			return err
		}
	}
	return nil
}
