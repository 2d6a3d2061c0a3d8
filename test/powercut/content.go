package powercut

import (
	"io"
	"maps"
)

const pageSize = 4 << 10

type page [pageSize]byte

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
	if ch.what == truncate {
		c.resize(ch.off)
		return
	}
	c.write(ch.data, ch.off)
}

// write stores p at off, and grows the file if need be.
func (c *content) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		pg := *c.page(off / pageSize)
		n := copy(pg[off%pageSize:], p)
		c.pages[off/pageSize] = &pg
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
	if left := c.seen - n*pageSize; left > 0 {
		if _, err := c.base.ReadAt(pg[:min(left, pageSize)], n*pageSize); err != nil && err != io.EOF {
			panic(err) // what a test begins with is in memory
		}
	}
	return pg
}

func (c *content) readAt(p []byte, off int64) (int, error) {
	var err error
	if left := c.size - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		n += copy(p[n:], c.page(at / pageSize)[at%pageSize:])
	}
	return len(p), err
}
