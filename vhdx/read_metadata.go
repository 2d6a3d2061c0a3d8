package vhdx

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// metadata is what the known metadata items say.
type metadata struct {
	blockSize           uint32 // bytes
	leaveBlockAllocated bool
	hasParent           bool
	diskSize            uint64 // bytes
	diskID              uuid.UUID
	logicalSectorSize   uint32 // bytes
	physicalSectorSize  uint32 // bytes; 0 where the image does not say
	locator             *ondisk.ParentLocator
	locatorOffset       int64 // file offset of the parent locator
}

const (
	paramLeaveBlockAllocated = 1 << 0
	paramHasParent           = 1 << 1
)

// readMetadata reads and checks the metadata table and the known items.
func (l *layer) readMetadata() error {
	var table [ondisk.MetadataTableSize]byte
	if err := readFull(l.src, table[:], l.metadataOffset(), "metadata table"); err != nil {
		return err
	}
	var err error
	if l.items, err = ondisk.DecodeMetadataTable(&table, l.metadataOffset()); err != nil {
		return err
	}
	if err := l.validateItems(); err != nil {
		return err
	}
	return l.readItems()
}

func (l *layer) metadataOffset() int64 {
	r, _ := l.tables.find(ondisk.MetadataRegionGUID)
	return int64(r.Offset) // #nosec G115 -- inside the file, or validateRegions has refused or reported it, and reads fail
}

