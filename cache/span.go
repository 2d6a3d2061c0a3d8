package cache

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// leafPages is how many pages share a leaf of a span's page table: those of 1 MiB, the size of a sector
// bitmap block.
const leafPages = 256

type leaf [leafPages]atomic.Pointer[Page]

// zeroLeaf stands in for a leaf whose pages are all known to be zero. It is never written.
var zeroLeaf = func() *leaf {
	l := new(leaf)
	for i := range l {
		l[i].Store(zeroPage)
	}
	return l
}()

// A Span is a run of pages of one file. Any number of goroutines may use it at once.
type Span struct {
	cache  *Cache
	src    io.ReaderAt
	off    int64 // file offset of page 0, bytes
	pages  int64
	leaves []atomic.Pointer[leaf]
}

// Span returns the span of n pages that begins at byte off of src. It reads nothing yet.
func (c *Cache) Span(src io.ReaderAt, off, n int64) *Span {
	return &Span{cache: c, src: src, off: off, pages: n, leaves: make([]atomic.Pointer[leaf], (n+leafPages-1)/leafPages)}
}

// Page returns page i of the span, reading it if it is not cached. It does not wait for other readers'
// input and output. The page stays valid for as long as the caller keeps it; but one that is not pinned does not learn of later
// changes once it was given up. The error is of reading, or of a page outside the span.
func (s *Span) Page(i int64) (*Page, error) {
	if l := s.leaves[i/leafPages].Load(); l != nil {
		if p := l[i%leafPages].Load(); p != nil {
			p.touch()
			s.cache.hits.Inc()
			return p, nil
		}
	}
	return s.load(i)
}

// Cached returns page i of the span if it is cached, and nil else. It does not count as a use of the page.
func (s *Span) Cached(i int64) *Page {
	if l := s.leaves[i/leafPages].Load(); l != nil {
		return l[i%leafPages].Load()
	}
	return nil
}

// Pin returns page i of the span, reading it if it is not cached, and keeps it until Unpin was called as often as
// Pin. A page that is to be changed has to be pinned until the change is in its place in the file.
func (s *Span) Pin(i int64) (*Page, error) {
	for {
		p, err := s.Page(i)
		if err != nil {
			return nil, err
		}
		if p = s.cache.pin(s, i, p); p != nil {
			return p, nil
		}
		// It was given up in between.
	}
}

// Unpin takes back one Pin of page i.
func (s *Span) Unpin(i int64) { s.cache.unpin(s, i) }

// Offset returns the file offset of page i, in bytes.
func (s *Span) Offset(i int64) int64 { return s.off + i*PageSize }

// load reads page i and keeps it.
func (s *Span) load(i int64) (*Page, error) {
	if i < 0 || i >= s.pages {
		return nil, fmt.Errorf("page %d is outside its span of %d", i, s.pages)
	}
	s.cache.misses.Add(1)
	var b [PageSize]byte
	off := s.Offset(i)
	evictions := s.cache.evictions.Load()
	// A span may end beyond the end of the file, which reads as zeros.
	if n, err := s.src.ReadAt(b[:], off); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read metadata page at %#x: %w", off, err)
	} else {
		clear(b[n:])
	}
	p := new(Page)
	p.decode(&b)
	if kept := s.cache.insert(s, i, p, evictions); kept != nil {
		return kept, nil
	}
	// Pages that had been changed were given up while this one was read. It may be among them.
	return s.load(i)
}

// MarkZero says that the n pages from page i on are known to be all zero and need not be read. It is meant for the scan
// that validates a BAT. Pages that are cached already stay as they are.
func (s *Span) MarkZero(i, n int64) {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	for end := i + n; i < end; {
		if i%leafPages == 0 && (end-i >= leafPages || end == s.pages) && s.leaves[i/leafPages].Load() == nil {
			s.leaves[i/leafPages].Store(zeroLeaf)
			i += leafPages
			continue
		}
		s.leaf(i)[i%leafPages].CompareAndSwap(nil, zeroPage)
		i++
	}
}

// leaf returns the leaf of page i, which it makes if need be. The caller holds the cache's lock or is
// alone with the span. A leaf of zero pages is replaced by one that can be written.
func (s *Span) leaf(i int64) *leaf {
	at := &s.leaves[i/leafPages]
	l := at.Load()
	if l == nil || l == zeroLeaf {
		own := new(leaf)
		for j := range own {
			if l == zeroLeaf {
				own[j].Store(zeroPage)
			}
		}
		at.Store(own)
		return own
	}
	return l
}
