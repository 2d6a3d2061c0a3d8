package test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFS mounts a file system of that many MiB, which is soon full.
func smallFS(t *testing.T, fstype string, mibs string) string {
	t.Helper()
	requireLoop(t)
	dir := newDir(t)
	if fstype == "tmpfs" {
		must(t, "mount", "-t", "tmpfs", "-o", "size="+mibs+"M", "tmpfs", dir)
	} else {
		requireKernelFS(t, fstype)
		requireTools(t, "mkfs."+fstype)
		back := filepath.Join(t.TempDir(), "back")
		must(t, "truncate", "--size", mibs+"M", back)
		if fstype == "ext4" {
			must(t, "mkfs.ext4", "-q", "-F", "-m", "0", back)
		} else {
			mkfs(t, fstype, back)
		}
		must(t, "mount", "-t", fstype, "-o", "loop", back, dir)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// Without space, the writer is told so, the image stays sound, and what was there stays what it was. With space
// again, writing goes on, in the same mount.
func TestNoSpaceLeft(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	for _, fstype := range []string{"tmpfs", "ext4"} {
		for _, v := range variants {
			if v.name == "fixed" || v.sector == 4096 {
				continue
			}
			t.Run(fstype+"/"+v.name, func(t *testing.T) { noSpaceLeft(t, smallFS(t, fstype, "44"), v) })
		}
	}
}

func noSpaceLeft(t *testing.T, dir string, v variant) {
	made := v.create(t, "256MiB")
	img := filepath.Join(dir, filepath.Base(made))
	must(t, "cp", "--sparse=always", made, img)
	v.options = nil
	if v.child { // its parent stays where there is room
		v.options = []string{"-o", "parent_dir=" + filepath.Dir(made)}
	}
	ballast := filepath.Join(dir, "ballast")
	must(t, "dd", "if=/dev/zero", "of="+ballast, "bs=1M", "count=16", "status=none")

	s := serve(t, img, v.options...)
	f := openDisk(t, s.disk, 0)
	want := readAt(t, s.disk, 0, 60*mib)
	written := int64(0)
	var err error
	for ; written < int64(len(want)); written += mib {
		if _, err = f.WriteAt(fill(9), written); err != nil {
			break
		}
		copy(want[written:], fill(9))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d MiB: %v, want ENOSPC", written/mib, err)
	}
	if written < 10*mib {
		t.Errorf("only %d MiB could be written", written/mib)
	}
	// What has a place can be written, synced and read, and what failed holds its old bytes.
	if _, err := f.WriteAt([]byte("over"), 5); err != nil {
		t.Errorf("overwrite on a full disk: %v", err)
	}
	copy(want[5:], "over")
	if err := f.Sync(); err != nil {
		t.Errorf("fsync on a full disk: %v", err)
	}
	sameStart(t, s.disk, want)
	out, err := command("dd", "if=/dev/urandom", "of="+s.disk, "bs=1M", "seek=30", "count=30", "oflag=direct", "conv=notrunc")
	if err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("dd: %v, %s", err, out)
	}
	want = readAt(t, s.disk, 0, len(want))
	f.Close()
	s.end(t)
	checkFull(t, img, v)

	s = serve(t, img, v.options...)
	sameStart(t, s.disk, want)
	f = openDisk(t, s.disk, 0)
	for off := int64(30 * mib); err == nil; off += mib {
		if off == int64(len(want)) {
			t.Fatal("there is space again, of itself")
		}
		_, err = f.WriteAt(fill(8), off)
	}
	want = readAt(t, s.disk, 0, len(want))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	off := int64(len(want)) - 9*mib
	for ; off < int64(len(want)); off += mib {
		if _, err := f.WriteAt(fill(7), off); err != nil {
			t.Fatalf("with space again, write at %d: %v", off, err)
		}
		copy(want[off:], fill(7))
	}
	if err := f.Sync(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	sameStart(t, s.disk, want)
	f.Close()
	s.end(t)
	checkFull(t, img, v)
	sameStart(t, serve(t, img, v.options...).disk, want)
}

// sameStart fails the test unless the disk begins with what is wanted.
func sameStart(t *testing.T, disk string, want []byte) {
	t.Helper()
	if d := difference(readAt(t, disk, 0, len(want)), want); d >= 0 {
		t.Errorf("byte %d of %s is not what it was", d, disk)
	}
}

// checkFull is checkClean for an image that may need to be told where its parent is.
func checkFull(t *testing.T, img string, v variant) {
	t.Helper()
	if r := vhdxfs(t, append(append([]string{"check"}, v.options...), img)...); r.status != 0 {
		t.Errorf("vhdxfs check: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if !v.child {
		checkClean(t, img)
	}
}

func TestReadOnlyHost(t *testing.T) {
	requireLoop(t)
	img, raw := sampleImage(t)
	dir := newDir(t)
	must(t, "mount", "--bind", filepath.Dir(img), dir)
	t.Cleanup(func() { unmount(t, dir) })
	must(t, "mount", "-o", "remount,bind,ro", dir)
	there, before := filepath.Join(dir, filepath.Base(img)), sha256File(t, img)

	r := vhdxfs(t, "-f", there, newDir(t))
	if r.status != mountStatus || !strings.Contains(r.stderr, there) ||
		!strings.Contains(r.stderr, "read-only file system") || !strings.Contains(r.stderr, "-o ro") {
		t.Errorf("exit status %d; the message must name the image, the reason and the way out:\n%s", r.status, r.stderr)
	}
	s := serve(t, there, "-o", "ro_fallback")
	sameContent(t, s.disk, raw)
	if err := openAs(s.disk, os.O_WRONLY); !errors.Is(err, syscall.EROFS) {
		t.Errorf("open for writing: %v, want EROFS", err)
	}
	s.end(t)
	unchanged(t, img, before)
}

// A mount that only reads leaves no trace, whatever ways there are to read.
func TestReadingChangesNothing(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			img := v.create(t, "40MiB")
			s := serve(t, img)
			f := openDisk(t, s.disk, 0)
			if _, err := f.WriteAt(bytes.Repeat([]byte("written "), 300_000), 3*mib-7); err != nil {
				t.Fatal(err)
			}
			f.Close()
			s.end(t)

			before, modified := sha256File(t, img), stat(t, img).Mtim
			s = serve(t, img)
			want := sha256File(t, s.disk)
			f = openDisk(t, s.disk, unix.O_DIRECT)
			b := aligned(t, mib)
			for off := range sizeOf(t, f) / mib {
				if _, err := f.ReadAt(b, off*mib); err != nil {
					t.Fatal(err)
				}
			}
			m, err := unix.Mmap(int(f.Fd()), 0, 40*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			sum, err := sha256Of(bytes.NewReader(m))
			if err != nil || sum != want {
				t.Errorf("the mapping has digest %s, %v; want %s", sum, err, want)
			}
			if err := errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m), f.Sync(), unix.Syncfs(int(f.Fd()))); err != nil {
				t.Error(err)
			}
			f.Close()
			if canLoop() {
				l := attachRW(t, s.disk, v.sector)
				if got := sha256File(t, l.dev); got != want {
					t.Errorf("the loop device has digest %s, want %s", got, want)
				}
				l.detach(t)
			}
			s.end(t)
			unchanged(t, img, before)
			if got := stat(t, img).Mtim; got != modified {
				t.Errorf("modified at %v, before at %v", got, modified)
			}
		})
	}
}

func canLoop() bool {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err == nil && os.Geteuid() == 0
}
