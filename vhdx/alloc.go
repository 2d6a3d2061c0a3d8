package vhdx

import (
	"context"
	"fmt"
	"io"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vhdxfs/vhdx/imagefile"
	"vhdxfs/vhdx/ondisk"
)

// growStep is by how much the file grows at least when it has no free space left, in bytes. Growing seldom keeps
// the file in few pieces and its size out of most syncs.
const growStep = 32 * ondisk.MiB

// A place is space in the file for a block.
type place struct {
	off, size int64 // bytes
	// fresh space was added to the file since it was opened and never given to a block: it reads as zero, even
	// if the power fails. All other space may hold old bytes until they are overwritten and synced.
	fresh bool
}

// allocate finds space for size bytes, a multiple of 1 MiB: free space inside the file first, or else new space
// at its end.
func (w *writer) allocate(size int64) (place, error) {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	for more := true; more; {
		more = w.reclaim(reclaimStep)
		// The last MiB, where the file ends inside it, is too short for a block.
		if off, ok := w.space.find(size, min(w.fresh, w.size/ondisk.MiB*ondisk.MiB)); ok {
			w.space.mark(off, size)
			return place{off: off, size: size}, nil
		}
	}
	off := w.fresh
	if end := off + size; end > w.size {
		if err := w.grow(ondisk.RoundUp(end, growStep)); err != nil {
			// A smaller step may do on a disk that is nearly full.
			if err := w.grow(end); err != nil {
				return place{}, err
			}
		}
	}
	w.space.grow(w.size)
	w.space.mark(off, size)
	w.fresh = off + size
	// Zeros that had to be written are as durable as any other payload.
	return place{off: off, size: size, fresh: w.holes}, nil
}

// growTo makes the file longer unless it has so many bytes already.
func (w *writer) growTo(size int64) error {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	if size <= w.size {
		return nil
	}
	return w.grow(size)
}

// grow makes the file longer. Where a hole would make Windows refuse the image, the space is allocated.
func (w *writer) grow(size int64) error {
	if size > ondisk.MaxFileSize {
		return unix.EFBIG
	}
	if !w.holes {
		if err := w.fill(w.size, size-w.size); err != nil {
			return err
		}
	} else if err := w.file.Truncate(size); err != nil {
		return err
	}
	w.size = size
	return nil
}

