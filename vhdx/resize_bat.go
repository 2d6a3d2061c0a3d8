package vhdx

import (
	"context"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// moveBAT finds a place for the BAT where it outgrows its region.
func (r *resizing) moveBAT() error {
	bat, _ := r.w.current().tables.find(ondisk.BATRegionGUID)
	need := r.new.BATLength()
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
		if err := r.w.space.zero(at.off, at.size); err != nil {
			return err
		}
	}
	r.moves, r.batOff = true, at.off
	r.nameBAT(at)
	return nil
}

// nameBAT puts region tables into the log entry that have the BAT at the place at.
func (r *resizing) nameBAT(at place) {
	t := r.w.current().tables
	table := make([]ondisk.Region, len(t.regions))
	for i, reg := range t.regions {
		if reg.GUID == ondisk.BATRegionGUID {
			reg.Offset, reg.Length = uint64(at.off), uint32(at.size)
		}
		table[i] = reg
	}
	b := ondisk.EncodeRegionTable(table)
	for _, off := range ondisk.RegionTableOffsets {
		for i := int64(0); i < ondisk.RegionTableSize; i += ondisk.PageSize {
			r.pages[off+i] = (*[ondisk.PageSize]byte)(b[i:])
		}
	}
}

// newEntry returns what BAT entry i, which is e now, has to be: blocks that the disk gains have nothing, or in a fixed
// disk a place; entries that describe nothing are zero.
func (r *resizing) newEntry(i int64, e ondisk.BATEntry) ondisk.BATEntry {
	switch {
	case !r.new.Describes(i):
		return 0
	case r.old.Describes(i):
		return e
	case r.blocks.size > 0:
		n, _ := r.new.Entry(i)
		return ondisk.NewBATEntry(ondisk.FullyPresent, r.blocks.off+(n-r.old.PayloadBlocks())<<r.new.BlockShift)
	}
	return 0
}

// changeEntries writes the pages of the BAT that change and hold nothing that the disk has both before and after,
// with direct, in their places; it puts the others into the log entry. Where the BAT moves, all pages are written in
// their new places.
func (r *resizing) changeEntries(direct bool) error {
	from := r.small.PayloadEntry(r.small.PayloadBlocks()) / ondisk.EntriesPerPage
	if r.moves {
		from = 0
	}
	end := (max(r.old.BATEntries(), r.new.BATEntries()) + ondisk.EntriesPerPage - 1) / ondisk.EntriesPerPage
	oldOff := r.w.current().batOffset()
	bat, _ := r.w.current().tables.find(ondisk.BATRegionGUID)
	oldPages := int64(bat.Length) / ondisk.PageSize
	for i := from; i < end; i++ {
		if r.ctx.Err() != nil && !r.shrinks() {
			return context.Cause(r.ctx)
		}
		page := new([ondisk.PageSize]byte)
		if i < oldPages {
			// What is a hole stays one, unless blocks of a fixed disk come there.
			if r.blocks.size == 0 {
				hole, err := r.w.current().hole(oldOff+i*ondisk.PageSize, (min(end, oldPages)-i)*ondisk.PageSize)
				if err != nil {
					return err
				}
				if hole >= ondisk.PageSize {
					i += hole/ondisk.PageSize - 1
					continue
				}
			}
			if err := readFull(r.w.file, page[:], oldOff+i*ondisk.PageSize, "BAT"); err != nil {
				return err
			}
		} else if r.blocks.size == 0 {
			break
		}
		changed, keeps := r.changePage(page, i*ondisk.EntriesPerPage)
		off := r.batOff + i*ondisk.PageSize
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
func (r *resizing) changePage(page *[ondisk.PageSize]byte, first int64) (changed, keeps bool) {
	for j := range int64(ondisk.EntriesPerPage) {
		b := page[j*ondisk.BATEntrySize:]
		e := ondisk.BATEntry(ondisk.LE.Uint64(b))
		if n := r.newEntry(first+j, e); n != e {
			ondisk.LE.PutUint64(b, uint64(n))
			changed = true
		}
		keeps = keeps || r.small.Describes(first+j)
	}
	return changed, keeps
}
