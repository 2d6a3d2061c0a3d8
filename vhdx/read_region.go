package vhdx

import (
	"cmp"
	"io"
	"slices"

	"github.com/google/uuid"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// regionTables are both copies of the region table, and which of them counts.
type regionTables struct {
	err     [2]error        // why a copy is not valid
	differ  bool            // both are valid and say different things
	current int             // index
	regions []ondisk.Region // of the current copy
}

func (t *regionTables) offset() int64 { return ondisk.RegionTableOffsets[t.current] }

// find returns the region with the given GUID.
func (t *regionTables) find(g uuid.UUID) (ondisk.Region, bool) {
	i := slices.IndexFunc(t.regions, func(r ondisk.Region) bool { return r.GUID == g })
	if i < 0 {
		return ondisk.Region{}, false
	}
	return t.regions[i], true
}

// readRegionTables reads both copies and takes the first valid one.
func readRegionTables(r io.ReaderAt) (*regionTables, error) {
	var t regionTables
	var tables [2][]ondisk.Region
	for i, off := range ondisk.RegionTableOffsets {
		var b [ondisk.RegionTableSize]byte
		if err := readFull(r, b[:], off, "region table"); err != nil {
			return nil, err
		}
		tables[i], t.err[i] = ondisk.DecodeRegionTable(&b, off)
		// A copy with a good checksum is the one to use, and a bad count in it is what the writer meant.
		if ruleOf(t.err[i]) == ondisk.RuleRegionCount && (i == 0 || t.err[0] != nil) {
			return nil, t.err[i]
		}
	}
	switch {
	case t.err[0] != nil && t.err[1] != nil:
		return nil, ondisk.Corrupt(ondisk.RuleNoValidRegionTable, "region table", ondisk.RegionTableOffsets[0], "neither copy is valid: %w; %w",
			ondisk.Finding(t.err[0]), ondisk.Finding(t.err[1]))
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
		return l.report(ondisk.Corrupt(r, "region table entry", t.offset()+int64(ondisk.RegionHeaderSize+i*ondisk.RegionEntrySize), format, args...))
	}
	seen := make(map[uuid.UUID]bool, len(t.regions))
	for i, r := range t.regions {
		var err error
		switch {
		case seen[r.GUID]:
			err = bad(i, ondisk.RuleRegionTwice, "duplicate %s region %v", r.Name(), r.GUID)
		case r.Offset%ondisk.MiB != 0 || r.Offset < ondisk.HeaderSectionSize:
			err = bad(i, ondisk.RuleRegionOffset, "the %s region at %#x must begin at a multiple of 1 MiB after the header section", r.Name(), r.Offset)
		case r.Length == 0 || r.Length%ondisk.MiB != 0:
			err = bad(i, ondisk.RuleRegionLength, "the %s region has %#x bytes; the length must be a multiple of 1 MiB and not 0", r.Name(), r.Length)
		case r.Name() != "unknown" && !r.Inside(l.size):
			err = bad(i, ondisk.RuleRegionBeyondFile, "the %s region (%s at %#x) ends beyond the end of the file (%#x); was the file cut off?", r.Name(), sizes.Text(int64(r.Length)), r.Offset, l.size)
		case r.Name() == "unknown" && r.Flags&ondisk.RegionRequired != 0:
			err = bad(i, ondisk.RuleRegionUnknown, "unknown required region %v; a newer version may support it", r.GUID)
		}
		if err != nil {
			return err
		}
		seen[r.GUID] = true
		if r.Flags&^ondisk.RegionRequired != 0 {
			l.warn("region table entry", t.offset(), "reserved flags %#x of the %s region", r.Flags&^ondisk.RegionRequired, r.Name())
		}
		if !r.Inside(l.size) {
			l.warn("region table entry", t.offset(), "optional region %v at %#x lies outside the file", r.GUID, r.Offset)
		}
	}
	if !seen[ondisk.BATRegionGUID] {
		return ondisk.Corrupt(ondisk.RuleNoBATRegion, "region table", t.offset(), "there is no BAT region")
	}
	if !seen[ondisk.MetadataRegionGUID] {
		return ondisk.Corrupt(ondisk.RuleNoMetadataRegion, "region table", t.offset(), "there is no metadata region")
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
		if r.End() < r.Offset {
			return l.report(ondisk.Corrupt(ondisk.RuleRegionOverlap, "region table", l.tables.offset(), "the %s region (%#x bytes at %#x) ends beyond the largest file", r.Name(), r.Length, r.Offset))
		}
		objects = append(objects, object{r.Name() + " region", r.Offset, r.End()})
	}
	slices.SortFunc(objects, func(a, b object) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(objects); i++ {
		if a, b := objects[i-1], objects[i]; b.start < a.end {
			if err := l.report(ondisk.Corrupt(ondisk.RuleRegionOverlap, "region table", l.tables.offset(), "%s at %#x overlaps the %s at %#x", b.name, b.start, a.name, a.start)); err != nil {
				return err
			}
		}
	}
	return nil
}
