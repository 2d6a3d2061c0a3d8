package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// mustRepair repairs the image at path.
func mustRepair(t *testing.T, path string, o RepairOptions) *RepairReport {
	t.Helper()
	r, err := Repair(t.Context(), path, o)
	if err != nil {
		t.Fatalf("Repair: %v", err)
	}
	return r
}

// undo takes the repair back, and checks that the image is unchanged.
func (f *memFile) undo(t *testing.T, path string, r *RepairReport) {
	t.Helper()
	if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); err != nil || u.Path != path {
		t.Fatalf("Undo: %+v, %v", u, err)
	}
	if !f.sameAs(t, path) {
		t.Error("Undo did not bring back what was there")
	}
}

// untouched checks that nothing was changed, and that the directory of the image holds n files.
func (f *memFile) untouched(t *testing.T, path string, n int) {
	t.Helper()
	if !f.sameAs(t, path) {
		t.Error("the image was changed")
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != n {
		t.Errorf("the directory holds %v, %v; want %d files", list, err, n)
	}
}

// What becomes of an image that breaks a rule.
const (
	repaired = iota // it is sound
	refused         // it is as before
	either          // it depends on what is damaged
	dropped         // it is sound if the log is given up, and refused otherwise
	parents         // nothing is wrong with the image itself
)

var repairOutcomes = map[int]string{
	repaired: "R2 R4 R7 R8 R12 R27 R31 R39 R44 R45 R46 R47 R48 R49 R50 R51 R52",
	refused:  "R1 R3 R5 R14 R15 R20 R21 R22 R24 R25 R26 R30 R32 R33 R34 R35 R37 R38 R40 R41 R42 R43 R53 R54 R55 R56 R57 R58 R59 R60",
	either:   "R9 R16 R17 R18 R19 R23 R28 R29 R36",
	dropped:  "R6 R10 R11 R13",
	parents:  "R61 R62 R63 R64 R65",
}

func outcomeOf(t *testing.T, r ondisk.Rule) int {
	t.Helper()
	for o, list := range repairOutcomes {
		if slices.Contains(strings.Fields(list), r.Name()) {
			return o
		}
	}
	t.Fatalf("no outcome for %v", r)
	return 0
}

// Each image that breaks a rule is repaired, and the repair can be undone to the byte, or it is refused and untouched.
func TestRepairOfEveryRule(t *testing.T) {
	for _, list := range allRuleCases {
		for _, c := range list {
			if c.good {
				continue
			}
			t.Run(c.rule.Name()+" "+c.name, func(t *testing.T) {
				t.Parallel()
				outcome := outcomeOf(t, c.rule)
				if outcome == dropped {
					c.repair(t, RepairOptions{}, refused)
					outcome = repaired
				}
				c.repair(t, RepairOptions{DropLog: true}, outcome)
			})
		}
	}
}

func (c *ruleCase) repair(t *testing.T, o RepairOptions, want int) {
	s := &scene{image: build(c.spec), others: make(map[string]*image)}
	if c.spec.typ == Differencing {
		s.parent = build(spec{diskSize: s.diskSize, blockSize: s.blockSize, sectorSize: s.sectorSize, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	}
	c.damage(s)
	dir, files := t.TempDir(), 1
	path := filepath.Join(dir, "image.vhdx")
	s.image.writeTo(t, path)
	if s.parent != nil {
		s.parent.writeTo(t, filepath.Join(dir, "parent.vhdx"))
		files++
	}
	o.Open = s.opts
	r := mustRepair(t, path, o)
	switch {
	case want == parents:
		if len(r.Left)+len(r.Fixes) > 0 || r.After.Clean() {
			t.Errorf("report %+v; want nothing done, and what is wrong with the parent", r)
		}
		s.untouched(t, path, files)
	case want == refused, want == either && len(r.Left) > 0:
		if len(r.Left) == 0 || len(r.Advice) == 0 || r.Changed || len(r.Fixes) > 0 {
			t.Errorf("report %+v; want a refusal with advice", r)
		}
		s.untouched(t, path, files)
	default:
		if len(r.Left) > 0 || !r.Changed || len(r.Fixes) == 0 {
			t.Fatalf("report %+v; want a repair", r)
		}
		for _, f := range r.After.Errors {
			t.Errorf("after the repair: %+v", f)
		}
		o.DryRun = true
		for _, f := range mustRepair(t, path, o).Fixes {
			if f.Structure != "file" { // the first has left space, where anything was lost
				t.Errorf("a second repair has something to do: %+v", f)
			}
		}
		s.undo(t, path, r)
	}
}

// What breaks no rule is repaired too, and the disk reads as before.
func TestRepairOfOddities(t *testing.T) {
	stay := []string{"O4 ", "O7 "} // what is missing cannot be known
	quiet := []string{"T4", "T5", "T6", "T7 junk", "T8", "T9 entries", "T11", "T12", "O9"}
	has := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	for _, c := range tolerances {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &scene{image: build(c.spec)}
			disk := chain{s.image}
			if c.spec.typ == Differencing {
				s.parent = build(spec{diskSize: s.diskSize, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
				disk = append(disk, s.parent)
			}
			c.change(s)
			path := disk.writeTo(t, t.TempDir())
			r := mustRepair(t, path, RepairOptions{})
			if r.After.Clean() == has(stay, c.name) || r.Damaged() {
				t.Errorf("after the repairs %+v: %+v", r.Fixes, r.After)
			}
			if still := has(quiet, c.name) || has(stay, c.name); still == r.Changed {
				t.Errorf("changed is %v, by %+v", r.Changed, r.Fixes)
			}
			im, err := Open(path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			disk.verify(t, im)
			im.Close()
			if r.Changed {
				s.undo(t, path, r)
			} else {
				s.untouched(t, path, len(disk))
			}
		})
	}
}

// A repaired disk reads as before, but for what is lost, and that as the report says: zeros, never the parent's data.
func TestRepairedDisk(t *testing.T) {
	all := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}
	part := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.PartiallyPresent}}
	at := func(b int64) DiskRange { return DiskRange{b * ondisk.MiB, ondisk.MiB} }
	for _, tc := range []struct {
		name    string
		spec    spec
		damage  func(im *image)
		lost    []DiskRange // read as zeros
		suspect []DiskRange // read as before, but may be wrong
	}{
		{"outside the file", spec{blocks: all}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB)) }, []DiskRange{at(1)}, nil},
		{"in the header section", spec{blocks: all}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, 0)) }, []DiskRange{at(1)}, nil},
		{"on the BAT, in a child", spec{typ: Differencing, blocks: part}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.PartiallyPresent, im.batOff)) }, []DiskRange{at(1)}, nil},
		{"garbage that is zero", spec{blocks: all}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.Zero, ondisk.TiB)|0x5550) }, []DiskRange{at(1)}, nil},
		{"garbage that is not present, in a child", spec{typ: Differencing, blocks: part}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.NotPresent, ondisk.TiB)|0x5550) }, []DiskRange{at(1)}, nil},
		{"flipped state", spec{blocks: all}, func(im *image) { im.setEntry(1, ondisk.NewBATEntry(4, im.entries[1].FileOff())) }, nil, []DiskRange{at(1)}},
		{"flipped state without a place", spec{blocks: all}, func(im *image) { im.setBlockEntry(1, ondisk.NewBATEntry(4, 0)) }, []DiskRange{at(1)}, nil},
		{"flipped state of a last block that the end of the file cuts", spec{typ: Fixed, blockSize: 4 * ondisk.MiB, diskSize: 9 * ondisk.MiB, blocks: all},
			func(im *image) {
				im.setEntry(2, ondisk.NewBATEntry(4, im.entries[2].FileOff()))
				im.cutLastBlock()
			}, nil, []DiskRange{{8 * ondisk.MiB, ondisk.MiB}}},
		{"partially present", spec{blocks: all}, func(im *image) { im.setEntry(1, ondisk.NewBATEntry(ondisk.PartiallyPresent, im.entries[1].FileOff())) }, nil, []DiskRange{at(1)}},
		{"cut file", spec{blocks: all}, func(im *image) { im.Truncate(im.entries[1].FileOff() + 5000) },
			[]DiskRange{{ondisk.MiB + 5000, ondisk.MiB - 5000}, at(2)}, nil},
		{"cut file with a log", spec{blocks: all}, func(im *image) {
			im.logPages(im.batOff)
			im.Truncate(im.entries[2].FileOff() + 512)
		}, []DiskRange{{2*ondisk.MiB + 512, ondisk.MiB - 512}}, nil},
		{"cut block table", spec{blocks: all, batOff: 7 * ondisk.MiB, metaOff: 2 * ondisk.MiB, dataOff: 3 * ondisk.MiB}, func(im *image) {
			im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
			im.Truncate(im.batOff + 20) // in the entry of block 2
		}, []DiskRange{{2 * ondisk.MiB, 2 * ondisk.MiB}, at(1)}, nil},
		{"cut block table of a child", spec{typ: Differencing, blocks: all, batOff: 7 * ondisk.MiB, metaOff: 2 * ondisk.MiB, dataOff: 3 * ondisk.MiB},
			func(im *image) { im.Truncate(im.batOff + 16) }, []DiskRange{{2 * ondisk.MiB, 2 * ondisk.MiB}}, nil},
		{"cut behind the block table", spec{blocks: all, batOff: 7 * ondisk.MiB, metaOff: 2 * ondisk.MiB, dataOff: 3 * ondisk.MiB},
			func(im *image) { im.Truncate(im.batOff + 32) }, nil, nil},
		{"overlap", spec{blocks: all}, func(im *image) {
			im.setBlockEntry(1, im.entries[0])
			b := make([]byte, ondisk.MiB)
			im.disk.ReadAt(b, 0)
			im.disk.WriteAt(b, ondisk.MiB)
		}, nil, []DiskRange{at(1), at(0)}},
		{"overlap in the place of pages of the log", spec{blocks: all}, func(im *image) {
			im.setBlockEntry(1, im.entries[0])
			b := make([]byte, ondisk.MiB)
			im.disk.ReadAt(b, 0)
			im.disk.WriteAt(b, ondisk.MiB)
			im.logPages(im.entries[0].FileOff())
		}, nil, []DiskRange{at(1), at(0)}},
		{"overlap of three", spec{blocks: all}, func(im *image) {
			b := make([]byte, ondisk.MiB)
			im.disk.ReadAt(b, 0)
			for i := range int64(2) {
				im.setBlockEntry(i+1, im.entries[0])
				im.disk.WriteAt(b, (i+1)*ondisk.MiB)
			}
		}, nil, []DiskRange{at(1), at(0), at(2), at(2), at(0), at(1)}},
		{"overlap, and a last block that the end of the file cuts", spec{typ: Fixed, blockSize: 4 * ondisk.MiB, diskSize: 9 * ondisk.MiB, blocks: all}, func(im *image) {
			im.setBlockEntry(1, im.entries[0])
			b := make([]byte, 4*ondisk.MiB)
			im.disk.ReadAt(b, 0)
			im.disk.WriteAt(b, 4*ondisk.MiB)
			im.cutLastBlock()
		}, nil, []DiskRange{{4 * ondisk.MiB, 4 * ondisk.MiB}, {0, 4 * ondisk.MiB}}},
		{"no log, and a last block that the end of the file cuts", spec{typ: Fixed, noLog: true, blockSize: 4 * ondisk.MiB, diskSize: 9 * ondisk.MiB, blocks: all},
			(*image).cutLastBlock, nil, nil},
		{"sector bitmap beyond the file, and a last block that it cuts", spec{typ: Differencing, blockSize: 4 * ondisk.MiB, diskSize: 9 * ondisk.MiB,
			blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}}}, func(im *image) {
			im.setSectors(0, 0, 8192, true)
			im.put(im.random(4*ondisk.MiB), 0)
			im.setEntry(im.geo.BitmapEntry(0), ondisk.NewBATEntry(ondisk.BitmapPresent, ondisk.TiB))
			im.cutLastBlock()
		}, nil, []DiskRange{{0, 4 * ondisk.MiB}}},
		{"sector bitmap with a flipped state", spec{typ: Differencing, blocks: part}, func(im *image) {
			im.setEntry(im.geo.BitmapEntry(0), ondisk.NewBATEntry(7, im.bitmaps[0]))
		}, nil, []DiskRange{at(1), at(2)}},
		{"sector bitmap cut off behind its bits", spec{typ: Differencing, blocks: part, dataOff: 6 * ondisk.MiB}, func(im *image) {
			b := im.read(im.bitmaps[0], ondisk.MiB)
			im.write(b, im.size)
			im.setEntry(im.geo.BitmapEntry(0), ondisk.NewBATEntry(ondisk.BitmapPresent, im.size-ondisk.MiB))
			im.Truncate(im.size - ondisk.MiB + 1000)
		}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := build(tc.spec)
			disk := chain{im}
			if tc.spec.typ == Differencing {
				disk = append(disk, build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}}))
			}
			tc.damage(im)
			path := disk.writeTo(t, t.TempDir())
			r := mustRepair(t, path, RepairOptions{})
			if !r.After.Clean() {
				t.Fatalf("after the repairs %+v: %+v", r.Fixes, r.After)
			}
			var lost, suspect []DiskRange
			for _, f := range r.Fixes {
				switch f.Effect {
				case Lost:
					lost = append(lost, f.Ranges...)
				case Suspect:
					suspect = append(suspect, f.Ranges...)
				}
			}
			if !slices.Equal(lost, tc.lost) || !slices.Equal(suspect, tc.suspect) {
				t.Errorf("lost %v, suspect %v; want %v, %v", lost, suspect, tc.lost, tc.suspect)
			}
			compareRepaired(t, disk, path, lost)
			im.undo(t, path, r)
		})
	}
}

