package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A mergeCommand writes a child into an image that it is based on.
type mergeCommand struct {
	options     []string
	merge       vhdx.MergeOptions
	reflink     string
	rate        sizeFlag
	force, json bool
}

func newMerge() *cobra.Command {
	var c mergeCommand
	cmd := &cobra.Command{
		Use:   "merge [flags] CHILD|MOUNTPOINT",
		Short: "Write the changes of a child into its parent",
		Long: `Write the data of the differencing image CHILD into its parent. With --into, write it, and the data of all images in
between, into an image further up the chain. That image then reads as CHILD did. CHILD is no longer needed, but still
shows the same disk until it is removed.

If CHILD is mounted read/write on this host, or is a parent of the mounted image, the server merges it in small steps while
disk.raw is in use; reads and writes continue. A MOUNTPOINT stands for the mounted image: when it is merged, the mount
continues in its parent, and writes wait for a moment. Use --keep-name if an fstab or a unit names the image; otherwise the
next mount must name the parent, and CHILD, if it is not removed, is no longer a valid image after the next write. Only
root and the owner of the mount may do this. No other program may use the images that change, and their files must be in
the directory of the image. Otherwise, unmount the image first.

If the command is interrupted, the disk is full or the power fails, CHILD still shows the same disk. Then run merge again.
Other children of the changed images would be lost; if one is in a directory of the chain, merge refuses.

Where the file system can (XFS, Btrfs), the result shares the space of CHILD instead of copying it, as with cp --reflink. Zeros
in what is shared are kept. A fixed image is shared only with --reflink=always.

Children of CHILD accept the result as their parent. With --keep-name they also find it. Otherwise run vhdxfs set-parent
for each of them.`,
		Example: `  vhdxfs merge --delete child.avhdx
  vhdxfs merge --keep-name data.vhdx
  vhdxfs merge --into base.vhdx --delete newest.avhdx
  vhdxfs merge --keep-name --rate 50M /mnt/vhdx`,
		Args:              exactArgs("CHILD"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&c.merge.Into, "into", "", "merge into `ANCESTOR`, an image further up the chain")
	f.BoolVar(&c.merge.Delete, "delete", false, "remove the merged images")
	f.BoolVar(&c.merge.KeepName, "keep-name", false, "rename the result to CHILD; the file CHILD is removed")
	f.Var(&c.rate, "rate", "copy at most `SIZE` in a second")
	f.BoolVar(&c.merge.DryRun, "dry-run", false, "show what would be merged, but change nothing")
	f.BoolVar(&c.force, "force", false, "merge even if other children are lost")
	addReflink(cmd, &c.reflink, "share space with CHILD instead of copying: `WHEN` is auto, always or never")
	addChainFlags(cmd, &c.json, &c.options)
	return cmd
}

// addChainFlags adds the flags that all commands have that change a chain.
func addChainFlags(cmd *cobra.Command, asJSON *bool, options *[]string) {
	addJSON(cmd, asJSON)
	addImageOptions(cmd, options)
}

// chainOptions parses the options of such a command.
func chainOptions(list []string) (vhdx.Options, error) {
	o, err := openOptions(list)
	if err == nil && o.AnyParent {
		err = usageError("option ignore_parent_mismatch applies only to reading; a chain can be changed only if its images fit")
	}
	if err != nil {
		return vhdx.Options{}, err
	}
	return o, nil
}

func (c *mergeCommand) run(cmd *cobra.Command, path string) error {
	var err error
	if c.merge.Open, err = chainOptions(c.options); err != nil {
		return err
	}
	if err := checkReflink(c.reflink); err != nil {
		return err
	}
	c.merge.Reflink, c.merge.Rate = imagefile.Reflink(c.reflink), int64(c.rate)
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	k, err := mountedChainOf(path)
	if err != nil {
		return err
	}
	p := newProgress(cmd)
	var r *vhdx.MergeResult
	if k != nil {
		path = k.paths[k.child]
		r, err = c.online(ctx, k, p)
	} else {
		r, err = c.offline(ctx, path, p)
	}
	p.end()
	if err != nil {
		return createError(interrupted(err, path+" shows the same disk as before; run merge again"))
	}
	if c.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	if err := c.report(cmd.OutOrStdout(), sizesOf(cmd), path, r); err != nil || k == nil || k.child > 0 || r.DryRun || r.Path == path {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is now the active image of the mount at %s\n", printable(r.Path), printable(k.MountPoint))
	return err
}

// offline merges images that no program has open.
func (c *mergeCommand) offline(ctx context.Context, path string, p *progress) (*vhdx.MergeResult, error) {
	k, err := vhdx.Chain(path, c.merge.Open)
	if err == nil && k.Parent != nil { // else Merge says what is wrong
		taking := []string{path}
		for k = k.Parent; k != nil; k = k.Parent {
			taking = append(taking, k.Path)
			if c.merge.Into == "" || sameFile(k.Path, c.merge.Into) {
				break
			}
		}
		c.merge.Check = func() error { return c.checkChildren(taking, nil) }
		if err := c.merge.Check(); err != nil { // before a log is replayed; another child may come until all are locked
			return nil, err
		}
	}
	c.merge.Phase, c.merge.Progress, c.merge.Shared = p.phase, p.add, p.share
	return vhdx.Merge(ctx, path, c.merge)
}

// checkChildren looks for images that a merge of those at the paths taking would cut off from their disk, the first of which is
// merged. The images of chain are no such.
func (c *mergeCommand) checkChildren(taking, chain []string) error {
	path := taking[0]
	children, err := childrenOf(taking, c.merge.Open)
	if err != nil {
		return err
	}
	var lost []string
	for _, child := range children {
		switch {
		case containsFile(chain, child.path):
		case !sameFile(child.parent, path):
			lost = append(lost, child.path)
		case c.merge.Delete && !c.merge.KeepName:
			return usageError("%s is a child of %s; use --keep-name, or omit --delete and then run vhdxfs set-parent %s PARENT", child.path, path, terminal.Shell(child.path))
		}
	}
	if len(lost) > 0 && !c.force {
		return usageError("%s would become unusable, because an image that they are based on changes%s; flatten them first, or use --force",
			strings.Join(lost, ", "), leftOverNote(taking, c.merge.Open))
	}
	return nil
}

func (c *mergeCommand) report(w io.Writer, size sizeWriter, path string, r *vhdx.MergeResult) error {
	now := ""
	if r.Path != r.Into {
		now = ", now named " + printable(r.Path)
	}
	text := "%s: merged into %s%s; %s written\n"
	if r.Shared > 0 {
		text = "%s: merged into %s%s; %s written, " + size(r.Shared) + " of it shared\n"
	}
	if r.DryRun {
		text = "%s: would be merged into %s%s; up to %s would be written; nothing was changed\n"
	}
	_, err := fmt.Fprintf(w, text, printable(path), printable(r.Into), now, size(r.Data))
	if err != nil || c.merge.Delete && !r.DryRun {
		return err
	}
	for _, m := range r.Merged {
		if m == path && c.merge.KeepName {
			continue
		}
		needed := "no longer needed"
		switch {
		case r.DryRun && c.merge.Delete:
			needed = "would be removed"
		case r.DryRun:
			needed = "would no longer be needed"
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", printable(m), needed); err != nil {
			return err
		}
	}
	return nil
}
