// Package compare finds the ranges in which two disks differ.
package compare

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A Range is a run of bytes of the disk that differ, in whole units of Unit bytes, but for the end of the disk.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"` // the second disk has zeros there
}

// Unit is the granularity of ranges, in bytes: the smallest sector of a disk.
const Unit = 512

// Options says how to compare.
type Options struct {
	Workers  int                            // that read at once; 0 is DefaultWorkers
	Phase    func(name string, total int64) // if not nil, is told how many bytes there are to compare
	Progress func(n int64)                  // if not nil, is told how many more bytes are done, by several goroutines at once
}

// DefaultWorkers keeps a disk of some queue depth busy without taking much memory.
const DefaultWorkers = 8

const pieceSize = 1 << 20 // bytes

var zeros [pieceSize]byte

// Disks calls report for the ranges in which b differs from a, in order. Behind its end a disk counts as zero. What
// both disks have from the same place of the same file is not read.
func Disks(ctx context.Context, a, b *disk.Disk, o Options, report func(Range) error) error {
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	c := &comparer{a: a, b: b, o: o, merge: merger{report: report}}
	if a.Image != nil && b.Image != nil {
		c.shared = a.Image.SharedLayers(b.Image)
	}
	if o.Phase != nil {
		total := int64(0)
		if err := c.eachPiece(func(_, n int64) error { total += n; return nil }); err != nil {
			return err
		}
		o.Phase("compare", total)
	}
	return c.run(ctx)
}

// A comparer compares piece by piece. Workers report in the order of the disk.
type comparer struct {
	a, b   *disk.Disk
	o      Options
	shared map[[2]int]bool // pairs of layers of a and b that are the same file
	merge  merger          // used by the worker whose turn it is
}

// A job is one piece. A worker waits for before to report, and closes after.
type job struct {
	off, n        int64
	before, after chan struct{}
}

func (c *comparer) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan job)
	group.Go(func() (err error) {
		defer close(jobs)
		defer fault.Catch(&err)
		turn := make(chan struct{})
		close(turn)
		return c.eachPiece(func(off, n int64) error {
			j := job{off, n, turn, make(chan struct{})}
			turn = j.after
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range c.o.Workers {
		group.Go(func() (err error) {
			defer fault.Catch(&err)
			w := worker{comparer: c, p: make([]byte, pieceSize), q: make([]byte, pieceSize)}
			for j := range jobs {
				if err := w.piece(ctx, j); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return c.merge.flush()
}

// eachPiece calls do for every piece in which one of the disks holds data, in order.
func (c *comparer) eachPiece(do func(off, n int64) error) error {
	size := max(c.a.Size(), c.b.Size())
	var runs [2]disk.Run
	for off := int64(0); off < size; {
		first := size
		for i, d := range []*disk.Disk{c.a, c.b} {
			if runs[i].To <= off {
				var err error
				if runs[i], err = d.Data(off); err == io.EOF {
					runs[i] = disk.Run{From: size, To: size + pieceSize} // nothing more
				} else if err != nil {
					return fmt.Errorf("%s: %w", d.Path, err)
				}
			}
			first = min(first, max(runs[i].From, off))
		}
		if first >= size {
			return nil
		}
		off = first / pieceSize * pieceSize
		if err := do(off, min(pieceSize, size-off)); err != nil {
			return err
		}
		off += pieceSize
	}
	return nil
}

// A worker compares pieces.
type worker struct {
	*comparer
	p, q   []byte // of a and of b
	ranges []Range
}

func (w *worker) piece(ctx context.Context, j job) error {
	w.ranges = w.ranges[:0]
	err := w.unshared(j.off, j.n, w.compare)
	if err != nil {
		return err
	}
	select {
	case <-j.before:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, r := range w.ranges {
		if err := w.merge.add(r); err != nil {
			return err
		}
	}
	close(j.after)
	if w.o.Progress != nil {
		w.o.Progress(j.n)
	}
	return nil
}

// unshared calls do for the parts of a piece that have to be read.
func (w *worker) unshared(off, n int64, do func(off, n int64) error) error {
	end := off + n
	if both := min(w.a.Size(), w.b.Size(), end); len(w.shared) > 0 && off < both {
		x, err := w.a.Image.Resolve(nil, off, both-off)
		if err != nil {
			return fmt.Errorf("%s: %w", w.a.Path, err)
		}
		y, err := w.b.Image.Resolve(nil, off, both-off)
		if err != nil {
			return fmt.Errorf("%s: %w", w.b.Path, err)
		}
		for start := off; off < both; {
			for x[0].End() <= off {
				x = x[1:]
			}
			for y[0].End() <= off {
				y = y[1:]
			}
			next := min(x[0].End(), y[0].End())
			if w.same(x[0], y[0]) {
				if off > start {
					if err := do(start, off-start); err != nil {
						return err
					}
				}
				start = next
			}
			if off = next; off == both && off > start {
				if err := do(start, off-start); err != nil {
					return err
				}
			}
		}
	}
	if off < end {
		return do(off, end-off)
	}
	return nil
}

// same reports whether two extents that overlap on the disk are bytes of one place.
func (w *worker) same(x, y vhdx.Extent) bool {
	if x.File == nil || y.File == nil {
		return x.File == nil && y.File == nil
	}
	return w.shared[[2]int{x.Layer, y.Layer}] && x.FileOff-x.DiskOff == y.FileOff-y.DiskOff
}

// compare notes the ranges that differ among n bytes from off on, no more than a piece.
func (w *worker) compare(off, n int64) error {
	p, q := w.p[:n], w.q[:n]
	if err := read(w.a, p, off); err != nil {
		return err
	}
	if err := read(w.b, q, off); err != nil {
		return err
	}
	if bytes.Equal(p, q) {
		return nil
	}
	for at := int64(0); at < n; {
		// Units are counted from the start of the disk.
		next := min(n, at+Unit-(off+at)%Unit)
		if !bytes.Equal(p[at:next], q[at:next]) {
			w.ranges = append(w.ranges, Range{off + at, next - at, bytes.Equal(q[at:next], zeros[:next-at])})
		}
		at = next
	}
	return nil
}

// read fills p. Behind the end of the disk are zeros.
func read(d *disk.Disk, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), d.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if got, err := d.ReadAt(p[:n], off); int64(got) < n {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at %d: %w", d.Path, off, err)
	}
	return nil
}

// A merger joins ranges that follow each other.
type merger struct {
	report func(Range) error
	last   Range
}

func (m *merger) add(r Range) error {
	if m.last.Length > 0 && m.last.Offset+m.last.Length == r.Offset && m.last.Zero == r.Zero {
		m.last.Length += r.Length
		return nil
	}
	err := m.flush()
	m.last = r
	return err
}

func (m *merger) flush() error {
	if m.last.Length == 0 {
		return nil
	}
	r := m.last
	m.last = Range{}
	return m.report(r)
}

// Layers calls report for the ranges that the first depth layers of an image decide about: what was changed since
// the layer below them was the image. It reads no data, so what was overwritten by the same counts as changed.
func Layers(im *vhdx.Image, depth int, report func(Range) error) error {
	m := merger{report: report}
	for off := int64(0); off < im.Size(); {
		e, err := im.Extent(off)
		if err != nil {
			return err
		}
		if e.Layer < depth {
			if err := m.add(Range{e.DiskOff, e.Len, e.File == nil}); err != nil {
				return err
			}
		}
		off = e.End()
	}
	return m.flush()
}
