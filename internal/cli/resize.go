package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

type resizeCommand struct {
	options             []string
	force, fixGPT, json bool
	dryRun              bool

	size     int64 // bytes
	relative bool  // size is to be added
	progress *progress
}

func newResize() *cobra.Command {
	var c resizeCommand
	cmd := &cobra.Command{
		Use:   "resize [flags] IMAGE SIZE",
		Short: "Make a disk larger or smaller",
		Long: `Change the size of the disk in IMAGE to SIZE. +SIZE makes it larger by SIZE, -SIZE smaller. Added space reads as zeros.
The image must not be mounted. To enlarge a mounted disk, run truncate -s on disk.raw, then losetup -c. After an error or
a power cut, the disk has the old size or the new one.

A disk is made smaller only if everything on it ends before the new end: partitions, file systems and other structures
that vhdxfs knows (ext2 to ext4, XFS, Btrfs, F2FS, NTFS, ReFS, exFAT, FAT, swap, LVM, LUKS, BitLocker, md). Shrink them
first. Unknown data beyond the new end also prevents it. --force discards everything beyond the new end.

A GPT has a backup at the end of the disk. --fix-gpt moves the backup to the new end, even if the size stays the same. It is
needed to shrink a disk with a GPT.

A differencing image cannot grow while its parent is larger. Children of IMAGE become unusable; if one is beside it,
resize refuses unless --force is given.

` + sizeHelp,
		Example: `  vhdxfs resize --fix-gpt data.vhdx +20G
  vhdxfs resize data.vhdx 64G
  vhdxfs resize --fix-gpt data.vhdx -50G`,
		Args:              exactArgs("IMAGE", "SIZE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0], args[1]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.force, "force", false, "resize even if data beyond the new end, or children of the image, are lost")
	f.BoolVar(&c.dryRun, "dry-run", false, "check the new size and show what would be lost, but change nothing")
	f.BoolVar(&c.fixGPT, "fix-gpt", false, "move the backup of the GPT to the end of the disk")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	return cmd
}

// A resizeReport is what the JSON of resize says.
type resizeReport struct {
	Image    string `json:"image"`
	Before   int64  `json:"disk_size_before"`
	After    int64  `json:"disk_size_after"`
	GPTMoved bool   `json:"gpt_backup_moved"`
	GPTFits  bool   `json:"gpt_backup_at_end"` // false also where there is no GPT
	DryRun   bool   `json:"dry_run,omitempty"`
	Lost     string `json:"would_lose,omitempty"` // with DryRun and force: why it would not be done without
}

func (c *resizeCommand) run(cmd *cobra.Command, path, to string) error {
	o, err := openOptions(c.options)
	if err != nil {
		return err
	}
	n, err := sizes.Parse(strings.TrimLeft(to, "+-"))
	if err != nil {
		return usageError("invalid size %q: give a size such as 64G, or a change such as +10G or -10G", to)
	}
	c.size, c.relative = n, to[0] == '+' || to[0] == '-'
	if to[0] == '-' {
		c.size = -n
	}
	if m, err := active.Find(path); err == nil {
		return resizeMounted(path, m)
	}
	if !c.force {
		if err := checkBased(path, o); err != nil {
			return err
		}
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	o.Writable = !c.dryRun
	c.progress = newProgress(cmd)
	r := resizeReport{Image: path, DryRun: c.dryRun}
	err = withImage(path, o, func(im *vhdx.Image) error {
		if !c.force { // another child may have come until the image was locked
			if err := checkBased(path, o); err != nil {
				return err
			}
		}
		return c.resize(ctx, im, &r)
	})
	if errors.Is(err, vhdx.ErrSize) || errors.Is(err, errBeyond) {
		err = &statusError{statusUsage, err}
	}
	if err != nil {
		return interrupted(err, "the size of the disk is unchanged")
	}
	return c.report(cmd.OutOrStdout(), sizesOf(cmd), r)
}

// resizeMounted says what can be done instead with an image that is mounted.
func resizeMounted(path string, m *active.Mount) error {
	switch {
	case m.State == active.Dead:
		return fmt.Errorf("%s: mounted on %s by a server that has died; unmount it first: vhdxfs detach %s", path, m.MountPoint, terminal.Shell(m.MountPoint))
	case m.Mode == "ro":
		return fmt.Errorf("%s: mounted read-only on %s; unmount it first: vhdxfs detach %s", path, m.MountPoint, terminal.Shell(m.MountPoint))
	case m.Partition != 0:
		return fmt.Errorf("%s: partition %d is mounted on %s; unmount it first: vhdxfs detach %s", path, m.Partition, m.MountPoint, terminal.Shell(m.MountPoint))
	}
	return fmt.Errorf("%s: mounted on %s; enlarge it there with truncate -s SIZE %s, or unmount it first", path, m.MountPoint, m.Disk())
}

// errBeyond is matched by the refusal to cut something off.
var errBeyond = errors.New("cannot shrink")

func (c *resizeCommand) resize(ctx context.Context, im *vhdx.Image, r *resizeReport) error {
	sector := im.SectorSize()
	size := c.size
	if c.relative {
		switch size += im.Size(); {
		case size <= 0 && c.size > 0:
			return usageError("cannot enlarge the disk by %s: a disk has at most 64 TiB", sizes.Exact(c.size))
		case size <= 0:
			return usageError("cannot shrink the disk by %s: it has only %s", sizes.Exact(-c.size), sizes.Exact(im.Size()))
		}
	}
	if err := im.CanResize(size); err != nil {
		return err
	}
	r.Before = im.Size()
	layout, err := partition.Find(im, im.Size(), sector)
	if err != nil && (size < im.Size() || c.fixGPT) && !c.force {
		return err
	}
	if err != nil {
		layout = new(partition.Layout)
	}
	if size < im.Size() && (!c.force || c.dryRun) {
		switch err := c.checkShrink(ctx, im, layout, size); {
		case errors.Is(err, errBeyond) && c.force:
			r.Lost = err.Error()
		case err != nil:
			return err
		}
	}
	gpt := layout.GPT
	if c.fixGPT && gpt == nil {
		return usageError("the disk has no GPT")
	}
	if c.dryRun {
		r.After, r.GPTMoved, r.GPTFits = size, c.fixGPT, gpt != nil && (c.fixGPT || gpt.BackupAtEnd(size))
		return nil
	}
	if c.fixGPT && size < im.Size() { // while the place of the old one is still there
		if err := moveGPT(gpt, im, size, r); err != nil {
			return err
		}
	}
	if err := im.Resize(ctx, size); err != nil {
		return err
	}
	r.After = im.Size()
	if c.fixGPT && !r.GPTMoved && !gpt.BackupAtEnd(size) {
		if err := moveGPT(gpt, im, size, r); err != nil {
			return fmt.Errorf("the disk now has %s, but: %w", sizes.Exact(size), err)
		}
	}
	r.GPTFits = gpt != nil && gpt.BackupAtEnd(size)
	return nil
}

func moveGPT(gpt *partition.GPT, im *vhdx.Image, size int64, r *resizeReport) error {
	if err := gpt.MoveBackup(im, size); err != nil {
		return err
	}
	r.GPTMoved = true
	return nil
}

func (c *resizeCommand) report(out io.Writer, size sizeWriter, r resizeReport) error {
	if c.json {
		return writeJSON(out, r)
	}
	text := "already " + size(r.After)
	if r.After != r.Before {
		text = fmt.Sprintf("now %s, was %s", size(r.After), size(r.Before))
	}
	if r.GPTMoved {
		text += "; the backup of the GPT is at the end"
	}
	if r.DryRun {
		text = fmt.Sprintf("could become %s, is %s; nothing was changed", size(r.After), size(r.Before))
		if r.Lost != "" {
			text += "; --force would lose data: " + oneLine(r.Lost)
		}
	}
	_, err := fmt.Fprintf(out, "%s: %s\n", printable(r.Image), text)
	return err
}
