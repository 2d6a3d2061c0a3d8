package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/compare"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// compareFlags are the flags of commands that compare two disks.
type compareFlags struct {
	options []string
	formats [2]string
	json    bool
	workers int
}

func (c *compareFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&c.formats[0], "first-format", "f", "", "`FORMAT` of the first disk: vhdx, vhd or raw; detected by default")
	f.StringVarP(&c.formats[1], "second-format", "F", "", "`FORMAT` of the second disk, likewise")
	f.IntVar(&c.workers, "workers", compare.DefaultWorkers, "compare `N` pieces of the disks at once")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	completeFlag(cmd, "first-format", disk.Formats...)
	completeFlag(cmd, "second-format", disk.Formats...)
}

// withDisks opens both disks for do, which may be called more than once; see beside. A disk.raw or a device on one is read as
// it is.
func (c *compareFlags) withDisks(cmd *cobra.Command, names []string, do func(a, b *disk.Disk) error) error {
	o, paths, err := c.inputs(names)
	if err != nil {
		return err
	}
	return beside(cmd, o, paths, func(o vhdx.Options) error {
		confineReader(cmd.Context(), paths, o)
		return c.open(paths, o, func(err error) error { return err }, do) // beside explains locks
	})
}

// inputs checks the flags, and returns the options and the paths of the disks.
func (c *compareFlags) inputs(names []string) (o vhdx.Options, paths []string, err error) {
	if c.workers < 1 || c.workers > 256 {
		return o, nil, usageError("--workers %d: give 1 to 256", c.workers)
	}
	if o, err = openOptions(c.options); err != nil {
		return o, nil, err
	}
	paths, err = disksNamed(names)
	return o, paths, err
}

// open opens both disks for do. Explain may say more of an error.
func (c *compareFlags) open(paths []string, o vhdx.Options, explain func(error) error, do func(a, b *disk.Disk) error) (err error) {
	var disks [2]*disk.Disk
	for i, path := range paths {
		if disks[i], err = disk.Open(path, disk.Format(c.formats[i]), o); err != nil {
			return createError(rawAdvice(withAdvice(explain(err)), []string{"-f", "-F"}[i]))
		}
		defer func() { err = errors.Join(err, disks[i].Close()) }()
	}
	return do(disks[0], disks[1])
}

// disksNamed returns the paths of the disks that the names mean: for a mount point, that of its image.
func disksNamed(names []string) (paths []string, err error) {
	paths = slices.Clone(names)
	for i, name := range names {
		if !isDir(name) {
			continue
		}
		if paths[i], err = imageNamed(name); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// ranges compares the disks and shows the progress.
func (c *compareFlags) ranges(cmd *cobra.Command, ctx context.Context, a, b *disk.Disk, report func(compare.Range) error) error {
	p := newProgress(cmd)
	defer p.end()
	return compare.Disks(ctx, a, b, compare.Options{Workers: c.workers, Phase: p.phase, Progress: p.add}, report)
}

// A comparison is what compare finds out.
type comparison struct {
	Equal     bool            `json:"equal"`
	Sizes     [2]int64        `json:"sizes"`
	Different int64           `json:"different_bytes"`
	Count     int64           `json:"different_ranges"`
	Ranges    []compare.Range `json:"ranges"` // the first of them
}

func newCompare() *cobra.Command {
	var c compareFlags
	var strict bool
	limit := 10
	cmd := &cobra.Command{
		Use:   "compare [flags] FIRST SECOND",
		Short: "Compare the contents of two disks",
		Long: `Compare two disks. Each is a VHDX image with its parents, a raw file or a block device. The space beyond the end of the
smaller disk counts as zeros.`,
		Example: `  vhdxfs compare disk.vhdx disk.raw
  vhdxfs compare --json old.vhdx new.vhdx`,
		Args: exactArgs("FIRST", "SECOND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withDisks(cmd, args, func(a, b *disk.Disk) error {
				ctx, stop := interruptible(cmd.Context())
				defer stop()
				r := comparison{Sizes: [2]int64{a.Size(), b.Size()}, Ranges: []compare.Range{}}
				err := c.ranges(cmd, ctx, a, b, func(d compare.Range) error {
					r.Different += d.Length
					r.Count++
					if len(r.Ranges) < limit {
						r.Ranges = append(r.Ranges, d)
					}
					return nil
				})
				if err != nil {
					return interrupted(err, "nothing was changed")
				}
				r.Equal = r.Count == 0 && (!strict || r.Sizes[0] == r.Sizes[1])
				if c.json {
					err = writeJSON(cmd.OutOrStdout(), r)
				} else {
					err = r.print(cmd.OutOrStdout(), sizesOf(cmd))
				}
				if err == nil && !r.Equal {
					err = &statusError{statusDiffers, nil} // it has been said
				}
				return err
			})
		},
	}
	c.add(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "report disks of different sizes as different, even if the rest is zeros")
	cmd.Flags().IntVar(&limit, "limit", limit, "list at most `N` ranges")
	return cmd
}

