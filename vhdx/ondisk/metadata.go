package ondisk

import (
	"github.com/google/uuid"
)

// The metadata table (MS-VHDX 2.6.1): sizes in bytes, numbers of entries, and the flags of an item.
const (
	MetadataTableSize      = 64 * KiB
	metadataTableSignature = "metadata"
	MetadataHeaderSize     = 32
	MetadataEntrySize      = 32
	MaxMetadataEntries     = 2047
	MaxUserEntries         = 1024
	MaxItemSize            = 1 * MiB

	ItemIsUser        = 1 << 0
	ItemIsVirtualDisk = 1 << 1
	ItemIsRequired    = 1 << 2
)

// The metadata items that are known (MS-VHDX 2.6.2).
var (
	FileParametersGUID     = uuid.MustParse("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	DiskSizeGUID           = uuid.MustParse("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	DiskIDGUID             = uuid.MustParse("BECA12AB-B2E6-4523-93EF-C309E000C746")
	LogicalSectorSizeGUID  = uuid.MustParse("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	PhysicalSectorSizeGUID = uuid.MustParse("CDA348C7-445D-4471-9CC9-E9885251C556")
	ParentLocatorGUID      = uuid.MustParse("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
)

// knownItem is what is known of a metadata item: its name, the least length in bytes, and the flags that the
// standard gives it.
type knownItem struct {
	Name  string
	Size  uint32
	Flags uint32
}

// KnownItems are the metadata items that are known, by their ids (MS-VHDX 2.6.2).
var KnownItems = map[uuid.UUID]knownItem{
	FileParametersGUID:     {"file parameters", 8, ItemIsRequired},
	DiskSizeGUID:           {"virtual disk size", 8, ItemIsRequired | ItemIsVirtualDisk},
	DiskIDGUID:             {"virtual disk id", 16, ItemIsRequired | ItemIsVirtualDisk},
	LogicalSectorSizeGUID:  {"logical sector size", 4, ItemIsRequired | ItemIsVirtualDisk},
	PhysicalSectorSizeGUID: {"physical sector size", 4, ItemIsRequired | ItemIsVirtualDisk},
	ParentLocatorGUID:      {"parent locator", LocatorHeaderSize, ItemIsRequired},
}

// A MetadataItem is a metadata table entry (MS-VHDX 2.6.1.2).
type MetadataItem struct {
	ID     uuid.UUID
	Offset uint32 // from the start of the region, bytes
	Length uint32 // bytes
	Flags  uint32 // ItemIsUser, ItemIsVirtualDisk and ItemIsRequired
}

// User reports whether the item is one of users: its id says nothing about system items.
func (m MetadataItem) User() bool { return m.Flags&ItemIsUser != 0 }

// Known returns what is known of the item. A user item is never known: it may carry the id of a system item
// without being it.
func (m MetadataItem) Known() (knownItem, bool) {
	k, ok := KnownItems[m.ID]
	return k, ok && !m.User()
}

// Name returns the name of a known item, such as "file parameters", and "unknown" for others.
func (m MetadataItem) Name() string {
	if k, ok := m.Known(); ok {
		return k.Name
	}
	return "unknown"
}

// DecodeMetadataTable decodes the table in b, the start of the metadata region at file offset off. It checks signature and count, and
// an error is a *FormatError. What the entries say is for the caller to check.
func DecodeMetadataTable(b *[MetadataTableSize]byte, off int64) ([]MetadataItem, error) {
	if sig := string(b[:8]); sig != metadataTableSignature {
		return nil, Corrupt(RuleMetadataSignature, "metadata table", off, "wrong signature %q", sig)
	}
	n := LE.Uint16(b[10:])
	if n > MaxMetadataEntries {
		return nil, Corrupt(RuleMetadataCount, "metadata table", off, "%d entries; at most 2047 are allowed", n)
	}
	items := make([]MetadataItem, n)
	for i := range items {
		e := b[MetadataHeaderSize+i*MetadataEntrySize:]
		items[i] = MetadataItem{
			ID:     GUID(e),
			Offset: LE.Uint32(e[16:]),
			Length: LE.Uint32(e[20:]),
			Flags:  LE.Uint32(e[24:]),
		}
	}
	return items, nil
}

// EncodeMetadataTable returns the table as it is in the file. It has room for MaxMetadataEntries entries.
func EncodeMetadataTable(items []MetadataItem) *[MetadataTableSize]byte {
	b := new([MetadataTableSize]byte)
	copy(b[:], metadataTableSignature)
	LE.PutUint16(b[10:], uint16(len(items)))
	for i, m := range items {
		e := b[MetadataHeaderSize+i*MetadataEntrySize:]
		PutGUID(e, m.ID)
		LE.PutUint32(e[16:], m.Offset)
		LE.PutUint32(e[20:], m.Length)
		LE.PutUint32(e[24:], m.Flags)
	}
	return b
}

// ValidSectorSize reports whether a disk can have sectors of n bytes (MS-VHDX 2.6.2.4 and 2.6.2.5).
func ValidSectorSize(n uint32) bool { return n == 512 || n == 4096 }