// compareRepaired compares the disk of the image at path with the model, in which the ranges that are lost are zeros.
func compareRepaired(t *testing.T, disk chain, path string, lost []DiskRange) {
	t.Helper()
	want := make([]byte, disk[0].diskSize)
	for b, e := range disk[0].entries { // a model of a broken entry is none
		if st := e.State(); st == 4 || st == ondisk.PartiallyPresent && disk[0].sectors[b] == nil {
			disk[0].entries[b] = ondisk.NewBATEntry(ondisk.FullyPresent, e.FileOff())
		}
	}
	disk.want(want, 0)
	for _, r := range lost {
		clear(want[r.Start : r.Start+r.Length])
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	got := make([]byte, len(want))
	if _, err := im.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Errorf("byte %#x of the disk is %#x, want %#x", i, got[i], want[i])
	}
}

// A sector bitmap that is gone is guessed from the data: a sector that was written with zeros becomes the parent's, and
// that is all that is wrong then.
func TestRepairGuessesSectorBitmaps(t *testing.T) {
	im := build(spec{typ: Differencing, blocks: []blockSpec{{1, ondisk.PartiallyPresent}}})
	b := make([]byte, ondisk.MiB)
	for s := range int64(2048) { // what is not here is zero
		if here := im.sectors[1][s]; here {
			copy(b[s*512:], im.random(512))
		}
	}
	im.put(b, ondisk.MiB)
	disk := chain{im, build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})}
	im.setEntry(im.geo.BitmapEntry(0), ondisk.NewBATEntry(ondisk.BitmapPresent, im.logOff))
	path := disk.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{})
	if !r.After.Clean() || !r.Damaged() {
		t.Fatalf("after the repairs %+v: %+v", r.Fixes, r.After)
	}
	compareRepaired(t, disk, path, nil)
	im.undo(t, path, r)
}

