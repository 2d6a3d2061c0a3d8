package test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const lateBlocks = 2 << 20 // of a disk with a BAT that a mount does not wait for, of 16 MiB

// largeTable makes an image of 1 MiB blocks every block of which has an entry, as QEMU writes them, the last one the
// given entry.
func largeTable(t *testing.T, last uint64) string {
	t.Helper()
	const chunkRatio, zero = 4096, 2 // MS-VHDX 2.5
	img := create(t, "2TiB", "--block-size", "1MiB")
	var table []byte
	for n := range uint64(lateBlocks) {
		if n > 0 && n%chunkRatio == 0 {
			table = binary.LittleEndian.AppendUint64(table, 0) // of a sector bitmap block
		}
		entry := uint64(zero)
		if n == lateBlocks-1 {
			entry = last
		}
		table = binary.LittleEndian.AppendUint64(table, entry)
	}
	writeAt(t, img, table, regionOffset(t, img, batRegion))
	return img
}

// Damage far behind in a large table does not keep the disk from being mounted and read. It keeps all from writing, is
// logged, and the file stays as it was.
func TestDamageFarBehind(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	detectRaces(t)
	const fullyPresent = 6
	img := largeTable(t, 200<<40|fullyPresent)
	before := readAt(t, img, 0, int(stat(t, img).Size))
	s := serveToKill(t, img) // its end is looked at below
	f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4096)
	if _, err := f.ReadAt(b, 1<<40); err != nil {
		t.Errorf("read of a good block: %v", err)
	}
	if _, err := f.ReadAt(b, lateBlocks*mib-4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("read of the damaged block: %v, want an input/output error", err)
	}
	if _, err := f.WriteAt(b, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v, want an input/output error", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, mib); !errors.Is(err, syscall.EIO) {
		t.Errorf("punch: %v, want an input/output error", err)
	}
	if stat(t, s.disk).Blocks == 0 {
		t.Error("the disk seems to hold nothing")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	unmount(t, s.dir)
	s.wait(t)
	if status := s.cmd.ProcessState.ExitCode(); status != mountStatus {
		t.Errorf("exit status %d at the unmount, want %d", status, mountStatus)
	}
	for _, want := range []string{"the image is damaged; it is read-only", "R47", "vhdxfs check"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("logged:\n%swant %q", s.log.String(), want)
		}
	}
	if after := readAt(t, img, 0, int(stat(t, img).Size)); string(after) != string(before) {
		t.Error("the image was changed")
	}
	if r := vhdxfs(t, "check", img); r.status == 0 || !strings.Contains(r.stdout+r.stderr, "R47") {
		t.Errorf("check: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}

	// With an overlay the image must be good from the beginning.
	over := filepath.Join(t.TempDir(), "over.vhdx")
	if r := vhdxfs(t, "-o", "overlay="+over, img, newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, "R47") {
		t.Errorf("overlay: status %d, %s", r.status, r.stderr)
	}
}

// What keeps an image from being written is known in time for ro_fallback, however far behind it is.
func TestFallbackFarBehind(t *testing.T) {
	t.Parallel()
	const unmapped = 3
	img := largeTable(t, 200<<40|unmapped)
	s := serve(t, img, "-o", "ro_fallback")
	if err := unix.Access(s.disk, unix.W_OK); !errors.Is(err, syscall.EROFS) {
		t.Errorf("the mount can be written: %v", err)
	}
	s.end(t)
	if !strings.Contains(s.log.String(), "is mounted read-only") {
		t.Errorf("logged:\n%s", s.log.String())
	}
}

// Writing to a disk with a large table begins when all of that is known to be good.
func TestWriteAfterLargeTable(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	img := largeTable(t, 2)
	s := serve(t, img)
	f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(fill(7), lateBlocks*mib-mib); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.end(t)
	checkClean(t, img)
	s = readOnly(t, img)
	if got := readAt(t, s.disk, lateBlocks*mib-mib, mib); string(got) != string(fill(7)) {
		t.Error("the disk reads otherwise than it was written")
	}
	// What is allocated is known by then, and not what it was said to be when the mount began.
	eventually(t, "what is allocated", func() bool { return stat(t, s.disk).Blocks*512 == mib })
}
