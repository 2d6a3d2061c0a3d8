package vhdx

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// newAllocator returns the allocator of a new image, and the size of its file in bytes.
func newAllocator(t *testing.T, f func(File) File) (*allocator, int64) {
	t.Helper()
	im := build(spec{})
	file := f(im.memFile)
	l := newOpener(Options{}).newLayer(file, "space")
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	a := &allocator{failure: &failure{log: nowhere()}, gaveUp: func() {}, holes: true, punch: true}
	a.reads = newReadEpochs()
	a.use(l, file)
	return a, l.fileSize
}

func asItIs(f File) File { return f }

// Whatever is allocated, given back and read in turn, no place is given away that is in use, that was given up by an unmapping
// that is not durable, or that a read may still look at; and all of it is free in the end.
func TestNoSpaceIsGivenAwayTwice(t *testing.T) {
	for seed := range uint64(fewer(20)) {
		rng := rand.New(rand.NewPCG(seed, 0))
		a, start := newAllocator(t, asItIs)
		held := make(map[int64]bool) // by MiB: mapped, or unmapped and read
		free := start
		type read struct {
			epoch  uint64
			places []int64 // MiB that were unmapped while it went on
		}
		var reads []*read
		var mapped []place
		mark := func(p place, in bool) {
			for i := p.off; i < p.off+p.size; i += ondisk.MiB {
				if held[i] == in {
					t.Fatalf("seed %d: the MiB at %#x is in use: %v", seed, i, in)
				}
				held[i] = in
			}
		}
		for range 300 {
			switch n := rng.IntN(10); {
			case n < 4:
				p, err := a.allocate((1 + rng.Int64N(3)) * ondisk.MiB)
				if err != nil {
					t.Fatal(err)
				}
				mark(p, true)
				mapped = append(mapped, p)
				free = max(free, p.off+p.size)
			case n < 6 && len(mapped) > 0: // unmapped, durably
				i := rng.IntN(len(mapped))
				p := mapped[i]
				mapped = append(mapped[:i], mapped[i+1:]...)
				if len(reads) == 0 {
					mark(p, false)
				}
				for _, r := range reads {
					r.places = append(r.places, p.off, p.size)
				}
				a.retire([]place{p})
			case n < 7 && len(mapped) > 0: // never mapped
				i := rng.IntN(len(mapped))
				mark(mapped[i], false)
				a.release(mapped[i])
				mapped = append(mapped[:i], mapped[i+1:]...)
			case n < 8:
				reads = append(reads, &read{epoch: a.reads.enter()})
			case len(reads) > 0:
				r := reads[0]
				reads = reads[1:]
				a.reads.leave(r.epoch)
				for i := 0; i < len(r.places); i += 2 {
					still := false // another read may look there, too
					for _, o := range reads {
						for j := 0; j < len(o.places); j += 2 {
							still = still || o.places[j] == r.places[i]
						}
					}
					if !still {
						mark(place{off: r.places[i], size: r.places[i+1]}, false)
					}
				}
			}
		}
		for _, r := range reads {
			a.reads.leave(r.epoch)
		}
		a.retire(mapped)
		if err := a.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if end := a.lastOffset(); end != start || a.anyFreed() || a.err() != nil {
			t.Errorf("seed %d: in the end the file is used up to %#x; want %#x; %v", seed, end, start, a.err())
		}
		if free > a.fileSize() {
			t.Errorf("seed %d: a place ends at %#x of a file of %#x", seed, free, a.fileSize())
		}
	}
}