// The sector bitmap blocks of two chunks lay beyond the end of the file. The new one of the first chunk is not taken for that
// of the second, whose entry names the same place.
func TestRepairOfTwoSectorBitmaps(t *testing.T) {
	const chunk = 4096 // blocks
	im := build(spec{typ: Differencing, diskSize: (chunk + 1) * ondisk.MiB, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {chunk, ondisk.PartiallyPresent}}})
	for b := range im.sectors { // what is not here is zero
		p := im.random(ondisk.MiB)
		for s, here := range im.sectors[b] {
			if !here {
				clear(p[s*512:][:512])
			}
		}
		im.put(p, b*ondisk.MiB)
	}
	end := im.size
	im.setEntry(im.geo.BitmapEntry(0), ondisk.NewBATEntry(ondisk.BitmapPresent, end+ondisk.MiB))
	im.setEntry(im.geo.BitmapEntry(1), ondisk.NewBATEntry(ondisk.BitmapPresent, end))
	disk := chain{im, build(spec{diskSize: im.diskSize, blocks: []blockSpec{{0, ondisk.FullyPresent}, {chunk, ondisk.FullyPresent}}})}
	path := disk.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{})
	if !r.After.Clean() || len(r.Fixes) != 2 {
		t.Errorf("after the repairs %+v: %+v", r.Fixes, r.After)
	}
	o, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	disk.verify(t, o)
	o.Close()
	im.undo(t, path, r)
}

