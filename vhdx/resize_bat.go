package vhdx

import "context"

// batLength returns how long the region of the BAT has to be, in bytes.
func (g *geometry) batLength() int64 { return roundUp(g.batEntries()*batEntrySize, mib) }

// moveBAT finds a place for the BAT where it outgrows its region.
func (r *resizing) moveBAT() error {
	bat, _ := r.w.l.tables.find(batRegionGUID)
	need := r.new.batLength()
	if need <= int64(bat.Length) {
		return nil
	}
	at, err := r.allocate(need)
	if err != nil {
		return err
	}
	return r.placeBAT(at)
}

// placeBAT has the BAT come to the place at, which reads as zero afterwards.
func (r *resizing) placeBAT(at place) error {
	if !at.fresh {
		if err := r.w.zero(at.off, at.size); err != nil {
			return err
		}
	}
	r.moves, r.batOff = true, at.off
	r.nameBAT(at)
	return nil
}

// nameBAT puts region tables into the log entry that have the BAT at the place at.
func (r *resizing) nameBAT(at place) {
	t := r.w.l.tables
	table := make([]region, len(t.regions))
	for i, reg := range t.regions {
		if reg.GUID == batRegionGUID {
			reg.Offset, reg.Length = uint64(at.off), uint32(at.size)
		}
		table[i] = reg
	}
	b := encodeRegionTable(table)
	for _, off := range regionTableOffsets {
		for i := int64(0); i < regionTableSize; i += pageSize {
			r.pages[off+i] = (*[pageSize]byte)(b[i:])
		}
	}
}

// describes reports whether BAT entry i describes something.
func (g *geometry) describes(i int64) bool {
	n, bitmap := g.entry(i)
	if bitmap {
		return g.hasParent && n < g.chunks()
	}
	return n < g.payloadBlocks()
}

// newEntry returns what BAT entry i, which is e now, has to be: blocks that the disk gains have nothing, or in a fixed
// disk a place; entries that describe nothing are zero.
func (r *resizing) newEntry(i int64, e batEntry) batEntry {
	switch {
	case !r.new.describes(i):
		return 0
	case r.old.describes(i):
		return e
	case r.blocks.size > 0:
		n, _ := r.new.entry(i)
		return newBATEntry(FullyPresent, r.blocks.off+(n-r.old.payloadBlocks())<<r.new.blockShift)
	}
	return 0
}

// changeEntries writes the pages of the BAT that change and hold nothing that the disk has both before and after,
// with direct, in their places; it puts the others into the log entry. Where the BAT moves, all pages are written in
// their new places.
func (r *resizing) changeEntries(direct bool) error {
	from := r.small.payloadEntry(r.small.payloadBlocks()) / entriesPerPage
	if r.moves {
		from = 0
	}
	end := (max(r.old.batEntries(), r.new.batEntries()) + entriesPerPage - 1) / entriesPerPage
	oldOff := r.w.l.batOffset()
	bat, _ := r.w.l.tables.find(batRegionGUID)
	oldPages := int64(bat.Length) / pageSize
	for i := from; i < end; i++ {
		if r.ctx.Err() != nil && !r.shrinks() {
			return context.Cause(r.ctx)
		}
		page := new([pageSize]byte)
		if i < oldPages {
			// What is a hole stays one, unless blocks of a fixed disk come there.
			if r.blocks.size == 0 {
				hole, err := r.w.l.hole(oldOff+i*pageSize, (min(end, oldPages)-i)*pageSize)
				if err != nil {
					return err
				}
				if hole >= pageSize {
					i += hole/pageSize - 1
					continue
				}
			}
			if err := readFull(r.w.file, page[:], oldOff+i*pageSize, "BAT"); err != nil {
				return err
			}
		} else if r.blocks.size == 0 {
			break
		}
		changed, keeps := r.changePage(page, i*entriesPerPage)
		off := r.batOff + i*pageSize
		switch {
		case r.moves:
			if allZero(page[:]) {
				continue
			}
		case !changed:
			continue
		case keeps:
			r.pages[off] = page
			continue
		case !direct:
			continue
		}
		if _, err := r.w.file.WriteAt(page[:], off); err != nil {
			return err
		}
	}
	return nil
}

// changePage gives the entries in page, the first of which is entry first, their new values. It reports whether one
// changed, and whether the page holds one that describes something before and after.
func (r *resizing) changePage(page *[pageSize]byte, first int64) (changed, keeps bool) {
	for j := range int64(entriesPerPage) {
		b := page[j*batEntrySize:]
		e := batEntry(le.Uint64(b))
		if n := r.newEntry(first+j, e); n != e {
			le.PutUint64(b, uint64(n))
			changed = true
		}
		keeps = keeps || r.small.describes(first+j)
	}
	return changed, keeps
}
