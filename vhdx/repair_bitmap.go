package vhdx

import (
	"context"
	"maps"
	"slices"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// mendBitmaps mends chunks whose sector bitmap block cannot be found or used.
func (r *repairer) mendBitmaps(l *layer, list []Finding) error {
	chunks := make(map[int64]Finding)
	for _, f := range list {
		n, bitmap := l.describes(f.Offset)
		if !bitmap { // the first partially present block of a chunk that has no bitmap block
			n >>= l.geo.ChunkShift
		}
		if _, ok := chunks[n]; !ok {
			chunks[n] = f
		}
	}
	size := r.d.size // before it grows for one of them
	for _, c := range slices.Sorted(maps.Keys(chunks)) {
		if err := r.mendBitmap(l, c, chunks[c], size); err != nil {
			return err
		}
	}
	return nil
}

// mendBitmap mends chunk c, whose finding is f, in a file that had size bytes.
func (r *repairer) mendBitmap(l *layer, c int64, f Finding, size int64) error {
	at := l.batOffset() + l.geo.BitmapEntry(c)*ondisk.BATEntrySize
	e, err := r.entryAt(at)
	if err != nil {
		return err
	}
	blocks, err := r.partial(l, c)
	if err != nil {
		return err
	}
	if len(blocks) == 0 {
		r.fixed(f, "chunk %d no longer has a sector bitmap block, and needs none; the disk reads as before", c)
		return r.setEntry(at, 0)
	}
	if off := e.Offset(); off >= ondisk.HeaderSectionSize && off < uint64(size) && l.space.mark(int64(off), ondisk.BitmapBlockSize) { // #nosec G115 -- smaller than the file
		// Nothing else is there, so it is what the entry meant: with a flipped bit in its state, or cut by the end of the file.
		return r.keepBitmap(l, c, f, int64(off), blocks) // #nosec G115 -- smaller than the file
	}
	place, err := r.d.append(ondisk.BitmapBlockSize, l.space)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		if err := r.guessSectors(l, b, place); err != nil {
			return err
		}
	}
	r.hurt(f, Suspect, l.diskRanges(blocks), "the sector bitmap of chunk %d is lost, and a new one at %#x is guessed from the data: "+
		"sectors with data count as the image's own, sectors of zeros as the parent's", c, place)
	return r.setEntry(at, ondisk.NewBATEntry(ondisk.BitmapPresent, place))
}

// keepBitmap makes the sector bitmap block at file offset off that of chunk c. Bits behind the end of the file are lost.
func (r *repairer) keepBitmap(l *layer, c int64, f Finding, off int64, blocks []int64) error {
	end := r.d.size - off // bytes of the bitmap that are there
	if err := r.d.Truncate(max(r.d.size, off+ondisk.BitmapBlockSize)); err != nil {
		return err
	}
	if err := r.setEntry(l.batOffset()+l.geo.BitmapEntry(c)*ondisk.BATEntrySize, ondisk.NewBATEntry(ondisk.BitmapPresent, off)); err != nil {
		return err
	}
	perBlock := l.geo.SectorsPerBlock() / 8 // bytes
	cut := slices.DeleteFunc(slices.Clone(blocks), func(b int64) bool { return (b&(l.geo.ChunkRatio()-1)+1)*perBlock <= end })
	for _, b := range cut {
		if err := r.guessSectors(l, b, off); err != nil {
			return err
		}
	}
	if end < ondisk.BitmapBlockSize {
		blocks = cut
	}
	r.hurt(f, Suspect, l.diskRanges(blocks), "the sector bitmap block of chunk %d is the one at %#x, which nothing else uses; "+
		"beyond the end of the file, sectors with data count as the image's own", c, off)
	return nil
}

// diskRanges returns what payload blocks are of the disk.
func (l *layer) diskRanges(blocks []int64) []DiskRange {
	ranges := make([]DiskRange, len(blocks))
	for i, b := range blocks {
		ranges[i] = l.diskRange(b, 0)
	}
	return ranges
}

// partial returns the partially present blocks of chunk c.
func (r *repairer) partial(l *layer, c int64) (blocks []int64, err error) {
	first := c << l.geo.ChunkShift
	n := min(l.geo.ChunkRatio(), l.geo.PayloadBlocks()-first)
	table := make([]byte, n*ondisk.BATEntrySize)
	if err := readFull(r.d, table, l.batOffset()+l.geo.PayloadEntry(first)*ondisk.BATEntrySize, "BAT"); err != nil {
		return nil, err
	}
	for i := range n {
		if ondisk.BATEntry(ondisk.LE.Uint64(table[i*ondisk.BATEntrySize:])).State() == ondisk.PartiallyPresent {
			blocks = append(blocks, first+i)
		}
	}
	return blocks, nil
}

// guessSectors sets the bits of the partially present block b in the new sector bitmap block at file offset place: of
// those sectors that are not zero. New space in an image is zero, so what is not was written.
func (r *repairer) guessSectors(l *layer, b, place int64) error {
	if err := context.Cause(r.ctx); err != nil {
		return err
	}
	g := &l.geo
	e, err := r.entryAt(l.batOffset() + g.PayloadEntry(b)*ondisk.BATEntrySize)
	if err != nil {
		return err
	}
	bits := make([]byte, g.SectorsPerBlock()/8)
	used := g.BlockEnd(b) - b<<g.BlockShift
	piece := make([]byte, ondisk.MiB)
	for at := int64(0); at < used; at += ondisk.MiB {
		p := piece[:min(ondisk.MiB, used-at)]
		if err := readFull(r.d, p, e.FileOff()+at, "block"); err != nil {
			return err
		}
		for s := int64(0); s < int64(len(p)); s += g.SectorSize {
			if !allZero(p[s:min(s+g.SectorSize, int64(len(p)))]) {
				i := (at + s) >> g.SectorShift
				bits[i/8] |= 1 << (i % 8)
			}
		}
	}
	_, err = r.d.WriteAt(bits, place+(b&(g.ChunkRatio()-1))*g.SectorsPerBlock()/8)
	return err
}