func TestRepairGivesSpaceBack(t *testing.T) {
	leaky := func(typ DiskType) *image {
		im := build(spec{typ: typ, dataOff: 7 * ondisk.MiB, blocks: oneBlock})
		im.write(im.random(ondisk.MiB), 5*ondisk.MiB)
		im.write(im.random(100), im.size+3*ondisk.MiB)
		return im
	}
	im := leaky(Dynamic)
	path := chain{im}.writeTo(t, t.TempDir())
	if r := mustRepair(t, path, RepairOptions{}); r.Changed || len(r.Advice) != 1 {
		t.Errorf("space that holds data: %+v, %q; want it kept, and told", r.Fixes, r.Advice)
	}
	r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	if st, err := os.Stat(path); err != nil || st.Size() != 8*ondisk.MiB || len(r.Fixes) != 2 {
		t.Errorf("repairs %+v, file %v, %v; want one of 8 MiB", r.Fixes, st, err)
	}
	f, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if next, err := f.NextData(5 * ondisk.MiB); err != nil || next != 7*ondisk.MiB {
		t.Errorf("behind 5 MiB the data begins at %#x, %v; want a hole up to 7 MiB", next, err)
	}
	if r.UndoSize < ondisk.MiB || r.UndoSize > 2*ondisk.MiB {
		t.Errorf("an undo file of %d bytes for one MiB of data", r.UndoSize)
	}
	im.undo(t, path, r)

	// What is lost may be in the space that nothing uses, and that of a fixed disk is meant to stay.
	im = leaky(Dynamic)
	im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	if r := mustRepair(t, chain{im}.writeTo(t, t.TempDir()), RepairOptions{}); len(r.Fixes) != 1 || r.After.Leaked == 0 {
		t.Errorf("with a lost block: %+v", r.Fixes)
	}
	im = leaky(Fixed)
	if r := mustRepair(t, chain{im}.writeTo(t, t.TempDir()), RepairOptions{}); r.Changed {
		t.Errorf("of a fixed disk: %+v", r.Fixes)
	}
}

