package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

type compactCommand struct {
	options                []string
	keepZeros, quiet, json bool
}

func newCompact() *cobra.Command {
	var c compactCommand
	cmd := &cobra.Command{
		Use:   "compact [flags] IMAGE|MOUNTPOINT",
		Short: "Make an image file smaller: give up blocks of zeros, close gaps, cut the end off",
		Long: `Make the file of an image as small as it can be. Blocks that hold nothing but zeros, and places that blocks keep
though they were trimmed, are given up; blocks at the end of the file move into gaps; the end is cut off. What the
disk reads as stays the same, and children of the image stay usable. vhdxfs info --zeros tells before what can be won.

An image that is mounted, here and for writing, is compacted by the program that serves it, in small steps, while reads
and writes go on. Only root and who made the mount may ask for that. For blocks that a file system inside does not use
any more, run fstrim on it first.

It can be interrupted at any moment, and continued: what was done stays done, and no data is lost, not by a power cut
either. The blocks of a fixed disk stay allocated. Parents are not changed.`,
		Example: `  vhdxfs compact data.vhdx
  fstrim /mnt/data && vhdxfs compact /mnt/vhdx`,
		Args:              exactArgs("IMAGE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.keepZeros, "keep-zeros", false, "do not read the blocks to find those that hold nothing but zeros")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&c.json, "json", false, "print JSON, with sizes in bytes")
	f.StringArrayVarP(&c.options, "options", "o", nil, "a `LIST` of the options parent=, parent_dir=, lock= and cache_size=; see vhdxfs --help")
	completeOptions(cmd, aboutImage)
	return cmd
}

func (c *compactCommand) run(cmd *cobra.Command, path string) error {
	o, err := parseOptions(c.options, aboutImage)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd, c.quiet)
	defer p.end()
	var r *vhdx.CompactResult
	switch m, notMounted := findMounted(path); {
	case notMounted == nil:
		r, err = c.online(ctx, m, p)
	case isDir(path):
		return usageError("%w", notMounted)
	default:
		r, err = c.offline(ctx, path, o.image, p)
	}
	p.end()
	if err != nil {
		return interrupted(err, "what was done stays, and no data is lost; the same command goes on")
	}
	return c.report(cmd.OutOrStdout(), path, r)
}

// offline compacts the image at path, which nobody else may have open.
func (c *compactCommand) offline(ctx context.Context, path string, o vhdx.Options, p *progress) (r *vhdx.CompactResult, err error) {
	o.Writable = true
	err = withImage(path, o, func(im *vhdx.Image) error {
		r, err = im.Compact(ctx, vhdx.CompactOptions{KeepZeros: c.keepZeros, Phase: p.phase, Progress: p.add})
		return err
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		err = fmt.Errorf("compact %s: %w", path, err)
	}
	return r, err
}

func (c *compactCommand) report(out io.Writer, path string, r *vhdx.CompactResult) error {
	if c.json {
		return writeJSON(out, r)
	}
	_, err := fmt.Fprintf(out, "%s: %s, was %s; given up: %s of zeros, %s trimmed before; moved: %s\n", printable(path),
		roughSize(r.After), roughSize(r.Before), roughSize(r.Zero), roughSize(r.Unmapped), roughSize(r.Moved))
	return err
}
