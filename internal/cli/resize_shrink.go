package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/partition"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// checkShrink says why a disk of size bytes could not hold what is there.
func (c *resizeCommand) checkShrink(ctx context.Context, im *vhdx.Image, l *partition.Layout, size int64) error {
	if u, beyond := l.Beyond(size); beyond {
		return fmt.Errorf("%w to %s: %s ends at %s. Shrink that first%s; --force cuts it off and loses data", errBeyond, sizes.Text(size), u.What, sizes.Text(u.End), shrinkWith(u.What))
	}
	if l.GPT != nil && !c.fixGPT && !l.GPT.BackupWithin(size) {
		return fmt.Errorf("%w to %s: the backup of the GPT is beyond the new end; --fix-gpt moves it", errBeyond, sizes.Text(size))
	}
	if l.GPT != nil && c.fixGPT {
		if err := l.GPT.Fits(size); err != nil {
			return fmt.Errorf("%w: %w", errBeyond, err)
		}
	}
	if len(l.Uses) > 0 || l.GPT != nil {
		return nil
	}
	c.progress.phase("looking for data", im.Size()-size)
	at, err := firstData(ctx, im, size, c.progress.add)
	c.progress.end()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w to %s: there is unknown data at %#x, beyond the new end; --force discards it", errBeyond, sizes.Text(size), at)
}

// shrinkWith names the tool that makes a file system smaller.
func shrinkWith(what string) string {
	for word, tool := range map[string]string{"ext4": "resize2fs", "NTFS": "ntfsresize", "Btrfs": "btrfs filesystem resize", "LVM": "pvresize", "partition": "parted"} {
		if strings.Contains(what, word) {
			return " (" + tool + ")"
		}
	}
	return ""
}

// firstData returns the first byte of the disk at or after off that is not zero, and io.EOF if there is none. Blocks
// that are allocated may hold nothing: those of a fixed disk are there from the start. It tells done how many bytes it
// has seen, holes included.
func firstData(ctx context.Context, im *vhdx.Image, off int64, done func(n int64)) (int64, error) {
	buf := make([]byte, 1<<20)
	for {
		at, err := im.SeekData(off)
		if err != nil {
			return 0, err
		}
		done(at - off)
		if off, err = im.SeekHole(at); err != nil {
			return 0, err
		}
		for at < off {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			p := buf[:min(int64(len(buf)), off-at)]
			if n, err := im.ReadAt(p, at); n < len(p) {
				return 0, err
			}
			if rest := bytes.TrimLeft(p, "\x00"); len(rest) > 0 {
				return at + int64(len(p)-len(rest)), nil
			}
			at += int64(len(p))
			done(int64(len(p)))
		}
	}
}

// checkBased refuses to change a disk that images in its directory are based on.
func checkBased(path string, o vhdx.Options) error {
	children, err := childrenBeside(path, o)
	if err != nil || len(children) == 0 {
		return err
	}
	return usageError("%[2]s is the parent of %[1]s, which would become unusable%[3]s; resize the child, flatten it first, or use --force", strings.Join(children, ", "), path, leftOverNote([]string{path}, o))
}
