package test

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rawOf returns the disk that an image shows, as a raw file.
func rawOf(t *testing.T, img string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "whole.raw")
	mustVhdxfs(t, "convert", img, raw)
	return raw
}

// sameAround fails the test unless two raw disks are equal before byte from and behind byte to.
func sameAround(t *testing.T, got, want string, from, to int64) {
	t.Helper()
	a, b := open(t, got), open(t, want)
	size := sizeOf(t, a)
	if other := sizeOf(t, b); size != other {
		t.Fatalf("disks of %d and %d bytes", size, other)
	}
	for _, r := range [][2]int64{{0, from}, {to, size}} {
		x, xerr := io.ReadAll(io.NewSectionReader(a, r[0], r[1]-r[0]))
		y, yerr := io.ReadAll(io.NewSectionReader(b, r[0], r[1]-r[0]))
		if xerr != nil || yerr != nil {
			t.Fatal(xerr, yerr)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("bytes %d to %d of the disk, outside of the partition, differ from %d on", r[0], r[1], r[0]+int64(difference(x, y)))
		}
	}
}

// A partition is a disk of its own: mount(8) needs no offset, a file system is written, trimmed and checked in it, and
// not a byte around it changes, whatever is done to disk.raw.
func TestPartition(t *testing.T) {
	t.Parallel()
	for _, sector := range []int64{512, 4096} {
		t.Run(strconv.FormatInt(sector, 10), func(t *testing.T) {
			requireLoop(t)
			requireTools(t, "e2fsck", "fstrim")
			const from, size = mib, 100 * mib
			img, tree := diskWithGPT(t, sector)
			before := rawOf(t, img)

			s := serve(t, img, "-o", "partition=1")
			f := openDisk(t, s.disk, 0)
			if got := sizeOf(t, f); got != size {
				t.Fatalf("disk.raw has %d bytes, the partition %d", got, size)
			}
			part := filepath.Join(t.TempDir(), "part.raw")
			must(t, "dd", "if="+before, "of="+part, "bs=1M", "skip=1", "count=100", "conv=sparse", "status=none")
			sameContent(t, s.disk, part)
			if got := used(t, s.disk); got < used(t, part) || got > used(t, part)+16*mib {
				t.Errorf("disk.raw is said to take %d bytes; what is in the partition takes %d", got, used(t, part))
			}
			for name, want := range map[string]string{"partition": "1", "partition_offset": strconv.Itoa(from)} {
				if got := xattr(t, s.disk, name); got != want {
					t.Errorf("user.vhdx.%s is %q, want %q", name, got, want)
				}
			}

			inside := newDir(t)
			must(t, "mount", "-t", "ext4", "-o", "loop", s.disk, inside)
			t.Cleanup(func() {
				if _, mounted := mountAt(inside); mounted {
					unmount(t, inside)
				}
			})
			want := withoutLostFound(readTree(t, tree))
			sameTree(t, "at first", inside, want)
			if err := os.WriteFile(filepath.Join(inside, "new"), bytes.Repeat([]byte("new"), mib), 0o644); err != nil {
				t.Fatal(err)
			}
			must(t, "fstrim", inside)
			want = withoutLostFound(readTree(t, inside))
			unmount(t, inside)
			must(t, "e2fsck", "-f", "-n", s.disk)
			must(t, "mount", "-t", "ext4", "-o", "loop", s.disk, inside)
			sameTree(t, "after a write and a trim", inside, want)
			unmount(t, inside)
			f.Close()
			s.end(t)
			checkClean(t, img)
			sameAround(t, rawOf(t, img), before, from, from+size)

			// From end to end, and over the ends.
			s = serve(t, img, "-o", "partition=1")
			f = openDisk(t, s.disk, 0)
			writePattern(t, f, 0xC3, 0, size)
			if _, err := f.WriteAt(make([]byte, 8192), size-4096); err == nil {
				t.Error("no error from a write over the end")
			}
			for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
				if err := unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, size-3*mib, 64*mib); err != nil {
					t.Errorf("fallocate %d over the end: %v", mode, err)
				}
			}
			if err := f.Truncate(size + mib); err == nil {
				t.Error("truncate makes a partition larger")
			}
			if err := f.Truncate(size - mib); err == nil {
				t.Error("truncate makes a partition smaller")
			}
			if got := sizeOf(t, f); got != size {
				t.Errorf("then it has %d bytes", got)
			}
			if hole, err := f.Seek(0, unix.SEEK_HOLE); err != nil || hole < size-3*mib || hole > size {
				t.Errorf("the first hole is at %d, %v", hole, err)
			}
			for _, bs := range []string{"512K", "1M", "4M"} {
				spliced := xattr(t, s.disk, "stats.spliced_reads")
				must(t, "dd", "if="+s.disk, "of=/dev/null", "bs="+bs, "iflag=direct", "status=none")
				if xattr(t, s.disk, "stats.spliced_reads") == spliced {
					t.Errorf("reads of a partition by %s are not spliced", bs)
				}
			}
			f.Close()
			s.end(t)
			checkClean(t, img)
			sameAround(t, rawOf(t, img), before, from, from+size)
		})
	}
}

