package vhdx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// ErrBeyondEnd is matched by the error for a change that does not lie inside the disk. Nothing was changed.
var ErrBeyondEnd = errors.New("it is not inside the disk")

// WriteAt writes p to the virtual disk from byte off, which need not be aligned (MS-VHDX 2.5.1.1 has the states of the blocks). What
// it wrote is durable after the next Sync. It returns ErrReadOnly or ErrBeyondEnd, having written nothing, and an error of the
// file, such as ENOSPC, after having written all before the block that failed. ErrFailed and ErrTakenOver last until the image
// is opened again. Any number of goroutines may call it; where their ranges overlap, one of them wins sector by sector.
func (im *Image) WriteAt(p []byte, off int64) (done int, err error) {
	w, err := im.changing(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer w.catch(&err)
	// With the gate held, the layer stays the same, and a change that was announced stays so until its bytes are in the file:
	// the image is made clean only between two calls.
	w.gate.RLock()
	defer w.gate.RUnlock()
	for done < len(p) {
		at := off + int64(done)
		b := at >> w.current().geo.BlockShift
		n := min(int64(len(p)-done), w.current().geo.BlockEnd(b)-at)
		err := w.withSpace(func() error { return w.writeBlock(b, at, p[done:][:n]) })
		w.noted(at, n) // also after an error: a part of it may be there
		if err != nil {
			return done, fmt.Errorf("write %d bytes of the disk at %#x: %w", n, at, err)
		}
		done += int(n)
	}
	return done, nil
}

// changing returns the writer for a change of the n bytes from byte off. It reads the size without the gate: while a disk is in
// use it only grows, so what fits now fits when the change is made.
func (im *Image) changing(off, n int64) (*writer, error) {
	if im.writer == nil {
		return nil, ErrReadOnly
	}
	if off < 0 || n < 0 || n > im.Size()-off {
		return nil, fmt.Errorf("%d bytes at %#x of a disk of %#x bytes: %w", n, off, im.Size(), ErrBeyondEnd)
	}
	return im.writer, im.writer.settle()
}

// withSpace calls do, and again if there was no space for it and some could be found: what was trimmed but is not durable
// yet, or is still read. The caller holds no lock but the gate.
func (w *writer) withSpace(do func() error) error {
	const patience = 10 * time.Second // with reads
	err := do()
	if !outOfSpace(err) {
		return err
	}
	// Both answers may be old by the time they are used. Then the caller gets ENOSPC a moment too early, or waits in vain.
	unmapped := w.dirty.anyUnmapped()
	if unmapped && w.sync() != nil || !unmapped && !w.space.anyFreed() {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if w.space.drain(ctx) != nil {
		return err
	}
	return do()
}

// A source is what a change puts into the file: bytes, or those of another file whose space the file is to share.
type source struct {
	p []byte

	from    File // nil for p
	fromOff int64
	n       int64 // of from, in bytes
}

func (s source) len() int64 {
	if s.from != nil {
		return s.n
	}
	return int64(len(s.p))
}

// put puts s at file offset off.
func (s source) put(to File, off int64) (err error) {
	if s.from != nil {
		return to.Clone(off, s.from, s.fromOff, s.n)
	}
	_, err = to.WriteAt(s.p, off)
	return err
}

// writeBlock writes p to byte off in payload block b. Between the two attempts the block's lock is free, so writeAlone looks at
// the BAT entry anew.
func (w *writer) writeBlock(b, off int64, p []byte) error {
	if done, err := w.overwrite(b, off, p); done || err != nil {
		return err
	}
	// Alone: between the look at the entry and the change of it no other write may put its bytes into the old place, or they
	// would be lost.
	lock := w.blocks.of(b)
	lock.Lock()
	defer lock.Unlock()
	return w.writeAlone(b, off, source{p: p})
}

// overwrite writes p in place, and reports false if that is not all there is to do. It reads the BAT entry and the bits of the
// sector bitmap without a lock of the pages: they change only with the block's lock held alone, or with the gate held alone, and this
// write holds both shared. So the place stays the block's until the bytes are in it.
func (w *writer) overwrite(b, off int64, p []byte) (done bool, err error) {
	lock := w.blocks.of(b)
	lock.RLock()
	defer lock.RUnlock()
	entry, _, err := w.current().lookup(off, off+1)
	if err != nil {
		return false, err
	}
	switch entry.State() {
	case ondisk.FullyPresent:
	case ondisk.PartiallyPresent:
		if !w.current().aligned(off, int64(len(p))) {
			return false, nil
		}
		here, end, err := w.current().sectorRun(off, off+int64(len(p)))
		if err != nil || !here || end < off+int64(len(p)) {
			return false, err
		}
	default:
		return false, nil
	}
	return true, w.writePlace(entry, off, source{p: p})
}

// aligned reports whether the n bytes from off on are whole sectors.
func (l *layer) aligned(off, n int64) bool {
	return (off|n)&(l.geo.SectorSize-1) == 0
}

// writePlace puts s into the place of the present block that has the given entry. The headers tell of the change, durably,
// before the bytes can be in the file. A round learns of the change after they are, also after an error: a part of it may be
// there, and the next sync has to cover it.
func (w *writer) writePlace(entry ondisk.BATEntry, off int64, s source) error {
	if err := w.announce(dataWrite); err != nil {
		return err
	}
	defer w.changed()
	return s.put(w.file, entry.FileOff()+w.current().geo.InBlock(off))
}

// writeAlone puts s at byte off in block b, whose lock the caller holds alone (MS-VHDX 2.5.1.1).
func (w *writer) writeAlone(b, off int64, s source) error {
	entry, _, err := w.current().lookup(off, off+1)
	if err != nil {
		return err
	}
	whole := w.current().wholeBlock(b, off, s.len())
	switch st := entry.State(); {
	case st == ondisk.FullyPresent:
		return w.writePlace(entry, off, s)
	case st == ondisk.PartiallyPresent:
		return w.writePartial(b, entry, off, s)
	case st == ondisk.NotPresent && w.current().geo.HasParent && !whole:
		return w.newPartial(b, off, s) // the parent still has the rest of the block
	case w.detectZeroes && s.from == nil && allZero(s.p):
		// Only a state of the block hides the parent. And a place that the block keeps holds old bytes, which other readers
		// may show.
		if st == ondisk.NotPresent && w.current().geo.HasParent || entry.Offset() != 0 {
			return w.unmap(b, entry, dataWrite)
		}
		return nil // it reads as zero already
	default: // all of the block reads as zero, or s covers it
		return w.newFull(b, off, s)
	}
}

// wholeBlock reports whether the n bytes from off on are all of block b that the disk has.
func (l *layer) wholeBlock(b, off, n int64) bool {
	return l.geo.InBlock(off) == 0 && off+n == l.geo.BlockEnd(b)
}

// newFull gives block b a place that holds s at byte off and zeros elsewhere. If s is empty it only reserves the place,
// which no reader of the disk can see.
//
// Everything that can fail comes before apply: an error, such as ENOSPC, leaves the block as it was, and end returns the
// place. Reads that take no lock find the new entry only when all bytes of the block are in the file.
func (w *writer) newFull(b, off int64, s source) error {
	g := &w.current().geo
	kind := dataWrite
	if s.len() == 0 {
		kind = fileWrite
	}
	e, err := w.edit(kind, 1)
	if err != nil {
		return err
	}
	defer e.end()
	bat, word, err := e.batPage(g.PayloadEntry(b))
	if err == nil {
		err = w.announce(kind)
	}
	if err != nil {
		return err
	}
	at, err := e.allocate(g.BlockSize)
	if err != nil {
		return err
	}
	if err := w.fillBlock(at, g.InBlock(off), s); err != nil {
		return err
	}
	e.apply(func() {
		w.releaseEntry(ondisk.BATEntry(bat.Word(word))) // a place that the block has kept; not given away before this is durable
		w.setEntry(bat, word, ondisk.NewBATEntry(ondisk.FullyPresent, at.off))
		// A power cut that keeps the entry without the bytes would show another block's old bytes in recycled space, and
		// hide the parent's data behind zeros. In fresh space without a parent it shows zeros, as the block did before.
		w.dirty.barrier = w.dirty.barrier || !at.fresh || g.HasParent
	})
	return nil
}

// fillBlock puts s at byte in of the place at, and zeros to the rest of it. Fresh space reads as zero without that. Nothing
// names the place yet, so the order of these writes does not matter.
func (w *writer) fillBlock(at place, in int64, s source) error {
	if !at.fresh {
		if err := w.space.zero(at.off, in); err != nil {
			return err
		}
		end := in + s.len()
		if err := w.space.zero(at.off+end, at.size-end); err != nil {
			return err
		}
	}
	if s.len() == 0 {
		return w.space.fill(at.off, at.size)
	}
	return s.put(w.file, at.off+in)
}

// setEntry changes a BAT entry of a payload block. The caller is in an edit's apply.
func (w *writer) setEntry(bat *cache.Page, word int, e ondisk.BATEntry) {
	before := ondisk.BATEntry(bat.Word(word)).State()
	w.current().count(before, -1)
	w.current().count(e.State(), 1)
	w.counters.block(before, e.State())
	bat.SetWord(word, uint64(e))
}

// writePartial puts s at byte off in the partially present block b, whose lock the caller holds alone. The bytes come
// first: until their bits are set, reads take these sectors from the parent.
func (w *writer) writePartial(b int64, entry ondisk.BATEntry, off int64, s source) error {
	off, s, err := w.wholeSectors(off, s)
	if err != nil {
		return err
	}
	if err := w.writePlace(entry, off, s); err != nil {
		return err
	}
	// The bits cannot change before apply, since the block's lock is held alone.
	here, end, err := w.current().sectorRun(off, off+s.len())
	if err != nil || here && end == off+s.len() {
		return err
	}
	e, err := w.edit(dataWrite, w.current().bitmapPages()+1)
	if err != nil {
		return err
	}
	defer e.end()
	bits, err := e.bits(w.current().bitmaps[b>>w.current().geo.ChunkShift].Load(), b)
	if err != nil {
		return err
	}
	bat, word, err := e.batPage(w.current().geo.PayloadEntry(b))
	if err != nil {
		return err
	}
	e.apply(func() {
		// A read between these two finds the block partially present with the new bits, which is right: the bytes are in the
		// file, and the place stays the same.
		bits.set(w.current().sectorInBlock(off), s.len()>>w.current().geo.SectorShift)
		if bits.all() {
			w.setEntry(bat, word, ondisk.NewBATEntry(ondisk.FullyPresent, entry.FileOff()))
		}
		w.dirty.barrier = true // bits that outlive their bytes would hide the parent's data
	})
	return nil
}

// newPartial gives block b, which the parent holds so far, a place that holds the sectors of s at byte off. All
// other sectors remain the parent's; their part of the place is not written, since their bits keep every reader away.
func (w *writer) newPartial(b, off int64, s source) error {
	off, s, err := w.wholeSectors(off, s)
	if err != nil {
		return err
	}
	g := &w.current().geo
	// Two pages of the BAT, for the block and for its chunk's sector bitmap block, and the bits.
	e, err := w.edit(dataWrite, w.current().bitmapPages()+2)
	if err != nil {
		return err
	}
	defer e.end()
	bat, word, err := e.batPage(g.PayloadEntry(b))
	if err == nil {
		err = w.announce(dataWrite)
	}
	if err != nil {
		return err
	}
	chunk := b >> g.ChunkShift
	bitmap := w.current().bitmaps[chunk].Load()
	publish := func() {}
	// A bitmap that is there stays until the gate is held alone, so it can be read without a lock. chunkMu is held up to
	// the end of the edit, or a write to another block of the chunk could make a second one.
	if bitmap == nil {
		w.chunkMu.Lock()
		defer w.chunkMu.Unlock()
		if bitmap = w.current().bitmaps[chunk].Load(); bitmap == nil {
			if bitmap, publish, err = w.newBitmap(e, chunk); err != nil {
				return err
			}
		}
	}
	bits, err := e.bits(bitmap, b)
	if err != nil {
		return err
	}
	at, err := e.allocate(g.BlockSize)
	if err != nil {
		return err
	}
	// Before apply nothing names the place. After an error it goes back, and no bit is set.
	if err := s.put(w.file, at.off+g.InBlock(off)); err != nil {
		return err
	}
	// Reads take no lock: they look at the entry first, then at the bitmap. So the bitmap and the bits have to be there
	// before the entry says that they count.
	e.apply(func() {
		publish()
		bits.clear() // those of a block that is not partially present mean nothing, and may be set
		bits.set(w.current().sectorInBlock(off), s.len()>>g.SectorShift)
		w.setEntry(bat, word, ondisk.NewBATEntry(ondisk.PartiallyPresent, at.off))
		w.dirty.barrier = true // the entry and the bits hide the parent's data
	})
	return nil
}

// newBitmap makes a sector bitmap block for a chunk that has none. It exists when publish is called, in the
// edit's apply.
func (w *writer) newBitmap(e *edit, chunk int64) (bitmap *cache.Span, publish func(), err error) {
	bat, word, err := e.batPage(w.current().geo.BitmapEntry(chunk))
	if err != nil {
		return nil, nil, err
	}
	at, err := e.allocate(ondisk.BitmapBlockSize)
	if err != nil {
		return nil, nil, err
	}
	// Only some pages of the new bitmap go through the log. The others have to be zero in the file, or old bytes would count
	// as bits; the barrier of newPartial makes these zeros durable before the entry that names the bitmap.
	if !at.fresh {
		if err := w.space.zero(at.off, at.size); err != nil {
			return nil, nil, err
		}
	}
	// No page of it is read from the file before it is named: fresh space reads as zero, and other space was zeroed above.
	bitmap = w.current().cache.Span(w.file, at.off, ondisk.BitmapBlockSize/ondisk.PageSize)
	bitmap.MarkZero(0, ondisk.BitmapBlockSize/ondisk.PageSize)
	return bitmap, func() {
		// Reads find the bitmap through the pointer, and look for it only when a block's entry says so, which newPartial sets
		// after this. So the order here is free; the log has both words or neither.
		bat.SetWord(word, uint64(ondisk.NewBATEntry(ondisk.BitmapPresent, at.off)))
		w.current().bitmaps[chunk].Store(bitmap)
		w.current().countBitmap()
	}, nil
}

// wholeSectors widens s, at byte off, to whole sectors: what is added is read from the disk as it is. The caller holds the
// block's lock alone, so it is still true when it is written, and the block keeps the place that is read. What is shared with
// another file is whole sectors.
func (w *writer) wholeSectors(off int64, s source) (int64, source, error) {
	if w.current().aligned(off, s.len()) {
		return off, s, nil
	}
	p, size := s.p, w.current().geo.SectorSize
	start, end := off&^(size-1), ondisk.RoundUp(off+int64(len(p)), size)
	wide := make([]byte, end-start)
	im := Image{own: w.own, writer: w} // with it, the read announces itself: a merge may be about to close a parent
	if _, err := im.ReadAt(wide[:size], start); err != nil {
		return 0, s, err
	}
	if _, err := im.ReadAt(wide[len(wide)-int(size):], end-size); err != nil {
		return 0, s, err
	}
	copy(wide[off-start:], p)
	return start, source{p: wide}, nil
}