func TestSpaceOfAFileThatCannotGrow(t *testing.T) {
	for _, holes := range []bool{true, false} {
		var full *faultFile
		a, start := newAllocator(t, func(f File) File { full = &faultFile{File: f}; return full })
		a.holes = holes
		full.set(func(f *faultFile) { f.limit = start + 2*ondisk.MiB }) // less than a step of growth
		p, err := a.allocate(2 * ondisk.MiB)
		if err != nil || p.off != start || p.fresh != holes || a.fileSize() != start+2*ondisk.MiB {
			t.Fatalf("holes %v: allocate = %+v, %v; the file has %#x", holes, p, err, a.fileSize())
		}
		if _, err := a.allocate(ondisk.MiB); !errors.Is(err, unix.ENOSPC) || a.fileSize() != start+2*ondisk.MiB {
			t.Errorf("holes %v: allocate on a full disk: %v; the file has %#x", holes, err, a.fileSize())
		}
		if _, err := a.allocateBelow(ondisk.MiB, start); !errors.Is(err, errNoHole) {
			t.Errorf("holes %v: allocateBelow: %v; want %v", holes, err, errNoHole)
		}
		a.release(place{off: p.off, size: ondisk.MiB})
		if q, err := a.allocate(ondisk.MiB); err != nil || q.off != p.off || q.fresh {
			t.Errorf("holes %v: allocate = %+v, %v; want the place that was given back, which is not fresh", holes, q, err)
		}
	}
}

// A cut that fails leaves the space as it was.
func TestCutThatFails(t *testing.T) {
	var f *faultFile
	a, start := newAllocator(t, func(file File) File { f = &faultFile{File: file}; return f })
	if _, err := a.allocate(ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	size := a.fileSize()
	f.set(func(f *faultFile) { f.limit = 1 })
	if err := a.cut(start + ondisk.MiB); !errors.Is(err, unix.ENOSPC) || a.fileSize() != size || f.syncs.Load() != 0 {
		t.Errorf("cut: %v; the file has %#x, want %#x, after %d syncs", err, a.fileSize(), size, f.syncs.Load())
	}
}

func TestCutForgetsNothingInUse(t *testing.T) {
	a, start := newAllocator(t, asItIs)
	p, err := a.allocate(ondisk.MiB)
	if err != nil {
		t.Fatal(err)
	}
	end, size := a.usedEnd()
	if end != start+ondisk.MiB || size <= end {
		t.Fatalf("the file is used up to %#x of %#x", end, size)
	}
	epoch := a.reads.enter()
	a.retire([]place{p})
	if end, _ := a.usedEnd(); end != start+ondisk.MiB {
		t.Errorf("with a read under way, the file is used up to %#x; want %#x", end, start+ondisk.MiB)
	}
	a.reads.leave(epoch)
	if end, _ = a.usedEnd(); end != start {
		t.Errorf("the file is used up to %#x; want %#x", end, start)
	}
	if err := a.cut(end); err != nil || a.fileSize() != start {
		t.Errorf("cut: %v; the file has %#x", err, a.fileSize())
	}
	if q, err := a.allocate(ondisk.MiB); err != nil || q.off != start || !q.fresh {
		t.Errorf("allocate = %+v, %v; want fresh space at %#x", q, err, start)
	}
}

// Space that a block gives up and that no block had means that another program changes the file.
func TestSpaceGivenUpTwice(t *testing.T) {
	a, _ := newAllocator(t, asItIs)
	p, err := a.allocate(ondisk.MiB)
	if err != nil {
		t.Fatal(err)
	}
	a.retire([]place{p, p})
	a.giveBack()
	if !errors.Is(a.err(), ErrFailed) {
		t.Errorf("err = %v; want %v", a.err(), ErrFailed)
	}
}

func TestWithACutFailingSyncNothingIsWritten(t *testing.T) {
	var f *faultFile
	a, start := newAllocator(t, func(file File) File { f = &faultFile{File: file}; return f })
	f.set(func(f *faultFile) { f.failSync = unix.EIO })
	if err := a.cut(start); !errors.Is(err, unix.EIO) || !errors.Is(a.err(), ErrFailed) {
		t.Errorf("cut: %v; the image is read-only with %v", err, a.err())
	}
}
