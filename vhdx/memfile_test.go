package vhdx

import (
	"errors"
	"io"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A memFile is a sparse image file in memory: what was never written takes no space and reads as zero.
// It knows its holes, as files of the operating system do.
type memFile struct {
	imagefile.Plain

	mu      sync.RWMutex
	pages   map[int64]*[ondisk.PageSize]byte // by page number; a page is never changed, but replaced
	size    int64
	changes atomic.Int64 // calls that change the file
}

var _ File = (*memFile)(nil)

func newMemFile(size int64) *memFile {
	return &memFile{pages: make(map[int64]*[ondisk.PageSize]byte), size: size}
}

// clone returns a file of the same content, which shares the pages that neither changes.
func (f *memFile) clone() *memFile {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return &memFile{pages: maps.Clone(f.pages), size: f.size}
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("memFile: read at a negative offset")
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	var err error
	if left := f.size - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		b := p[n:min(len(p), n+int(ondisk.PageSize-at%ondisk.PageSize))]
		if pg := f.pages[at/ondisk.PageSize]; pg != nil {
			copy(b, pg[at%ondisk.PageSize:])
		} else {
			clear(b)
		}
		n += len(b)
	}
	return len(p), err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("memFile: write at a negative offset")
	}
	f.changes.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := 0; n < len(p); {
		at := off + int64(n)
		in := int(at % ondisk.PageSize)
		part := p[n:min(len(p), n+ondisk.PageSize-in)]
		n += len(part)
		f.put(at/ondisk.PageSize, in, part)
	}
	f.size = max(f.size, off+int64(len(p)))
	return len(p), nil
}

// put changes page n from byte in on. Clones share pages, so the page becomes a new one; one of zeros is not kept.
func (f *memFile) put(n int64, in int, part []byte) {
	old := f.pages[n]
	zeros := allZero(part)
	if zeros && (old == nil || len(part) == ondisk.PageSize) {
		delete(f.pages, n)
		return
	}
	pg := new([ondisk.PageSize]byte)
	if old != nil && len(part) < ondisk.PageSize {
		*pg = *old
	}
	copy(pg[in:], part)
	if zeros && allZero(pg[:]) {
		delete(f.pages, n)
		return
	}
	f.pages[n] = pg
}

func (f *memFile) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size, nil
}

func (f *memFile) Truncate(size int64) error {
	if size < 0 {
		return errors.New("memFile: negative size")
	}
	old, _ := f.Size()
	if end := (size + ondisk.PageSize - 1) / ondisk.PageSize * ondisk.PageSize; size < end && size < old {
		f.zero(size, end)
	}
	f.changes.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = size
	maps.DeleteFunc(f.pages, func(n int64, _ *[ondisk.PageSize]byte) bool { return n*ondisk.PageSize >= size })
	return nil
}

// zero makes the bytes from off to end, of one page, read as zero.
func (f *memFile) zero(off, end int64) {
	size := f.size
	f.WriteAt(make([]byte, end-off), off)
	f.size = size
}

func (f *memFile) PunchHole(off, n int64) error {
	f.changes.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	var zeros [ondisk.PageSize]byte
	for end := min(off+n, f.size); off < end; {
		in := off % ondisk.PageSize
		part := min(end-off, ondisk.PageSize-in)
		f.put(off/ondisk.PageSize, int(in), zeros[:part])
		off += part
	}
	return nil
}

// Allocate only makes the file larger: all space that there is was promised.
func (f *memFile) Allocate(off, n int64) error {
	if size, _ := f.Size(); size < off+n {
		return f.Truncate(off + n)
	}
	f.changes.Add(1)
	return nil
}

func (f *memFile) ZeroRange(off, n int64) error { return f.PunchHole(off, n) }

func (f *memFile) Sync() error  { return nil }
func (f *memFile) Close() error { return nil }
func (f *memFile) Sparse() bool { return true }

func (f *memFile) NextData(off int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	next := int64(-1)
	for n := range f.pages {
		if at := max(n*ondisk.PageSize, off); (n+1)*ondisk.PageSize > off && (next < 0 || at < next) {
			next = at
		}
	}
	if next < 0 {
		return 0, io.EOF
	}
	return next, nil
}

// NextHole returns the first offset at or after off of a page that was never written.
func (f *memFile) NextHole(off int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for next := off; next < f.size; next = next/ondisk.PageSize*ondisk.PageSize + ondisk.PageSize {
		if f.pages[next/ondisk.PageSize] == nil {
			return next, nil
		}
	}
	return max(off, f.size), nil
}

// writeTo makes a sparse file of the same content at path.
func (f *memFile) writeTo(t testing.TB, path string) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(f.size); err != nil {
		t.Fatal(err)
	}
	for n, pg := range f.pages {
		if _, err := out.WriteAt(pg[:min(ondisk.PageSize, f.size-n*ondisk.PageSize)], n*ondisk.PageSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// sameAs reports whether the file at path has the same content.
func (f *memFile) sameAs(t testing.TB, path string) bool {
	t.Helper()
	in, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	size, err := in.Size()
	if err != nil {
		t.Fatal(err)
	}
	if size != f.size {
		return false
	}
	seen := 0
	for off := int64(0); off < size; {
		next, err := in.NextData(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		off = next / ondisk.PageSize * ondisk.PageSize
		var b [ondisk.PageSize]byte
		if _, err := in.ReadAt(b[:], off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		pg := f.pages[off/ondisk.PageSize]
		switch {
		case pg != nil && b != *pg, pg == nil && !allZero(b[:]):
			return false
		case pg != nil:
			seen++
		}
		off += ondisk.PageSize
	}
	return seen == len(f.pages)
}
