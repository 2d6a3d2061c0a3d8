package vhdx

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// check writes the chain to files and returns what Check finds.
func (c chain) check(t *testing.T) *Report {
	t.Helper()
	report, err := Check(c.writeTo(t, t.TempDir()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestCheckOfAGoodChain(t *testing.T) {
	r := chain{
		build(spec{typ: Differencing, blocks: partBlock}),
		build(spec{blocks: oneBlock}),
	}.check(t)
	if !r.Clean() || r.Leaked != 0 || r.Info == nil || r.Parent == nil || !r.Parent.Clean() || r.Parent.Leaked != 0 {
		t.Errorf("report %+v on %+v", r, r.Parent)
	}
}

// Check goes on behind an error, and reports all of those in lists: regions, items, blocks.
func TestCheckFindsManyErrors(t *testing.T) {
	im := build(spec{diskSize: 20 * ondisk.MiB, blocks: oneBlock})
	im.setBlockEntry(1, 4)
	im.setBlockEntry(2, ondisk.NewBATEntry(ondisk.FullyPresent, 0))
	im.setBlockEntry(3, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	im.setBlockEntry(4, ondisk.NewBATEntry(ondisk.FullyPresent, im.logOff))
	im.setBlockEntry(5, im.entries[0])
	im.setBlockEntry(6, ondisk.NewBATEntry(ondisk.PartiallyPresent, im.entries[0].FileOff()))
	im.addItems(ondisk.MetadataItem{ID: otherGUID, Offset: 1, Length: 1}, ondisk.MetadataItem{ID: parentGUID, Flags: ondisk.ItemIsRequired})
	im.setRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Offset: 5 * ondisk.TiB, Length: ondisk.MiB, Flags: ondisk.RegionRequired})
	})
	r := chain{im}.check(t)
	var rules []string
	for _, f := range r.Errors {
		rules = append(rules, f.Rule)
		if f.Message == "" || f.Structure == "" || f.Offset == 0 {
			t.Errorf("finding %+v does not say what or where", f)
		}
	}
	if got, want := strings.Join(rules, " "), "R22 R28 R32 R44 R46 R47 R48 R49 R45"; got != want {
		t.Errorf("Check found %s; want %s", got, want)
	}
	if r.Sound() || r.Clean() {
		t.Error("the image counts as sound")
	}
}

// A BAT full of errors gives a report of bounded length that says how much it leaves out.
func TestCheckBoundsItsReport(t *testing.T) {
	im := build(spec{diskSize: 5000 * ondisk.MiB})
	for b := range int64(2 * maxFindings) {
		im.setBlockEntry(b, 4)
		im.setBlockEntry(b+2*maxFindings, ondisk.NewBATEntry(ondisk.Zero, ondisk.MiB))
	}
	r := chain{im}.check(t)
	if len(r.Errors) != maxFindings || len(r.Warnings) != maxFindings || r.Dropped != 2*maxFindings {
		t.Errorf("%d errors, %d warnings, %d dropped; want %d, %d, %d", len(r.Errors), len(r.Warnings), r.Dropped,
			maxFindings, maxFindings, 2*maxFindings)
	}
}

func TestCheckCountsLeaks(t *testing.T) {
	im := build(spec{dataOff: 7 * ondisk.MiB, blocks: oneBlock}) // 4 to 7 MiB are unused
	if r := (chain{im}).check(t); r.Leaked != 3*ondisk.MiB || !r.Clean() || r.Info.FreeBytes != 3*ondisk.MiB {
		t.Errorf("%d bytes are leaked, %d free; want 3 MiB", r.Leaked, r.Info.FreeBytes)
	}
	im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.Unmapped, 5*ondisk.MiB)) // a place that is kept is not leaked
	if r := (chain{im}).check(t); r.Leaked != 2*ondisk.MiB || !r.Clean() {
		t.Errorf("%d bytes are leaked with one block's place kept; want 2 MiB", r.Leaked)
	}
	im.Truncate(im.size + 5)
	if r := (chain{im}).check(t); r.Leaked != 3*ondisk.MiB {
		t.Errorf("%d bytes are leaked with a few behind the last block; want 3 MiB", r.Leaked)
	}
}

// The error of a parent is in the parent's report, and makes the child unsound.
func TestCheckReportsOnParents(t *testing.T) {
	parent := build(spec{})
	parent.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, parent.batOff))
	r := chain{build(spec{typ: Differencing}), parent}.check(t)
	if r.Sound() || r.Parent == nil || len(r.Parent.Errors) != 1 || r.Parent.Errors[0].Rule != "R48" {
		t.Errorf("report %+v on %+v", r, r.Parent)
	}
}

