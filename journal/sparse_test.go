package journal

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// A sparseFile is a File in memory that holds only its pages of other bytes than zero, so that updates at
// the end of the largest file cost nothing.
type sparseFile struct {
	pages map[int64]*[SectorSize]byte
	size  int64
	syncs int
	read  int64 // bytes that were read
}

func newSparseFile(b []byte) *sparseFile {
	f := &sparseFile{pages: map[int64]*[SectorSize]byte{}}
	if _, err := f.WriteAt(b, 0); err != nil {
		panic(err)
	}
	return f
}

func (f *sparseFile) clone() *sparseFile {
	c := &sparseFile{pages: maps.Clone(f.pages), size: f.size}
	for off, p := range c.pages {
		q := *p
		c.pages[off] = &q
	}
	return c
}

func (f *sparseFile) ReadAt(p []byte, off int64) (n int, err error) {
	if left := f.size - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	f.read += int64(len(p))
	for n < len(p) {
		at := off + int64(n)
		pg, from := f.pages[at-at%SectorSize], int(at%SectorSize)
		m := min(len(p)-n, SectorSize-from)
		if pg != nil {
			copy(p[n:n+m], pg[from:])
		} else {
			clear(p[n : n+m])
		}
		n += m
	}
	return n, err
}

func (f *sparseFile) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		from := int(at % SectorSize)
		m := min(len(p)-n, SectorSize-from)
		pg := f.pages[at-int64(from)]
		if pg == nil {
			pg = new([SectorSize]byte)
			f.pages[at-int64(from)] = pg
		}
		copy(pg[from:], p[n:n+m])
		n += m
	}
	f.size = max(f.size, off+int64(len(p)))
	return n, nil
}

func (f *sparseFile) Size() (int64, error) { return f.size, nil }
func (f *sparseFile) Sync() error          { f.syncs++; return nil }

func (f *sparseFile) Truncate(size int64) error {
	if size < f.size {
		return fmt.Errorf("shrinks to %d", size) // a replay never does
	}
	f.size = size
	return nil
}

func (f *sparseFile) NextData(off int64) (int64, error) {
	next := int64(-1)
	for at := range f.pages {
		if at > off-SectorSize && (next < 0 || at < next) {
			next = at
		}
	}
	if next < 0 {
		return 0, io.EOF
	}
	return max(next, off), nil
}

// wipe makes a range of whole pages zero and grows the file to its end.
func (f *sparseFile) wipe(off, end int64) {
	maps.DeleteFunc(f.pages, func(at int64, _ *[SectorSize]byte) bool { return at >= off && at < end })
	f.size = max(f.size, end)
}

// cut takes n bytes, less than a page, off the end of the file.
func (f *sparseFile) cut(n int64) {
	f.WriteAt(make([]byte, n), f.size-n)
	f.size -= n
}

// noHoles does not know its holes.
type noHoles struct{ File }

func (noHoles) NextData(off int64) (int64, error) { return off, nil }

// sameFile compares two readers of size bytes everywhere that either of the files has pages, and at ranges
// that begin and end anywhere.
func sameFile(t *testing.T, got, want io.ReaderAt, size int64, at []int64, rng *rand.Rand) {
	t.Helper()
	compare := func(off int64, n int) {
		t.Helper()
		if off < 0 {
			return
		}
		g, w := bytes.Repeat([]byte{0xA5}, n), make([]byte, n) // a read fills its buffer, whatever it held
		gn, gerr := got.ReadAt(g, off)
		wn, werr := want.ReadAt(w, off)
		if gn != wn || gerr != werr && !(gn == n && off+int64(n) == size) {
			t.Fatalf("read %d at %#x = %d, %v; want %d, %v", n, off, gn, gerr, wn, werr)
		}
		if !bytes.Equal(g[:gn], w[:wn]) {
			i := 0
			for g[i] == w[i] {
				i++
			}
			t.Fatalf("read %d at %#x: byte %#x is %#x, want %#x", n, off, off+int64(i), g[i], w[i])
		}
	}
	for _, off := range at {
		compare(off, SectorSize)
		compare(off-int64(rng.IntN(SectorSize)), 1+rng.IntN(4*SectorSize))
	}
	compare(size-10, 20)
	compare(size-10, 10)
	if size < 1<<50 {
		compare(size+10, 10)
	}
}

// pagesOf returns the offsets of the pages that any of the files holds.
func pagesOf(files ...*sparseFile) []int64 {
	all := map[int64]bool{}
	for _, f := range files {
		for off := range f.pages {
			all[off] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
