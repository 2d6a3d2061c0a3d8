package vhdx

import (
	"errors"
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// releaseBlocks releases the places of blocks that need none.
func (c *compaction) releaseBlocks() error {
	l := c.w.current()
	if l.keepsBlocks() {
		return nil
	}
	if !c.o.KeepZeros {
		c.o.Phase("looking for zeros", l.allocated())
	}
	return l.eachEntry(func(b int64, bitmap bool, e ondisk.BATEntry) error {
		if bitmap {
			return nil
		}
		if err := c.interrupted(); err != nil {
			return err
		}
		if e.Present() && !c.o.KeepZeros {
			defer c.o.Progress(l.geo.BlockSize)
		}
		// A first look takes no lock, and most blocks end there.
		if needless, err := c.needless(b, e); err != nil || !needless {
			return err
		}
		return c.w.alone(b, func() error { return c.giveUpBlock(b) })
	})
}

// keepsBlocks reports whether the blocks of the disk keep their places even if they hold zeros.
func (l *layer) keepsBlocks() bool { return l.meta.leaveBlockAllocated && !l.geo.HasParent }

// giveUpBlock gives up the place of block b, whose lock the caller holds alone, if it is needless still.
func (c *compaction) giveUpBlock(b int64) error {
	start := b << c.w.current().geo.BlockShift
	e, _, err := c.w.current().lookup(start, start+1)
	if err != nil {
		return err
	}
	if needless, err := c.needless(b, e); err != nil || !needless {
		return err
	}
	if err := c.w.unmap(b, e, fileWrite); err != nil { // no reader of the disk can see the change
		return err
	}
	if !e.Present() {
		c.result.Unmapped += c.w.current().geo.BlockSize
	} else {
		c.result.Zero += c.w.current().geo.BlockSize
	}
	return nil
}

// needless reports whether block b, which has entry e, has a place that it needs not: it reads as zero, and so it
// would in state ZERO.
func (c *compaction) needless(b int64, e ondisk.BATEntry) (bool, error) {
	if !e.Present() {
		return keepsPlace(e), nil
	}
	if c.o.KeepZeros {
		return false, nil
	}
	return c.im.readsZero(b, e)
}

// readsZero reports whether block b, which has entry e, reads as zero. Holes of the file are not read.
func (im *Image) readsZero(b int64, e ondisk.BATEntry) (bool, error) {
	const firstLook = 64 * ondisk.KiB
	g := &im.current().geo
	file := im.current().file
	holes := e.State() == ondisk.FullyPresent && im.current().replay == nil // what is in the file says what the disk reads as
	start, end := b<<g.BlockShift, g.BlockEnd(b)
	buf := make([]byte, firstLook)
	for off := start; off < end; {
		if holes {
			data, err := file.NextData(e.FileOff() + off - start)
			if errors.Is(err, io.EOF) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
			off = start + max(off-start, (data-e.FileOff())&^(ondisk.PageSize-1))
			if off >= end {
				return true, nil
			}
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if n, err := im.ReadAt(p, off); n < len(p) {
			return false, err
		}
		if !allZero(p) {
			return false, nil
		}
		off += int64(len(p))
		if len(buf) < ondisk.MiB {
			buf = make([]byte, ondisk.MiB)
		}
	}
	return true, nil
}
