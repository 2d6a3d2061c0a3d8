package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/filetree"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

type compactCommand struct {
	options         []string
	keepZeros, json bool
	force           bool
	trim, dryRun    bool

	untrimmed bool // a file system could not be trimmed, or none was
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
root and the owner of the mount may do this.

Blocks that a file system on the disk no longer uses are released only if it was trimmed. With --trim, compact attaches
the disk, mounts, trims and unmounts each file system on it, detaches it and compacts the image; this needs root. If the
image is mounted, --trim trims the file systems that are mounted from its loop device. If one cannot be trimmed, or there is
none, a warning says so, and the exit status is 3.

You can interrupt the command at any time and run it again. Completed work is kept, and no data is lost, not even in a
power cut. Blocks of a fixed disk stay allocated. Parents are not changed.`,
		Example: `  vhdxfs compact data.vhdx
  vhdxfs compact --dry-run data.vhdx
  vhdxfs compact --trim data.vhdx
  fstrim /mnt/data && vhdxfs compact /mnt/vhdx`,
		Args:              exactArgs("IMAGE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.keepZeros, "keep-zeros", false, "do not read the blocks to find those that hold only zeros")
	f.BoolVar(&c.trim, "trim", false, "trim the file systems on the disk first")
	f.BoolVar(&c.dryRun, "dry-run", false, "show what can be reclaimed, but change nothing")
	f.BoolVar(&c.force, "force", false, "compact even if the BAT seems to be overwritten, and lose the blocks it had")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	return cmd
}

func (c *compactCommand) run(cmd *cobra.Command, path string) error {
	o, err := openOptions(c.options)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
	defer p.end()
	if c.trim && c.dryRun {
		return usageError("--trim changes the disk; it cannot be used with --dry-run")
	}
	var r *compactReport
	switch m, notMounted := active.Find(path); {
	case notMounted == nil && c.dryRun:
		return usageError("%s: mounted on %s; --dry-run needs the image unmounted: vhdxfs detach %s", m.Image, m.MountPoint, terminal.Shell(m.Image))
	case notMounted == nil:
		before := int64(0)
		if c.trim {
			before = fileSize(m.Image)
			if err := c.trimMounted(ctx, cmd, m); err != nil {
				return interrupted(err, "nothing was compacted")
			}
		}
		r = new(compactReport)
		if r.CompactResult, err = c.online(ctx, m, p); err == nil {
			r.Before = max(r.Before, before)
		}
	case isDir(path):
		return usageError("%w", notMounted)
	case c.dryRun:
		r, err = c.dryRunReport(ctx, path, o, p)
	default:
		before := int64(0)
		if c.trim {
			before = fileSize(path)
			if err := c.trimOffline(ctx, cmd, path); err != nil {
				return interrupted(err, "nothing was compacted")
			}
		}
		if r, err = c.offline(ctx, path, o, p); err == nil {
			r.Before = max(r.Before, before)
		}
	}
	p.end()
	if err != nil {
		return interrupted(err, "completed work is kept and no data is lost; run the same command to continue")
	}
	if err := c.report(cmd, path, r); err != nil || !c.untrimmed {
		return err
	}
	return &statusError{statusWarnings, nil} // a warning has said it
}

// offline compacts the image at path, which no other program may have open.
func (c *compactCommand) offline(ctx context.Context, path string, o vhdx.Options, p *progress) (r *compactReport, err error) {
	o.Writable = true
	r = new(compactReport)
	err = withImage(path, o, func(im *vhdx.Image) error {
		if err := c.checkLost(path, im); err != nil {
			return err
		}
		if r.CompactResult, err = im.Compact(ctx, vhdx.CompactOptions{KeepZeros: c.keepZeros, Phase: p.phase, Progress: p.add}); err != nil {
			return err
		}
		r.Untrimmed = untrimmed(im)
		return nil
	})
	if err != nil && !strings.Contains(err.Error(), path) && !errors.Is(err, errInterrupted) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return r, err
}

func (c *compactCommand) report(cmd *cobra.Command, path string, r *compactReport) error {
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
	if r.DryRun {
		text = fmt.Sprintf("%s, could become %s; nothing was changed", size(r.Before), size(r.After))
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(path), text); err != nil || r.Untrimmed == 0 {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of what the file holds is free space of the file systems inside; vhdxfs compact --trim releases it\n",
		printable(path), size(r.Untrimmed))
	return err
}

// A compactReport is what the JSON of compact says.
type compactReport struct {
	*vhdx.CompactResult
	Untrimmed int64 `json:"untrimmed_bytes"` // held for free space of the file systems inside, as far as they are known
	DryRun    bool  `json:"dry_run,omitempty"`
}

// untrimmed returns how much of what the chain holds is free space of the file systems on the disk, if that is worth a word.
// They count it themselves, and what they use was not always written, so it is never less than that.
func untrimmed(im *vhdx.Image) int64 {
	size, held := im.Size(), im.Info().AllocatedBytes
	used := size - unusedInside(im, size, im.SectorSize())
	free := held - used
	if im.Type() == vhdx.Fixed || free < max(held/20, 64<<20) {
		return 0
	}
	return free
}

// unusedInside returns how many bytes the file systems on a disk say they do not use, as far as they tell.
func unusedInside(disk io.ReaderAt, size, sector int64) int64 {
	unused := partition.Unused(disk, size, sector)
	for _, v := range partition.Inside(disk, size, sector).Volumes {
		if n, err := filetree.Free(io.NewSectionReader(disk, v.Off, v.Len), v.Len, v.FileSystem); err == nil && n <= v.Len {
			unused += n
		}
	}
	return min(unused, size)
}

// dryRunReport tells what offline would reclaim.
func (c *compactCommand) dryRunReport(ctx context.Context, path string, o vhdx.Options, p *progress) (r *compactReport, err error) {
	err = withImage(path, o, func(im *vhdx.Image) error {
		if err := c.checkLost(path, im); err != nil {
			return err
		}
		won, err := im.Reclaimable(ctx, !c.keepZeros, vhdx.CompactOptions{Phase: p.phase, Progress: p.add})
		if err != nil {
			return err
		}
		before := im.Info().FileSize
		r = &compactReport{DryRun: true, Untrimmed: untrimmed(im), CompactResult: &vhdx.CompactResult{
			Before: before, After: before - won.Total, Zero: won.Zero, Unmapped: won.Unmapped,
		}}
		return nil
	})
	return r, err
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
