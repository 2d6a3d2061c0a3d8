package vhdx

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A BAT of zeros in front of blocks full of data is no clean image; an image that holds nothing, or some unused space, is.
func TestCheckFindsALostBAT(t *testing.T) {
	all := make([]blockSpec, 0, 1500)
	for b := range int64(cap(all)) {
		if b < 6 || b >= 512 && b < 518 || b > 1490 {
			all = append(all, blockSpec{b, ondisk.FullyPresent})
		}
	}
	var many []blockSpec
	for b := range int64(30) {
		many = append(many, blockSpec{520 + b, ondisk.FullyPresent})
	}
	many = append(many, blockSpec{3, ondisk.FullyPresent}, blockSpec{1400, ondisk.FullyPresent})
	for _, tc := range []struct {
		name string
		spec spec
		wipe func(img *image) (from, to int64) // entries of the BAT
		lost bool
	}{
		{"all of it", spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}, func(img *image) (int64, int64) { return 0, 512 }, true},
		{"nothing", spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}, func(img *image) (int64, int64) { return 0, 0 }, false},
		{"one entry", spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}, func(img *image) (int64, int64) { return 0, 1 }, false},
		{"an empty image", spec{}, func(img *image) (int64, int64) { return 0, 512 }, false},
		{"a page of a fixed disk", spec{typ: Fixed, diskSize: 1500 * ondisk.MiB, blocks: all}, func(img *image) (int64, int64) { return 512, 1024 }, true},
		{"a page of a dynamic disk, with few blocks", spec{diskSize: 1500 * ondisk.MiB, blocks: all}, func(img *image) (int64, int64) { return 512, 1024 }, false},
		{"a page of a dynamic disk", spec{diskSize: 1500 * ondisk.MiB, blocks: many}, func(img *image) (int64, int64) { return 512, 1024 }, true},
		{"a page of a dynamic disk, with the largest blocks", spec{diskSize: 600 * ondisk.MaxBlockSize, blockSize: ondisk.MaxBlockSize,
			blocks: []blockSpec{{490, ondisk.FullyPresent}, {491, ondisk.FullyPresent}, {492, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}}, func(img *image) (int64, int64) {
			for at := img.entries[490].FileOff(); at < img.entries[3].FileOff(); at += ondisk.MiB {
				img.write([]byte{1}, at)
			}
			return 512, 1024
		}, true},
	} {
		img := build(tc.spec)
		from, to := tc.wipe(img)
		path := chain{img}.writeTo(t, t.TempDir())
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, (to-from)*ondisk.BATEntrySize), img.batOff+from*ondisk.BATEntrySize); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Check(path, Options{})
		if err != nil || !r.Sound() {
			t.Fatalf("%s: %+v, %v", tc.name, r, err)
		}
		if r.Lost != tc.lost || r.Clean() == tc.lost {
			t.Errorf("%s: lost %v, warnings %+v", tc.name, r.Lost, r.Warnings)
		}
		im, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		// A page of a dynamic disk may be zero, so nothing is refused for it.
		if off, err := im.LostBlocks(); err != nil || (off > 0) != (tc.lost && !strings.HasPrefix(tc.name, "a page of a dynamic disk")) {
			t.Errorf("%s: LostBlocks %#x, %v", tc.name, off, err)
		}
		im.Close()
	}
}

// A log may make the file larger. What it adds is no data that a block has lost, nor is it read from the file.
func TestCheckOfALogThatGrowsTheFile(t *testing.T) {
	for _, size := range []uint64{3 * ondisk.MiB, 5 * ondisk.TiB} {
		img := build(spec{})
		e := img.logEntry()
		e.LastFileOffset += size
		img.logEntries(e)
		path := chain{img}.writeTo(t, t.TempDir())
		if r, err := Check(path, Options{}); err != nil || !r.Sound() || r.Lost {
			t.Errorf("%d bytes more: %+v, %v", size, r, err)
		}
	}
}

// Where all that is wrong lies beyond the end of the file, Check asks whether it was cut off.
func TestCheckFindsACutFile(t *testing.T) {
	good := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})
	for _, tc := range []struct {
		name   string
		damage func(path string) error
		cut    bool
	}{
		{"in the last block", func(path string) error { return truncateBy(path, 100) }, true},
		{"most blocks", func(path string) error { return truncateBy(path, 2*ondisk.MiB+5) }, true},
		{"in the header section", func(path string) error { return os.Truncate(path, 300*ondisk.KiB) }, true},
		{"not at all", func(string) error { return nil }, false},
		{"another fault", func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{4}, good.batOff); err != nil { // a reserved state
				return err
			}
			return truncateBy(path, 100)
		}, false},
		{"no image", func(path string) error { return os.WriteFile(path, []byte("text"), 0o600) }, false},
	} {
		path := chain{good}.writeTo(t, t.TempDir())
		if err := tc.damage(path); err != nil {
			t.Fatal(err)
		}
		r, err := Check(path, Options{})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if strings.Contains(r.Advice, "was the file cut off?") != tc.cut {
			t.Errorf("%s of %s: advice %q, errors %+v", tc.name, filepath.Base(path), r.Advice, r.Errors)
		}
	}
}

func truncateBy(path string, n int64) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, st.Size()-n)
}
