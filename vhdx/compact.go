package vhdx

import (
	"context"
	"errors"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// ErrReshaping is what the methods Compact, Merge, Resize, Grow and Snapshot of an Image return while one of them is under way.
var ErrReshaping = errors.New("the image is already being compacted, merged, resized or frozen")

// CompactOptions says how to compact an image. The functions may be nil.
type CompactOptions struct {
	KeepZeros bool                           // do not read the blocks to find those that hold nothing but zeros
	Phase     func(name string, total int64) // begins a part of the work, of so many bytes as far as is known
	Progress  func(n int64)                  // n more bytes of it are done
}

// withoutNil replaces functions that are nil by functions that do nothing, so that progress is optional.
func withoutNil(phase *func(name string, total int64), progress *func(n int64)) {
	if *phase == nil {
		*phase = func(string, int64) {}
	}
	if *progress == nil {
		*progress = func(int64) {}
	}
}

// A CompactResult says what Compact did. Sizes are in bytes.
type CompactResult struct {
	Before   int64 `json:"file_size_before"`
	After    int64 `json:"file_size_after"`
	Zero     int64 `json:"zero_bytes"`     // of blocks given up because they read as zero
	Unmapped int64 `json:"unmapped_bytes"` // of places given up that blocks kept without being present
	Moved    int64 `json:"moved_bytes"`    // of blocks moved towards the start of the file
}

// syncEvery is how many bytes of blocks are moved before they are made durable, so that a sync of the disk
// meanwhile does not have to wait for more.
const syncEvery = 64 * ondisk.MiB

// Compact makes the image file smaller: blocks that read as zero, and places that blocks keep without being present,
// are given up, blocks at the end of the file move to free space before them, and the end is cut off. What the disk
// reads as stays the same, and so does DataWriteGuid; no block of a differencing disk comes to show its parent.
// Reads and writes may go on. Each block is a step by itself, after which ctx is looked at; when an error,
// ctx or a power cut ends the work, no data is lost and what was done is kept. The blocks of a fixed disk are only
// moved.
func (im *Image) Compact(ctx context.Context, o CompactOptions) (r *CompactResult, err error) {
	withoutNil(&o.Phase, &o.Progress)
	err = im.reshape(func(w *writer) error {
		c := &compaction{im: im, w: w, ctx: ctx, o: o}
		r, c.result.Before = &c.result, w.space.fileSize()
		err := c.run()
		c.result.After = w.space.fileSize()
		return err
	})
	return r, err
}

// A compaction is one call of Compact.
type compaction struct {
	im       *Image
	w        *writer
	ctx      context.Context
	o        CompactOptions
	result   CompactResult
	unsynced int64 // bytes moved since the last sync
}

func (c *compaction) run() error {
	if err := c.releaseBlocks(); err != nil {
		return err
	}
	// Blocks can move to the space that was given up once its unmapping is durable and no read uses it any more.
	if err := c.settle(); err != nil {
		return err
	}
	if err := c.move(); err != nil {
		return err
	}
	if err := c.settle(); err != nil {
		return err
	}
	return c.w.cleanAndShrink()
}

// settle makes what was done durable and waits for the reads that may still look at what was given up.
func (c *compaction) settle() error {
	c.unsynced = 0
	if err := c.w.sync(); err != nil {
		return err
	}
	return c.w.space.drain(c.ctx)
}

// eachEntry calls do for every BAT entry that describes something and is not zero, in the order of the BAT: that of
// payload block n, or of the sector bitmap block of chunk n. Others may change the BAT meanwhile. Unless broken rules are
// collected, an entry that is not followable is an error.
func (l *layer) eachEntry(do func(n int64, bitmap bool, e ondisk.BATEntry) error) error {
	entries := l.geo.BATEntries()
	var words [ondisk.EntriesPerPage]uint64
	for i := int64(0); i < entries; i += ondisk.EntriesPerPage {
		zero := false
		err := l.bat.Read(i/ondisk.EntriesPerPage, func(p *cache.Page) {
			if zero = p.Zero(); zero {
				return
			}
			for k := range words {
				words[k] = p.Word(k)
			}
		})
		if err != nil {
			return err
		}
		if zero {
			continue
		}
		for j := i; j < min(i+ondisk.EntriesPerPage, entries); j++ {
			e := ondisk.BATEntry(words[j-i])
			if e == 0 {
				continue
			}
			n, bitmap := l.geo.Entry(j)
			if bitmap && !l.geo.HasParent || !bitmap && n >= l.geo.PayloadBlocks() {
				continue
			}
			if !bitmap && !l.collect && !e.Followable(l.geo.BlockSize) {
				return l.unfollowable(e, n)
			}
			if err := do(n, bitmap, e); err != nil {
				return err
			}
		}
	}
	return nil
}
