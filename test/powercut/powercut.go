// Package powercut is a file in memory that loses power. It records what a program changes, and says what
// may be left of the file after a cut: everything that a completed sync covers, and of the rest whatever a
// disk and a file system may have got to, in any order and in parts.
//
//	disk := powercut.New(img, size)
//	disk.CutAt(7)               // the 7th change or sync loses power
//	run(disk)                   // fails with ErrCut from there on
//	left := disk.AfterCut(rng)  // one of the possible states, chosen by rng
//
// It imports nothing of this program but the seam that it stands in for, so that the tests of every package can use it.
package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// SectorSize is what a disk writes as a whole, in bytes.
const SectorSize = 512

// ErrCut is the error of everything that is tried once the power is gone.
var ErrCut = errors.New("powercut: no power")

// A Disk is the file. Its methods may be called from several goroutines at once; the exported fields are to
// be set before that.
type Disk struct {
	imagefile.Plain

	// Tearable says whether the sector at off, in which off is the first byte, may be left torn at any byte.
	// That is what data must survive which a checksum, a log or a second copy protects. Other sectors are
	// old or new. Nil means that none may be torn.
	Tearable func(off int64) bool

	// SizesInOrder keeps a change of the file's size only together with all those before it, as file systems
	// with a journal do. Otherwise each is kept or lost by itself.
	SizesInOrder bool

	NoHoles     bool // holes do harm on this host
	NoFallocate bool // Allocate and ZeroRange are not supported
	Shares      bool // Clone is supported

	mu     sync.Mutex
	stable content // the file as of the last sync
	now    content // the file as the program sees it
	after  []change
	ops    int // changes and syncs so far
	syncs  int // syncs that completed
	cut    int // the operation that loses power, 0 for none
	off    bool
}

// A change is one that no sync covers.
type change struct {
	what kind
	off  int64  // bytes; for a truncate the new size
	data []byte // that is written; zeros for zero
	n    int64  // bytes, of a reserve
	from int64  // the size before it
	grew bool   // whether the size changed
}

// end returns the byte behind those that a change is about.
func (c *change) end() int64 {
	if c.what == reserve {
		return c.off + c.n
	}
	return c.off + int64(len(c.data))
}

type kind int

const (
	write   kind = iota
	zero         // a write of zeros that leaves a hole, or space that was never written
	reserve      // space, which reads as what it did
	truncate
)

// New returns a file that holds the size bytes of img, all of them on stable media. img must not change.
func New(img io.ReaderAt, size int64) *Disk {
	c := content{base: img, seen: size, size: size, pages: make(map[int64]*page)}
	return &Disk{stable: c, now: c.clone()}
}

// CutAt makes the nth operation lose power, counted from 1 since New. Operations are writes, truncates,
// punches, zeroed ranges, allocations and syncs. What the nth was to change may be left in part, a sync that is cut promises nothing.
func (d *Disk) CutAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = n
}

// Powered reports whether the power is still on.
func (d *Disk) Powered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.off
}

// Ops returns how many operations there were, the one that lost power included.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// Syncs returns how many syncs completed.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// ReadAt reads what the program wrote, synced or not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.off:
		return 0, ErrCut
	case off < 0:
		return 0, fmt.Errorf("powercut: read at %d", off)
	}
	return d.now.readAt(p, off)
}

// WriteAt writes p at off. A write past the end grows the file.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("powercut: write at %d", off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(change{what: write, off: off, data: bytes.Clone(p)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// PunchHole makes the part of a range that lies inside the file read as zero.
func (d *Disk) PunchHole(off, n int64) error { return d.zero(off, n) }

// ZeroRange does what PunchHole does: after a cut either left what was there in any of the sectors, or zeros. That the
// space stays cannot be seen in a file that has space enough.
func (d *Disk) ZeroRange(off, n int64) error {
	if d.NoFallocate {
		return errors.ErrUnsupported
	}
	return d.zero(off, n)
}

