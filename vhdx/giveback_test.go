package vhdx

import (
	"bytes"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
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
	if err := Create(path, CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
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
	const written = 32 * mib
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
