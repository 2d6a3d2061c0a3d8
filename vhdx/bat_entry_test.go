package vhdx

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// entryCases are images with places where an entry of block 1 may point.
func entryCases() map[string]struct {
	spec
	places map[string]uint64
} {
	places := func(end int64) map[string]uint64 {
		return map[string]uint64{
			"nowhere": 0, "log": 1 * ondisk.MiB, "metadata": 2 * ondisk.MiB, "BAT": 3 * ondisk.MiB,
			"free": uint64(end - 2*ondisk.MiB), "cut": uint64(end - ondisk.MiB), "end": uint64(end), "behind": uint64(end + ondisk.MiB),
			"largest file": ondisk.MaxFileSize, "2^63": 1 << 63, "largest": math.MaxUint64 & ondisk.BATOffsetMask,
		}
	}
	type c = struct {
		spec
		places map[string]uint64
	}
	optional := []ondisk.Region{{GUID: uuid.UUID{7}, Offset: 8 * ondisk.MiB, Length: ondisk.MiB}}
	return map[string]c{
		"dynamic":                            {spec{diskSize: 3 * ondisk.MiB, blockSize: 2 * ondisk.MiB}, places(8 * ondisk.MiB)},
		"differencing":                       {spec{typ: Differencing, diskSize: 3 * ondisk.MiB, blockSize: 2 * ondisk.MiB}, places(8 * ondisk.MiB)},
		"an optional region behind the file": {spec{diskSize: 3 * ondisk.MiB, blockSize: 2 * ondisk.MiB, regions: optional}, places(8 * ondisk.MiB)},
		"an optional region across the end":  {spec{diskSize: 4 * ondisk.MiB, blockSize: 2 * ondisk.MiB, regions: []ondisk.Region{{GUID: uuid.UUID{7}, Offset: 7 * ondisk.MiB, Length: 2 * ondisk.MiB}}}, places(8 * ondisk.MiB)},
		"an optional region inside":          {spec{diskSize: 4 * ondisk.MiB, blockSize: 2 * ondisk.MiB, regions: []ondisk.Region{{GUID: uuid.UUID{7}, Offset: 6 * ondisk.MiB, Length: ondisk.MiB}}}, places(8 * ondisk.MiB)},
	}
}

// The scan when the image is opened, a read that looks at the entry by itself, and a read that follows it come to one verdict
// about every entry that a block may have.
func TestOneVerdictOnABATEntry(t *testing.T) {
	for name, c := range entryCases() {
		t.Run(name, func(t *testing.T) {
			broken := make(map[string]bool)
			for where, off := range c.places {
				for state := ondisk.BlockState(0); state < 8; state++ {
					im := build(c.spec)
					im.grow(8 * ondisk.MiB)
					e := ondisk.BATEntry(off | uint64(state))
					im.setBlockEntry(1, e)
					at := im.batOff + im.geo.PayloadEntry(1)*ondisk.BATEntrySize
					l := newOpener(Options{}).newLayer(im.memFile, name)
					l.collect = true
					if err := l.load(); err != nil {
						t.Fatalf("%v at %s: %v", state, where, err)
					}
					scan := ""
					for _, f := range l.errors {
						if f.Offset == at && f.Rule != ondisk.RuleNoSectorBitmap.Name() {
							scan += f.Rule + " " + f.Message
						}
					}
					used := verdict(l.usable(e, im.diskSize-1))
					if scan != used {
						t.Errorf("%v at %s: the scan finds %q, a read %q", state, where, scan, used)
					}
					if _, _, err := l.lookup(im.diskSize-1, im.diskSize); err != nil && verdict(err) != scan {
						t.Errorf("%v at %s: the scan finds %q, a lookup %q", state, where, scan, verdict(err))
					}
					if scan != "" {
						broken[scan[:3]] = true
					}
				}
			}
			for _, r := range []ondisk.Rule{ondisk.RuleBlockState, ondisk.RuleBlockInHeaderSection, ondisk.RuleBlockBeyondFile, ondisk.RuleBlockOverlapsRegion} {
				if !broken[r.Name()] {
					t.Errorf("no entry breaks %v", r)
				}
			}
			if broken[ondisk.RulePartialWithoutParent.Name()] != (c.typ != Differencing) {
				t.Errorf("%v: found is %v", ondisk.RulePartialWithoutParent, broken[ondisk.RulePartialWithoutParent.Name()])
			}
		})
	}
}

func verdict(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%s %v", ruleOf(err).Name(), ondisk.Finding(err))
}

// Of a block that the end of the file cuts, a read gets the bytes that are there.
func TestACutBlockIsReadUpToTheEndOfTheFile(t *testing.T) {
	im := build(spec{diskSize: 4 * ondisk.MiB, blockSize: 2 * ondisk.MiB})
	im.grow(8 * ondisk.MiB)
	l := newOpener(Options{}).newLayer(im.memFile, "cut")
	l.collect = true
	e := ondisk.NewBATEntry(ondisk.FullyPresent, 7*ondisk.MiB)
	im.setBlockEntry(1, e)
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64]ondisk.Rule{
		2 * ondisk.MiB: 0, 3*ondisk.MiB - 1: 0, 3 * ondisk.MiB: ondisk.RuleBlockBeyondFile, 4*ondisk.MiB - 1: ondisk.RuleBlockBeyondFile,
	} {
		if got := ruleOf(l.usable(e, off)); got != want {
			t.Errorf("byte %#x: %v; want %v", off, got, want)
		}
	}
}

// What the header section, the log and the regions take is the same whichever way it is asked for, also where a hostile file
// has regions that overlap, begin anywhere, or reach behind its end.
func TestObjectsOfTheFile(t *testing.T) {
	im := build(spec{})
	im.grow(16 * ondisk.MiB)
	l := newOpener(Options{}).newLayer(im.memFile, "objects")
	l.collect = true
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	l.tables.regions = append(l.tables.regions,
		ondisk.Region{Offset: 6 * ondisk.MiB, Length: 3 * ondisk.MiB}, ondisk.Region{Offset: 7 * ondisk.MiB, Length: 1 * ondisk.MiB},
		ondisk.Region{Offset: 11*ondisk.MiB + 5, Length: ondisk.MiB / 2}, ondisk.Region{Offset: 15 * ondisk.MiB, Length: math.MaxUint32},
		ondisk.Region{Offset: 40 * ondisk.MiB, Length: ondisk.MiB}, ondisk.Region{Offset: math.MaxUint64 - 5, Length: ondisk.MiB},
		ondisk.Region{Offset: 13 * ondisk.MiB, Length: 0})
	l.findObjects()
	for i := int64(0); i < 16; i++ {
		for n := int64(1); i+n <= 16; n++ {
			want := i < 4 || i < 9 && i+n > 6 || i < 12 && i+n > 11 || i+n > 15
			if got := l.taken(i*ondisk.MiB, n*ondisk.MiB); got != want {
				t.Errorf("%d MiB at %d MiB: taken is %v; want %v", n, i, got, want)
			}
			if got := l.objectAt(i*ondisk.MiB, n*ondisk.MiB) != ""; want && !got {
				t.Errorf("%d MiB at %d MiB are taken by nothing that has a name", n, i)
			}
		}
	}
}
