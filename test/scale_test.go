package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The BAT of the largest disk with the smallest blocks is half a GiB, which must not end up in memory.
func TestLargestDiskMountsInLittleMemory(t *testing.T) {
	for _, option := range []string{"ro", "rw"} {
		t.Run(option, func(t *testing.T) { largestDisk(t, option) })
	}
}

func largestDisk(t *testing.T, option string) {
	const limit = 64 << 20 // bytes of resident memory, the program's code included
	const size, block = 64 << 40, mib
	img := filepath.Join(t.TempDir(), "large.vhdx")
	mustVhdxfs(t, "create", "--size", "64TiB", "--block-size", "1MiB", img)
	if used := stat(t, img).Blocks * 512; used > 16*mib {
		t.Errorf("the empty image takes %d bytes of its file system", used)
	}
	placeBlocks(t, img, map[int64]byte{0: 1, 511: 2, 512: 3, 4095: 4, 4096: 5, size/block/2 + 7: 6, size/block - 1: 7})

	release.path(t) // builds it now, outside the time taken below
	begin := time.Now()
	s := release.serve(t, img, "-o", option)
	if got := stat(t, s.disk).Size; got != size {
		t.Errorf("the disk has %d bytes, want %d", got, size)
	}
	t.Logf("mounted after %v", time.Since(begin).Round(time.Millisecond))
	peak(t, s, "after the mount", limit)

	f := open(t, s.disk)
	defer f.Close()
	begin = time.Now()
	b := make([]byte, block)
	for i, seg := range segments(t, f) {
		if _, err := f.ReadAt(b, seg.begin); err != nil {
			t.Fatal(err)
		}
		if b[0] == 0 || difference(b, fill(b[0])) >= 0 {
			t.Errorf("data %d, at %d: wrong content, beginning with %d", i, seg.begin, b[0])
		}
	}
	t.Logf("all data found and read in %v", time.Since(begin).Round(time.Millisecond))
	if off, err := unix.Seek(int(f.Fd()), size-2*block, unix.SEEK_DATA); err != nil || off != size-block {
		t.Errorf("SEEK_DATA before the last block gives %d, %v; want %d", off, err, int64(size-block))
	}

	// Reads all over the disk touch more BAT pages than the cache may hold.
	for off := int64(0); off < size; off += size / 4096 {
		if _, err := f.ReadAt(b[:512], off+block/2); err != nil {
			t.Fatal(err)
		}
	}
	peak(t, s, "after reads all over the disk", limit)
}

// QEMU writes the whole BAT of such a disk, which is validated while the disk is used already.
func TestLargestDiskOfQEMU(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "qemu-img")
	const limit = 64 << 20 // bytes of resident memory
	const size = 64 << 40
	img := qemuCreate(t, size, "subformat=dynamic,block_size=1M")
	if st := stat(t, img); st.Blocks*512 < 512*mib {
		t.Skipf("this qemu-img leaves the BAT out, %d bytes", st.Blocks*512)
	}
	data := map[int64][]byte{0: fill(1)[:4096], size/2 + 512: fill(2)[:4096], size - 4096: fill(3)[:4096]}
	s := release.serve(t, img)
	f := openDisk(t, s.disk, unix.O_DIRECT)
	zero := make([]byte, 4096)
	for off := range data {
		b := make([]byte, 4096)
		if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, zero) {
			t.Errorf("at %#x of the empty disk: %v, or no zeros", off, err)
		}
	}
	for off, b := range data {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	peak(t, s, "after writes all over the disk", limit)
	s.end(t)
	checkClean(t, img)
	must(t, "qemu-img", "check", "-q", "-f", "vhdx", img)
	s = release.serve(t, img, "-o", "ro")
	f = open(t, s.disk)
	for off, want := range data {
		b := make([]byte, 4096)
		if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, want) {
			t.Errorf("at %#x after the second mount: %v, or other bytes than were written", off, err)
		}
	}
	f.Close()
}

// peak logs the most memory that the process has had resident, and fails the test if that is above the limit.
func peak(t *testing.T, s *served, when string, limit int64) {
	t.Helper()
	n := memory(t, s.cmd.Process.Pid, "status", "VmHWM")
	t.Logf("%.1f MiB resident at the most, %s", float64(n)/mib, when)
	if n > limit {
		t.Errorf("%d KiB resident %s, want at most %d", n>>10, when, limit>>10)
	}
}

// memory returns what the line of a name says in a file of a process in /proc, in bytes.
func memory(t *testing.T, pid int, file, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in\n%s", name, text)
	return 0
}
