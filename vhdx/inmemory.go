package vhdx

import "github.com/vhdxfs/vhdxfs/vhdx/ondisk"

// InMemory reports whether Resolve can tell what holds the n bytes from byte off, which lie inside the disk, without
// reading metadata: whether the pages of BATs and sector bitmap blocks that it needs are cached. Resolve may still
// have to read, where a page is given up in between. It takes no lock.
func (im *Image) InMemory(off, n int64) bool {
	if im.writer != nil {
		if l := im.writer.lease.Load(); l != nil && !l.Fresh() {
			return false // Resolve has to ask whether the image is still this host's
		}
	}
	last := off + n - 1
	for l := im.current(); l != nil && off < l.geo.DiskSize; l = l.parent() {
		g := &l.geo
		from, to := g.PayloadEntry(off>>g.BlockShift), g.PayloadEntry(min(last, g.DiskSize-1)>>g.BlockShift)
		for i := from / ondisk.EntriesPerPage; i <= to/ondisk.EntriesPerPage; i++ {
			if !l.bat.Cached(i) {
				return false
			}
		}
		if from != to {
			continue // some of the blocks may be the parent's
		}
		word, cached := l.bat.CachedWord(from/ondisk.EntriesPerPage, int(from%ondisk.EntriesPerPage))
		if !cached {
			return false
		}
		switch ondisk.BATEntry(word).State() {
		case ondisk.NotPresent:
		case ondisk.PartiallyPresent:
			if !l.bitmapInMemory(off, min(last, g.DiskSize-1)) {
				return false
			}
		default:
			return true
		}
	}
	return true
}

// bitmapInMemory reports whether the bits of the sectors from the one with byte off to the one with byte last are
// cached. The sectors belong to one block.
func (l *layer) bitmapInMemory(off, last int64) bool {
	from, to := off>>l.geo.SectorShift, last>>l.geo.SectorShift
	chunk := from >> ondisk.BitmapShift
	if chunk >= int64(len(l.bitmaps)) {
		return false
	}
	span := l.bitmaps[chunk].Load()
	if span == nil {
		return false
	}
	for i := (from & (ondisk.BitmapBits - 1)) / ondisk.BitsPerPage; i <= (to&(ondisk.BitmapBits-1))/ondisk.BitsPerPage; i++ {
		if !span.Cached(i) {
			return false
		}
	}
	return true
}
