package vhdx

import (
	"bytes"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// heldBytes returns how much space the host's file system has given to a file.
func heldBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// What is discarded goes back to the host when the image is made clean, and does not wait for an allocation or for
// the close. Info tells of the image as it is meanwhile, to any number of callers.
func TestDiscardedSpaceGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true, Discard: DiscardPunch})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if s := im.Info().Log.State; s != LogClean {
		t.Errorf("log state %q after open, want %q", s, LogClean)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			im.Info()
		}
	})
	const written = 32 * ondisk.MiB
	if _, err := im.WriteAt(bytes.Repeat([]byte{1}, written), 0); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	full := heldBytes(t, path)
	if in := im.Info(); in.Log.State != LogInUse || in.FileSize < written || in.Blocks.FullyPresent != 32 {
		t.Errorf("after a sync: log state %q, file size %d, %d blocks", in.Log.State, in.FileSize, in.Blocks.FullyPresent)
	}
	if err := im.Discard(0, written); err != nil {
		t.Fatal(err)
	}
	if err := im.Clean(); err != nil {
		t.Fatal(err)
	}
	if now := heldBytes(t, path); now > full-written {
		t.Errorf("the file holds %d bytes, and %d before the discard of %d", now, full, written)
	}
	if in := im.Info(); in.Log.State != LogClean || in.Blocks.FullyPresent != 0 {
		t.Errorf("after Clean: log state %q, %d blocks", in.Log.State, in.Blocks.FullyPresent)
	}
}

// A punched file tells where holes were made.
type punched struct {
	noAlloc
	mu    sync.Mutex
	holes [][2]int64 // offset and size
	hook  func()     // called before each, if not nil
}

func (f *punched) PunchHole(off, n int64) error {
	if f.hook != nil {
		f.hook()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holes = append(f.holes, [2]int64{off, n})
	return f.noAlloc.PunchHole(off, n)
}

func (f *punched) take() (holes [][2]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	holes, f.holes = f.holes, nil
	return holes
}

// loadPunched opens an image in such a file, which may have holes or not.
func loadPunched(t *testing.T, b *image, sparse bool) (*Image, *punched) {
	t.Helper()
	f := &punched{noAlloc: noAlloc{b.memFile, sparse}}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	return im, f
}

// A close of disk.raw and the unmount after it do not wait for holes in what is removed from the end of the file, and what
// lies together is one hole. Where a file may have none it keeps its size, since it would have to be written again.
func TestCleanCutsTheFile(t *testing.T) {
	for _, sparse := range []bool{true, false} {
		b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{
			{3, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {0, ondisk.FullyPresent}, {5, ondisk.FullyPresent}, {4, ondisk.FullyPresent},
		}})
		im, f := loadPunched(t, b, sparse)
		im.writer.stop() // what goes on in the background gives space back, too
		before, _ := f.Size()
		for _, blk := range []int64{5, 1, 4, 2} {
			if err := im.Zero(blk*ondisk.MiB, ondisk.MiB); err != nil {
				t.Fatal(err)
			}
		}
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := im.Clean(); err != nil {
			t.Fatal(err)
		}
		after, _ := f.Size()
		holes := f.take()
		if !sparse {
			if after != before || len(holes) > 0 {
				t.Errorf("without holes: the file had %d bytes and has %d; holes %v", before, after, holes)
			}
		} else {
			first := b.entries[1].FileOff()
			if want := [][2]int64{{first, 2 * ondisk.MiB}}; after != before-2*ondisk.MiB || len(holes) != 1 || holes[0] != want[0] {
				t.Errorf("the file had %d bytes and has %d; holes %v, want %v", before, after, holes, want)
			}
		}
		for blk := range int64(8) {
			if _, err := im.WriteAt(bytes.Repeat([]byte{byte(blk + 1)}, ondisk.MiB), blk*ondisk.MiB); err != nil {
				t.Fatal(err)
			}
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		ro, err := loadReadOnly(b.memFile)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, ondisk.MiB)
		for blk := range int64(8) {
			if _, err := ro.ReadAt(got, blk*ondisk.MiB); err != nil || bytes.Count(got, []byte{byte(blk + 1)}) != ondisk.MiB {
				t.Errorf("block %d reads otherwise: %v", blk, err)
			}
		}
	}
}

// After a sync that makes a trim durable, its space goes back to the host without anything else to cause it.
func TestSyncedTrimGoesBack(t *testing.T) {
	b := build(spec{diskSize: 256 * ondisk.MiB, blockSize: 128 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im, f := loadPunched(t, b, true)
	defer im.Close()
	if err := im.Zero(0, 128*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	var given int64
	for deadline := time.Now().Add(time.Minute); given < 128*ondisk.MiB; time.Sleep(time.Millisecond) {
		for _, h := range f.take() {
			if given += h[1]; h[1] > reclaimStep {
				t.Errorf("a hole of %d MiB, for which an allocation would have to wait", h[1]/ondisk.MiB)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB were given back", given/ondisk.MiB)
		}
	}
}

// Space that a read still uses when the last writer closes goes back later, without another change.
func TestSpaceGoesBackAfterReads(t *testing.T) {
	b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im, f := loadPunched(t, b, true)
	defer im.Close()
	reading := im.BeginRead()
	if err := im.Zero(0, ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if err := im.Clean(); err != nil {
		t.Fatal(err)
	}
	if holes := f.take(); len(holes) > 0 {
		t.Errorf("holes %v where somebody reads", holes)
	}
	im.EndRead(reading)
	for deadline := time.Now().Add(time.Minute); len(f.take()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the space was not given back")
		}
	}
}

// The next open of disk.raw does not wait for the holes of what was trimmed before its last close.
func TestHolesHoldNobodyUp(t *testing.T) {
	b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im, f := loadPunched(t, b, true)
	defer im.Close()
	w := im.writer
	w.stop() // in the background holes are made at any time
	f.hook = func() {
		if !w.gate.TryRLock() {
			t.Error("changes wait for a hole")
			return
		}
		defer w.gate.RUnlock()
		if !w.committer.mu.TryLock() {
			t.Error("syncs wait for a hole")
			return
		}
		w.committer.mu.Unlock()
	}
	if err := im.Zero(0, ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if err := im.Clean(); err != nil {
		t.Fatal(err)
	}
	if len(f.take()) == 0 {
		t.Error("there was no hole")
	}
}