// validateItems checks the entries of the metadata table against each other and the region.
func (l *layer) validateItems() error {
	region, _ := l.tables.find(ondisk.MetadataRegionGUID)
	entryOffset := func(i int) int64 {
		return l.metadataOffset() + int64(ondisk.MetadataHeaderSize+i*ondisk.MetadataEntrySize)
	}
	type key struct {
		id   uuid.UUID
		user bool
	}
	seen := make(map[key]bool, len(l.items))
	users := 0
	for i, m := range l.items {
		known, isKnown := m.Known()
		bad := func(r ondisk.Rule, format string, args ...any) error {
			return l.report(ondisk.Corrupt(r, "metadata table entry", entryOffset(i), format, args...))
		}
		var err error
		switch {
		case seen[key{m.ID, m.User()}]:
			err = bad(ondisk.RuleItemTwice, "duplicate item %v", m.ID)
		case m.Length > ondisk.MaxItemSize:
			err = bad(ondisk.RuleItemTooLong, "item %v has %#x bytes; at most 1 MiB is allowed", m.ID, m.Length)
		case m.Length > 0 && m.Offset < ondisk.MetadataTableSize:
			err = bad(ondisk.RuleItemInTable, "item %v at %#x of the region is inside the metadata table", m.ID, m.Offset)
		case uint64(m.Offset)+uint64(m.Length) > uint64(region.Length):
			err = bad(ondisk.RuleItemBeyondRegion, "item %v at %#x, of %#x bytes, ends beyond the end of its region, of %#x bytes", m.ID, m.Offset, m.Length, region.Length)
		case !isKnown && m.Flags&ondisk.ItemIsRequired != 0:
			err = bad(ondisk.RuleItemUnknown, "unknown required item %v; a newer version may support it", m.ID)
		case isKnown && m.Length < known.Size:
			err = bad(ondisk.RuleItemLength, "the %s has %d bytes, at least %d are needed", known.Name, m.Length, known.Size)
		}
		if err != nil {
			return err
		}
		seen[key{m.ID, m.User()}] = true
		if m.User() {
			users++
		}
		if isKnown && m.Flags != known.Flags {
			l.warn("metadata table entry", entryOffset(i), "flags %#x of the %s; %#x is usual", m.Flags, known.Name, known.Flags)
		}
		if isKnown && m.Length > known.Size && m.ID != ondisk.ParentLocatorGUID {
			l.warn("metadata table entry", entryOffset(i), "the %s has %d bytes, usually %d", known.Name, m.Length, known.Size)
		}
	}
	if users > ondisk.MaxUserEntries {
		if err := l.report(ondisk.Corrupt(ondisk.RuleMetadataUserCount, "metadata table", l.metadataOffset(), "%d user entries; at most 1024 are allowed", users)); err != nil {
			return err
		}
	}
	sorted := slices.DeleteFunc(slices.Clone(l.items), func(m ondisk.MetadataItem) bool { return m.Length == 0 })
	slices.SortFunc(sorted, func(a, b ondisk.MetadataItem) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; uint64(b.Offset) < uint64(a.Offset)+uint64(a.Length) {
			if err := l.report(ondisk.Corrupt(ondisk.RuleItemOverlap, "metadata table", l.metadataOffset(), "items %v and %v overlap", a.ID, b.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// setItem makes m item i of the metadata table, for Info.
func (l *layer) setItem(i int, m ondisk.MetadataItem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items[i] = m
}

// item reads the known item with the given id, and nil if there is none.
func (l *layer) item(id uuid.UUID) (b []byte, off int64, err error) {
	i := slices.IndexFunc(l.items, func(m ondisk.MetadataItem) bool { return m.ID == id && !m.User() })
	if i < 0 {
		return nil, 0, nil
	}
	m := l.items[i]
	off = l.metadataOffset() + int64(m.Offset)
	b = make([]byte, min(m.Length, ondisk.MaxItemSize))
	if err := readFull(l.src, b, off, ondisk.KnownItems[id].Name); err != nil {
		return nil, 0, err
	}
	if len(b) < int(ondisk.KnownItems[id].Size) {
		return nil, 0, ondisk.Corrupt(ondisk.RuleItemLength, ondisk.KnownItems[id].Name, off, "%d bytes", len(b))
	}
	return b, off, nil
}

// readItems reads the known items and checks their values.
func (l *layer) readItems() error {
	for _, read := range []func() error{l.readFileParameters, l.readSectorSizes, l.readDiskID, l.readDiskSize} {
		if err := l.tolerate(read()); err != nil {
			return err
		}
	}
	err := l.readLocator()
	if err != nil && l.orphan { // where nothing follows it
		err = l.tolerate(err)
	}
	return err
}

func (l *layer) readFileParameters() error {
	m := &l.meta
	params, paramsOff, err := l.item(ondisk.FileParametersGUID)
	if err != nil {
		return err
	}
	if params == nil {
		return l.missing(ondisk.RuleNoFileParameters, ondisk.FileParametersGUID)
	}
	m.blockSize = ondisk.LE.Uint32(params)
	flags := ondisk.LE.Uint32(params[4:])
	m.leaveBlockAllocated = flags&paramLeaveBlockAllocated != 0
	m.hasParent = flags&paramHasParent != 0
	if m.blockSize < ondisk.MinBlockSize || m.blockSize > ondisk.MaxBlockSize || m.blockSize&(m.blockSize-1) != 0 {
		return ondisk.Corrupt(ondisk.RuleBlockSize, "file parameters", paramsOff, "invalid block size %s: must be a power of two from 1 MiB to 256 MiB", sizes.Exact(int64(m.blockSize)))
	}
	if reserved := flags &^ (paramLeaveBlockAllocated | paramHasParent); reserved != 0 {
		l.warn("file parameters", paramsOff, "reserved flags %#x", reserved)
	}
	return nil
}

func (l *layer) readSectorSizes() error {
	m := &l.meta
	sector, sectorOff, err := l.item(ondisk.LogicalSectorSizeGUID)
	if err != nil {
		return err
	}
	if sector == nil {
		return l.missing(ondisk.RuleNoLogicalSectorSize, ondisk.LogicalSectorSizeGUID)
	}
	if m.logicalSectorSize = ondisk.LE.Uint32(sector); !ondisk.ValidSectorSize(m.logicalSectorSize) {
		return ondisk.Corrupt(ondisk.RuleLogicalSectorSize, "logical sector size", sectorOff, "invalid logical sector size %d: must be 512 or 4096", m.logicalSectorSize)
	}

	physical, physicalOff, err := l.item(ondisk.PhysicalSectorSizeGUID)
	if err != nil {
		return err
	}
	if physical == nil {
		l.warn("metadata table", l.metadataOffset(), "the physical sector size is missing")
	} else if m.physicalSectorSize = ondisk.LE.Uint32(physical); !ondisk.ValidSectorSize(m.physicalSectorSize) {
		return ondisk.Corrupt(ondisk.RulePhysicalSectorSize, "physical sector size", physicalOff, "invalid physical sector size %d: must be 512 or 4096", m.physicalSectorSize)
	}
	return nil
}

func (l *layer) readDiskID() error {
	id, _, err := l.item(ondisk.DiskIDGUID)
	if err != nil {
		return err
	}
	if id == nil {
		l.warn("metadata table", l.metadataOffset(), "the virtual disk id is missing")
	} else {
		l.meta.diskID = ondisk.GUID(id)
	}
	return nil
}

func (l *layer) readDiskSize() error {
	b, off, err := l.item(ondisk.DiskSizeGUID)
	if err != nil {
		return err
	}
	if b == nil {
		return l.missing(ondisk.RuleNoDiskSize, ondisk.DiskSizeGUID)
	}
	size := ondisk.LE.Uint64(b)
	l.meta.diskSize = size
	switch {
	case size == 0:
		return ondisk.Corrupt(ondisk.RuleDiskEmpty, "virtual disk size", off, "the disk size is 0")
	case size > ondisk.MaxDiskSize:
		return ondisk.Corrupt(ondisk.RuleDiskTooLarge, "virtual disk size", off, "invalid disk size %d: must be at most 64 TiB", size)
	case size%uint64(max(l.meta.logicalSectorSize, 512)) != 0:
		return ondisk.Corrupt(ondisk.RuleDiskSizeUnaligned, "virtual disk size", off, "invalid disk size %d: must be a multiple of the logical sector size, %d", size, l.meta.logicalSectorSize)
	}
	return nil
}

func (l *layer) readLocator() error {
	b, off, err := l.item(ondisk.ParentLocatorGUID)
	if err != nil {
		return err
	}
	if !l.meta.hasParent {
		if b != nil {
			l.warn("parent locator", off, "the disk has a parent locator, but the file parameters say that it has no parent")
		}
		return nil
	}
	if b == nil {
		return l.missing(ondisk.RuleNoParentLocator, ondisk.ParentLocatorGUID)
	}
	p, err := ondisk.DecodeParentLocator(b, off)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.meta.locatorOffset, l.meta.locator = off, p
	return err
}

// missing reports that a metadata item is missing which the rule demands.
func (l *layer) missing(r ondisk.Rule, id uuid.UUID) error {
	return ondisk.Corrupt(r, "metadata table", l.metadataOffset(), "the %s is missing", ondisk.KnownItems[id].Name)
}
