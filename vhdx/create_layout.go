package vhdx

import (
	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
)

const firstItemOffset = metadataTableSize // of the metadata region, bytes

// A layout says where the parts of a new image are: log, metadata, BAT and blocks, one behind the other.
type layout struct {
	geo          geometry
	metadataOff  int64
	metadataSize int64
	batOff       int64
	batSize      int64
	dataOff      int64
}

// layout lays out an image of a disk of the given size in bytes. For a size that is not known yet, 0, there is room
// for the BAT of the largest disk.
func (o *CreateOptions) layout(size int64) layout {
	l := layout{geo: newGeometry(size, o.BlockSize, o.LogicalSectorSize, o.Type == Differencing)}
	room := l.geo
	if size == 0 {
		room.diskSize = maxDiskSize
	}
	l.metadataOff = headerSectionSize + o.LogSize
	l.metadataSize = firstItemOffset
	for _, it := range o.metadataItems() {
		l.metadataSize += int64(len(it.data))
	}
	l.metadataSize = roundUp(l.metadataSize, mib)
	l.batOff = l.metadataOff + l.metadataSize
	l.batSize = roundUp(room.batEntries()*batEntrySize, mib)
	l.dataOff = l.batOff + l.batSize
	return l
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// writeHeaders writes the headers and the region tables.
func (b *Builder) writeHeaders() error {
	table := encodeRegionTable([]region{
		{GUID: batRegionGUID, Offset: uint64(b.l.batOff), Length: uint32(b.l.batSize), Flags: regionRequired},
		{GUID: metadataRegionGUID, Offset: uint64(b.l.metadataOff), Length: uint32(b.l.metadataSize), Flags: regionRequired},
	})
	for _, off := range regionTableOffsets {
		if _, err := b.file.WriteAt(table[:], off); err != nil {
			return err
		}
	}
	h := header{
		FileWriteGUID: uuid.New(),
		DataWriteGUID: uuid.New(),
		Version:       headerVersion,
		LogLength:     uint32(b.o.LogSize),
		LogOffset:     headerSectionSize,
	}
	for _, off := range headerOffsets {
		h.SequenceNumber++
		if _, err := b.file.WriteAt(h.encode()[:], off); err != nil {
			return err
		}
	}
	return nil
}

// A diskItem is a metadata item to be written.
type diskItem struct {
	id    uuid.UUID
	flags uint32
	data  []byte
}

func (o *CreateOptions) metadataItems() []diskItem {
	flags := uint32(0)
	switch o.Type {
	case Fixed:
		flags = paramLeaveBlockAllocated
	case Differencing:
		flags = paramHasParent
	}
	id := make([]byte, ondisk.GUIDSize)
	ondisk.PutGUID(id, o.DiskID)
	known := func(id uuid.UUID, data []byte) diskItem { return diskItem{id, knownItems[id].flags, data} }
	items := []diskItem{
		known(fileParametersGUID, le.AppendUint32(le.AppendUint32(nil, uint32(o.BlockSize)), flags)),
		known(diskSizeGUID, le.AppendUint64(nil, uint64(o.Size))),
		known(diskIDGUID, id),
		known(logicalSectorSizeGUID, le.AppendUint32(nil, uint32(o.LogicalSectorSize))),
		known(physicalSectorSizeGUID, le.AppendUint32(nil, uint32(o.PhysicalSectorSize))),
	}
	if o.Type == Differencing {
		items = append(items, known(parentLocatorGUID, encodeParentLocator(o.locator)))
	}
	return append(items, o.items...)
}

// writeMetadata writes the metadata region: the table, and the items one behind the other.
func (o *CreateOptions) writeMetadata(f File, l layout) error {
	var table []metadataItem
	var data []byte
	for _, it := range o.metadataItems() {
		m := metadataItem{ID: it.id, Offset: uint32(firstItemOffset + len(data)), Length: uint32(len(it.data)), Flags: it.flags}
		if m.Length == 0 {
			m.Offset = 0 // MS-VHDX 2.6.1.2
		}
		table = append(table, m)
		data = append(data, it.data...)
	}
	if _, err := f.WriteAt(encodeMetadataTable(table)[:], l.metadataOff); err != nil {
		return err
	}
	_, err := f.WriteAt(data, l.metadataOff+firstItemOffset)
	return err
}

// writeBAT completes the BAT, where blocks without content have an entry that is not zero.
func (b *Builder) writeBAT() error {
	empty := func(int64) batEntry { return newBATEntry(Zero, 0) }
	switch {
	case b.o.Type == Fixed:
		empty = func(n int64) batEntry { return newBATEntry(FullyPresent, b.l.dataOff+n*b.o.BlockSize) }
	case !b.o.ZeroBlocks:
		return nil
	}
	entries := b.l.geo.batEntries()
	buf := make([]byte, min(entries*batEntrySize, mib))
	for i := int64(0); i < entries; {
		part := buf[:min(int64(len(buf)), (entries-i)*batEntrySize)]
		at := b.l.batOff + i*batEntrySize
		if err := readFull(b.file, part, at, "BAT"); err != nil {
			return err
		}
		for ; len(part) > 0; part, i = part[batEntrySize:], i+1 {
			if n, bitmap := b.l.geo.entry(i); !bitmap && le.Uint64(part) == 0 {
				le.PutUint64(part, uint64(empty(n)))
			}
		}
		if _, err := b.file.WriteAt(buf[:b.l.batOff+i*batEntrySize-at], at); err != nil {
			return err
		}
	}
	return nil
}
