package vhdx

import (
	"bytes"
	"path/filepath"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// writebackHost returns where the files of the directory backing are on a FUSE file system with a writeback cache: what is
// written there reaches the server later, and it is the server that is asked for holes.
func writebackHost(t *testing.T, backing string) string {
	t.Helper()
	root, err := gofs.NewLoopbackRoot(backing)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := &gofs.Options{MountOptions: fuse.MountOptions{ExtraCapabilities: fuse.CAP_WRITEBACK_CACHE, DisabledCapabilities: fuse.CAP_PASSTHROUGH, DirectMount: true}}
	s, err := gofs.Mount(dir, root, o)
	if err != nil {
		t.Skipf("no FUSE file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A host that still reports a hole where data was just written loses no data: blocks that were written a moment ago stay
// when the image is compacted, and a search for data finds them.
func TestHostWithWritebackCache(t *testing.T) {
	const name, size, written = "image.vhdx", 32 * ondisk.MiB, 8 * ondisk.MiB
	backing := t.TempDir()
	if err := Create(filepath.Join(backing, name), CreateOptions{Size: size, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(filepath.Join(backing, name), Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Allocate(0, written); err != nil { // in the file, and nothing but holes
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if im, err = Open(filepath.Join(writebackHost(t, backing), name), Options{Writable: true}); err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	want := bytes.Repeat([]byte("acknowledged...."), written/16)
	if _, err := im.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if off, err := im.SeekData(0); err != nil || off != 0 {
		t.Errorf("the first data is at %#x, %v; want it at 0", off, err)
	}
	if _, err := im.Compact(t.Context(), CompactOptions{}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, written)
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the compaction the disk reads otherwise: %v", err)
	}
}