func (r *comparison) print(w io.Writer, size sizeWriter) error {
	for _, d := range r.Ranges {
		if _, err := fmt.Fprintf(w, "%s at %#x differs\n", size(d.Length), d.Offset); err != nil {
			return err
		}
	}
	verdict := "the disks are equal"
	if r.Sizes[0] != r.Sizes[1] {
		verdict = fmt.Sprintf("the disks are equal, but their sizes are %s and %s", size(r.Sizes[0]), size(r.Sizes[1]))
	}
	if r.Count > 0 {
		verdict = fmt.Sprintf("the disks differ in %s, %s in total", plural(int(r.Count), "range"), size(r.Different))
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

func newDiff() *cobra.Command {
	var c compareFlags
	var content, force bool
	var output string
	depth := 1
	cmd := &cobra.Command{
		Use:   "diff [flags] IMAGE | FIRST SECOND",
		Short: "List what a child, or a second disk, changes",
		Long: `List the ranges of the disk that IMAGE, a differencing image, holds itself: everything written or trimmed since it was
created. No data is read, so data that was overwritten with the same data is listed too, unless --content is given. With
--depth 2 the changes of its parent count as well, and so on.

With two disks, list the ranges in which SECOND differs from FIRST. Data that both have in the same place of the same
file is not read. So comparing two children of one parent, or a child with its parent, reads only their own data.

Each range is data, or zero if there is nothing to copy.

With --output, write the changes to a delta instead: a differencing image of FIRST that shows SECOND. vhdxfs apply writes it
into a copy of FIRST, also at the other end of a pipe. FIRST must be a VHDX image, and neither disk may be in use.`,
		Example: `  vhdxfs diff --json child.avhdx
  vhdxfs diff monday.avhdx tuesday.avhdx
  vhdxfs diff --output tuesday.delta.avhdx monday.avhdx tuesday.avhdx`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return exactArgs("FIRST", "SECOND")(cmd, args)
			}
			return exactArgs("IMAGE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case output != "" && len(args) < 2:
				return usageError("--output needs two disks: vhdxfs diff --output FILE FIRST SECOND")
			case output != "":
				return c.writeDelta(cmd, args, output, force)
			case force:
				return usageError("--force needs --output")
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			if len(args) == 2 {
				return c.withDisks(cmd, args, func(a, b *disk.Disk) error {
					list := newRangeList(cmd, c.json)
					if err := c.ranges(cmd, ctx, a, b, list.add); err != nil {
						return interrupted(err, "the list is incomplete")
					}
					return list.end()
				})
			}
			path, err := imageNamed(args[0])
			if err != nil {
				return err
			}
			o, err := openOptions(c.options)
			if err != nil {
				return err
			}
			return beside(cmd, o, []string{path}, func(o vhdx.Options) error {
				confineReader(ctx, []string{path}, o)
				list := newRangeList(cmd, c.json)
				if err := c.changes(cmd, ctx, path, o, depth, content, list.add); err != nil {
					return interrupted(err, "the list is incomplete")
				}
				return list.end()
			})
		},
		ValidArgsFunction: completeImage,
	}
	c.add(cmd)
	cmd.Flags().IntVar(&depth, "depth", depth, "count the changes of the first `N` images of the chain")
	cmd.Flags().StringVar(&output, "output", "", "write a delta for vhdxfs apply to `FILE`; - is standard output")
	cmd.Flags().BoolVar(&force, "force", false, "with --output: replace an existing file")
	cmd.Flags().BoolVar(&content, "content", false, "read the data and list it only if it differs")
	return cmd
}

// changes lists what the first depth images of a chain changed.
func (c *compareFlags) changes(cmd *cobra.Command, ctx context.Context, path string, o vhdx.Options, depth int, content bool, report func(compare.Range) error) error {
	return withImage(path, o, func(im *vhdx.Image) error {
		chain := chainPaths(im.Info())
		if len(chain) == 1 {
			return usageError("%s has no parent; name two disks: vhdxfs diff OLD NEW", path)
		}
		if depth < 1 {
			return usageError("--depth %d: give 1 or more", depth)
		}
		if depth >= len(chain) {
			return usageError("%s has only %s; --depth %d is too large", path, plural(len(chain)-1, "parent"), depth)
		}
		if !content {
			return compare.Layers(im, depth, report)
		}
		// The parents of the parent are those of the image, as they were found.
		below := o
		below.Parents = chain[depth+1:]
		base, err := disk.Open(chain[depth], disk.VHDX, below)
		if err != nil {
			return err
		}
		top, err := disk.Open(path, disk.VHDX, o)
		if err != nil {
			return errors.Join(err, base.Close())
		}
		return errors.Join(c.ranges(cmd, ctx, base, top, report), top.Close(), base.Close())
	})
}
