package powercut

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// sectors returns an image in which letter n fills sector n.
func sectors(letters string) []byte {
	var b []byte
	for _, l := range []byte(letters) {
		b = append(b, bytes.Repeat([]byte{l}, SectorSize)...)
	}
	return b
}

// letters names the sectors of b: their letter, '.' if zero, '?' if a sector holds several bytes, '-' if it is
// cut short.
func letters(b []byte) string {
	var s strings.Builder
	for ; len(b) > 0; b = b[min(len(b), SectorSize):] {
		sec := b[:min(len(b), SectorSize)]
		switch {
		case len(sec) < SectorSize:
			s.WriteByte('-')
		case len(bytes.TrimRight(sec, string(sec[:1]))) > 0:
			s.WriteByte('?')
		case sec[0] == 0:
			s.WriteByte('.')
		default:
			s.WriteByte(sec[0])
		}
	}
	return s.String()
}

// outcomes returns what many seeds make of d.
func outcomes(d *Disk) []string {
	all := map[string]bool{}
	for seed := range uint64(2000) {
		all[letters(d.AfterCut(rand.New(rand.NewPCG(seed, 0))).Bytes())] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func put(d *Disk, sector int, text string) { d.WriteAt(sectors(text), int64(sector)*SectorSize) }

func TestOutcomes(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(d *Disk)
		want string // the sorted outcomes of a file that held "abc"
	}{
		{"nothing happened", func(d *Disk) {}, "abc"},
		{"one sector", func(d *Disk) { put(d, 1, "X") }, "aXc abc"},
		{"two sectors of one write", func(d *Disk) { put(d, 0, "XY") }, "XYc Xbc aYc abc"},
		{"two writes", func(d *Disk) { put(d, 2, "Y"); put(d, 0, "X") }, "XbY Xbc abY abc"},
		{"two writes of one sector", func(d *Disk) { put(d, 1, "X"); put(d, 1, "Y") }, "aXc aYc abc"},
		{"synced", func(d *Disk) { put(d, 1, "X"); d.Sync() }, "aXc"},
		{"synced and written", func(d *Disk) { put(d, 1, "X"); d.Sync(); put(d, 1, "Y") }, "aXc aYc"},
		{"hole", func(d *Disk) { d.PunchHole(SectorSize, SectorSize) }, "a.c abc"},
		{"hole past the end", func(d *Disk) { d.PunchHole(2*SectorSize, 9*SectorSize) }, "ab. abc"},
		{"hole behind the end", func(d *Disk) { d.PunchHole(5*SectorSize, SectorSize) }, "abc"},
		{"zeroed range", func(d *Disk) { d.ZeroRange(SectorSize, 2*SectorSize) }, "a.. a.c ab. abc"},
		{"zeroed range, synced", func(d *Disk) { d.ZeroRange(SectorSize, SectorSize); d.Sync() }, "a.c"},
		{"zeroed range, then a write there", func(d *Disk) { d.ZeroRange(SectorSize, SectorSize); put(d, 1, "X") }, "a.c aXc abc"},
		{"allocation inside", func(d *Disk) { d.Allocate(SectorSize, SectorSize) }, "abc"},
		{"growth by an allocation", func(d *Disk) { d.Allocate(0, 4*SectorSize) }, "abc abc."},
		{"growth by an allocation, in steps", func(d *Disk) { d.Allocate(0, 3*SectorSize+2*pageSize) },
			"abc abc........ abc................"},
		{"growth by an allocation, synced", func(d *Disk) { d.Allocate(0, 3*SectorSize+2*pageSize); d.Sync() }, "abc................"},
		{"growth by an allocation, then a write there", func(d *Disk) { d.Allocate(SectorSize, 4*SectorSize); put(d, 3, "X") },
			"abc abc.. abcX."},
		{"growth", func(d *Disk) { d.Truncate(5 * SectorSize) }, "abc abc.."},
		{"growth by a write", func(d *Disk) { put(d, 4, "X") }, "abc abc.. abc.X"},
		{"growth, then a write there", func(d *Disk) { d.Truncate(5 * SectorSize); put(d, 3, "X") },
			"abc abc.. abcX."},
		{"shrinking", func(d *Disk) { d.Truncate(SectorSize) }, "a abc"},
		{"shrinking, synced", func(d *Disk) { d.Truncate(SectorSize); d.Sync() }, "a"},
		{"shrinking and growth", func(d *Disk) { d.Truncate(SectorSize); d.Truncate(4 * SectorSize) },
			"a a... abc abc."},
		{"shrinking and growth, in order", func(d *Disk) {
			d.SizesInOrder = true
			d.Truncate(SectorSize)
			d.Truncate(4 * SectorSize)
		}, "a a... abc"},
		{"shrinking and growth, synced", func(d *Disk) { d.Truncate(SectorSize); d.Truncate(3 * SectorSize); d.Sync() }, "a.."},
		{"part of a sector", func(d *Disk) { d.WriteAt([]byte("X"), SectorSize+10) }, "a?c abc"},
		{"size in mid sector", func(d *Disk) { d.Truncate(2*SectorSize + 10) }, "ab- abc"},
		{"cut sync", func(d *Disk) { d.CutAt(2); put(d, 1, "X"); d.Sync() }, "aXc abc"},
		{"cut write", func(d *Disk) { d.CutAt(1); put(d, 0, "XY"); put(d, 2, "Z") }, "XYc Xbc aYc abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(sectors("abc"))
			c.run(d)
			if got := strings.Join(outcomes(d), " "); got != c.want {
				t.Errorf("outcomes %s, want %s", got, c.want)
			}
		})
	}
}

