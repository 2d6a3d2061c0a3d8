package vhdx

import (
	"fmt"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Zero makes the n bytes from byte off read as zero, and gives up the space of the blocks that lie wholly inside
// them, which get the state ZERO (MS-VHDX 2.5.1.1), unless the disk is fixed. In a differencing disk it never uncovers the parent's
// data. Like a write, it is durable after the next Sync, and its errors are those of WriteAt. What reads as zero already costs
// nothing.
func (im *Image) Zero(off, n int64) error {
	return im.eachHeld(off, n, func(w *writer, b, off, end int64) error { return w.zeroBlock(b, off, end) })
}

// Discard is Zero where the image is mounted with discards, and ErrNoDiscard elsewhere.
func (im *Image) Discard(off, n int64) error {
	if im.writer != nil && !im.writer.trims {
		return ErrNoDiscard
	}
	return im.Zero(off, n)
}

// eachHeld calls do, with the block's lock held alone, for the part of each block between off and off+n that may
// hold data, here or in a parent.
func (im *Image) eachHeld(off, n int64, do func(w *writer, b, off, end int64) error) (err error) {
	w, err := im.changing(off, n)
	if err != nil {
		return err
	}
	defer w.catch(&err)
	first := off
	for end := off + n; off < end; {
		// Without a lock. What it finds may be old when do is called, which looks at the block again with the lock held. A block
		// that was written since, and that this passes over, was written at the same time as this call.
		e, err := im.look(off, end)
		if err != nil {
			return err
		}
		if e.File == nil && !(e.Layer == 0 && mayKeepPlace(e.State)) {
			off = e.End()
			continue
		}
		// The block may begin with what reads as zero, and still has to be treated as a whole.
		to := off
		err = w.withSpace(func() error {
			return w.aloneAt(off, func(b int64, g *ondisk.Geometry) error {
				from := max(first, b<<g.BlockShift)
				to = min(end, g.BlockEnd(b))
				defer w.noted(from, to-from)
				return do(w, b, from, to)
			})
		})
		if err != nil {
			return fmt.Errorf("zero %d bytes of the disk at %#x: %w", to-off, off, err)
		}
		off = to
	}
	return nil
}

// alone calls do with the lock of block b held alone, and the gate. A caller with many blocks takes both anew
// for each, so that other changes get their turn.
func (w *writer) alone(b int64, do func() error) (err error) {
	defer w.catch(&err)
	w.gate.RLock()
	defer w.gate.RUnlock()
	lock := w.blocks.of(b)
	lock.Lock()
	defer lock.Unlock()
	return do()
}

// aloneAt is alone for the block that has byte off. Of a disk in use, it may be another one with each layer.
func (w *writer) aloneAt(off int64, do func(b int64, g *ondisk.Geometry) error) (err error) {
	defer w.catch(&err)
	w.gate.RLock()
	defer w.gate.RUnlock()
	g := &w.current().geo
	lock := w.blocks.of(off >> g.BlockShift)
	lock.Lock()
	defer lock.Unlock()
	return do(off>>g.BlockShift, g)
}

// zeroBlock makes the bytes from off to end of block b read as zero.
func (w *writer) zeroBlock(b, off, end int64) error {
	entry, _, err := w.current().lookup(off, off+1)
	if err != nil {
		return err
	}
	st := entry.State()
	keep := w.current().keepsBlocks()
	switch whole := w.current().wholeBlock(b, off, end-off); {
	case whole && !keep && (entry.Present() || st == ondisk.NotPresent && w.current().geo.HasParent):
		return w.unmap(b, entry, dataWrite)
	case st == ondisk.FullyPresent:
		if err := w.announce(dataWrite); err != nil {
			return err
		}
		defer w.changed()
		return w.space.zeroPlace(entry.FileOff()+w.current().geo.InBlock(off), end-off, keep)
	case st == ondisk.PartiallyPresent || st == ondisk.NotPresent && w.current().geo.HasParent:
		return w.writeZeroSectors(b, off, end)
	case keepsPlace(entry):
		return w.unmap(b, entry, dataWrite) // other readers may show what is still in that place
	}
	return nil // it reads as zero
}

// writeZeroSectors writes zeros over what the parent holds of block b from off to end.
func (w *writer) writeZeroSectors(b, off, end int64) error {
	for off < end {
		p := zerosAt(off, end-off)
		if err := w.writeAlone(b, off, source{p: p}); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// unmap moves block b, which has the given entry, to state ZERO: of the states without a place it is the one that
// promises zeros to every reader, and hides the parent. Its place is given up.
//
// This needs no barrier: after a power cut the block is ZERO, or it still has its old place. The old bytes are there, since
// the place is not punched or given away before the log entry is durable.
func (w *writer) unmap(b int64, entry ondisk.BATEntry, kind writeKind) error {
	e, err := w.editFreeing(kind, 1)
	if err != nil {
		return err
	}
	defer e.end()
	bat, word, err := e.batPage(w.current().geo.PayloadEntry(b))
	if err == nil {
		err = w.announce(kind)
	}
	if err != nil {
		return err
	}
	e.apply(func() {
		// A set offset in this state makes Hyper-V refuse the image.
		w.setEntry(bat, word, ondisk.NewBATEntry(ondisk.Zero, 0))
		w.releaseEntry(entry)
	})
	return nil
}

// releaseEntry releases the place of a block that had the given entry. The caller is in an edit's apply.
func (w *writer) releaseEntry(entry ondisk.BATEntry) {
	if entry.Present() || keepsPlace(entry) && !w.current().keptShared {
		w.dirty.unmapped = append(w.dirty.unmapped, place{off: entry.FileOff(), size: w.current().geo.BlockSize})
	}
}

// Allocate gives every block that has bytes between off and off+n a place, so that writing there cannot fail for
// want of space. What the disk reads as stays the same. Blocks that show a parent's data are left alone. Its errors are those of
// WriteAt.
func (im *Image) Allocate(off, n int64) error {
	w, err := im.changing(off, n)
	if err != nil {
		return err
	}
	for end := off + n; off < end; {
		to := off
		err := w.withSpace(func() error {
			return w.aloneAt(off, func(b int64, g *ondisk.Geometry) error {
				to = g.BlockEnd(b)
				return w.allocateBlock(b, off)
			})
		})
		if err != nil {
			return fmt.Errorf("allocate the block of the disk at %#x: %w", off, err)
		}
		off = to
	}
	return nil
}

func (w *writer) allocateBlock(b, off int64) error {
	entry, _, err := w.current().lookup(off, off+1)
	if err != nil {
		return err
	}
	switch {
	case entry.State() == ondisk.NotPresent && w.current().geo.HasParent:
		return nil
	case entry.Present():
		// A last block that the end of the file cuts ends there.
		n := min(w.current().geo.BlockSize, w.space.fileSize()-entry.FileOff())
		if err := w.announce(fileWrite); err != nil {
			return err
		}
		if err := w.file.Allocate(entry.FileOff(), n); !imagefile.IsUnsupported(err) {
			return err
		}
		return nil
	}
	return w.newFull(b, b<<w.current().geo.BlockShift, source{})
}
