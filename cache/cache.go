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
	clock []slot     // the cached pages, in the order in which the hand passes them
	hand  int

	hits   tally.Counter
	misses atomic.Int64

	evictions atomic.Uint64 // pages given up so far that had been pinned; changed with mu held
}

// A slot is the place of one cached page.
type slot struct {
	span *Span
	page int64
	p    *Page
}

// New returns a cache that keeps at most limit bytes of pages, or 16 pages if that is more. Pinned pages stay beyond the limit.
func New(limit int64) *Cache {
	return &Cache{limit: int(max(limit/PageSize, minPages))}
}

// Lookups returns how many pages were in memory when they were looked up, those known to be zero included, and how
// many had to be read.
func (c *Cache) Lookups() (hits, misses int64) { return c.hits.Value(), c.misses.Load() }

// Pages returns how many pages are cached; those known to be zero do not count.
func (c *Cache) Pages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.clock)
}

// insert keeps p as page i of s, unless another goroutine was faster, and returns the page that is kept. It
// returns nil if pages that had been pinned were given up since the given number of evictions, for then p may be
// stale.
func (c *Cache) insert(s *Span, i int64, p *Page, evictions uint64) *Page {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := &s.leaf(i)[i%leafPages]
	if other := at.Load(); other != nil {
		return other
	}
	if c.evictions.Load() != evictions {
		return nil
	}
	c.keep(s, i, p)
	at.Store(p)
	return p
}

// keep gives page i of s a place on the clock: that of a page that goes, or a new one while the cache is below
// its bound, or when all pages are pinned.
func (c *Cache) keep(s *Span, i int64, p *Page) {
	if len(c.clock) >= c.limit && c.evict() {
		c.clock[c.hand] = slot{s, i, p}
		c.hand = (c.hand + 1) % len(c.clock)
		return
	}
	c.clock = append(c.clock, slot{s, i, p})
}

// evict gives up the page at which the hand comes to rest: the first that is not pinned and was not used since
// the hand last passed. Goroutines that still hold the page go on reading it. It returns false if all pages
// are pinned.
func (c *Cache) evict() bool {
	for range 2 * len(c.clock) {
		v := c.clock[c.hand]
		if v.p.pins == 0 && !v.p.used.Swap(false) {
			if v.p.pinned {
				c.evictions.Add(1)
			}
			v.span.leaf(v.page)[v.page%leafPages].Store(nil)
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
		p = new(Page)
		c.keep(s, i, p)
		at.Store(p)
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