func TestTearable(t *testing.T) {
	d := newDisk(sectors("abc"))
	d.Tearable = func(off int64) bool { return off == SectorSize }
	put(d, 0, "XYZ")
	seen := map[string]bool{}
	for seed := range uint64(2000) {
		b := d.AfterCut(rand.New(rand.NewPCG(seed, 0))).Bytes()
		l := letters(b)
		if strings.ContainsRune(l[:1]+l[2:], '?') {
			t.Fatalf("seed %d: a sector that is not tearable is torn: %s", seed, l)
		}
		if l[1] != '?' {
			continue
		}
		switch s := string(b[SectorSize : 2*SectorSize]); {
		case strings.TrimLeft(strings.TrimRight(s, "b"), "Y") == "":
			seen["front"] = true
		case strings.TrimLeft(strings.TrimRight(s, "Y"), "b") == "":
			seen["back"] = true
		default:
			t.Fatalf("seed %d: neither end of the sector is new: %q", seed, s)
		}
	}
	if len(seen) != 2 {
		t.Errorf("torn sectors with new bytes at %v, want both ends", slices.Collect(maps.Keys(seen)))
	}
}

// Some errors show only if one change of many is lost, or is all that is left, or the last ones are lost.
func TestRareOutcomes(t *testing.T) {
	const n = 40
	d := newDisk(sectors(strings.Repeat("a", n)))
	for i := range n {
		put(d, i, "X")
	}
	found := map[string]bool{}
	for _, o := range outcomes(d) {
		switch {
		case strings.Count(o, "a") == 1:
			found["all but one"] = true
		case strings.Count(o, "X") == 1:
			found["one"] = true
		case strings.TrimLeft(strings.TrimRight(o, "a"), "X") == "":
			found["in order"] = true
		}
		found[o] = true
	}
	for _, want := range []string{
		"all but one", "one", "in order", strings.Repeat("a", n), strings.Repeat("X", n),
	} {
		if !found[want] {
			t.Errorf("no outcome %s", want)
		}
	}
}

