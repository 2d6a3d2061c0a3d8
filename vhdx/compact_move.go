package vhdx

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// maxMovables bounds the memory for the blocks to be moved in one pass over the BAT: 1.5 MiB.
const maxMovables = 1 << 16

// A movable is a block that may be moved: a payload block, or the sector bitmap block of a chunk.
type movable struct {
	fileOff int64
	n       int64 // of the block, or of the chunk
	bitmap  bool
}

// kind returns 0 for a payload block, and 1 for a sector bitmap block.
func (m movable) kind() int {
	if m.bitmap {
		return 1
	}
	return 0
}

// move moves blocks and the BAT into free space below them. A packing computes the same moves.
func (c *compaction) move() error {
	c.o.Phase("moving blocks", c.w.space.misplaced())
	if err := c.moveBlocks(); err != nil {
		return err
	}
	if moved, err := c.moveBAT(); err != nil || !moved {
		return err
	}
	return c.moveBlocks() // those that were stuck above the BAT
}

// moveBlocks moves the blocks that lie highest in the file into free space below them, the highest first, until none
// finds any.
func (c *compaction) moveBlocks() error {
	counts := c.w.current().blockCounts()
	// Writes may put blocks at the end as fast as they are moved away from there. So each block is moved once only.
	left := counts.FullyPresent + counts.PartiallyPresent + counts.SectorBitmaps
	for {
		blocks, err := c.highest()
		if err != nil {
			return err
		}
		moved, err := c.moveAll(blocks)
		if err != nil || moved == 0 {
			return err
		}
		// Where blocks have been there may be room for others, or for the BAT.
		if err := c.settle(); err != nil {
			return err
		}
		if left -= moved; left <= 0 {
			return nil
		}
	}
}

func (l *layer) blockCounts() BlockCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// highest returns the blocks that lie highest in the file, the highest first, but not more than maxMovables.
func (c *compaction) highest() ([]movable, error) {
	var blocks []movable
	cut := func() {
		slices.SortFunc(blocks, func(a, b movable) int { return cmp.Compare(b.fileOff, a.fileOff) })
		blocks = blocks[:min(len(blocks), maxMovables)]
	}
	err := c.w.current().eachEntry(func(n int64, bitmap bool, e ondisk.BATEntry) error {
		if isMovable(bitmap, e) {
			blocks = append(blocks, movable{e.FileOff(), n, bitmap})
		}
		if len(blocks) == 2*maxMovables {
			cut()
		}
		return c.interrupted()
	})
	cut()
	return blocks, err
}

// isMovable reports whether entry e, of a sector bitmap block or of a payload block, is that of one that may be moved.
func isMovable(bitmap bool, e ondisk.BATEntry) bool {
	if bitmap {
		return e.State() == ondisk.BitmapPresent
	}
	return e.Present()
}

func (c *compaction) interrupted() error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return nil
}

// moveAll moves blocks, and returns how many found a place.
func (c *compaction) moveAll(blocks []movable) (moved int64, err error) {
	var stuck [2]bool // payload blocks, sector bitmap blocks: those that lie lower find no place either
	for _, m := range blocks {
		kind, size := m.kind(), c.w.current().geo.BlockSize
		if m.bitmap {
			size = ondisk.BitmapBlockSize
		}
		if stuck[kind] {
			continue
		}
		if err := c.interrupted(); err != nil {
			return moved, err
		}
		ok, err := c.moveOne(m)
		if errors.Is(err, unix.ENOSPC) && c.unsynced > 0 { // the places of what was moved are space, too
			if err = c.settle(); err == nil {
				ok, err = c.moveOne(m)
			}
		}
		if errors.Is(err, errNoHole) {
			stuck[kind] = true
			continue
		}
		if err != nil {
			return moved, err
		}
		if !ok { // it went away meanwhile
			continue
		}
		moved++
		c.result.Moved += size
		c.o.Progress(size)
		if c.unsynced += size; c.unsynced >= syncEvery {
			c.unsynced = 0
			if err := c.w.sync(); err != nil {
				return moved, err
			}
		}
	}
	return moved, nil
}

func (c *compaction) moveOne(m movable) (ok bool, err error) {
	if m.bitmap {
		return c.w.moveBitmap(m.n, m.fileOff)
	}
	err = c.w.alone(m.n, func() error {
		ok, err = c.w.moveBlock(m.n, m.fileOff)
		return err
	})
	return ok, err
}
