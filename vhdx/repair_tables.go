package vhdx

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// takeOtherTable takes the other copy of the region table, where the one that counts says what cannot be. Whether the
// other one is better shows when the draft is examined again.
func (r *repairer) takeOtherTable(l *layer, list []Finding) error {
	if r.triedOther || !l.tables.differ {
		return nil
	}
	r.triedOther = true
	r.fixed(list[0], "copy 2 of the region table is used for both")
	return r.copyTable(1, 0)
}

// mendTables writes the copy of the region table that is damaged, or another one, from the one that counts.
func (r *repairer) mendTables(l *layer, list []Finding) error {
	cur := l.tables.current
	r.fixed(list[0], "copy %d is written from copy %d", 2-cur, cur+1)
	return r.copyTable(cur, 1-cur)
}

func (r *repairer) copyTable(from, to int) error {
	var b [ondisk.RegionTableSize]byte
	if err := readFull(r.d, b[:], ondisk.RegionTableOffsets[from], "region table"); err != nil {
		return err
	}
	_, err := r.d.WriteAt(b[:], ondisk.RegionTableOffsets[to])
	return err
}

// mendRegions clears reserved flags, and takes out optional regions that lie where none can be:
// until then no block can be put into the file.
func (r *repairer) mendRegions(l *layer, list []Finding) error {
	before := len(r.fixes)
	var table []ondisk.Region
	for _, reg := range l.tables.regions {
		misplaced := reg.Offset%ondisk.MiB != 0 || reg.Offset < ondisk.HeaderSectionSize || reg.Length == 0 || reg.Length%ondisk.MiB != 0
		if reg.Name() == "unknown" && reg.Flags&ondisk.RegionRequired == 0 && (misplaced || !reg.Inside(l.size)) {
			r.fixed(list[0], "the optional region %v at %#x is removed from the table; it held no data of the disk", reg.GUID, reg.Offset)
			r.keepSpace = true
			continue
		}
		if reg.Flags&^ondisk.RegionRequired != 0 {
			r.fixed(list[0], "the reserved flags of the %s region are cleared", reg.Name())
			reg.Flags &= ondisk.RegionRequired
		}
		table = append(table, reg)
	}
	if len(r.fixes) == before {
		return nil
	}
	b := ondisk.EncodeRegionTable(table)
	for _, off := range ondisk.RegionTableOffsets {
		if _, err := r.d.WriteAt(b[:], off); err != nil {
			return err
		}
	}
	return nil
}

// cutBAT is what findings are about when the end of the file cuts the BAT region.
const cutBAT = "BAT region"

// growBAT makes the file long enough for a BAT region that its end cuts. What was there is for fillBAT to find out, when
// the metadata has been read.
func (r *repairer) growBAT(l *layer, list []Finding) error {
	bat, ok := l.tables.find(ondisk.BATRegionGUID)
	if !ok || r.batCut > 0 || bat.Offset >= uint64(r.d.size) || bat.Inside(r.d.size) {
		return nil // it begins behind the end, or it is another region
	}
	if r.top.file.IsDevice() {
		return nil
	}
	r.batCut = r.d.size
	r.fixed(list[0], "the file is extended to the end of the BAT region")
	return r.d.Truncate(int64(bat.End())) // #nosec G115 -- begins inside the file, and has a length of 32 bits
}

