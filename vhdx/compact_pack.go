package vhdx

import (
	"math/bits"
	"slices"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A packing computes where a file ends when it has been compacted, without the file: the moves that a compaction would
// make are made in maps with a bit for each MiB.
type packing struct {
	space   *spaceMap
	begins  [2]*spaceMap // where payload blocks begin, and sector bitmap blocks
	sizes   [2]int64     // of these, bytes
	bat     ondisk.Region
	batNeed int64 // bytes that the BAT takes after a compaction
}

// newPacking takes the space of l's file as it is now.
func newPacking(l *layer, space *spaceMap) *packing {
	bat, _ := l.tables.find(ondisk.BATRegionGUID)
	p := &packing{
		space:   &spaceMap{words: slices.Clone(space.words), n: space.n},
		sizes:   [2]int64{l.geo.BlockSize, ondisk.BitmapBlockSize},
		bat:     bat,
		batNeed: l.geo.BATLength(),
	}
	for kind := range p.begins {
		p.begins[kind] = newSpaceMap(space.n * ondisk.MiB)
	}
	return p
}

// add tells of a block that is present and may move.
func (p *packing) add(m movable) { p.begins[m.kind()].mark(m.fileOff, ondisk.MiB) }

// give tells of a payload block whose place at file offset off is given up, and reports whether there is such a place.
func (p *packing) give(off int64) bool { return p.space.clear(off, p.sizes[0]) }

// run makes all moves.
func (p *packing) run() {
	p.moveBlocks()
	off := int64(p.bat.Offset) // #nosec G115 -- an image that is written has its BAT inside the file
	to, ok := p.space.find(p.batNeed, off)
	if !ok && p.batExcess() == 0 {
		return
	}
	p.space.clear(off, int64(p.bat.Length))
	if !ok {
		to = off
	}
	p.space.mark(to, p.batNeed)
	p.moveBlocks()
}

// batExcess returns how many bytes the region of the BAT has too much.
func (p *packing) batExcess() int64 { return int64(p.bat.Length) - p.batNeed }

func (p *packing) moveBlocks() {
	for p.pass() {
	}
}

// pass moves blocks down, the highest first, and reports whether one found a place.
func (p *packing) pass() (moved bool) {
	var from [2]int64 // a block of the kind has no place before: what becomes free lies above all that is to be moved yet
	payload, bitmaps := p.begins[0], p.begins[1]
	for w := len(payload.words) - 1; w >= 0; w-- {
		for left := payload.words[w] | bitmaps.words[w]; left != 0; {
			bit := 63 - bits.LeadingZeros64(left)
			left &^= 1 << bit
			off, kind := int64(w*64+bit)*ondisk.MiB, 0
			if bitmaps.words[w]&(1<<bit) != 0 {
				kind = 1
			}
			size := p.sizes[kind]
			to, ok := p.space.findFrom(size, from[kind], off)
			if !ok {
				from[kind] = off
				continue
			}
			p.space.mark(to, size)
			p.space.clear(off, size)
			p.begins[kind].clear(off, ondisk.MiB)
			p.begins[kind].mark(to, ondisk.MiB)
			from[kind], moved = to+size, true
		}
	}
	return moved
}
