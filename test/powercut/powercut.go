// Package powercut is a file that loses power. It stands in for an image file in tests, keeps what is synced
// apart from what is not, and shows what may be left when the power fails: all that was synced, and of the rest
// any part, in any order, torn.
//
// What it takes to be possible is what a disk with a volatile cache below a file system may do:
//
//   - A sync that returned makes everything before it durable.
//   - Of the writes since, each sector of 512 bytes reached the disk or did not, one independently of another,
//     whatever the order in which they were issued. Where Torn allows it, a write may end at any byte.
//   - A change of the file's size is kept or lost like a write. Where the size is lost, so is what lies behind it.
package powercut

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
)

const (
	pageSize   = 4 << 10
	sectorSize = 512
)

// ErrPower is what every operation returns when the power has failed.
var ErrPower = errors.New("powercut: the power has failed")

// Base is the content that a Disk begins with. It must not change.
type Base interface {
	io.ReaderAt
	Size() (int64, error)
}

// A Disk is a file on a disk that may lose power. Any number of goroutines may use it.
type Disk struct {
	// Torn says whether a write at the given offset may be torn at any byte. Nil means never: then a sector of
	// 512 bytes is always old or new.
	Torn func(off int64) bool

	mu      sync.Mutex
	base    Base
	durable content // as of the last sync
	now     content // as the program sees it
	pending []op    // since the last sync
	ops     int     // so far
	cut     int     // the operation that fails; 0 is none
	syncs   int
}

// content is a file: pages that differ from the base, and a size. Pages are replaced, never changed.
type content struct {
	pages map[int64]*[pageSize]byte
	size  int64
	fresh int64 // from here on the base shows no more: the file was shorter once
}

func (c content) clone() content {
	c.pages = maps.Clone(c.pages)
	return c
}

// An op is a change that is not durable yet.
type op struct {
	kind opKind
	off  int64 // of a truncate, the new size
	data []byte
	n    int64 // of a punch
}

type opKind int

const (
	write opKind = iota
	truncate
	punch
)

// New returns a disk that holds base, durably. The power is on.
func New(base Base) *Disk {
	size, err := base.Size()
	if err != nil {
		panic(err) // a test's own file
	}
	c := content{pages: make(map[int64]*[pageSize]byte), size: size, fresh: size}
	return &Disk{base: base, durable: c, now: c.clone()}
}

// CutAt makes the n-th operation from the beginning lose power: a write, truncate, punch or sync; the first is 1.
func (d *Disk) CutAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = n
}

// Powered reports whether the power is still on.
func (d *Disk) Powered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut == 0 || d.ops < d.cut
}

// Ops returns how many operations there were.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// Syncs returns how many syncs there were.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// change makes a change. That at which the power fails may be done in part, like all others since the last sync.
func (d *Disk) change(o op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut > 0 && d.ops >= d.cut {
		return ErrPower
	}
	d.ops++
	d.pending = append(d.pending, o)
	d.now.apply(d.base, o)
	if d.ops == d.cut {
		return ErrPower
	}
	return nil
}

// WriteAt is io.WriterAt's.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("powercut: write at a negative offset")
	}
	if err := d.change(op{kind: write, off: off, data: append([]byte(nil), p...)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Truncate changes the size; added bytes read as zero.
func (d *Disk) Truncate(size int64) error { return d.change(op{kind: truncate, off: size}) }

// PunchHole makes n bytes from off on read as zero. The size stays.
func (d *Disk) PunchHole(off, n int64) error { return d.change(op{kind: punch, off: off, n: n}) }

// Sync makes everything durable.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut > 0 && d.ops >= d.cut {
		return ErrPower
	}
	d.ops++
	if d.ops == d.cut {
		return ErrPower
	}
	d.syncs++
	for _, o := range d.pending {
		d.durable.apply(d.base, o)
	}
	d.pending = nil
	return nil
}

// ReadAt is io.ReaderAt's. Reading works without power, too, since tests look at what the program saw.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now.readAt(d.base, p, off)
}

// Size returns the size in bytes.
func (d *Disk) Size() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now.size, nil
}

// Close does nothing: closing a file makes nothing durable.
func (d *Disk) Close() error { return nil }