func TestCutAt(t *testing.T) {
	d := newDisk(sectors("abc"))
	d.CutAt(4)
	if _, err := d.WriteAt(sectors("X"), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := d.PunchHole(0, SectorSize); err != nil {
		t.Fatal(err)
	}
	if !d.Powered() || d.Ops() != 3 || d.Syncs() != 1 {
		t.Fatalf("powered %v after %d operations, %d syncs", d.Powered(), d.Ops(), d.Syncs())
	}
	if err := d.Truncate(0); !errors.Is(err, ErrCut) {
		t.Fatalf("the 4th operation: %v, want %v", err, ErrCut)
	}
	if d.Powered() || d.Ops() != 4 {
		t.Fatalf("powered %v after %d operations", d.Powered(), d.Ops())
	}
	for name, err := range map[string]error{
		"WriteAt":   second(d.WriteAt([]byte{1}, 0)),
		"ReadAt":    second(d.ReadAt(make([]byte, 1), 0)),
		"Truncate":  d.Truncate(1),
		"PunchHole": d.PunchHole(0, 1),
		"ZeroRange": d.ZeroRange(0, 1),
		"Allocate":  d.Allocate(0, 1),
		"NextData":  secondOf(d.NextData(0)),
		"NextHole":  secondOf(d.NextHole(0)),
		"Sync":      d.Sync(),
		"Size":      secondOf(d.Size()),
	} {
		if !errors.Is(err, ErrCut) {
			t.Errorf("%s after the cut: %v, want %v", name, err, ErrCut)
		}
	}
	if d.Ops() != 4 || d.Syncs() != 1 {
		t.Errorf("%d operations and %d syncs after the cut, want 4 and 1", d.Ops(), d.Syncs())
	}
	if got := strings.Join(outcomes(d), " "); got != " .bc Xbc" {
		t.Errorf("outcomes %q", got)
	}
}

func second(_ int, err error) error     { return err }
func secondOf(_ int64, err error) error { return err }

func TestReadsWhatWasWritten(t *testing.T) {
	img := sectors("abc")
	d := newDisk(img)
	put(d, 1, "X")
	d.Truncate(4 * SectorSize)
	b := make([]byte, 5*SectorSize)
	if n, err := d.ReadAt(b, 0); n != 4*SectorSize || err != io.EOF || letters(b[:n]) != "aXc." {
		t.Errorf("ReadAt = %d, %v, %s", n, err, letters(b[:n]))
	}
	if n, err := d.ReadAt(b, 4*SectorSize); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
	if size, err := d.Size(); size != 4*SectorSize || err != nil {
		t.Errorf("Size = %d, %v", size, err)
	}
	if letters(img) != "abc" {
		t.Error("the image that New was given has changed")
	}
	for name, err := range map[string]error{
		"ReadAt": second(d.ReadAt(b, -1)), "WriteAt": second(d.WriteAt(b, -1)),
		"Truncate": d.Truncate(-1), "PunchHole": d.PunchHole(-1, 5),
		"ZeroRange": d.ZeroRange(-1, 5), "Allocate": d.Allocate(-1, 5),
	} {
		if err == nil {
			t.Errorf("%s with a negative number does not fail", name)
		}
	}
}

// What was made a hole, or added and never written, is none that holds data; writes of zeros are data.
func TestHoles(t *testing.T) {
	d := newDisk(make([]byte, 4*pageSize))
	d.PunchHole(pageSize-100, pageSize+200)
	d.Allocate(4*pageSize, 4*pageSize)
	d.WriteAt(make([]byte, 10), 6*pageSize)
	d.WriteAt([]byte("data"), pageSize+10)
	d.ZeroRange(pageSize, pageSize)
	d.Truncate(9 * pageSize)
	for _, c := range []struct{ off, data, hole int64 }{
		{0, 0, pageSize}, {pageSize, 2 * pageSize, pageSize}, {2*pageSize + 5, 2*pageSize + 5, 4 * pageSize},
		{4*pageSize + 7, 6 * pageSize, 4*pageSize + 7}, {6*pageSize + 1, 6*pageSize + 1, 7 * pageSize}, {7 * pageSize, -1, 7 * pageSize},
	} {
		data, err := d.NextData(c.off)
		if err == io.EOF {
			data, err = -1, nil
		}
		if err != nil || data != c.data {
			t.Errorf("NextData(%d) = %d, %v; want %d", c.off, data, err, c.data)
		}
		if hole, err := d.NextHole(c.off); err != nil || hole != c.hole {
			t.Errorf("NextHole(%d) = %d, %v; want %d", c.off, hole, err, c.hole)
		}
	}
	if d.NoFallocate = true; !errors.Is(d.Allocate(0, 1), errors.ErrUnsupported) || !errors.Is(d.ZeroRange(0, 1), errors.ErrUnsupported) {
		t.Error("Allocate or ZeroRange of a host that does not know them gives another error")
	}
}

func TestAfterCutRepeats(t *testing.T) {
	d := newDisk(sectors("abcdef"))
	put(d, 0, "UVWXYZ12345")
	d.Truncate(SectorSize)
	for seed := range uint64(100) {
		a := d.AfterCut(rand.New(rand.NewPCG(seed, 0))).Bytes()
		clear(a) // is the caller's
		a = d.AfterCut(rand.New(rand.NewPCG(seed, 0))).Bytes()
		b := d.AfterCut(rand.New(rand.NewPCG(seed, 0))).Bytes()
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d gives %s, then %s", seed, letters(a), letters(b))
		}
	}
}

// newDisk returns a disk that holds img.
func newDisk(img []byte) *Disk { return New(bytes.NewReader(img), int64(len(img))) }
