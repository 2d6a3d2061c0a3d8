package vhdx

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// An allocator owns the space of the image file: which of it is in use, how large the file is, and what was given up and is
// not free yet. What always holds, where mu is not held:
//
//   - used has everything that the file holds: the blocks and other objects of the BAT in memory, of the BAT in the log, and of
//     the BAT in its place. So nothing that a power cut can bring back is given away.
//   - freed has the places whose unmapping is durable, in the order of their epochs, all of them in used as well. They leave
//     both when the reads of their epoch have ended: those may have found the block there.
//   - No space from fresh on was ever in use: it reads as zero, even after a power cut, where the file may have holes.
//   - size is the file's, and no place reaches beyond it but a last block that the end of the file cuts.
//
// What is written to a place, and when its mapping is durable, is the caller's business; a place that was never mapped is given
// back by release, one that was by retire.
type allocator struct {
	*failure
	gaveUp func()      // called when space waits to be given back
	reads  *readEpochs // readers take no lock
	holes  bool        // the file may have holes at all
	punch  bool        // and gets them where space is given up

	discard DiscardMode // says so

	settled atomic.Bool // the space that is free is known; read without mu, and set once, see writer.settle

	mu    sync.Mutex // guards what follows; also held while the file grows or is cut, and for one step of punching holes
	file  File       // that of the current layer; replaced with mu and the gate held, so that who has either may use it
	used  *spaceMap
	size  int64 // of the file, bytes
	fresh int64 // file offset
	freed []freed
}

// A place is space in the file for a block.
type place struct {
	off, size int64 // bytes
	// fresh space was added to the file since it was opened and never given to a block: it reads as zero, even
	// if the power fails. All other space may hold old bytes until they are overwritten and synced.
	fresh bool
}

// growStep is by how much the file grows at least when it has no free space left, in bytes. Growing seldom keeps
// the file in few pieces and its size out of most syncs.
const growStep = 32 * ondisk.MiB

// use takes the space of file, that of layer l, which knows of nothing that was given up.
func (a *allocator) use(l *layer, file File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.take(l, file)
}

// take does what use does. The caller holds mu.
func (a *allocator) take(l *layer, file File) {
	a.file, a.used, a.size, a.freed = file, l.space, l.fileSize, nil
	a.holes = file.Sparse()
	a.punch = a.discard == DiscardPunch || a.holes && (a.discard == DiscardAuto || a.discard == "")
	l.owner.Store(a)
	// Behind the last MiB of the file, and behind a last block that the end of the file cuts.
	a.fresh = max(ondisk.RoundUp(a.size, ondisk.MiB), a.used.n*ondisk.MiB)
	a.used.grow(a.fresh)
}

// settle takes the space of layer l anew, now that all of it is known, unless that was done before.
func (a *allocator) settle(l *layer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.settled.Load() {
		a.take(l, a.file)
		a.settled.Store(true)
	}
}

// allocate finds space for size bytes, a multiple of 1 MiB: free space inside the file first, or else new space
// at its end.
func (a *allocator) allocate(size int64) (place, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Space that was given up is looked at first, a step at a time: it may be all there is, and a file that grows costs a sync
	// of its size. What reclaim makes available no read looks at any more, and no log entry to be replayed maps.
	for more := true; more; {
		more = a.reclaim(reclaimStep)
		// The last MiB, where the file ends inside it, is too short for a block.
		if off, ok := a.used.find(size, min(a.fresh, a.size/ondisk.MiB*ondisk.MiB)); ok {
			a.used.mark(off, size)
			return place{off: off, size: size}, nil
		}
	}
	// The new size need not be durable before the place is mapped: a log entry that names the place says how large the file has
	// to be, and a replay makes it so. What is lost of the file then reads as zeros, as fresh space does.
	off := a.fresh
	if end := off + size; end > a.size {
		if err := a.grow(ondisk.RoundUp(end, growStep)); err != nil {
			// A smaller step may do on a disk that is nearly full.
			if err := a.grow(end); err != nil {
				return place{}, err
			}
		}
	}
	a.used.grow(a.size)
	a.used.mark(off, size)
	a.fresh = off + size
	// Zeros that had to be written are as durable as any other payload.
	return place{off: off, size: size, fresh: a.holes}, nil
}

// allocateBelow finds free space for size bytes that ends at or before the file offset limit.
func (a *allocator) allocateBelow(size, limit int64) (place, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	off, ok := a.used.find(size, limit)
	if !ok {
		return place{}, errNoHole
	}
	a.used.mark(off, size)
	return place{off: off, size: size}, nil
}

// growTo makes the file longer unless it has so many bytes already.
func (a *allocator) growTo(size int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if size <= a.size {
		return nil
	}
	return a.grow(size)
}

// grow makes the file longer.
func (a *allocator) grow(size int64) error {
	if size > ondisk.MaxFileSize {
		return unix.EFBIG
	}
	if err := lengthen(a.file, a.size, size); err != nil {
		return err
	}
	a.size = size
	return nil
}

// cut cuts the file off at end, behind which nothing is in use, and syncs it. The caller holds the gate alone, so nothing is put
// there meanwhile.
func (a *allocator) cut(end int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.file.Truncate(end); err != nil {
		return err
	}
	a.size, a.fresh = end, end
	a.used.cut(end)
	return a.durable(a.file)
}

// fileSize returns the size of the file in bytes.
func (a *allocator) fileSize() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.size
}

// lastOffset returns the smallest file size that holds everything. It is not larger than the file, which may end
// inside the last block, or be a device.
func (a *allocator) lastOffset() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return min(a.used.end(), a.size)
}

// usedEnd returns where the last block ends that is in use, and the size of the file. Space that waits to be given back
// is free if it lies behind.
func (a *allocator) usedEnd() (end, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	freed := a.takeFreed(math.MaxInt64)
	end = a.used.end()
	a.putBack(slices.DeleteFunc(freed, func(p place) bool { return p.off >= end }))
	return end, a.size
}

// misplaced returns how many bytes in use lie beyond what the file would have if nothing were free.
func (a *allocator) misplaced() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used.usedFrom(a.used.n*ondisk.MiB - a.used.free())
}