// A log may hold pages for space that nothing uses any more. Where that space is given back, they are not written.
func TestRepairGivesBackSpaceOfTheLog(t *testing.T) {
	im := build(spec{dataOff: 7 * ondisk.MiB, blocks: oneBlock})
	im.write(im.random(ondisk.MiB), 5*ondisk.MiB)
	im.logPages(5 * ondisk.MiB)
	path := chain{im}.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	if !r.After.Clean() || len(r.Left) > 0 || r.Damaged() {
		t.Errorf("after the repairs %+v, left %+v: %+v", r.Fixes, r.Left, r.After)
	}
	im.undo(t, path, r)
}

// A dry run tells what a repair does, and changes nothing.
func TestRepairDryRun(t *testing.T) {
	im := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im.setBlockEntry(2, im.entries[0])
	im.setBlockEntry(3, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	path := chain{im}.writeTo(t, t.TempDir())
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	dry := mustRepair(t, path, RepairOptions{DryRun: true})
	im.untouched(t, path, 1)
	if err := os.Chmod(path, 0o644); err != nil { // nobody but root writes it as it is
		t.Fatal(err)
	}
	r := mustRepair(t, path, RepairOptions{})
	if fmt.Sprint(dry.Fixes) != fmt.Sprint(r.Fixes) || dry.UndoFile != r.UndoFile || dry.UndoSize != r.UndoSize || dry.After.Clean() != r.After.Clean() ||
		dry.After.Leaked != r.After.Leaked || dry.Changed || !r.Changed {
		t.Errorf("the dry run tells\n%+v\nthe repair did\n%+v", dry, r)
	}
}

func TestRepairInUse(t *testing.T) {
	im := build(spec{blocks: oneBlock})
	im.setHeaders(func(h *ondisk.Header) { h.SequenceNumber = 1 }) // which is a warning only
	path := chain{im}.writeTo(t, t.TempDir())
	for _, writable := range []bool{false, true} {
		o, err := Open(path, Options{Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Repair(t.Context(), path, RepairOptions{}); !errors.Is(err, ErrLocked) {
			t.Errorf("Repair of an image in use: %v", err)
		}
		o.Close()
		im.untouched(t, path, 1)
	}
	r := mustRepair(t, path, RepairOptions{})
	o, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); !errors.Is(err, ErrLocked) {
		t.Errorf("Undo of an image in use: %v", err)
	}
	o.Close()
	im.undo(t, path, r)
}

// The undo file never takes the place of another, and an interrupted repair leaves none.
func TestRepairUndoFileNames(t *testing.T) {
	im := build(spec{blocks: oneBlock})
	im.setHeaders(func(h *ondisk.Header) { h.SequenceNumber = 1 })
	path := chain{im}.writeTo(t, t.TempDir())
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := Repair(ctx, path, RepairOptions{}); !errors.Is(err, stop) {
		t.Errorf("interrupted: %v", err)
	}
	im.untouched(t, path, 1)
	taken := path + ".undo"
	if err := os.WriteFile(taken, []byte("mine"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Repair(t.Context(), path, RepairOptions{UndoFile: taken}); !errors.Is(err, ErrOptions) {
		t.Errorf("an undo file that exists: %v", err)
	}
	if _, err := Repair(t.Context(), path, RepairOptions{UndoFile: filepath.Join(path, "under", "it")}); err == nil {
		t.Error("an undo file that cannot be made: no error")
	}
	im.untouched(t, path, 2)
	r := mustRepair(t, path, RepairOptions{})
	if b, err := os.ReadFile(taken); string(b) != "mine" || err != nil || r.UndoFile != taken+"2" {
		t.Errorf("undo file %s, the other has %q, %v", r.UndoFile, b, err)
	}
	if st, err := os.Stat(r.UndoFile); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("undo file %v, %v; want the mode of the image", st.Mode(), err)
	}
	im.undo(t, path, r)
}

// The search for an undo file ends, also where every name exists.
func TestManyUndoFiles(t *testing.T) {
	path := chain{build(spec{blocks: oneBlock})}.writeTo(t, t.TempDir())
	for i := range maxUndoFiles + 1 {
		if err := os.WriteFile(nthUndoName(path, i+1), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Repair(t.Context(), path, RepairOptions{DryRun: true}); !errors.Is(err, ErrOptions) {
		t.Errorf("a search for an interrupted repair: %v", err)
	}
	if name, err := undoName(path, ""); !errors.Is(err, ErrOptions) {
		t.Errorf("a search for a free name: %q, %v", name, err)
	}
}

// Children of a repaired image fit it as before.
func TestRepairKeepsTheDataWriteGUID(t *testing.T) {
	im := build(spec{blocks: oneBlock, dataWrite: uuid.New()})
	im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	path := chain{im}.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{})
	o, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if h := o.current().headers.header(); h.DataWriteGUID != im.dataWrite || h.FileWriteGUID == otherGUID || !r.Changed {
		t.Errorf("DataWriteGuid %v, want %v; FileWriteGuid %v", h.DataWriteGUID, im.dataWrite, h.FileWriteGUID)
	}
}

// A page of the BAT that was overwritten with zeros breaks no rule. The bytes of its blocks are not given away.
func TestRepairKeepsTheBytesOfAZeroedBAT(t *testing.T) {
	im := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im.write(make([]byte, ondisk.PageSize), im.batOff)
	im.Truncate(im.size + 2*ondisk.MiB)
	end := im.size
	path := chain{im}.writeTo(t, t.TempDir())
	for range 2 { // a second repair goes no farther than the first
		r := mustRepair(t, path, RepairOptions{})
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() != end || len(r.Advice) == 0 {
			t.Errorf("the file has %d bytes of %d, %+v, %q", st.Size(), end, r.Fixes, r.Advice)
		}
	}
	im.untouched(t, path, 1)
}