func (d *Disk) zero(off, n int64) error {
	if off < 0 || n <= 0 {
		return fmt.Errorf("powercut: zero %d bytes at %d", n, off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n = max(0, min(n, d.now.size-off))
	return d.change(change{what: zero, off: off, data: zeros(n)})
}

// zeroBytes are shared by many changes, and never written.
var zeroBytes [4 << 20]byte

func zeros(n int64) []byte {
	if n > int64(len(zeroBytes)) {
		return make([]byte, n)
	}
	return zeroBytes[:n:n]
}

// Allocate gives a range space that was never written: it reads as what it did, and as zero where the file grows. A
// file system does that in steps, so a cut may leave it with any size up to the new one.
func (d *Disk) Allocate(off, n int64) error {
	switch {
	case d.NoFallocate:
		return errors.ErrUnsupported
	case off < 0 || n <= 0:
		return fmt.Errorf("powercut: allocate %d bytes at %d", n, off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.change(change{what: reserve, off: off, n: n})
}

// Clone puts bytes of src where they are shared. Any of the sectors may be left old by a cut, as of a write.
func (d *Disk) Clone(off int64, src imagefile.File, srcOff, n int64) error {
	if !d.Shares {
		return errors.ErrUnsupported
	}
	size, err := src.Size()
	switch {
	case err != nil:
		return err
	case (off|srcOff|n)%pageSize != 0, n <= 0, srcOff+n > size:
		return unix.EINVAL
	}
	p := make([]byte, n)
	if _, err := src.ReadAt(p, srcOff); err != nil {
		return err
	}
	_, err = d.WriteAt(p, off)
	return err
}

// Host says that space is given back in parts, where it can be shared.
func (d *Disk) Host() (h imagefile.Host) {
	if d.Shares {
		h.FreesParts = imagefile.Yes
	}
	return h
}

// Sparse reports whether holes do no harm.
func (d *Disk) Sparse() bool { return !d.NoHoles }

// NextData returns the first offset at or after off that was not made a hole, nor added and never written.
func (d *Disk) NextData(off int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, ErrCut
	}
	return d.now.nextData(off)
}

// NextHole returns the first offset at or after off of a hole, or the end of the file.
func (d *Disk) NextHole(off int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, ErrCut
	}
	return d.now.nextHole(off), nil
}

// Truncate gives the file another size. Added bytes read as zero.
func (d *Disk) Truncate(size int64) error {
	if size < 0 {
		return fmt.Errorf("powercut: truncate to %d", size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.change(change{what: truncate, off: size})
}

// change does c, unless the power is gone already, and fails if it goes with it.
func (d *Disk) change(c change) error {
	if d.off {
		return ErrCut
	}
	d.ops++
	c.from = d.now.size
	d.now.do(c)
	c.grew = d.now.size != c.from
	d.wholeSectors(&c)
	d.after = append(d.after, c)
	if d.ops == d.cut {
		d.off = true
		return ErrCut
	}
	return nil
}

// wholeSectors widens a write to the sectors that it touches, as they are now. A system's page cache has nothing
// smaller to write, so a part of a sector does not reach the disk without what was written beside it before.
func (d *Disk) wholeSectors(c *change) {
	if c.what != write && c.what != zero || len(c.data) == 0 {
		return
	}
	end := c.end()
	from := c.off - c.off%SectorSize
	to := min(end+(SectorSize-end%SectorSize)%SectorSize, d.now.size)
	if from == c.off && to == end {
		return
	}
	c.off, c.data = from, make([]byte, to-from)
	if _, err := d.now.readAt(c.data, from); err != nil {
		panic(err) // it lies inside the file
	}
}

// Sync puts all changes that were made before it on stable media.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return ErrCut
	}
	if d.ops++; d.ops == d.cut {
		d.off = true
		return ErrCut
	}
	for _, c := range d.after {
		d.stable.do(c)
	}
	d.after = nil
	d.syncs++
	return nil
}

// Size returns the size that the program gave the file, in bytes.
func (d *Disk) Size() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return 0, ErrCut
	}
	return d.now.size, nil
}

// Bytes returns what the file holds.
func (d *Disk) Bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := make([]byte, d.now.size)
	if _, err := d.now.readAt(b, 0); err != nil {
		panic(err) // there is nothing that can fail
	}
	return b
}