// AfterCut returns a disk, with its power on, that holds one of the states that the power's failing now may leave.
// Which one is up to rng; some of its choices are extremes: everything was kept, nothing was, all but one change.
func (d *Disk) AfterCut(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := d.durable.clone()
	keep := d.choice(rng)
	for i, o := range d.pending {
		if !keep(i) {
			continue
		}
		for _, part := range d.torn(o, rng) {
			after.apply(d.base, part)
		}
	}
	if after.size > d.durable.size && rng.IntN(4) == 0 {
		after.apply(d.base, op{kind: truncate, off: d.durable.size})
	}
	return &Disk{Torn: d.Torn, base: d.base, durable: after, now: after.clone()}
}

// choice returns which of the pending changes are kept.
func (d *Disk) choice(rng *rand.Rand) func(i int) bool {
	n := len(d.pending)
	switch rng.IntN(6) {
	case 0:
		return func(int) bool { return true }
	case 1:
		return func(int) bool { return false }
	case 2:
		one := rng.IntN(n + 1)
		return func(i int) bool { return i != one }
	case 3:
		one := rng.IntN(n + 1)
		return func(i int) bool { return i == one }
	case 4: // the last ones, though not the first
		from := rng.IntN(n + 1)
		return func(i int) bool { return i >= from }
	}
	return func(int) bool { return rng.IntN(2) == 0 }
}

// torn returns the parts of a change that reach the disk.
func (d *Disk) torn(o op, rng *rand.Rand) []op {
	if rng.IntN(2) == 0 {
		return []op{o}
	}
	switch o.kind {
	case write:
		if d.Torn != nil && d.Torn(o.off) && rng.IntN(2) == 0 {
			o.data = o.data[:rng.IntN(len(o.data)+1)]
			return []op{o}
		}
		return sectors(o, rng)
	case punch:
		from := rng.Int64N(o.n+1) / pageSize * pageSize
		o.off, o.n = o.off+from, rng.Int64N(o.n-from+1)/pageSize*pageSize
	}
	return []op{o}
}

// sectors returns some of the sectors of a write: each by chance, or a run of them.
func sectors(o op, rng *rand.Rand) []op {
	end := o.off + int64(len(o.data))
	first := o.off / sectorSize
	n := (end-1)/sectorSize - first + 1
	lo, hi := first+rng.Int64N(n), first+rng.Int64N(n)
	run := rng.IntN(2) == 0
	var parts []op
	for s := first; s < first+n; s++ {
		if run && (s < lo || s > hi) || !run && rng.IntN(2) == 0 {
			continue
		}
		from, to := max(o.off, s*sectorSize), min(end, (s+1)*sectorSize)
		parts = append(parts, op{kind: write, off: from, data: o.data[from-o.off : to-o.off]})
	}
	return parts
}

// page returns page n; it must not be changed.
func (c *content) page(base Base, n int64) *[pageSize]byte {
	if p := c.pages[n]; p != nil {
		return p
	}
	p := new([pageSize]byte)
	if left := c.fresh - n*pageSize; left > 0 {
		if _, err := base.ReadAt(p[:min(left, pageSize)], n*pageSize); err != nil && err != io.EOF {
			panic(err) // a test's own file
		}
	}
	return p
}

func (c *content) readAt(base Base, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("powercut: read at a negative offset")
	}
	var err error
	if left := c.size - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		n += copy(p[n:], c.page(base, at/pageSize)[at%pageSize:])
	}
	return len(p), err
}

func (c *content) apply(base Base, o op) {
	switch o.kind {
	case write:
		c.set(base, o.off, int64(len(o.data)), func(p []byte, i int64) { copy(p, o.data[i:]) })
		if len(o.data) > 0 {
			c.size = max(c.size, o.off+int64(len(o.data)))
		}
	case punch:
		if end := min(o.off+o.n, c.size); end > o.off {
			c.set(base, o.off, end-o.off, func(p []byte, _ int64) { clear(p) })
		}
	case truncate:
		if o.off < c.size {
			if rest := (pageSize - o.off%pageSize) % pageSize; rest > 0 {
				c.set(base, o.off, rest, func(p []byte, _ int64) { clear(p) })
			}
			maps.DeleteFunc(c.pages, func(n int64, _ *[pageSize]byte) bool { return n*pageSize >= o.off })
			c.fresh = min(c.fresh, o.off)
		}
		c.size = o.off
	}
}

// set replaces the pages that hold the n bytes from off on; do fills each part, the i-th byte of the n first.
func (c *content) set(base Base, off, n int64, do func(p []byte, i int64)) {
	for i := int64(0); i < n; {
		at := off + i
		pg := *c.page(base, at/pageSize)
		part := pg[at%pageSize:]
		part = part[:min(int64(len(part)), n-i)]
		do(part, i)
		c.pages[at/pageSize] = &pg
		i += int64(len(part))
	}
}
