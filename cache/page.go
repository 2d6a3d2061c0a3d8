package cache

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
)

const (
	// PageSize is the length of a page in bytes: the unit in which the log carries metadata (MS-VHDX 2.3.1).
	PageSize = 4 << 10
	// PageWords is the number of 64-bit words in a page.
	PageWords = PageSize / 8
)

// A Page is a page of metadata as little-endian words of 64 bits: BAT entries, or the bits of 64 sectors.
// Any number of goroutines may read its words while others change them.
type Page struct {
	words  *frame  // another page has it after this one was given up
	memory *memory // of words, which stays as long as the page is referred to; nil for the page of zeros

	gone  atomic.Bool // it was given up, and words may be another page's
	used  atomic.Bool // since the clock's hand passed; see Cache.evict
	space atomic.Bool // see HasSpace

	// Guarded by Cache.mu.
	pinned bool // at any time, so that the file may have held something else when another reader read it
	pins   int  // a pinned page is not given up
}

// zeroPage stands in for every page that is known to hold nothing but zeros. It is never given up.
var zeroPage = &Page{words: new(frame)}

// Word returns word i of the page.
func (p *Page) Word(i int) uint64 {
	v := p.words[i].Load()
	runtime.KeepAlive(p) // and with it the memory
	return v
}

// SetWord changes word i of the page, which the caller has pinned.
func (p *Page) SetWord(i int, v uint64) {
	p.words[i].Store(v)
	runtime.KeepAlive(p)
}

// Encode stores the page as it is in the file. While no goroutine changes words, it is the page of one instant.
func (p *Page) Encode(b *[PageSize]byte) {
	for i := range p.words {
		binary.LittleEndian.PutUint64(b[8*i:], p.words[i].Load())
	}
	runtime.KeepAlive(p)
}

// Zero reports whether the page is known to be all zero. A page for which it returns false may be, too.
func (p *Page) Zero() bool { return p == zeroPage }

// HasSpace reports whether SetHasSpace was called since the page was read. A page that is known to be zero has none.
func (p *Page) HasSpace() bool { return p.space.Load() }

// SetHasSpace says that the place of the page, which the caller has pinned, has space in the file: that a page reads as
// something does not mean that it can be written where the disk is full.
func (p *Page) SetHasSpace() { p.space.Store(true) }

// valid reports whether the words that were read of the page so far were its own. It is false once the page was given up.
func (p *Page) valid() bool { return !p.gone.Load() }

// touch tells the clock that the page is in use. Testing first keeps a page that all cores
// read from being written by all of them.
func (p *Page) touch() {
	if !p.used.Load() {
		p.used.Store(true)
	}
}
