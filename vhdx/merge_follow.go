package vhdx

import (
	"math/bits"
	"sync/atomic"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A follower notes which parts of a disk were changed while they were copied. It has a bit for each part, of 64 KiB or, on a disk
// of more than 4 TiB, as much more as keeps it at 8 MiB. Any number of goroutines may use it.
type follower struct {
	shift uint
	set   []atomic.Uint64
}

const (
	minFollowed = 16      // log2 of the bytes of a part
	maxFollowed = 1 << 26 // parts
)

func newFollower(size int64) *follower {
	f := &follower{shift: minFollowed}
	for size>>f.shift > maxFollowed {
		f.shift++
	}
	f.set = make([]atomic.Uint64, size>>f.shift>>6+1)
	return f
}

// part returns how many bytes a part has. A block has one or more whole parts.
func (f *follower) part() int64 { return 1 << f.shift }

// changed notes that the n bytes from off on have changed, or may have.
func (f *follower) changed(off, n int64) {
	for i := off >> f.shift; i <= (off+n-1)>>f.shift; i++ {
		if w, bit := &f.set[i>>6], uint64(1)<<(i&63); w.Load()&bit == 0 {
			w.Or(bit)
		}
	}
}

// take forgets the part that begins at off.
func (f *follower) take(off int64) {
	i := off >> f.shift
	f.set[i>>6].And(^(uint64(1) << (i & 63)))
}

// next returns where the first part at or behind off begins that has changed, and false if there is none.
func (f *follower) next(off int64) (int64, bool) {
	first := off >> f.shift
	for i := first >> 6; i < int64(len(f.set)); i++ {
		w := f.set[i].Load()
		if i == first>>6 {
			w &= ^uint64(0) << (first & 63)
		}
		if w != 0 {
			return (i<<6 + int64(bits.TrailingZeros64(w))) << f.shift, true
		}
	}
	return 0, false
}

// bytes returns how much has changed.
func (f *follower) bytes() (n int64) {
	for i := range f.set {
		n += int64(bits.OnesCount64(f.set[i].Load()))
	}
	return n << f.shift
}

// follow has f learn of each change of the disk from now on; nil ends that. No change is under way that f does not learn of.
func (w *writer) follow(f *follower) {
	w.gate.Lock()
	defer w.gate.Unlock()
	w.follower.Store(f)
}

// noted notes that the n bytes from off on were changed. The caller still holds the gate: a copy that holds it alone has learned of
// all changes. A copy that holds the block's lock alone, and forgets the part before it reads, has read the change or learns of it.
func (w *writer) noted(off, n int64) {
	if f := w.follower.Load(); f != nil && n > 0 {
		f.changed(off, n)
	}
}

// A check by the compiler: the smallest block has whole parts, also of the largest disk.
const _ = uint(ondisk.MinBlockSize - ondisk.MaxDiskSize/maxFollowed)
