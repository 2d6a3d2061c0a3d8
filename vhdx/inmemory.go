package vhdx

// InMemory reports whether Resolve can tell what holds the n bytes from byte off, which lie inside the disk, without
// reading metadata: whether the pages of BATs and sector bitmap blocks that it needs are cached. Resolve may have to
// read all the same, where a page is given up in between. It takes no lock.
func (im *Image) InMemory(off, n int64) bool {
	last := off + n - 1
	for l := im.current(); l != nil && off < l.geo.diskSize; l = l.parent {
		g := &l.geo
		from, to := g.payloadEntry(off>>g.blockShift), g.payloadEntry(min(last, g.diskSize-1)>>g.blockShift)
		for i := from / entriesPerPage; i <= to/entriesPerPage; i++ {
			if l.bat.Cached(i) == nil {
				return false
			}
		}
		if from != to {
			continue // some of the blocks may be the parent's
		}
		p := l.bat.Cached(from / entriesPerPage)
		if p == nil {
			return false
		}
		switch e := batEntry(p.Word(int(from % entriesPerPage))); e.state() {
		case NotPresent:
		case PartiallyPresent:
			if !l.bitmapInMemory(off, min(last, g.diskSize-1)) {
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
	from, to := off>>l.geo.sectorShift, last>>l.geo.sectorShift
	chunk := from >> bitmapShift
	if chunk >= int64(len(l.bitmaps)) {
		return false
	}
	span := l.bitmaps[chunk].Load()
	if span == nil {
		return false
	}
	for i := (from & (bitmapBits - 1)) / bitsPerPage; i <= (to&(bitmapBits-1))/bitsPerPage; i++ {
		if span.Cached(i) == nil {
			return false
		}
	}
	return true
}
