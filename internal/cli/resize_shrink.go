package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"vhdxfs/internal/partition"
	"vhdxfs/vhdx"
)

// checkShrink says why a disk of size bytes could not hold what is there.
func (c *resizeCommand) checkShrink(ctx context.Context, im *vhdx.Image, l *partition.Layout, size int64) error {
	if u, beyond := l.Beyond(size); beyond {
		return fmt.Errorf("%w: %s ends at byte %d, behind the new end at %d; make it smaller first, or give --force and lose it", errBeyond, u.What, u.End, size)
	}
	if l.GPT != nil && !c.fixGPT && !l.GPT.BackupWithin(size) {
		return fmt.Errorf("%w without the backup of its GPT, which lies behind the new end: --fix-gpt moves it", errBeyond)
	}
	if l.GPT != nil && c.fixGPT {
		if err := l.GPT.Fits(size); err != nil {
			return fmt.Errorf("%w: %w", errBeyond, err)
		}
	}
	if len(l.Uses) > 0 || l.GPT != nil {
		return nil
	}
	c.progress.phase("look for data", im.Size()-size)
	at, err := firstData(ctx, im, size, c.progress.add)
	c.progress.end()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: there is data at byte %d, behind the new end at %d, and nothing tells what it is; --force gives it up", errBeyond, at, size)
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

// checkBased refuses to change a disk that images in its folder are based on.
func checkBased(path string, o vhdx.Options) error {
	children, err := childrenBeside(path, o)
	if err != nil || len(children) == 0 {
		return err
	}
	return usageError("%s would lose their disk, since they are based on %s; resize those, or flatten them first, or --force", strings.Join(children, ", "), path)
}
