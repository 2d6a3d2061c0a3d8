package vhdx

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A damaged image is salvaged block by block: what an entry cannot say is an error, the rest reads as before.
func TestSalvage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(img *image)
		rule   string
		bad    bool // block 1 cannot be read
	}{
		{"reserved state", func(img *image) { img.setBlockEntry(1, ondisk.NewBATEntry(4, 0)) }, "R44", true},
		{"in the header section", func(img *image) { img.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, 0)) }, "R46", true},
		{"outside the file", func(img *image) { img.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, 1<<40)) }, "R47", true},
		{"far outside the file", func(img *image) {
			img.setBlockEntry(1, ondisk.BATEntry(ondisk.BATOffsetMask|uint64(ondisk.FullyPresent)))
		}, "R47", true},
		{"in the log", func(img *image) { img.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, img.logOff)) }, "R48", true},
		{"where another block is", func(img *image) { img.setBlockEntry(1, img.entries[0]) }, "R49", false},
		{"partially present without a parent", func(img *image) {
			img.setBlockEntry(1, ondisk.NewBATEntry(ondisk.PartiallyPresent, img.entries[1].FileOff()))
		}, "R45", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})
			want := make([]byte, 4*ondisk.MiB)
			chain{img}.want(want, 0)
			tc.damage(img)
			path := chain{img}.writeTo(t, t.TempDir())
			if _, err := Open(path, Options{}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("opened as if nothing were: %v", err)
			}
			if _, err := Open(path, Options{Salvage: true, Writable: true}); err == nil {
				t.Fatal("opened for writing")
			}
			im, err := Open(path, Options{Salvage: true})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			if d := im.Damage(); len(d) != 1 || d[0].Rule != tc.rule {
				t.Errorf("damage %+v, want %s", d, tc.rule)
			}
			got := make([]byte, ondisk.MiB)
			for b := range int64(4) {
				_, err := im.ReadAt(got, b*ondisk.MiB)
				if bad := b == 1 && tc.bad; bad != (err != nil) {
					t.Errorf("block %d: %v", b, err)
				}
				if i := firstDifference(got, want[b*ondisk.MiB:][:ondisk.MiB]); b != 1 && i >= 0 {
					t.Errorf("byte %d of block %d differs", i, b)
				}
			}
		})
	}
}

// If any part of an image is overwritten, to salvage it ends with an error or with a disk that can be read up to its end,
// and never changes a byte.
func TestSalvageOfAnything(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 4))
	child := spec{typ: Differencing, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {3, ondisk.Zero}}}
	for i := range fewer(100) {
		s := spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {3, ondisk.Zero}}}
		if i%2 == 1 {
			s = child
		}
		img := build(s)
		size, _ := img.Size()
		places := []int64{0, 64 * ondisk.KiB, 128 * ondisk.KiB, 192 * ondisk.KiB, 256 * ondisk.KiB, img.metaOff, img.metaOff + 64*ondisk.KiB, img.batOff, img.logOff}
		for range 1 + rng.IntN(4) {
			at := places[rng.IntN(len(places))] + rng.Int64N(200)&^7
			b := make([]byte, 1+rng.IntN(16)*rng.IntN(4096))
			if rng.IntN(2) == 0 {
				for j := range b {
					b[j] = byte(rng.Uint32())
				}
			}
			img.write(b[:min(int64(len(b)), size-at)], at)
		}
		path := chain{img}.writeTo(t, t.TempDir())
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) == 0 {
			before = before[:rng.IntN(len(before))]
			if err := os.Truncate(path, int64(len(before))); err != nil {
				t.Fatal(err)
			}
		}
		o := Options{Salvage: true, WithoutParent: rng.IntN(4) > 0}
		if rng.IntN(2) == 0 {
			o.Assume = Assumed{BlockSize: ondisk.MiB << rng.IntN(10), SectorSize: 512 << rng.IntN(4), DiskSize: rng.Int64N(70 * ondisk.TiB), BAT: rng.Int64N(8) * ondisk.MiB}
		}
		if im, err := Open(path, o); err == nil {
			buf := make([]byte, 64*ondisk.KiB)
			for _, off := range []int64{0, ondisk.MiB + 512, 3 * ondisk.MiB, im.Size() / 2, max(im.Size()-int64(len(buf)), 0)} {
				_, _ = im.ReadAt(buf, off)
			}
			_, _ = im.Extent(0)
			_ = im.Info()
			if im.Size() <= 64*ondisk.MiB {
				_, _ = im.LeftToParent()
			}
			if _, err := im.Like(); err != nil {
				t.Logf("image %d: %v", i, err)
			}
			im.Close()
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Fatalf("image %d was changed: %v", i, err)
		}
	}
}

// The part of a block before the end of a cut file can be read.
func TestSalvageOfABlockThatIsCut(t *testing.T) {
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	want := make([]byte, ondisk.MiB/2)
	chain{img}.want(want, ondisk.MiB)
	if err := img.memFile.Truncate(img.entries[1].FileOff() + ondisk.MiB/2); err != nil {
		t.Fatal(err)
	}
	im, err := Open(chain{img}.writeTo(t, t.TempDir()), Options{Salvage: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	got := make([]byte, ondisk.MiB/2)
	if _, err := im.ReadAt(got, ondisk.MiB); err != nil {
		t.Errorf("what is there: %v", err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Errorf("byte %d differs", i)
	}
	if _, err := im.ReadAt(got[:512], ondisk.MiB+ondisk.MiB/2); !errors.Is(err, ErrCorrupt) {
		t.Errorf("what is behind the end: %v, want %v", err, ErrCorrupt)
	}
}
