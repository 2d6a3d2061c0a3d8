package ondisk

import (
	"github.com/google/uuid"
)

// The region table (MS-VHDX 2.2.3): sizes in bytes, and the flag of a region that a reader must know.
const (
	RegionTableSize      = 64 * KiB
	regionTableSignature = "regi"
	RegionHeaderSize     = 16
	RegionEntrySize      = 32
	MaxRegions           = 2047 // entries
	RegionRequired       = 1 << 0
)

// RegionTableOffsets are the file offsets of the two copies of the region table.
var RegionTableOffsets = [2]int64{192 * KiB, 256 * KiB}

// The regions that are known (MS-VHDX 2.2.3.2).
var (
	BATRegionGUID      = uuid.MustParse("2DC27766-F623-4200-9D64-115E9BFD4A08")
	MetadataRegionGUID = uuid.MustParse("8B7CA206-4790-4B9A-B8FE-575F050F886E")
)

// A Region is a region table entry (MS-VHDX 2.2.3.2).
type Region struct {
	GUID   uuid.UUID
	Offset uint64 // file offset, bytes
	Length uint32 // bytes
	Flags  uint32 // RegionRequired, or 0
}

// Name returns "BAT", "metadata" or "unknown".
func (r Region) Name() string {
	switch r.GUID {
	case BATRegionGUID:
		return "BAT"
	case MetadataRegionGUID:
		return "metadata"
	}
	return "unknown"
}

// End returns the file offset behind the region, in bytes. Of an entry that was not checked yet, the sum may wrap.
func (r Region) End() uint64 { return r.Offset + uint64(r.Length) }

// Inside reports whether the region lies inside a file of size bytes.
func (r Region) Inside(size int64) bool {
	return r.Offset <= uint64(size) && uint64(r.Length) <= uint64(size)-r.Offset
}

// DecodeRegionTable decodes the copy of the region table in b, which was read from file offset off.
// It checks signature, checksum and count, and an error is a *FormatError. What the entries say is for the caller to check.
func DecodeRegionTable(b *[RegionTableSize]byte, off int64) ([]Region, error) {
	if sig := string(b[:4]); sig != regionTableSignature {
		return nil, Corrupt(RuleNoValidRegionTable, "region table", off, "signature %q", sig)
	}
	if got, want := Checksum(b[:], 4), LE.Uint32(b[4:]); got != want {
		return nil, Corrupt(RuleNoValidRegionTable, "region table", off, "checksum %#08x, stored %#08x", got, want)
	}
	n := LE.Uint32(b[8:])
	if n > MaxRegions {
		return nil, Corrupt(RuleRegionCount, "region table", off, "%d entries; at most 2047 are allowed", n)
	}
	table := make([]Region, n)
	for i := range table {
		e := b[RegionHeaderSize+i*RegionEntrySize:]
		table[i] = Region{
			GUID:   GUID(e),
			Offset: LE.Uint64(e[16:]),
			Length: LE.Uint32(e[24:]),
			Flags:  LE.Uint32(e[28:]),
		}
	}
	return table, nil
}

// EncodeRegionTable returns the table as it is in the file, with its checksum. It has room for MaxRegions entries.
func EncodeRegionTable(table []Region) *[RegionTableSize]byte {
	b := new([RegionTableSize]byte)
	copy(b[:], regionTableSignature)
	LE.PutUint32(b[8:], uint32(len(table)))
	for i, r := range table {
		e := b[RegionHeaderSize+i*RegionEntrySize:]
		PutGUID(e, r.GUID)
		LE.PutUint64(e[16:], r.Offset)
		LE.PutUint32(e[24:], r.Length)
		LE.PutUint32(e[28:], r.Flags)
	}
	LE.PutUint32(b[4:], Checksum(b[:], 4))
	return b
}
