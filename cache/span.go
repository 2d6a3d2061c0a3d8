package cache

import (
	"errors"
	"fmt"
	"io"
	"sync"
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

// page returns page i of the span, reading it if it is not cached. It does not wait for other readers' input and output. What
// is read of the page counts only if the page is valid afterwards.
func (s *Span) page(i int64) (*Page, error) {
	if l := s.leaves[i/leafPages].Load(); l != nil {
		if p := l[i%leafPages].Load(); p != nil {
			p.touch()
			s.cache.hits.Inc()
			return p, nil
		}
	}
	return s.load(i)
}

// Word returns word w of page i, reading the page if it is not cached. zero says that the whole page is known to be zero. It does
// not wait for other readers' input and output. The error is of reading, or of a page outside the span.
func (s *Span) Word(i int64, w int) (v uint64, zero bool, err error) {
	for {
		p, err := s.page(i)
		if err != nil {
			return 0, false, err
		}
		if v := p.Word(w); p.valid() {
			return v, p.Zero(), nil
		}
	}
}

// Read calls do with page i, reading it if it is not cached, once more if the page was given up meanwhile. What do saw in the last
// call counts. The page is not valid any more when Read returns. The errors are those of Word.
func (s *Span) Read(i int64, do func(p *Page)) error {
	for {
		p, err := s.page(i)
		if err != nil {
			return err
		}
		if do(p); p.valid() {
			return nil
		}
	}
}

// Cached reports whether page i of the span is cached. It does not count as a use of the page.
func (s *Span) Cached(i int64) bool { return s.cached(i) != nil }

// CachedWord returns word w of page i if that is cached. It does not count as a use of the page.
func (s *Span) CachedWord(i int64, w int) (v uint64, cached bool) {
	p := s.cached(i)
	if p == nil {
		return 0, false
	}
	v = p.Word(w)
	return v, p.valid()
}

func (s *Span) cached(i int64) *Page {
	if l := s.leaves[i/leafPages].Load(); l != nil {
		return l[i%leafPages].Load()
	}
	return nil
}

// Pin returns page i of the span, reading it if it is not cached, and keeps it until Unpin was called as often as
// Pin. A page that is to be changed has to be pinned until the change is in its place in the file.
func (s *Span) Pin(i int64) (*Page, error) {
	for {
		p, err := s.page(i)
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

// buffers are for pages on their way from a file.
var buffers = sync.Pool{New: func() any { return new([PageSize]byte) }}

// load reads page i and keeps it.
func (s *Span) load(i int64) (*Page, error) {
	if i < 0 || i >= s.pages {
		return nil, fmt.Errorf("page %d is outside its span of %d", i, s.pages)
	}
	s.cache.misses.Add(1)
	at := s.cache.take()
	b := buffers.Get().(*[PageSize]byte)
	defer buffers.Put(b)
	off := s.Offset(i)
	evictions := s.cache.evictions.Load()
	// A span may end beyond the end of the file, which reads as zeros.
	if n, err := s.src.ReadAt(b[:], off); err != nil && !errors.Is(err, io.EOF) {
		s.cache.give(at)
		return nil, fmt.Errorf("read metadata page at %#x: %w", off, err)
	} else {
		clear(b[n:])
	}
	at.words.decode(b)
	if kept := s.cache.insert(s, i, at, evictions); kept != nil {
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
