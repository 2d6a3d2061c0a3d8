package compare

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

const mib = 1 << 20

func rawFile(t *testing.T, p []byte) *disk.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func open(t *testing.T, path string) *disk.Disk {
	t.Helper()
	d, err := disk.Open(path, disk.Auto, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func ranges(t *testing.T, a, b *disk.Disk) []Range {
	t.Helper()
	var list []Range
	total, done := int64(-1), int64(0)
	o := Options{Workers: 1, Phase: func(_ string, n int64) { total = n }, Progress: func(n int64) { done += n }}
	if err := Disks(t.Context(), a, b, o, func(r Range) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if total != done {
		t.Errorf("%d bytes were announced, %d compared", total, done)
	}
	var again []Range
	if err := Disks(t.Context(), a, b, Options{}, func(r Range) error { again = append(again, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(list, again) {
		t.Errorf("one worker finds %v, several %v", list, again)
	}
	return list
}

// want finds the ranges in a simple way.
func want(a, b []byte) []Range {
	n := max(len(a), len(b))
	a, b = append(bytes.Clone(a), make([]byte, n-len(a))...), append(bytes.Clone(b), make([]byte, n-len(b))...)
	var list []Range
	for off := 0; off < n; off += Unit {
		p, q := a[off:min(off+Unit, n)], b[off:min(off+Unit, n)]
		if bytes.Equal(p, q) {
			continue
		}
		r := Range{int64(off), int64(len(p)), strings.Trim(string(q), "\x00") == ""}
		if i := len(list) - 1; i >= 0 && list[i].Offset+list[i].Length == r.Offset && list[i].Zero == r.Zero {
			list[i].Length += r.Length
		} else {
			list = append(list, r)
		}
	}
	return list
}

func TestDisks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 20 {
		a := make([]byte, 4*mib+rng.IntN(2*mib))
		for range rng.IntN(6) {
			off := rng.IntN(len(a))
			for i := range a[off:min(len(a), off+rng.IntN(mib))] {
				a[off+i] = byte(1 + rng.IntN(255))
			}
		}
		b := bytes.Clone(a)
		if rng.IntN(2) == 0 {
			b = append(b, make([]byte, rng.IntN(mib))...)
		}
		for range rng.IntN(5) {
			off := rng.IntN(len(b))
			part := b[off:min(len(b), off+1+rng.IntN(10_000))]
			if rng.IntN(2) == 0 {
				clear(part)
			} else {
				part[len(part)/2] ^= 0x55
			}
		}
		if got, want := ranges(t, rawFile(t, a), rawFile(t, b)), want(a, b); !slices.Equal(got, want) {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
	}
}

// family makes a parent of 6 MiB and two children, and what the children write.
func family(t *testing.T) (parent, one, two string) {
	t.Helper()
	dir := t.TempDir()
	parent, one, two = filepath.Join(dir, "parent.vhdx"), filepath.Join(dir, "one.vhdx"), filepath.Join(dir, "two.vhdx")
	create(t, parent, vhdx.CreateOptions{Size: 6 * mib, BlockSize: mib}, func(im *vhdx.Image) {
		write(t, im, bytes.Repeat([]byte{1}, 3*mib), mib/2)
	})
	create(t, one, vhdx.CreateOptions{Parent: parent}, func(im *vhdx.Image) {
		write(t, im, bytes.Repeat([]byte{2}, 1024), mib)
		write(t, im, bytes.Repeat([]byte{1}, 512), 2*mib) // as the parent has it
	})
	create(t, two, vhdx.CreateOptions{Parent: parent}, func(im *vhdx.Image) {
		if err := im.Zero(3*mib, mib); err != nil {
			t.Fatal(err)
		}
	})
	return parent, one, two
}

func create(t *testing.T, path string, o vhdx.CreateOptions, fill func(*vhdx.Image)) {
	t.Helper()
	if err := vhdx.Create(path, o); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(path, vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	fill(im)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, im *vhdx.Image, p []byte, off int64) {
	t.Helper()
	if _, err := im.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func TestChildren(t *testing.T) {
	parent, one, two := family(t)
	for _, tc := range []struct {
		a, b string
		want []Range
	}{
		{parent, one, []Range{{mib, 1024, false}}},
		{parent, two, []Range{{3 * mib, mib / 2, true}}},
		{two, one, []Range{{mib, 1024, false}, {3 * mib, mib / 2, false}}},
		{one, one, nil},
	} {
		if got := ranges(t, open(t, tc.a), open(t, tc.b)); !slices.Equal(got, tc.want) {
			t.Errorf("%s, %s: %v, want %v", filepath.Base(tc.a), filepath.Base(tc.b), got, tc.want)
		}
	}
}

// What both disks have in one place is not read: here the parent cannot be read any more.
func TestSharedIsNotRead(t *testing.T) {
	parent, one, _ := family(t)
	a, b := open(t, one), open(t, one)
	info := a.Image.Info().Parent.Image
	if err := os.Truncate(parent, info.FileSize-info.BlockSize/2); err != nil { // half of block 3
		t.Fatal(err)
	}
	if got := ranges(t, a, b); got != nil {
		t.Errorf("an image differs from itself: %v", got)
	}
	err := Disks(t.Context(), a, rawFile(t, make([]byte, 6*mib)), Options{}, func(Range) error { return nil })
	if err == nil {
		t.Error("no error where the missing part has to be read")
	}
}

func TestLayers(t *testing.T) {
	_, one, two := family(t)
	for path, want := range map[string][]Range{
		one: {{mib, 1024, false}, {2 * mib, 512, false}},
		two: {{3 * mib, mib, true}},
	} {
		var got []Range
		if err := Layers(open(t, path).Image, 1, func(r Range) error { got = append(got, r); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", filepath.Base(path), got, want)
		}
	}
}

func TestReportStops(t *testing.T) {
	enough := errors.New("enough")
	a := rawFile(t, make([]byte, 20*mib))
	p := bytes.Repeat([]byte{1, 0, 0, 0}, 5*mib)
	clear(p[mib/2 : mib])
	calls := 0
	if err := Disks(t.Context(), a, rawFile(t, p), Options{}, func(Range) error { calls++; return enough }); !errors.Is(err, enough) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