func TestCheckSaysWhenItCannotExamine(t *testing.T) {
	if r, err := Check(filepath.Join(t.TempDir(), "none.vhdx"), Options{}); err == nil {
		t.Errorf("a report on no file: %+v", r)
	}
}

// A log that is damaged in the middle is replayed up to there, and what is behind is not lost without a word.
func TestCheckNoticesNewerLogEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(path, CreateOptions{Size: 16 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(4) {
		if _, err := im.WriteAt([]byte("durable"), i*ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	crashed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	check := func(what string) *Report {
		t.Helper()
		if err := os.WriteFile(path, crashed, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Check(path, Options{})
		if err != nil || !r.Sound() {
			t.Fatalf("%s: %+v, %v", what, r, err)
		}
		return r
	}
	if r := check("a crash"); !r.Clean() {
		t.Errorf("a crash alone: %+v", r.Warnings)
	}
	// An empty entry of one sector, then one of two sectors for each sync.
	const second = ondisk.MiB + (1+2+1)*4096 + 2000
	crashed[second] ^= 0x10
	if r := check("a damaged entry"); len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Message, "2 newer entries") {
		t.Errorf("with a damaged entry: %+v", r.Warnings)
	}
	// A mount reports it, too.
	im, err = Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if w := im.Warnings(); len(w) != 1 || !strings.Contains(w[0], "keep a copy") {
		t.Errorf("opened for reading: warnings %q", w)
	}
	im.Close()
	var logged bytes.Buffer
	im, err = Open(path, Options{Writable: true, Log: &logrus.Logger{Out: &logged, Formatter: new(logrus.TextFormatter), Level: logrus.WarnLevel}})
	if err != nil {
		t.Fatal(err)
	}
	im.Close()
	if !strings.Contains(logged.String(), "may be lost") {
		t.Errorf("opened for writing, and logged: %s", &logged)
	}
}

func TestReportIsJSON(t *testing.T) {
	im := build(spec{})
	im.setBlockEntry(0, 4)
	b, err := json.Marshal(chain{im}.check(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"rule":"R44"`, `"warnings":[]`, `"leaked_bytes":0`, `"block_size":1048576`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}

func TestInfo(t *testing.T) {
	parent := build(spec{dataWrite: parentGUID, blocks: oneBlock})
	child := build(spec{typ: Differencing, diskSize: 4 * ondisk.MiB, sectorSize: 512, physical: 512, blocks: []blockSpec{
		{0, ondisk.PartiallyPresent}, {1, ondisk.Zero}, {2, ondisk.Unmapped}, {3, ondisk.FullyPresent},
	}})
	child.logPages(child.batOff)
	im := chain{child, parent}.open(t, Options{})
	in := im.Info()
	if in.Type != Differencing || in.Creator != "builder" || in.PhysicalSectorSize != 512 || in.DiskID != otherGUID {
		t.Errorf("Info %+v", in)
	}
	if want := (BlockCounts{Zero: 1, Unmapped: 1, FullyPresent: 1, PartiallyPresent: 1, SectorBitmaps: 1}); in.Blocks != want {
		t.Errorf("blocks %+v, want %+v", in.Blocks, want)
	}
	if in.Log.State != LogReplayed || in.Log.Entries != 1 || in.Log.Updates != 1 {
		t.Errorf("log %+v", in.Log)
	}
	if in.BATEntries != 4097 || in.ChunkRatio != 4096 || in.AllocatedBytes != 2*ondisk.MiB || in.CurrentHeader != 2 || in.CurrentRegionTable != 1 {
		t.Errorf("Info %+v", in)
	}
	if got := im.AllocatedBytes(); got != 3*ondisk.MiB {
		t.Errorf("AllocatedBytes = %d, want 3 MiB", got)
	}
	p := in.Parent
	if p == nil || p.Linkage != parentGUID || p.Linkage2 != nil || p.RelativePath != `.\parent.vhdx` || p.Image.Type != Dynamic {
		t.Errorf("parent %+v", p)
	}
	if len(in.Regions) != 2 || in.Regions[0].Name != "BAT" || int64(in.Regions[0].Offset) != child.batOff || !in.Regions[1].Required {
		t.Errorf("regions %+v", in.Regions)
	}
	if len(in.Metadata) != 6 || in.Metadata[5].Name != "parent locator" || in.Metadata[5].GUID == uuid.Nil {
		t.Errorf("metadata %+v", in.Metadata)
	}
}
