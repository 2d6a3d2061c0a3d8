package vhdx

import (
	"math/bits"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// blockBits are the bits of one payload block in its chunk's sector bitmap block (MS-VHDX 2.5.1.2), pinned by an
// edit. Bits change in the edit's apply only.
type blockBits struct {
	pages []*cache.Page
	first int64 // bit of the first page that stands for the block's first sector
	n     int64 // sectors of the block
	used  int64 // of those, the ones that the disk has: fewer in its last block
}

// bitmapPages returns how many pages the bits of one block take at most.
func (l *layer) bitmapPages() int {
	return int((l.geo.SectorsPerBlock() + ondisk.BitsPerPage - 1) / ondisk.BitsPerPage)
}

// sectorInBlock returns which sector of its block the byte diskOff is in.
func (l *layer) sectorInBlock(diskOff int64) int64 {
	return l.geo.InBlock(diskOff) >> l.geo.SectorShift
}

// bits pins the bits of block b.
func (e *edit) bits(bitmap *cache.Span, b int64) (*blockBits, error) {
	g := &e.w.current().geo
	n := g.SectorsPerBlock()
	first := (b & (g.ChunkRatio() - 1)) * n
	bb := &blockBits{first: first % ondisk.BitsPerPage, n: n, used: (g.BlockEnd(b) - b<<g.BlockShift) >> g.SectorShift}
	for i := first / ondisk.BitsPerPage; i <= (first+n-1)/ondisk.BitsPerPage; i++ {
		p, err := e.page(bitmap, i)
		if err != nil {
			return nil, err
		}
		bb.pages = append(bb.pages, p)
	}
	return bb, nil
}

// words calls do for every word that holds some of the n bits from bit i of the block on, with a mask of them,
// until do returns false.
func (b *blockBits) words(i, n int64, do func(p *cache.Page, word int, mask uint64) bool) {
	for i, end := b.first+i, b.first+i+n; i < end; {
		next := min(i&^63+64, end)
		mask := ^uint64(0) << (i % 64) & (^uint64(0) >> (63 - (next-1)%64))
		if !do(b.pages[i/ondisk.BitsPerPage], int(i%ondisk.BitsPerPage/64), mask) {
			return
		}
		i = next
	}
}

// set sets the bits of n sectors from sector i of the block on.
func (b *blockBits) set(i, n int64) {
	b.words(i, n, func(p *cache.Page, word int, mask uint64) bool {
		p.SetWord(word, p.Word(word)|mask)
		return true
	})
}

// clear clears all bits of the block.
func (b *blockBits) clear() {
	b.words(0, b.n, func(p *cache.Page, word int, mask uint64) bool {
		p.SetWord(word, p.Word(word)&^mask)
		return true
	})
}

// all reports whether the bits of all sectors are set that the disk has.
func (b *blockBits) all() bool {
	all := true
	b.words(0, b.used, func(p *cache.Page, word int, mask uint64) bool {
		all = p.Word(word)&mask == mask
		return all
	})
	return all
}

// bitRun returns the value of bit first of the page, and how many bits from it on, up to last, have that value.
func bitRun(p *cache.Page, first, last int64) (set bool, n int64) {
	const wordBits = 64
	set = p.Word(int(first/wordBits))>>(first%wordBits)&1 != 0
	for i := first; i < last; {
		w := p.Word(int(i / wordBits))
		if set {
			w = ^w
		}
		w >>= i % wordBits // bits of the other value are set now
		if w != 0 {
			return set, min(i+int64(bits.TrailingZeros64(w)), last) - first
		}
		i += wordBits - i%wordBits
	}
	return set, last - first
}
