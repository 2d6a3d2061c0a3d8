package cache

import (
	"sync"
	"sync/atomic"

	"github.com/vhdxfs/vhdxfs/internal/tally"
)

// minPages is the least number of pages that a cache keeps, even if its bound is smaller.
const minPages = 16

// A Cache bounds the pages of all its spans together. Any number of goroutines may use it at once.
type Cache struct {
	mu    sync.Mutex // guards what follows, and the changing of page tables
	limit int        // pages
	clock []slot     // the cached pages, in the order in which the hand passes them, and places without a page
	hand  int
	pages int     // that are cached
	free  []place // without a page, and not taken

	memory *memory // of all places; changed with mu held

	hits   tally.Counter
	misses atomic.Int64

	evictions atomic.Uint64 // pages given up so far that had been pinned; changed with mu held
}

// A slot is for one cached page. That is nil while there is none.
type slot struct {
	span *Span
	page int64
	p    *Page
}

// New returns a cache that keeps at most limit bytes of pages, or 16 pages if that is more. Pinned pages stay beyond the limit.
func New(limit int64) *Cache {
	return &Cache{limit: int(max(limit/PageSize, minPages)), memory: newMemory()}
}

// Lookups returns how many pages were in memory when they were looked up, those known to be zero included, and how
// many had to be read.
func (c *Cache) Lookups() (hits, misses int64) { return c.hits.Value(), c.misses.Load() }

// Pages returns how many pages are cached; those known to be zero do not count.
func (c *Cache) Pages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages
}

// A place is a slot of the clock without a page, and the memory for one. Its words are those of any page.
type place struct {
	slot  int
	words *frame
}

// take returns the place of a page that goes, or a new one while the cache is below its bound, or when all pages are pinned.
func (c *Cache) take() place {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.room()
}

// room is take with mu held.
func (c *Cache) room() (at place) {
	if n := len(c.free); n > 0 {
		at, c.free = c.free[n-1], c.free[:n-1]
		return at
	}
	if len(c.clock) >= c.limit && c.evict() {
		v := &c.clock[c.hand]
		at = place{c.hand, v.p.words}
		*v = slot{}
		c.hand = (c.hand + 1) % len(c.clock)
		return at
	}
	c.clock = append(c.clock, slot{})
	return place{len(c.clock) - 1, c.memory.frame()}
}

// give gives back a place that was taken.
func (c *Cache) give(at place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, at)
}

// insert keeps the words at a place as page i of s, unless another goroutine was faster, and returns the page that is kept. It
// returns nil if pages that had been pinned were given up since the given number of evictions, for then the words may be
// stale.
func (c *Cache) insert(s *Span, i int64, at place, evictions uint64) *Page {
	c.mu.Lock()
	defer c.mu.Unlock()
	other := s.leaf(i)[i%leafPages].Load()
	if other != nil || c.evictions.Load() != evictions {
		c.free = append(c.free, at)
		return other
	}
	return c.keep(s, i, at)
}

// keep makes the words at a place page i of s.
func (c *Cache) keep(s *Span, i int64, at place) *Page {
	p := &Page{words: at.words, memory: c.memory}
	c.clock[at.slot] = slot{s, i, p}
	c.pages++
	s.leaf(i)[i%leafPages].Store(p)
	return p
}

// evict gives up the page at which the hand comes to rest: the first that is not pinned and was not used since
// the hand last passed. Goroutines that read it at this moment learn that from the page, before its memory is another's. It
// returns false if all pages are pinned.
func (c *Cache) evict() bool {
	for range 2 * len(c.clock) {
		v := c.clock[c.hand]
		if v.p != nil && v.p.pins == 0 && !v.p.used.Swap(false) {
			if v.p.pinned {
				c.evictions.Add(1)
			}
			v.span.leaf(v.page)[v.page%leafPages].Store(nil)
			v.p.gone.Store(true)
			c.pages--
			return true
		}
		c.hand = (c.hand + 1) % len(c.clock)
	}
	return false
}

// pin pins p, which was page i of s a moment ago, and returns it, or nil if it is that page no more. A page that
// is known to be zero becomes one of its own.
func (c *Cache) pin(s *Span, i int64, p *Page) *Page {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := &s.leaf(i)[i%leafPages]
	if at.Load() != p {
		return nil
	}
	if p == zeroPage {
		room := c.room()
		room.words.clear()
		p = c.keep(s, i, room)
	}
	p.pins++
	p.pinned = true
	return p
}

func (c *Cache) unpin(s *Span, i int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.leaf(i)[i%leafPages].Load().pins--
}
