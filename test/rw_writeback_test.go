package test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// With the kernel collecting writes, a disk holds the same as without.
func TestWritebackCache(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			r := newRandomDisk(t, v, "-o", "writeback_cache")
			for i := range 300 {
				what, err := r.step()
				if err != nil {
					t.Fatalf("operation %d with seed %d, %s: %v", i, *seed, what, err)
				}
			}
			r.remount()
		})
	}
}

// Who syncs learns that the disk of the image was full, and what was synced before is there.
func TestWritebackCacheOnAFullDisk(t *testing.T) {
	t.Parallel()
	made := create(t, "256MiB")
	img := filepath.Join(smallFS(t, "tmpfs", "44"), "full.vhdx")
	must(t, "cp", "--sparse=always", made, img)
	s := serve(t, img, "-o", "writeback_cache")
	f := openDisk(t, s.disk, 0)
	if _, err := f.WriteAt(fill(9), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var err error
	for off := int64(mib); err == nil && off < 100*mib; off += mib {
		_, err = f.WriteAt(fill(8), off)
	}
	if err == nil {
		err = f.Sync()
	}
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
		t.Errorf("100 MiB were written to a disk of 44, and the sync says: %v", err)
	}
	f.Close()
	s.end(t)
	checkClean(t, img)
	sameStart(t, serve(t, img).disk, fill(9))
}

// Who writes beyond the end of the disk learns of it from fsync, and the size can be put right.
func TestWritebackCacheBeyondTheEnd(t *testing.T) {
	t.Parallel()
	s := serve(t, create(t, "4MiB"), "-o", "writeback_cache")
	f := openDisk(t, s.disk, 0)
	if _, err := f.WriteAt(fill(1), 4*mib-mib/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.EFBIG) && !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync says: %v", err)
	}
	f.Close()
	must(t, "truncate", "-s", "4M", s.disk)
	if fi, err := os.Stat(s.disk); err != nil || fi.Size() != 4*mib {
		t.Errorf("%d bytes, %v", fi.Size(), err)
	}
	s.end(t)
}

// What the kernel has not sent yet is data to who looks for holes, as a copy does.
func TestWritebackCacheHasNoHoles(t *testing.T) {
	t.Parallel()
	s := serve(t, create(t, "16MiB"), "-o", "writeback_cache")
	f := openDisk(t, s.disk, 0)
	if _, err := f.WriteAt(fill(3), 8*mib); err != nil {
		t.Fatal(err)
	}
	if off, err := f.Seek(9*mib-4096, unix.SEEK_HOLE); err != nil || off != 16*mib {
		t.Errorf("SEEK_HOLE gives %d, %v; want the end of the disk", off, err)
	}
	if off, err := f.Seek(8*mib, unix.SEEK_DATA); err != nil || off != 8*mib {
		t.Errorf("SEEK_DATA gives %d, %v; want what was written", off, err)
	}
	f.Close()
	s.end(t)
}