// Close does nothing; what was not synced stays so.
func (d *Disk) Close() error { return nil }

// AfterCut returns a file, with the power on, that holds what this one may hold after the cut, or after a cut right
// now if the power is still on. Each call takes another of the possible states from rng, and changes nothing. With
// equal rng, state and operations it returns the same.
func (d *Disk) AfterCut(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := newFate(rng, len(d.after))
	// Data behind the size stays: a later change of size may uncover it.
	left, size := d.stable.clone(), d.stable.size
	sizes := true // whether all changes of size so far were kept
	for i, c := range d.after {
		resize := c.grew && f.keepSize(i) && (sizes || !d.SizesInOrder)
		sizes = sizes && (resize || !c.grew)
		if c.what == truncate {
			if resize {
				left.resize(min(left.size, c.off))
				size = c.off
			}
			continue
		}
		end := c.end()
		if c.what == reserve {
			if resize && rng.IntN(4) == 0 {
				end -= rng.Int64N((end-c.from)/pageSize+1) * pageSize
			}
			if resize {
				size = max(size, end)
			}
			continue
		}
		begin := c.off // of the sectors before at that are kept
		keepTo := func(at int64) { left.write(c.data[begin-c.off:at-c.off], begin) }
		for at := c.off; at < end; {
			next := min(end, at-at%SectorSize+SectorSize)
			is := c.data[at-c.off : next-c.off]
			if f.keepSector(i) {
				at = next
				continue
			}
			keepTo(at)
			begin = next
			switch {
			case d.Tearable != nil && rng.IntN(4) == 0 && d.Tearable(at-at%SectorSize):
				if torn := rng.IntN(len(is) + 1); rng.IntN(2) == 0 {
					left.write(is[:torn], at)
				} else {
					left.write(is[torn:], at+int64(torn))
				}
			}
			at = next
		}
		keepTo(end)
		if resize {
			size = max(size, end)
		}
	}
	left.resize(size)
	return &Disk{Tearable: d.Tearable, SizesInOrder: d.SizesInOrder, NoHoles: d.NoHoles, NoFallocate: d.NoFallocate, Shares: d.Shares, stable: left, now: left.clone()}
}

// A fate decides what is kept of n changes. Independent draws alone would hardly ever keep all but one of
// them, or those up to some point, which are the states that most errors need.
type fate struct {
	rng *rand.Rand
	way int
	p   float64 // with which a sector or a change is kept, where that is drawn
	one int     // the change that is treated otherwise
	// Of the change that is decided about:
	i    int
	kept bool
}

const (
	inOrder   = iota // all changes before one, a part of that one
	allButOne        // a part of that one
	onlyOne
	bySector // each sector of each change is drawn
	byChange // each change is drawn
	ways
)

func newFate(rng *rand.Rand, n int) *fate {
	return &fate{
		rng: rng,
		way: rng.IntN(ways),
		p:   []float64{0.1, 0.5, 0.9}[rng.IntN(3)],
		one: rng.IntN(n + 1), // n is none
		i:   -1,
	}
}

// keepSector decides about the next sector of the ith change.
func (f *fate) keepSector(i int) bool {
	draw := func() bool { return f.rng.Float64() < f.p }
	switch {
	case f.way == bySector:
		return draw()
	case f.way == byChange:
		if i != f.i {
			f.i, f.kept = i, draw()
		}
		return f.kept
	case i == f.one:
		return f.way == onlyOne || draw()
	case f.way == inOrder:
		return i < f.one
	}
	return f.way == allButOne
}

// keepSize decides about the size that the ith change gave the file, which need not share the fate of what
// the change wrote.
func (f *fate) keepSize(i int) bool {
	if f.rng.IntN(4) == 0 {
		return f.rng.IntN(2) == 0
	}
	switch f.way {
	case inOrder:
		return i < f.one
	case allButOne:
		return i != f.one
	case onlyOne:
		return i == f.one
	}
	return f.rng.Float64() < f.p
}
