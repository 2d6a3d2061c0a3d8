package vhdx

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A tolerance is an oddity of images in the field: an image with it opens, and reads as it would without it.
type tolerance struct {
	name   string
	spec   spec
	warns  string // part of the warning that it gives cause for; "" if there must be none
	change func(s *scene)
}

// someBlocks is an image with content worth comparing.
var someBlocks = spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}}

var tolerances = []tolerance{
	{"T1 two identical headers", someBlocks, "both headers are identical",
		inHeaders(func(h *ondisk.Header) { h.SequenceNumber = 1 })},
	{"T2 bad header 1", someBlocks, "header 1 is invalid", func(s *scene) { s.write([]byte{0xFF}, ondisk.HeaderOffsets[0]+100) }},
	{"T2 bad header 2", someBlocks, "header 2 is invalid", func(s *scene) { s.write([]byte{0xFF}, ondisk.HeaderOffsets[1]+100) }},
	{"T2 bad region table 1", someBlocks, "copy 1 is invalid", func(s *scene) { s.write([]byte{0xFF}, ondisk.RegionTableOffsets[0]+100) }},
	{"T2 bad region table 2", someBlocks, "copy 2 is invalid", func(s *scene) { s.write([]byte{0xFF}, ondisk.RegionTableOffsets[1]+100) }},
	{"T2 region tables that differ", someBlocks, "copy 2 differs", func(s *scene) {
		s.write(ondisk.EncodeRegionTable(nil)[:], ondisk.RegionTableOffsets[1])
	}},
	{"T3 log version with a clean log", someBlocks, "log version 9", inHeaders(func(h *ondisk.Header) { h.LogVersion = 9 })},
	{"T4 regions without the Required bit", someBlocks, "", inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Flags, r[1].Flags = 0, 0
		return r
	})},
	{"T5 bytes behind the last object", someBlocks, "", func(s *scene) { s.write(s.random(512), s.size) }},
	{"T6 fixed disk cut behind its last sector",
		spec{typ: Fixed, diskSize: ondisk.MiB + 10*512, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}, "",
		func(s *scene) { s.Truncate(s.entries[1].FileOff() + 10*512) }},
	{"T6 dynamic disk cut behind its last sector",
		spec{diskSize: ondisk.MiB + 4096, blocks: []blockSpec{{1, ondisk.FullyPresent}}}, "",
		func(s *scene) { s.Truncate(s.entries[1].FileOff() + 4096) }},
	{"T7 sector bitmap entry of a dynamic disk",
		spec{diskSize: 64 * 65 * ondisk.MiB, blockSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {64, ondisk.FullyPresent}}}, "only differencing disks have",
		func(s *scene) { s.setEntry(s.geo.BitmapEntry(0), ondisk.NewBATEntry(ondisk.BitmapPresent, s.batOff)) }},
	{"T7 sector bitmap entry of a fixed disk",
		spec{typ: Fixed, diskSize: 64 * 65 * ondisk.MiB, blockSize: 64 * ondisk.MiB, blocks: []blockSpec{{64, ondisk.FullyPresent}}}, "only differencing disks have",
		func(s *scene) { s.setEntry(s.geo.BitmapEntry(0), 0xFFFFFFFFFFFFFFFF) }},
	{"T7 junk behind the last BAT entry", someBlocks, "", func(s *scene) {
		s.write(s.random(ondisk.MiB-s.geo.BATEntries()*ondisk.BATEntrySize), s.batOff+s.geo.BATEntries()*ondisk.BATEntrySize)
	}},
	{"T7 junk in the padding of a child's last chunk", spec{typ: Differencing, blocks: []blockSpec{{1, ondisk.PartiallyPresent}}}, "",
		func(s *scene) { s.setEntry(s.geo.PayloadBlocks(), 0xFFFFFFFFFFFFFFFF) }},
	{"T8 fixed disk with blocks in states 0 to 3",
		spec{typ: Fixed, diskSize: 5 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.NotPresent}, {1, ondisk.Undefined}, {2, ondisk.Zero}, {3, ondisk.Unmapped}, {4, ondisk.FullyPresent}}}, "",
		func(*scene) {}},
	{"T9 log with nothing to do", someBlocks, "", func(s *scene) { s.logEntries(s.logEntry()) }},
	{"T9 stale entries and junk around the active one", someBlocks, "", func(s *scene) {
		wipe := journal.Update{FileOffset: uint64(s.entries[0].FileOff()), ZeroLength: ondisk.MiB}
		stale, old, cur := s.logEntry(wipe), s.logEntry(wipe), s.logEntry()
		stale.LogGUID = otherGUID // of another session
		old.SequenceNumber = 3    // of this session, not joined to the current entry
		cur.Tail = 3 * 4096       // its own place
		gap := s.logEntry(wipe)   // is overwritten with junk
		gap.LogGUID = testLogGUID //
		s.logEntries(stale, old, gap, cur)
		s.write(s.random(4096), s.logOff+2*4096)
	}},
	{"T9 entries of a clean log", someBlocks, "", func(s *scene) {
		s.logEntries(s.logEntry(journal.Update{FileOffset: uint64(s.batOff), ZeroLength: ondisk.MiB}))
		s.setHeaders(func(*ondisk.Header) {})
	}},
	{"T10 file offsets that are no multiples of 1 MiB", someBlocks, "", func(s *scene) {
		s.Truncate(s.size + 1000)
		e := s.logEntry()
		e.FlushedFileOffset, e.LastFileOffset = uint64(s.size)-7, uint64(s.size)+333
		s.logEntries(e)
	}},
	{"T10 FlushedFileOffset 0", someBlocks, "", func(s *scene) {
		e := s.logEntry()
		e.FlushedFileOffset = 0
		s.logEntries(e)
	}},
	{"T11 reserved parts of the header section", someBlocks, "", func(s *scene) {
		s.write(s.random(64*ondisk.KiB-520), 520)
		s.write(s.random(60*ondisk.KiB), ondisk.HeaderOffsets[0]+ondisk.HeaderSize)
		s.write(s.random(60*ondisk.KiB), ondisk.HeaderOffsets[1]+ondisk.HeaderSize)
		s.write(s.random(ondisk.MiB-320*ondisk.KiB), 320*ondisk.KiB)
		s.stamp(ondisk.HeaderOffsets, ondisk.HeaderSize, func(b []byte) { copy(b[80:], s.random(ondisk.HeaderSize-80)) })
	}},
	{"T12 unknown optional region", spec{regions: []ondisk.Region{{GUID: otherGUID, Offset: 4 * ondisk.MiB, Length: ondisk.MiB}}, dataOff: 5 * ondisk.MiB, blocks: someBlocks.blocks}, "",
		func(*scene) {}},
	{"T12 unknown items and user items", spec{blocks: someBlocks.blocks, items: []rawItem{
		{otherGUID, 0, []byte("system")},
		{otherGUID, ondisk.ItemIsUser, []byte("user")},
		{ondisk.DiskSizeGUID, ondisk.ItemIsUser, []byte("another thing of the same id")},
		{ondisk.ParentLocatorGUID, ondisk.ItemIsUser, nil},
	}}, "", func(*scene) {}},

	// Where the standard leaves room: docs/format.md says what was chosen.
	{"O1 state 5", someBlocks, "unmapped in a draft of the format", withBlock(1, ondisk.NewBATEntry(ondisk.UnmappedDraft, 0))},
	{"O2 reserved bits of a BAT entry", someBlocks, "reserved bits 0xffff8", func(s *scene) {
		s.setBlockEntry(0, s.entries[0]|ondisk.BATReservedMask)
	}},
	{"O2 reserved flags of a region", someBlocks, "reserved flags 0x2 of the BAT region", inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Flags = 3
		return r
	})},
	{"O2 reserved flags of the file parameters", someBlocks, "reserved flags 0x80", func(s *scene) {
		s.setItem(ondisk.FileParametersGUID, []byte{0, 0, 0x10, 0, 0x80})
	}},
	{"O3 known item with other flags", someBlocks, "flags 0x0 of the virtual disk size", func(s *scene) {
		s.changeItem(ondisk.DiskSizeGUID, func(m *ondisk.MetadataItem) { m.Flags = 0 })
	}},
	{"O3 known item that is too long", someBlocks, "physical sector size has 16 bytes, usually 4", withLength(ondisk.PhysicalSectorSizeGUID, 16)},
	{"O4 no virtual disk id", someBlocks, "virtual disk id is missing", without(ondisk.DiskIDGUID)},
	{"O4 no physical sector size", someBlocks, "physical sector size is missing", without(ondisk.PhysicalSectorSizeGUID)},
	{"O5 no log", spec{noLog: true, blocks: someBlocks.blocks}, "no log; the image can be read", func(*scene) {}},
	{"O6 not present with an offset", someBlocks, "block 1 in state NOT_PRESENT has the file offset", withBlock(1, ondisk.NewBATEntry(ondisk.NotPresent, 5*ondisk.MiB))},
	{"O6 zero with an offset", someBlocks, "block 1 in state ZERO has the file offset", withBlock(1, ondisk.NewBATEntry(ondisk.Zero, ondisk.MiB))},
	{"O6 unmapped outside the file", someBlocks, "refers to a place outside the file", withBlock(1, ondisk.NewBATEntry(ondisk.Unmapped, ondisk.TiB))},
	{"O6 undefined at the largest offset", someBlocks, "refers to a place outside the file", withBlock(1, ondisk.BATEntry(ondisk.BATOffsetMask|uint64(ondisk.Undefined)))},
	{"O6 two unmapped on one place", someBlocks, "refers to the same place as another block", func(s *scene) {
		off := s.allocate(ondisk.MiB)
		s.setBlockEntry(1, ondisk.NewBATEntry(ondisk.Unmapped, off))
		s.setBlockEntry(3, ondisk.NewBATEntry(ondisk.Undefined, off))
	}},
	{"O6 unmapped on the place of a present block", someBlocks, "refer to places in use", func(s *scene) {
		s.setBlockEntry(1, ondisk.NewBATEntry(ondisk.Unmapped, s.entries[0].FileOff()))
	}},
	{"O7 parent locator without HasParent", spec{blocks: someBlocks.blocks, items: []rawItem{
		{ondisk.ParentLocatorGUID, ondisk.ItemIsRequired, ondisk.EncodeParentLocator(parentEntries("parent.vhdx", parentGUID))},
	}}, "say that it has no parent", func(*scene) {}},
	{"O8 reserved field of a log entry", someBlocks, "", func(s *scene) {
		s.logPages(s.batOff)
		s.stamp([2]int64{s.logOff, s.logOff}, 8192, func(b []byte) { ondisk.LE.PutUint32(b[28:], 1) })
	}},
	{"O9 GUIDs without braces, forward slashes", spec{typ: Differencing, blocks: []blockSpec{{1, ondisk.PartiallyPresent}}}, "",
		locator([2]string{ondisk.KeyLinkage, parentGUID.String()}, [2]string{ondisk.KeyRelativePath, "./parent.vhdx"})},
	{"O9 GUID in upper case", spec{typ: Differencing, blocks: []blockSpec{{1, ondisk.PartiallyPresent}}}, "",
		locator([2]string{ondisk.KeyLinkage, strings.ToUpper(guidText(parentGUID))}, relPath)},
	{"O10 optional region outside the file", someBlocks, "lies outside the file", inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Offset: 1 << 62, Length: ondisk.MiB})
	})},
}

