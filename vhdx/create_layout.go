package vhdx

import (
	"cmp"
	"io"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

const firstItemOffset = ondisk.MetadataTableSize // of the metadata region, bytes

// A layout says where the parts of a new image are: log, metadata, BAT and blocks, one behind the other.
type layout struct {
	geo          ondisk.Geometry
	metadataOff  int64
	metadataSize int64
	batOff       int64
	batSize      int64
	dataOff      int64
}

// layout lays out an image of a disk of the given size in bytes. For a size that is not known yet, 0, there is room
// for the BAT of the largest disk.
func (o *CreateOptions) layout(size int64) layout {
	l := layout{geo: ondisk.NewGeometry(size, o.BlockSize, o.LogicalSectorSize, o.Type == Differencing)}
	room := l.geo
	if size == 0 {
		room.DiskSize = ondisk.MaxDiskSize
	}
	l.metadataOff = ondisk.HeaderSectionSize + o.LogSize
	l.metadataSize = firstItemOffset
	for _, it := range o.metadataItems() {
		l.metadataSize += int64(len(it.data))
	}
	l.metadataSize = ondisk.RoundUp(l.metadataSize, ondisk.MiB)
	l.batOff = l.metadataOff + l.metadataSize
	l.batSize = ondisk.RoundUp(room.BATEntries()*ondisk.BATEntrySize, ondisk.MiB)
	l.dataOff = l.batOff + l.batSize
	return l
}

// writeHeaders writes the headers and the region tables.
func (o *CreateOptions) writeHeaders(f io.WriterAt, l layout) error {
	table := ondisk.EncodeRegionTable([]ondisk.Region{
		{GUID: ondisk.BATRegionGUID, Offset: uint64(l.batOff), Length: uint32(l.batSize), Flags: ondisk.RegionRequired},
		{GUID: ondisk.MetadataRegionGUID, Offset: uint64(l.metadataOff), Length: uint32(l.metadataSize), Flags: ondisk.RegionRequired},
	})
	for _, off := range ondisk.RegionTableOffsets {
		if _, err := f.WriteAt(table[:], off); err != nil {
			return err
		}
	}
	h := ondisk.Header{
		FileWriteGUID: uuid.New(),
		DataWriteGUID: cmp.Or(o.dataWrite, uuid.New()),
		Version:       ondisk.HeaderVersion,
		LogLength:     uint32(o.LogSize),
		LogOffset:     ondisk.HeaderSectionSize,
	}
	for _, off := range ondisk.HeaderOffsets {
		h.SequenceNumber++
		if _, err := f.WriteAt(h.Encode()[:], off); err != nil {
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
	known := func(id uuid.UUID, data []byte) diskItem { return diskItem{id, ondisk.KnownItems[id].Flags, data} }
	items := []diskItem{
		known(ondisk.FileParametersGUID, ondisk.LE.AppendUint32(ondisk.LE.AppendUint32(nil, uint32(o.BlockSize)), flags)),
		known(ondisk.DiskSizeGUID, ondisk.LE.AppendUint64(nil, uint64(o.Size))),
		known(ondisk.DiskIDGUID, id),
		known(ondisk.LogicalSectorSizeGUID, ondisk.LE.AppendUint32(nil, uint32(o.LogicalSectorSize))),
		known(ondisk.PhysicalSectorSizeGUID, ondisk.LE.AppendUint32(nil, uint32(o.PhysicalSectorSize))),
	}
	if o.Type == Differencing {
		items = append(items, known(ondisk.ParentLocatorGUID, ondisk.EncodeParentLocator(o.locator)))
	}
	return append(items, o.items...)
}

// writeMetadata writes the metadata region: the table, and the items one behind the other.
func (o *CreateOptions) writeMetadata(f io.WriterAt, l layout) error {
	var table []ondisk.MetadataItem
	var data []byte
	for _, it := range o.metadataItems() {
		m := ondisk.MetadataItem{ID: it.id, Offset: uint32(firstItemOffset + len(data)), Length: uint32(len(it.data)), Flags: it.flags}
		if m.Length == 0 {
			m.Offset = 0 // MS-VHDX 2.6.1.2
		}
		table = append(table, m)
		data = append(data, it.data...)
	}
	if _, err := f.WriteAt(ondisk.EncodeMetadataTable(table)[:], l.metadataOff); err != nil {
		return err
	}
	_, err := f.WriteAt(data, l.metadataOff+firstItemOffset)
	return err
}

// identifier returns the file type identifier (MS-VHDX 2.2.1).
func (o *CreateOptions) identifier() []byte {
	return append([]byte(ondisk.IdentifierSignature), ondisk.EncodeUTF16(o.Creator)...)
}

// writeBAT completes the BAT, where blocks without content have an entry that is not zero.
func (b *Builder) writeBAT() error {
	empty := func(int64) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.Zero, 0) }
	switch {
	case b.o.Type == Fixed:
		empty = func(n int64) ondisk.BATEntry {
			return ondisk.NewBATEntry(ondisk.FullyPresent, b.l.dataOff+n*b.o.BlockSize)
		}
	case !b.o.ZeroBlocks:
		return nil
	}
	entries := b.l.geo.BATEntries()
	buf := make([]byte, min(entries*ondisk.BATEntrySize, ondisk.MiB))
	for i := int64(0); i < entries; {
		part := buf[:min(int64(len(buf)), (entries-i)*ondisk.BATEntrySize)]
		at := b.l.batOff + i*ondisk.BATEntrySize
		if err := readFull(b.file, part, at, "BAT"); err != nil {
			return err
		}
		for ; len(part) > 0; part, i = part[ondisk.BATEntrySize:], i+1 {
			if n, bitmap := b.l.geo.Entry(i); !bitmap && ondisk.LE.Uint64(part) == 0 {
				ondisk.LE.PutUint64(part, uint64(empty(n)))
			}
		}
		if _, err := b.file.WriteAt(buf[:b.l.batOff+i*ondisk.BATEntrySize-at], at); err != nil {
			return err
		}
	}
	return nil
}
