package powercut

import (
	"io"
	"maps"
)

const pageSize = 4 << 10

type page [pageSize]byte

// hole stands for a page that has no data: a hole, or space that was never written.
var hole = new(page)

// content is what a file holds: pages over what it held at first, so that copies cost little however large it is.
type content struct {
	base  io.ReaderAt
	seen  int64           // from here on the base does not count: the file was shorter once
	pages map[int64]*page // by page number; a page is replaced, never changed
	size  int64
}

func (c content) clone() content {
	c.pages = maps.Clone(c.pages)
	return c
}

// do makes a change, whole.
func (c *content) do(ch change) {
	switch ch.what {
	case truncate:
		c.resize(ch.off)
	case reserve:
		c.size = max(c.size, ch.end())
	case zero:
		from, to := (ch.off+pageSize-1)/pageSize*pageSize, ch.end()/pageSize*pageSize
		if from >= to {
			c.write(ch.data, ch.off)
			return
		}
		c.write(ch.data[:from-ch.off], ch.off)
		for n := from / pageSize; n < to/pageSize; n++ {
			c.pages[n] = hole
		}
		c.write(ch.data[to-ch.off:], to)
	default:
		c.write(ch.data, ch.off)
	}
}

// nextData returns the first offset from off on in a page that may hold data, and io.EOF where there is none.
func (c *content) nextData(off int64) (int64, error) {
	// What the base holds counts as data.
	for at := off; at < min(c.seen, c.size); at = at/pageSize*pageSize + pageSize {
		if c.pages[at/pageSize] != hole {
			return at, nil
		}
	}
	next := c.size
	for n, pg := range c.pages {
		if pg != hole && (n+1)*pageSize > off {
			next = min(next, max(n*pageSize, off))
		}
	}
	if next >= c.size {
		return 0, io.EOF
	}
	return next, nil
}

// nextHole returns the first offset from off on in a page that holds no data, or else the end of the file.
func (c *content) nextHole(off int64) int64 {
	for at := off; at < c.size; at = at/pageSize*pageSize + pageSize {
		if pg := c.pages[at/pageSize]; pg == hole || pg == nil && at >= c.seen {
			return at
		}
	}
	return max(off, c.size)
}

// write stores p at off, and grows the file if need be.
func (c *content) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		pg := new(page)
		if off%pageSize > 0 || len(p) < pageSize {
			*pg = *c.page(off / pageSize)
		}
		n := copy(pg[off%pageSize:], p)
		c.pages[off/pageSize] = pg
		p, off = p[n:], off+int64(n)
	}
}

// resize gives the file another size. Added bytes are zero.
func (c *content) resize(size int64) {
	if size < c.size {
		if rest := size % pageSize; rest > 0 {
			pg := *c.page(size / pageSize)
			clear(pg[rest:])
			c.pages[size/pageSize] = &pg
		}
		maps.DeleteFunc(c.pages, func(n int64, _ *page) bool { return n*pageSize >= size })
		c.seen = min(c.seen, size)
	}
	c.size = size
}

// page returns page n, which must not be changed.
func (c *content) page(n int64) *page {
	if pg := c.pages[n]; pg != nil {
		return pg
	}
	pg := new(page)
	c.readBase(pg[:], n*pageSize)
	return pg
}

// readBase fills p, which is zero, with what the base has at off.
func (c *content) readBase(p []byte, off int64) {
	if left := c.seen - off; left > 0 {
		if _, err := c.base.ReadAt(p[:min(left, int64(len(p)))], off); err != nil && err != io.EOF {
			panic(err) // what a test begins with is in memory
		}
	}
}

func (c *content) readAt(p []byte, off int64) (int, error) {
	var err error
	if left := c.size - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(pageSize-at%pageSize))]
		if pg := c.pages[at/pageSize]; pg != nil {
			copy(part, pg[at%pageSize:])
		} else {
			clear(part)
			c.readBase(part, at)
		}
		n += len(part)
	}
	return len(p), err
}
