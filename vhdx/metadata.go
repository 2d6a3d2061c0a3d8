package vhdx

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
	sizes "vhdxfs/internal/size"
)

const (
	metadataTableSize      = 64 * kib
	metadataTableSignature = "metadata"
	metadataHeaderSize     = 32
	metadataEntrySize      = 32
	maxMetadataEntries     = 2047
	maxUserEntries         = 1024
	maxItemSize            = 1 * mib

	itemIsUser        = 1 << 0
	itemIsVirtualDisk = 1 << 1
	itemIsRequired    = 1 << 2
)

// The metadata items that are known (MS-VHDX 2.6.2).
var (
	fileParametersGUID     = uuid.MustParse("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	diskSizeGUID           = uuid.MustParse("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	diskIDGUID             = uuid.MustParse("BECA12AB-B2E6-4523-93EF-C309E000C746")
	logicalSectorSizeGUID  = uuid.MustParse("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	physicalSectorSizeGUID = uuid.MustParse("CDA348C7-445D-4471-9CC9-E9885251C556")
	parentLocatorGUID      = uuid.MustParse("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
)

// knownItem is what is known of a metadata item: its name, the least length in bytes, and the flags that the
// standard gives it.
type knownItem struct {
	name  string
	size  uint32
	flags uint32
}

var knownItems = map[uuid.UUID]knownItem{
	fileParametersGUID:     {"file parameters", 8, itemIsRequired},
	diskSizeGUID:           {"virtual disk size", 8, itemIsRequired | itemIsVirtualDisk},
	diskIDGUID:             {"virtual disk id", 16, itemIsRequired | itemIsVirtualDisk},
	logicalSectorSizeGUID:  {"logical sector size", 4, itemIsRequired | itemIsVirtualDisk},
	physicalSectorSizeGUID: {"physical sector size", 4, itemIsRequired | itemIsVirtualDisk},
	parentLocatorGUID:      {"parent locator", locatorHeaderSize, itemIsRequired},
}

// A metadataItem is a metadata table entry (MS-VHDX 2.6.1.2).
type metadataItem struct {
	ID     uuid.UUID
	Offset uint32 // from the start of the region, bytes
	Length uint32 // bytes
	Flags  uint32
}

func (m metadataItem) user() bool { return m.Flags&itemIsUser != 0 }

// known returns what is known of the item. A user item is never known: it may carry the id of a system item
// without being it.
func (m metadataItem) known() (knownItem, bool) {
	k, ok := knownItems[m.ID]
	return k, ok && !m.user()
}

func (m metadataItem) name() string {
	if k, ok := m.known(); ok {
		return k.name
	}
	return "unknown"
}

// decodeMetadataTable decodes the table in b, the start of the metadata region at file offset off.
func decodeMetadataTable(b *[metadataTableSize]byte, off int64) ([]metadataItem, error) {
	if sig := string(b[:8]); sig != metadataTableSignature {
		return nil, ondisk.Corrupt(ondisk.R24, "metadata table", off, "signature %q", sig)
	}
	n := le.Uint16(b[10:])
	if n > maxMetadataEntries {
		return nil, ondisk.Corrupt(ondisk.R25, "metadata table", off, "%d entries", n)
	}
	items := make([]metadataItem, n)
	for i := range items {
		e := b[metadataHeaderSize+i*metadataEntrySize:]
		items[i] = metadataItem{
			ID:     ondisk.GUID(e),
			Offset: le.Uint32(e[16:]),
			Length: le.Uint32(e[20:]),
			Flags:  le.Uint32(e[24:]),
		}
	}
	return items, nil
}

func encodeMetadataTable(items []metadataItem) *[metadataTableSize]byte {
	b := new([metadataTableSize]byte)
	copy(b[:], metadataTableSignature)
	le.PutUint16(b[10:], uint16(len(items)))
	for i, m := range items {
		e := b[metadataHeaderSize+i*metadataEntrySize:]
		ondisk.PutGUID(e, m.ID)
		le.PutUint32(e[16:], m.Offset)
		le.PutUint32(e[20:], m.Length)
		le.PutUint32(e[24:], m.Flags)
	}
	return b
}

// metadata is what the known metadata items say.
type metadata struct {
	blockSize           uint32 // bytes
	leaveBlockAllocated bool
	hasParent           bool
	diskSize            uint64 // bytes
	diskID              uuid.UUID
	logicalSectorSize   uint32 // bytes
	physicalSectorSize  uint32 // bytes; 0 where the image does not say
	locator             *parentLocator
	locatorOffset       int64 // file offset of the parent locator
}

const (
	paramLeaveBlockAllocated = 1 << 0
	paramHasParent           = 1 << 1
)

// readMetadata reads and checks the metadata table and the known items.
func (l *layer) readMetadata() error {
	var table [metadataTableSize]byte
	if err := readFull(l.src, table[:], l.metadataOffset(), "metadata table"); err != nil {
		return err
	}
	var err error
	if l.items, err = decodeMetadataTable(&table, l.metadataOffset()); err != nil {
		return err
	}
	if err := l.validateItems(); err != nil {
		return err
	}
	return l.readItems()
}

func (l *layer) metadataOffset() int64 {
	r, _ := l.tables.find(metadataRegionGUID)
	return int64(r.Offset)
}

// validateItems checks the entries of the metadata table against each other and the region.
func (l *layer) validateItems() error {
	region, _ := l.tables.find(metadataRegionGUID)
	entryOffset := func(i int) int64 {
		return l.metadataOffset() + int64(metadataHeaderSize+i*metadataEntrySize)
	}
	type key struct {
		id   uuid.UUID
		user bool
	}
	seen := make(map[key]bool, len(l.items))
	users := 0
	for i, m := range l.items {
		known, isKnown := m.known()
		bad := func(r ondisk.Rule, format string, args ...any) error {
			return l.report(ondisk.Corrupt(r, "metadata table entry", entryOffset(i), format, args...))
		}
		var err error
		switch {
		case seen[key{m.ID, m.user()}]:
			err = bad(ondisk.R27, "duplicate item %v", m.ID)
		case m.Length > maxItemSize:
			err = bad(ondisk.R31, "item %v of %#x bytes", m.ID, m.Length)
		case m.Length > 0 && m.Offset < metadataTableSize:
			err = bad(ondisk.R28, "item %v at %#x of the region", m.ID, m.Offset)
		case uint64(m.Offset)+uint64(m.Length) > uint64(region.Length):
			err = bad(ondisk.R29, "item %v at %#x of %#x bytes in a region of %#x bytes", m.ID, m.Offset, m.Length, region.Length)
		case !isKnown && m.Flags&itemIsRequired != 0:
			err = bad(ondisk.R32, "unknown required item %v; a newer version may support it", m.ID)
		case isKnown && m.Length < known.size:
			err = bad(ondisk.R36, "the %s has %d bytes, at least %d are needed", known.name, m.Length, known.size)
		}
		if err != nil {
			return err
		}
		seen[key{m.ID, m.user()}] = true
		if m.user() {
			users++
		}
		if isKnown && m.Flags != known.flags {
			l.warn("metadata table entry", entryOffset(i), "flags %#x of the %s; %#x is usual", m.Flags, known.name, known.flags)
		}
		if isKnown && m.Length > known.size && m.ID != parentLocatorGUID {
			l.warn("metadata table entry", entryOffset(i), "the %s has %d bytes, usually %d", known.name, m.Length, known.size)
		}
	}
	if users > maxUserEntries {
		if err := l.report(ondisk.Corrupt(ondisk.R26, "metadata table", l.metadataOffset(), "%d user entries", users)); err != nil {
			return err
		}
	}
	sorted := slices.DeleteFunc(slices.Clone(l.items), func(m metadataItem) bool { return m.Length == 0 })
	slices.SortFunc(sorted, func(a, b metadataItem) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; uint64(b.Offset) < uint64(a.Offset)+uint64(a.Length) {
			if err := l.report(ondisk.Corrupt(ondisk.R30, "metadata table", l.metadataOffset(), "items %v and %v overlap", a.ID, b.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// item reads the known item with the given id, and nil if there is none.
func (l *layer) item(id uuid.UUID) (b []byte, off int64, err error) {
	i := slices.IndexFunc(l.items, func(m metadataItem) bool { return m.ID == id && !m.user() })
	if i < 0 {
		return nil, 0, nil
	}
	m := l.items[i]
	off = l.metadataOffset() + int64(m.Offset)
	b = make([]byte, min(m.Length, maxItemSize))
	if err := readFull(l.src, b, off, knownItems[id].name); err != nil {
		return nil, 0, err
	}
	if len(b) < int(knownItems[id].size) {
		return nil, 0, ondisk.Corrupt(ondisk.R36, knownItems[id].name, off, "%d bytes", len(b))
	}
	return b, off, nil
}

// readItems reads the known items and checks their values.
func (l *layer) readItems() error {
	for _, read := range []func() error{l.readFileParameters, l.readSectorSizes, l.readDiskID, l.readDiskSize} {
		if err := l.goOn(read()); err != nil {
			return err
		}
	}
	err := l.readLocator()
	if err != nil && l.orphan { // where nobody follows it
		err = l.goOn(err)
	}
	return err
}

func (l *layer) readFileParameters() error {
	m := &l.meta
	params, paramsOff, err := l.item(fileParametersGUID)
	if err != nil {
		return err
	}
	if params == nil {
		return l.missing(ondisk.R33, fileParametersGUID)
	}
	m.blockSize = le.Uint32(params)
	flags := le.Uint32(params[4:])
	m.leaveBlockAllocated = flags&paramLeaveBlockAllocated != 0
	m.hasParent = flags&paramHasParent != 0
	if m.blockSize < minBlockSize || m.blockSize > maxBlockSize || m.blockSize&(m.blockSize-1) != 0 {
		return ondisk.Corrupt(ondisk.R37, "file parameters", paramsOff, "block size %s", sizes.Exact(int64(m.blockSize)))
	}
	if reserved := flags &^ (paramLeaveBlockAllocated | paramHasParent); reserved != 0 {
		l.warn("file parameters", paramsOff, "reserved flags %#x", reserved)
	}
	return nil
}

func (l *layer) readSectorSizes() error {
	m := &l.meta
	sector, sectorOff, err := l.item(logicalSectorSizeGUID)
	if err != nil {
		return err
	}
	if sector == nil {
		return l.missing(ondisk.R35, logicalSectorSizeGUID)
	}
	if m.logicalSectorSize = le.Uint32(sector); !validSectorSize(m.logicalSectorSize) {
		return ondisk.Corrupt(ondisk.R38, "logical sector size", sectorOff, "%d bytes", m.logicalSectorSize)
	}

	physical, physicalOff, err := l.item(physicalSectorSizeGUID)
	if err != nil {
		return err
	}
	if physical == nil {
		l.warn("metadata table", l.metadataOffset(), "the physical sector size is missing")
	} else if m.physicalSectorSize = le.Uint32(physical); !validSectorSize(m.physicalSectorSize) {
		return ondisk.Corrupt(ondisk.R39, "physical sector size", physicalOff, "%d bytes", m.physicalSectorSize)
	}
	return nil
}

func (l *layer) readDiskID() error {
	id, _, err := l.item(diskIDGUID)
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
	b, off, err := l.item(diskSizeGUID)
	if err != nil {
		return err
	}
	if b == nil {
		return l.missing(ondisk.R34, diskSizeGUID)
	}
	size := le.Uint64(b)
	l.meta.diskSize = size
	switch {
	case size == 0:
		return ondisk.Corrupt(ondisk.R40, "virtual disk size", off, "a disk of no bytes")
	case size > maxDiskSize:
		return ondisk.Corrupt(ondisk.R42, "virtual disk size", off, "%d bytes", size)
	case size%uint64(max(l.meta.logicalSectorSize, 512)) != 0:
		return ondisk.Corrupt(ondisk.R41, "virtual disk size", off, "%d bytes in sectors of %d", size, l.meta.logicalSectorSize)
	}
	return nil
}

func (l *layer) readLocator() error {
	b, off, err := l.item(parentLocatorGUID)
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
		return l.missing(ondisk.R53, parentLocatorGUID)
	}
	l.meta.locatorOffset = off
	l.meta.locator, err = decodeParentLocator(b, off)
	return err
}

// missing reports that a metadata item is missing which the rule demands.
func (l *layer) missing(r ondisk.Rule, id uuid.UUID) error {
	return ondisk.Corrupt(r, "metadata table", l.metadataOffset(), "the %s is missing", knownItems[id].name)
}

func validSectorSize(n uint32) bool { return n == 512 || n == 4096 }