// fillBAT stores what is known of blocks whose entries lay behind the end of the file: nothing.
func (r *repairer) fillBAT(l *layer, list []Finding) error {
	first := (r.batCut - l.batOffset()) / ondisk.BATEntrySize
	r.batCut = 0
	var blocks DiskRange
	var page []byte
	store := func(next int64) error {
		_, err := r.d.WriteAt(page, l.batOffset()+next*ondisk.BATEntrySize-int64(len(page)))
		page = page[:0]
		return err
	}
	for i := first; i < l.geo.BATEntries(); i++ {
		e := ondisk.NewBATEntry(ondisk.Undefined, 0)
		switch n, bitmap := l.geo.Entry(i); {
		case bitmap, n >= l.geo.PayloadBlocks():
			e = 0
		case blocks.Length == 0:
			blocks.Start = n << l.geo.BlockShift
			blocks.Length = l.geo.DiskSize - blocks.Start
		}
		if page = ondisk.LE.AppendUint64(page, uint64(e)); len(page) == ondisk.PageSize {
			if err := store(i + 1); err != nil {
				return err
			}
		}
	}
	if blocks.Length == 0 {
		r.fixed(list[0], "no entry of a block was lost")
	} else {
		r.hurt(list[0], Lost, []DiskRange{blocks}, "the entries of the blocks from there on are lost: their state is now %v, which reads as zeros", ondisk.Undefined)
	}
	return store(max(first, l.geo.BATEntries()))
}

// mendItems mends entries of the metadata table that the disk does not depend on.
func (r *repairer) mendItems(l *layer, list []Finding) error {
	for _, f := range list {
		i := int((f.Offset - l.metadataOffset() - ondisk.MetadataHeaderSize) / ondisk.MetadataEntrySize)
		if i < 0 || i >= len(l.items) {
			continue
		}
		m := l.items[i]
		known, isKnown := m.Known()
		switch {
		case f.Rule == "" && isKnown:
			m.Flags = known.Flags
			if m.ID != ondisk.ParentLocatorGUID {
				m.Length = min(m.Length, known.Size)
			}
			r.fixed(f, "flags and length of the %s now have their usual values", known.Name)
		case f.Rule == ondisk.RuleItemTwice.Name() && slices.Contains(l.items[:i], m), // the same item twice
			f.Rule != ondisk.RuleItemTwice.Name() && needless(m):
			r.fixed(f, "the entry of item %v is cleared; the disk reads as before", m.ID)
			m = ondisk.MetadataItem{ID: uuid.New()} // so no other entry has to move, which could not be done in one write
		default:
			continue
		}
		if err := r.setItem(f.Offset, m); err != nil {
			return err
		}
	}
	return nil
}

// needless reports whether a disk can be read without the metadata item.
func needless(m ondisk.MetadataItem) bool {
	_, isKnown := m.Known()
	return !isKnown && m.Flags&ondisk.ItemIsRequired == 0 ||
		isKnown && (m.ID == ondisk.DiskIDGUID || m.ID == ondisk.PhysicalSectorSizeGUID)
}

// setItem stores the entry of the metadata table at file offset off.
func (r *repairer) setItem(off int64, m ondisk.MetadataItem) error {
	b := ondisk.EncodeMetadataTable([]ondisk.MetadataItem{m})[ondisk.MetadataHeaderSize:][:ondisk.MetadataEntrySize]
	_, err := r.d.WriteAt(b, off)
	return err
}

// mendFileParameters clears the reserved flags.
func (r *repairer) mendFileParameters(_ *layer, list []Finding) error {
	at := list[0].Offset + 4 // behind the block size
	var b [4]byte
	if err := readFull(r.d, b[:], at, "file parameters"); err != nil {
		return err
	}
	ondisk.LE.PutUint32(b[:], ondisk.LE.Uint32(b[:])&(paramLeaveBlockAllocated|paramHasParent))
	r.fixed(list[0], "the reserved flags are cleared")
	_, err := r.d.WriteAt(b[:], at)
	return err
}

// mendPhysicalSectorSize puts the usual value in the place of one that cannot be. It changes no byte of the disk.
func (r *repairer) mendPhysicalSectorSize(_ *layer, list []Finding) error {
	r.fixed(list[0], "set to %d bytes, the usual value; the disk reads as before", defaultPhysicalSector)
	_, err := r.d.WriteAt(ondisk.LE.AppendUint32(nil, defaultPhysicalSector), list[0].Offset)
	return err
}

const defaultPhysicalSector = 4096 // bytes

// blockName is how messages call a payload block.
func blockName(b int64) string { return fmt.Sprintf("block %d", b) }
