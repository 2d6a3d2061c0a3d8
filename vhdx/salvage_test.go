package vhdx

import (
	"errors"
	"testing"
)

// A damaged image is salvaged block by block: what an entry cannot say is an error, the rest reads as before.
func TestSalvage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(img *image)
		rule   string
		bad    bool // block 1 cannot be read
	}{
		{"reserved state", func(img *image) { img.setBlockEntry(1, newBATEntry(4, 0)) }, "R44", true},
		{"in the header section", func(img *image) { img.setBlockEntry(1, newBATEntry(FullyPresent, 0)) }, "R46", true},
		{"outside the file", func(img *image) { img.setBlockEntry(1, newBATEntry(FullyPresent, 1<<40)) }, "R47", true},
		{"far outside the file", func(img *image) { img.setBlockEntry(1, batEntry(batOffsetMask|uint64(FullyPresent))) }, "R47", true},
		{"in the log", func(img *image) { img.setBlockEntry(1, newBATEntry(FullyPresent, img.logOff)) }, "R48", true},
		{"where another block is", func(img *image) { img.setBlockEntry(1, img.entries[0]) }, "R49", false},
		{"partially present without a parent", func(img *image) { img.setBlockEntry(1, newBATEntry(PartiallyPresent, img.entries[1].fileOff())) }, "R45", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := build(spec{blocks: []blockSpec{{0, FullyPresent}, {1, FullyPresent}, {2, FullyPresent}}})
			want := make([]byte, 4*mib)
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
			got := make([]byte, mib)
			for b := range int64(4) {
				_, err := im.ReadAt(got, b*mib)
				if bad := b == 1 && tc.bad; bad != (err != nil) {
					t.Errorf("block %d: %v", b, err)
				}
				if i := firstDifference(got, want[b*mib:][:mib]); b != 1 && i >= 0 {
					t.Errorf("byte %d of block %d differs", i, b)
				}
			}
		})
	}
}