// xattr returns an attribute of a mount.
func xattr(t *testing.T, path, name string) string {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Getxattr(path, "user.vhdx."+name, b)
	if err != nil {
		t.Fatalf("%s of %s: %v", name, path, err)
	}
	return string(b[:n])
}

// Logical partitions have the kernel's numbers. What is no partition is refused, with the numbers that there are.
func TestPartitionsOfAnMBR(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "sfdisk")
	dir := t.TempDir()
	raw, img := randomRaw(t, 64*mib, 11), filepath.Join(dir, "disk.vhdx")
	must(t, "sh", "-c", `printf 'label: dos\n1: size=5MiB\n2: size=50MiB, type=f\n5: size=3MiB\n6: size=7MiB\n' | sfdisk --quiet --wipe never "$1"`, "sh", raw)
	mustVhdxfs(t, "convert", raw, img)
	for n, field := range map[int]string{1: "p1", 5: "p5", 6: "p6"} {
		out := must(t, "sh", "-c", `sfdisk --dump "$1" | sed -n "s|^$1$2 : start= *\([0-9]*\), size= *\([0-9]*\),.*|\1 \2|p"`, "sh", raw, strings.TrimPrefix(field, "p"))
		start, size, _ := strings.Cut(strings.TrimSpace(out), " ")
		want := filepath.Join(dir, field)
		must(t, "dd", "if="+raw, "of="+want, "bs=512", "skip="+start, "count="+size, "status=none")
		s := readOnly(t, img, "partition="+strconv.Itoa(n))
		sameContent(t, s.disk, want)
		s.end(t)
	}
	before := sha256File(t, img)
	for value, tc := range map[string]struct {
		status int
		says   string
	}{
		"2": {mountStatus, "the disk has no partition 2; it has 1, 5, 6"}, "7": {mountStatus, "it has 1, 5, 6"},
		"0": {usageStatus, "give the number of a partition"}, "-1": {usageStatus, "give the number of a partition"}, "all": {usageStatus, "give the number of a partition"},
	} {
		if r := vhdxfs(t, "-o", "partition="+value, img, newDir(t)); r.status != tc.status || !strings.Contains(r.stderr, tc.says) {
			t.Errorf("partition=%s: status %d, %s", value, r.status, r.stderr)
		}
	}
	if r := vhdxfs(t, "-o", "partition=1", create(t, "8MiB"), newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, "no partition table") {
		t.Errorf("a disk without a partition table: status %d, %s", r.status, r.stderr)
	}
	unchanged(t, img, before)
}

// A partition can be written over an overlay.
func TestPartitionOfAnOverlay(t *testing.T) {
	t.Parallel()
	requireLoop(t)
	img, tree := diskWithGPT(t, 512)
	before := sha256File(t, img)
	s := serve(t, img, "-o", "partition=1,overlay=tmp")
	inside := mountInside(t, attachRW(t, s.disk, 512).dev, "ext4")
	if got, want := withoutLostFound(readTree(t, inside)), readTree(t, tree); !maps.Equal(got, want) {
		t.Errorf("files inside:\n%v\nwant\n%v", got, want)
	}
	unmount(t, inside)
	unchanged(t, img, before)
}
