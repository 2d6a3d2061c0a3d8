package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

type compactCommand struct {
	options         []string
	keepZeros, json bool
	force           bool
}

func newCompact() *cobra.Command {
	var c compactCommand
	cmd := &cobra.Command{
		Use:   "compact [flags] IMAGE|MOUNTPOINT",
		Short: "Make an image file smaller",
		Long: `Make the file of an image as small as possible. Blocks that hold only zeros and blocks that were trimmed are released,
blocks at the end of the file move into gaps, and the file is truncated. The contents of the disk stay the same, and
children of the image stay valid. vhdxfs info --zeros shows what compact can reclaim.

If the image is mounted read/write on this host, its server compacts it in small steps; reads and writes continue. Only
root and the owner of the mount may do this. To release blocks that a file system on the disk no longer uses, run fstrim
on it first.

You can interrupt the command at any time and run it again. Completed work is kept, and no data is lost, not even in a
power cut. Blocks of a fixed disk stay allocated. Parents are not changed.`,
		Example: `  vhdxfs compact data.vhdx
  fstrim /mnt/data && vhdxfs compact /mnt/vhdx`,
		Args:              exactArgs("IMAGE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.keepZeros, "keep-zeros", false, "do not read the blocks to find those that hold only zeros")
	f.BoolVar(&c.force, "force", false, "compact even if the BAT seems to be overwritten, and lose the blocks it had")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	return cmd
}

func (c *compactCommand) run(cmd *cobra.Command, path string) error {
	o, err := parseOptions(c.options, aboutImage)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
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
		return interrupted(err, "completed work is kept and no data is lost; run the same command to continue")
	}
	return c.report(cmd, path, r)
}

// offline compacts the image at path, which nobody else may have open.
func (c *compactCommand) offline(ctx context.Context, path string, o vhdx.Options, p *progress) (r *vhdx.CompactResult, err error) {
	o.Writable = true
	err = withImage(path, o, func(im *vhdx.Image) error {
		if err := c.checkLost(path, im); err != nil {
			return err
		}
		r, err = im.Compact(ctx, vhdx.CompactOptions{KeepZeros: c.keepZeros, Phase: p.phase, Progress: p.add})
		return err
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		err = fmt.Errorf("compact %s: %w", path, err)
	}
	return r, err
}

func (c *compactCommand) report(cmd *cobra.Command, path string, r *vhdx.CompactResult) error {
	if c.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	size := sizesOf(cmd)
	text := size(r.After) + ", nothing to reclaim"
	if r.After != r.Before || r.Zero+r.Unmapped+r.Moved > 0 {
		text = fmt.Sprintf("%s, was %s", size(r.After), size(r.Before))
		for _, part := range []struct {
			n    int64
			what string
		}{{r.Zero, "of zeros released"}, {r.Unmapped, "of trimmed blocks released"}, {r.Moved, "moved"}} {
			if part.n > 0 {
				text += fmt.Sprintf("; %s %s", size(part.n), part.what)
			}
		}
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(path), text)
	return err
}

// checkLost refuses an image in which what nothing uses may be all that is left of the disk.
func (c *compactCommand) checkLost(path string, im *vhdx.Image) error {
	if c.force {
		return nil
	}
	off, err := im.LostBlocks()
	if err == nil && off > 0 {
		err = usageError("%s: space that nothing uses holds data, from %#x on, and the BAT seems to be overwritten; see vhdxfs check. --force compacts it and loses the data", path, off)
	}
	return err
}