func TestTolerances(t *testing.T) {
	for _, c := range tolerances {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

func (c *tolerance) run(t *testing.T) {
	s := &scene{image: build(c.spec)}
	disk := chain{s.image}
	if c.spec.typ == Differencing {
		s.parent = build(spec{diskSize: s.diskSize, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
		disk = append(disk, s.parent)
	}
	c.change(s)
	dir := t.TempDir()
	path := disk.writeTo(t, dir)

	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	disk.verify(t, im)

	report, err := Check(path, Options{})
	if err != nil || !report.Sound() {
		t.Fatalf("Check: %v, %+v", err, report)
	}
	warned := len(report.Warnings) == 0
	if c.warns != "" {
		warned = false
		for _, w := range report.Warnings {
			warned = warned || strings.Contains(w.Message, c.warns)
		}
	}
	if !warned {
		t.Errorf("warnings %+v; want one with %q", report.Warnings, c.warns)
	}
	for i, f := range disk {
		if !f.sameAs(t, filepath.Join(dir, []string{"image.vhdx", "parent.vhdx"}[i])) {
			t.Errorf("file %d has changed", i)
		}
	}
}

func TestEveryToleranceHasACase(t *testing.T) {
	want := map[string]bool{}
	for _, n := range strings.Fields("T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 O1 O2 O3 O4 O5 O6 O7 O8 O9 O10") { // O11 is R45, O12 R32
		want[n] = true
	}
	for _, c := range tolerances {
		delete(want, strings.Fields(c.name)[0])
	}
	for n := range want {
		t.Errorf("no test of %s", n)
	}
}

// The items of the image are what Info shows, user items apart from system items of the same id.
func TestUserItemIsNoSystemItem(t *testing.T) {
	im := build(spec{items: []rawItem{{ondisk.DiskSizeGUID, ondisk.ItemIsUser, ondisk.LE.AppendUint64(nil, 512)}}})
	o := chain{im}.open(t, Options{})
	if o.Size() != im.diskSize {
		t.Errorf("the disk has %d bytes, want %d: the user item counted", o.Size(), im.diskSize)
	}
	var names []string
	for _, m := range o.Info().Metadata {
		if m.GUID == uuid.UUID(ondisk.DiskSizeGUID) {
			names = append(names, m.Name)
		}
	}
	if len(names) != 2 || names[0] != "virtual disk size" || names[1] != "unknown" {
		t.Errorf("Info calls the two items %q", names)
	}
}
