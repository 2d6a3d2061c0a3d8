package vhdx

import (
	"cmp"
	"io"
	"slices"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
	sizes "vhdxfs/internal/size"
)

const (
	regionTableSize      = 64 * kib
	regionTableSignature = "regi"
	regionHeaderSize     = 16
	regionEntrySize      = 32
	maxRegions           = 2047
	regionRequired       = 1 << 0
)

// regionTableOffsets are the file offsets of the two copies of the region table.
var regionTableOffsets = [2]int64{192 * kib, 256 * kib}

var (
	batRegionGUID      = uuid.MustParse("2DC27766-F623-4200-9D64-115E9BFD4A08")
	metadataRegionGUID = uuid.MustParse("8B7CA206-4790-4B9A-B8FE-575F050F886E")
)

// A region is a region table entry (MS-VHDX 2.2.3.2).
type region struct {
	GUID   uuid.UUID
	Offset uint64 // file offset, bytes
	Length uint32 // bytes
	Flags  uint32
}

func (r region) name() string {
	switch r.GUID {
	case batRegionGUID:
		return "BAT"
	case metadataRegionGUID:
		return "metadata"
	}
	return "unknown"
}

// end returns the offset behind the region. It may wrap until validateRegions has seen the region.
func (r region) end() uint64 { return r.Offset + uint64(r.Length) }

// inside reports whether the region lies inside a file of size bytes.
func (r region) inside(size int64) bool {
	return r.Offset <= uint64(size) && uint64(r.Length) <= uint64(size)-r.Offset
}

// decodeRegionTable decodes the copy of the region table in b, which was read from file offset off.
// It checks the copy itself; validateRegions checks what its entries say.
func decodeRegionTable(b *[regionTableSize]byte, off int64) ([]region, error) {
	if sig := string(b[:4]); sig != regionTableSignature {
		return nil, ondisk.Corrupt(ondisk.R14, "region table", off, "signature %q", sig)
	}
	if got, want := ondisk.Checksum(b[:], 4), le.Uint32(b[4:]); got != want {
		return nil, ondisk.Corrupt(ondisk.R14, "region table", off, "checksum %#08x, stored %#08x", got, want)
	}
	n := le.Uint32(b[8:])
	if n > maxRegions {
		return nil, ondisk.Corrupt(ondisk.R15, "region table", off, "%d entries", n)
	}
	table := make([]region, n)
	for i := range table {
		e := b[regionHeaderSize+i*regionEntrySize:]
		table[i] = region{
			GUID:   ondisk.GUID(e),
			Offset: le.Uint64(e[16:]),
			Length: le.Uint32(e[24:]),
			Flags:  le.Uint32(e[28:]),
		}
	}
	return table, nil
}

func encodeRegionTable(table []region) *[regionTableSize]byte {
	b := new([regionTableSize]byte)
	copy(b[:], regionTableSignature)
	le.PutUint32(b[8:], uint32(len(table)))
	for i, r := range table {
		e := b[regionHeaderSize+i*regionEntrySize:]
		ondisk.PutGUID(e, r.GUID)
		le.PutUint64(e[16:], r.Offset)
		le.PutUint32(e[24:], r.Length)
		le.PutUint32(e[28:], r.Flags)
	}
	le.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
	return b
}

// regionTables are both copies of the region table, and which of them counts.
type regionTables struct {
	err     [2]error // why a copy is not valid
	differ  bool     // both are valid and say different things
	current int      // index
	regions []region // of the current copy
}

func (t *regionTables) offset() int64 { return regionTableOffsets[t.current] }

// find returns the region with the given GUID.
func (t *regionTables) find(g uuid.UUID) (region, bool) {
	i := slices.IndexFunc(t.regions, func(r region) bool { return r.GUID == g })
	if i < 0 {
		return region{}, false
	}
	return t.regions[i], true
}

