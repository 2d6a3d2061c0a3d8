package cache

import "sync"

// minPages is the least number of pages that a cache keeps, whatever its bound.
const minPages = 16

// A Cache bounds the pages of all its spans together.
type Cache struct {
	mu    sync.Mutex // guards what follows, and the changing of page tables
	limit int        // pages
	clock []slot     // the cached pages, in the order in which the hand passes them
	hand  int
}

// A slot is the place of one cached page.
type slot struct {
	span *Span
	page int64
}

// New returns a cache that keeps at most limit bytes of pages.
func New(limit int64) *Cache {
	return &Cache{limit: int(max(limit/PageSize, minPages))}
}

// Pages returns how many pages are cached; those known to be zero do not count.
func (c *Cache) Pages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.clock)
}

// insert keeps p as page i of s, unless another goroutine was faster, and returns the page that is kept.
func (c *Cache) insert(s *Span, i int64, p *Page) *Page {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := &s.leaf(i)[i%leafPages]
	if other := at.Load(); other != nil {
		return other
	}
	if len(c.clock) < c.limit {
		c.clock = append(c.clock, slot{s, i})
	} else {
		c.evict()
		c.clock[c.hand] = slot{s, i}
		c.hand = (c.hand + 1) % len(c.clock)
	}
	at.Store(p)
	return p
}

// evict gives up the page at which the hand comes to rest: the first that was not used since the hand last
// passed. Goroutines that still hold the page go on reading it.
func (c *Cache) evict() {
	for {
		v := c.clock[c.hand]
		at := &v.span.leaf(v.page)[v.page%leafPages]
		if !at.Load().used.Swap(false) {
			at.Store(nil)
			return
		}
		c.hand = (c.hand + 1) % len(c.clock)
	}
}
