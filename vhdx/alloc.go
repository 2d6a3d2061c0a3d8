package vhdx

import (
	"errors"
	"io"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// growStep is by how much the file grows at least when it has no free space left, in bytes. Growing seldom keeps
// the file in few pieces and its size out of most syncs.
const growStep = 32 * mib

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
	p, err := w.tryAllocate(size)
	if errors.Is(err, unix.ENOSPC) && w.anyUnmapped() {
		// The disk is full, but for what was trimmed a moment ago.
		if err := w.sync(); err != nil {
			return place{}, err
		}
		p, err = w.tryAllocate(size)
	}
	return p, err
}

func (w *writer) tryAllocate(size int64) (place, error) {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	w.reclaim()
	// The last MiB, where the file ends inside it, is too short for a block.
	if off, ok := w.space.find(size, min(w.fresh, w.size/mib*mib)); ok {
		w.space.mark(off, size)
		return place{off: off, size: size}, nil
	}
	off := w.fresh
	if end := off + size; end > w.size {
		if err := w.grow(roundUp(end, growStep)); err != nil {
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

// grow makes the file longer. Where a hole would make Windows refuse the image, the space is allocated.
func (w *writer) grow(size int64) error {
	if size > maxFileSize {
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

// An allocater is a File that can reserve space.
type allocater interface {
	// Allocate reserves space for n bytes from off on, which read as zero where nothing was, and grows the file.
	Allocate(off, n int64) error
}

// fill gives the n bytes from off on, which read as zero or lie behind the end of the file, space that they
// cannot be refused later.
func (w *writer) fill(off, n int64) error {
	if a, ok := w.file.(allocater); ok {
		if err := a.Allocate(off, n); !unsupported(err) {
			return err
		}
	}
	return w.writeZeros(off, n)
}

// unsupported reports whether err says that a file cannot do this at all, or not with this range.
func unsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// zeroBytes begins at a page: where a program that is killed has not yet touched a page of the memory that it writes, the
// kernel ends the write at that page, and the zeros over what the disk holds must not end inside a sector.
var zeroBytes = zeroRoom[-uintptr(unsafe.Pointer(&zeroRoom))%pageSize:][:1*mib]

var zeroRoom [1*mib + pageSize]byte

func (w *writer) writeZeros(off, n int64) error { return writeZeros(w.file, off, n) }

func writeZeros(f io.WriterAt, off, n int64) error {
	for n > 0 {
		step := min(n, int64(len(zeroBytes)))
		if _, err := f.WriteAt(zeroBytes[:step], off); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
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
	const worthwhile = 64 * kib // writing less is quicker
	from, to := roundUp(off, pageSize), (off+n)/pageSize*pageSize
	if to-from < worthwhile {
		return w.writeZeros(off, n)
	}
	if err := do(from, to-from); unsupported(err) {
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

// giveBack does what reclaim does, for an image that nobody allocates from.
func (w *writer) giveBack() {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	w.reclaim()
}

// reclaim makes the space of unmapped blocks available whose time has come. The caller holds spaceMu.
func (w *writer) reclaim() {
	if len(w.freed) > 0 {
		w.reads.turn() // the reads that it waits for may have been those of an epoch that could not end before
	}
	n := 0
	for ; n < len(w.freed) && w.reads.ended(w.freed[n].epoch); n++ {
		p := w.freed[n].place
		if w.punch {
			// Only a favour to the host's file system: it may fail, since nobody relies on the zeros.
			_ = w.file.PunchHole(p.off, p.size)
		}
		w.space.clear(p.off, p.size)
	}
	w.freed = w.freed[n:]
}

// find returns the first free run of n bytes below the limit.
func (m *spaceMap) find(n, limit int64) (off int64, ok bool) { return m.findFrom(n, 0, limit) }

// findFrom returns the first free run of n bytes from the file offset from on, and below the limit.
func (m *spaceMap) findFrom(n, from, limit int64) (off int64, ok bool) {
	need, run := n/mib, int64(0)
	for i := max(m.firstFree(), from/mib); i < min(m.n, limit/mib); i++ {
		if i%64 == 0 && m.words[i/64] == ^uint64(0) {
			run, i = 0, i+63
			continue
		}
		if m.words[i/64]&(1<<(i%64)) != 0 {
			run = 0
			continue
		}
		if run++; run == need {
			return (i - need + 1) * mib, true
		}
	}
	return 0, false
}

// firstFree returns the first MiB that may be free, and moves the mark below which none is.
func (m *spaceMap) firstFree() int64 {
	for m.low < int64(len(m.words)) && m.words[m.low] == ^uint64(0) {
		m.low++
	}
	return m.low * 64
}

// clear gives the n bytes at file offset off back.
func (m *spaceMap) clear(off, n int64) {
	for i, end := off/mib, min((off+n+mib-1)/mib, m.n); i < end; i++ {
		m.words[i/64] &^= 1 << (i % 64)
		m.low = min(m.low, i/64)
	}
}

// grow extends the map to a file of the given size.
func (m *spaceMap) grow(fileSize int64) {
	m.n = max(m.n, (fileSize+mib-1)/mib)
	for int64(len(m.words)) < (m.n+63)/64 {
		m.words = append(m.words, 0)
	}
}

// end returns the file offset behind the last MiB in use.
func (m *spaceMap) end() int64 {
	for i := len(m.words) - 1; i >= 0; i-- {
		if w := m.words[i]; w != 0 {
			return int64(i*64+64-bits.LeadingZeros64(w)) * mib
		}
	}
	return 0
}