// readRegionTables reads both copies and takes the first valid one.
func readRegionTables(r io.ReaderAt) (*regionTables, error) {
	var t regionTables
	var tables [2][]region
	for i, off := range regionTableOffsets {
		var b [regionTableSize]byte
		if err := readFull(r, b[:], off, "region table"); err != nil {
			return nil, err
		}
		tables[i], t.err[i] = decodeRegionTable(&b, off)
		// A copy with a good checksum is the one to use, and a bad count in it is what the writer meant.
		if ruleOf(t.err[i]) == ondisk.R15 && (i == 0 || t.err[0] != nil) {
			return nil, t.err[i]
		}
	}
	switch {
	case t.err[0] != nil && t.err[1] != nil:
		return nil, ondisk.Corrupt(ondisk.R14, "region table", regionTableOffsets[0], "neither copy is valid: %w; %w",
			finding(t.err[0]), finding(t.err[1]))
	case t.err[0] != nil:
		t.current = 1
	case t.err[1] == nil:
		t.differ = !slices.Equal(tables[0], tables[1])
	}
	t.regions = tables[t.current]
	return &t, nil
}

// validateRegions checks the entries of the current copy against each other, the log and the size of the file.
func (l *layer) validateRegions() error {
	t := l.tables
	bad := func(i int, r ondisk.Rule, format string, args ...any) error {
		return l.report(ondisk.Corrupt(r, "region table entry", t.offset()+int64(regionHeaderSize+i*regionEntrySize), format, args...))
	}
	seen := make(map[uuid.UUID]bool, len(t.regions))
	for i, r := range t.regions {
		var err error
		switch {
		case seen[r.GUID]:
			err = bad(i, ondisk.R16, "duplicate %s region %v", r.name(), r.GUID)
		case r.Offset%mib != 0 || r.Offset < headerSectionSize:
			err = bad(i, ondisk.R17, "%s region at %#x", r.name(), r.Offset)
		case r.Length == 0 || r.Length%mib != 0:
			err = bad(i, ondisk.R18, "%s region of %#x bytes", r.name(), r.Length)
		case r.name() != "unknown" && !r.inside(l.size):
			err = bad(i, ondisk.R23, "the %s region (%s at %#x) ends beyond the end of the file (%#x); was the file cut off?", r.name(), sizes.Text(int64(r.Length)), r.Offset, l.size)
		case r.name() == "unknown" && r.Flags&regionRequired != 0:
			err = bad(i, ondisk.R22, "unknown required region %v; a newer version may support it", r.GUID)
		}
		if err != nil {
			return err
		}
		seen[r.GUID] = true
		if r.Flags&^regionRequired != 0 {
			l.warn("region table entry", t.offset(), "reserved flags %#x of the %s region", r.Flags&^regionRequired, r.name())
		}
		if !r.inside(l.size) {
			l.warn("region table entry", t.offset(), "optional region %v at %#x lies outside the file", r.GUID, r.Offset)
		}
	}
	if !seen[batRegionGUID] {
		return ondisk.Corrupt(ondisk.R20, "region table", t.offset(), "there is no BAT region")
	}
	if !seen[metadataRegionGUID] {
		return ondisk.Corrupt(ondisk.R21, "region table", t.offset(), "there is no metadata region")
	}
	return l.validateRegionOverlap()
}

// validateRegionOverlap checks that no two of the regions and the log share a byte.
func (l *layer) validateRegionOverlap() error {
	type object struct {
		name       string
		start, end uint64
	}
	var objects []object
	if log := l.log(); log.Length > 0 {
		objects = append(objects, object{"log", uint64(log.Offset), uint64(log.Offset + log.Length)})
	}
	for _, r := range l.tables.regions {
		if r.end() < r.Offset {
			return l.report(ondisk.Corrupt(ondisk.R19, "region table", l.tables.offset(), "the %s region (%#x bytes at %#x) ends beyond the largest file", r.name(), r.Length, r.Offset))
		}
		objects = append(objects, object{r.name() + " region", r.Offset, r.end()})
	}
	slices.SortFunc(objects, func(a, b object) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(objects); i++ {
		if a, b := objects[i-1], objects[i]; b.start < a.end {
			if err := l.report(ondisk.Corrupt(ondisk.R19, "region table", l.tables.offset(), "%s at %#x overlaps the %s at %#x", b.name, b.start, a.name, a.start)); err != nil {
				return err
			}
		}
	}
	return nil
}