// withSpace calls do, and again if there was no space for it and some could be found: what was trimmed but is not durable
// yet, or is still read. The caller holds no lock but the gate.
func (w *writer) withSpace(do func() error) error {
	const patience = 10 * time.Second // with reads
	err := do()
	if !outOfSpace(err) {
		return err
	}
	unmapped := w.anyUnmapped()
	if unmapped && w.sync() != nil || !unmapped && !w.anyFreed() {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if w.drain(ctx) != nil {
		return err
	}
	return do()
}

// reserve gives the place of b at file offset off, which holds b, space that it cannot be refused later.
func (w *writer) reserve(off int64, b []byte) error {
	if err := w.file.Allocate(off, int64(len(b))); !imagefile.IsUnsupported(err) {
		return err
	}
	_, err := w.file.WriteAt(b, off)
	return err
}

// fill gives the n bytes from off on, which read as zero or lie behind the end of the file, space that they
// cannot be refused later.
func (w *writer) fill(off, n int64) error {
	if err := w.file.Allocate(off, n); !imagefile.IsUnsupported(err) {
		return err
	}
	return w.writeZeros(off, n)
}

// zeroBytes begins at a page; see zerosAt.
var zeroBytes = zeroRoom[-uintptr(unsafe.Pointer(&zeroRoom))%ondisk.PageSize:][:1*ondisk.MiB]

var zeroRoom [1*ondisk.MiB + ondisk.PageSize]byte

func (w *writer) writeZeros(off, n int64) error { return writeZeros(w.file, off, n) }

func writeZeros(f io.WriterAt, off, n int64) error {
	for n > 0 {
		p := zerosAt(off, n)
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// zerosAt returns up to n zeros to be written at byte off, from memory in which pages begin where they do in the file:
// where a program that is killed has not yet touched a page of the memory that it writes, the kernel ends the write at that
// page, and the zeros over what the disk holds must not end inside a sector.
func zerosAt(off, n int64) []byte {
	p := zeroBytes[off%ondisk.PageSize:]
	return p[:min(n, int64(len(p)))]
}

// zero makes the n bytes from off on, inside a block's place, read as zero.
func (w *writer) zero(off, n int64) error {
	if !w.holes {
		return w.writeZeros(off, n)
	}
	return w.zeroWith(off, n, w.file.PunchHole)
}

// zeroWith makes the n bytes from off on read as zero: with do as far as file systems and devices can do it, in
// units of 4 KiB, and with writes at the edges, or wherever do cannot.
func (w *writer) zeroWith(off, n int64, do func(off, n int64) error) error {
	const worthwhile = 64 * ondisk.KiB // writing less is quicker
	from, to := ondisk.RoundUp(off, ondisk.PageSize), (off+n)/ondisk.PageSize*ondisk.PageSize
	if to-from < worthwhile {
		return w.writeZeros(off, n)
	}
	if err := do(from, to-from); imagefile.IsUnsupported(err) {
		return w.writeZeros(off, n)
	} else if err != nil {
		return err
	}
	if err := w.writeZeros(off, from-off); err != nil {
		return err
	}
	return w.writeZeros(to, off+n-to)
}

// release puts back the space of a block that was never mapped.
func (w *writer) release(p place) {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	w.space.clear(p.off, p.size)
}

// A freed is the place of a block that was unmapped. It can be given away when the log says so durably, and when
// every read has ended that may have found the block there.
type freed struct {
	place
	epoch uint64 // of the reads to wait for
}

// anyUnmapped reports whether space waits to be given up.
func (w *writer) anyUnmapped() bool {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	return len(w.unmapped) > 0
}

// anyFreed reports whether space waits for reads to end, or to be given back.
func (w *writer) anyFreed() bool {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	return len(w.freed) > 0
}

// reclaimStep is how many bytes one step of reclaim gives back to the host's file system. An allocation waits for one
// such step at a time.
const reclaimStep = 64 * ondisk.MiB

// giveBack does what reclaim does, in steps, so that an allocation that comes meanwhile waits for one of
// them only.
func (w *writer) giveBack() {
	for w.reclaimStep() {
	}
}

func (w *writer) reclaimStep() (more bool) {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	return w.reclaim(reclaimStep)
}

// reclaim makes up to n bytes of the space of unmapped blocks available whose time has come, and reports whether there
// was any. The caller holds spaceMu.
func (w *writer) reclaim(n int64) bool {
	places := w.takeFreed(n)
	for _, p := range places {
		if w.punch {
			// The hole only saves space on the host. It may fail: the next block in this place zeroes it anew.
			_ = w.file.PunchHole(p.off, p.size)
		}
	}
	return len(places) > 0
}

// takeFreed is reclaim without the holes in the file, and returns where they may be. The caller holds spaceMu.
func (w *writer) takeFreed(n int64) (places []place) {
	if len(w.freed) > 0 {
		w.reads.turn() // the reads that it waits for may have been those of an epoch that could not end before
	}
	for n > 0 && len(w.freed) > 0 && w.reads.ended(w.freed[0].epoch) {
		first := &w.freed[0].place
		p := place{off: first.off, size: min(first.size, n)}
		first.off, first.size, n = first.off+p.size, first.size-p.size, n-p.size
		if first.size == 0 {
			w.freed = w.freed[1:]
		}
		if !w.space.clear(p.off, p.size) {
			_ = w.fail(fmt.Errorf("a block gave up %d bytes at %#x of the file, which no block used: another program has changed the block table", p.size, uint64(p.off)))
			continue
		}
		places = append(places, p)
	}
	return places
}

// putBack undoes takeFreed for places that were not allocated since. The caller holds spaceMu.
func (w *writer) putBack(places []place) {
	again := make([]freed, 0, len(places)+len(w.freed))
	for _, p := range places {
		w.space.mark(p.off, p.size)
		again = append(again, freed{p, 0}) // the reads of that epoch have ended
	}
	w.freed = append(again, w.freed...)
}
