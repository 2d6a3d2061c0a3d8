package test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// sampleImage returns an image of 40 MiB and some sectors with data in a few of its 1 MiB blocks, and a raw file
// that holds the same.
func sampleImage(t *testing.T) (img, raw string) {
	t.Helper()
	const size = 40*mib + 5*512
	img = qemuCreate(t, size, "subformat=dynamic,block_size=1M")
	qemuWrite(t, img, randomWrites(rand.New(rand.NewPCG(40, 0)), size, 12)...)
	return img, qemuRaw(t, img)
}

func TestMountShowsOneFile(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	for _, tc := range []struct {
		option      string
		permissions uint32 // which of the image's disk.raw has as well
	}{{"ro", 0o444}, {"rw", 0o666}} {
		t.Run(tc.option, func(t *testing.T) { showsOneFile(t, tc.option, tc.permissions) })
	}
}

func showsOneFile(t *testing.T, option string, permissions uint32) {
	img, raw := sampleImage(t)
	i := info(t, img)
	letPass(t, img)
	s := serve(t, img, "-o", option)

	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "disk.raw" || !entries[0].Type().IsRegular() {
		t.Errorf("the directory holds %v, want the file disk.raw alone", entries)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "other")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat of another name: %v", err)
	}

	got, image, plain := stat(t, s.disk), stat(t, img), stat(t, raw)
	if got.Size != plain.Size {
		t.Errorf("size %d, want %d", got.Size, plain.Size)
	}
	if want := syscall.S_IFREG | image.Mode&permissions; got.Mode != want {
		t.Errorf("mode %o, want %o", got.Mode, want)
	}
	if got.Uid != image.Uid || got.Gid != image.Gid || got.Mtim != image.Mtim {
		t.Errorf("owner %d:%d, modified %v; the image has %d:%d and %v",
			got.Uid, got.Gid, got.Mtim, image.Uid, image.Gid, image.Mtim)
	}
	if got.Blocks*512 != i.AllocatedBytes {
		t.Errorf("%d blocks of 512 bytes, want %d bytes", got.Blocks, i.AllocatedBytes)
	}

	m, _ := mountAt(s.dir)
	if m.fstype != "fuse.vhdxfs" || m.source != img || m.readOnly != (option == "ro") {
		t.Errorf("mounted as %+v, want type fuse.vhdxfs, the image as the source, %s", m, option)
	}
	sameContent(t, s.disk, raw)
}

func stat(t *testing.T, path string) syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestMountHasSensibleStatfs(t *testing.T) {
	t.Parallel()
	img, raw := sampleImage(t)
	s := readOnly(t, img)
	var got unix.Statfs_t
	if err := unix.Statfs(s.dir, &got); err != nil {
		t.Fatal(err)
	}
	if unit := int64(got.Frsize); unit <= 0 || int64(got.Blocks)*unit != stat(t, raw).Size {
		t.Errorf("%d blocks of %d bytes, want the size of the disk, %d", got.Blocks, unit, stat(t, raw).Size)
	}
	if got.Bsize <= 0 || got.Namelen < int64(len("disk.raw")) || got.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs %+v", got)
	}
}

func TestReadOnlyMountRefusesChanges(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, _ := sampleImage(t)
	before := sha256File(t, img)
	s := readOnly(t, img)
	other := filepath.Join(s.dir, "other")
	for _, tc := range []struct {
		name string
		do   func() error
	}{
		{"open for writing", func() error { return openAs(s.disk, os.O_WRONLY) }},
		{"open for both", func() error { return openAs(s.disk, os.O_RDWR) }},
		{"open and truncate", func() error { return openAs(s.disk, os.O_WRONLY|os.O_TRUNC) }},
		{"create", func() error { return openAs(other, os.O_WRONLY|os.O_CREATE) }},
		{"truncate", func() error { return os.Truncate(s.disk, 0) }},
		{"remove", func() error { return os.Remove(s.disk) }},
		{"rename", func() error { return os.Rename(s.disk, other) }},
		{"link", func() error { return os.Link(s.disk, other) }},
		{"symlink", func() error { return os.Symlink("disk.raw", other) }},
		{"mkdir", func() error { return os.Mkdir(other, 0o755) }},
		{"chmod", func() error { return os.Chmod(s.disk, 0o600) }},
		{"chown", func() error { return os.Chown(s.disk, os.Getuid(), os.Getgid()) }},
		{"utimes", func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, s.disk, nil, 0) }},
		{"setxattr", func() error { return unix.Setxattr(s.disk, "user.vhdx.type", []byte("x"), 0) }},
		{"removexattr", func() error { return unix.Removexattr(s.disk, "user.vhdx.type") }},
	} {
		if err := tc.do(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", tc.name, err)
		}
	}
	s.end(t)
	unchanged(t, img, before)
}

func openAs(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err == nil {
		f.Close()
	}
	return err
}

func TestMountReadsAtAnyOffsetFromManyReaders(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	detectRaces(t)
	img, raw := sampleImage(t)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, img)
	for _, mode := range []struct {
		name  string
		flags int
	}{{"buffered", 0}, {"direct", unix.O_DIRECT}} {
		t.Run(mode.name, func(t *testing.T) {
			var readers sync.WaitGroup
			defer readers.Wait()
			for reader := range uint64(8) {
				f, err := os.OpenFile(s.disk, os.O_RDONLY|mode.flags, 0)
				if err != nil {
					t.Fatal(err)
				}
				readers.Go(func() {
					defer f.Close()
					if err := readRandomly(f, want, rand.New(rand.NewPCG(reader, 1))); err != nil {
						t.Errorf("reader %d: %v", reader, err)
					}
				})
			}
		})
	}
}

// readRandomly reads at offsets and lengths of all kinds, past the end too, and compares with what must be there.
func readRandomly(f *os.File, want []byte, rng *rand.Rand) error {
	buf := make([]byte, 3*mib)
	for range 150 {
		off := rng.Int64N(int64(len(want)) + 2)
		n := rng.IntN(1 << (1 + rng.IntN(21)))
		if rng.IntN(4) == 0 { // sectors, from a sector on
			off, n = off&^511, n&^511
		}
		got, err := f.ReadAt(buf[:n], off)
		left := max(0, int64(len(want))-off)
		if expect := int(min(int64(n), left)); got != expect || (err == io.EOF) != (got < n) || err != nil && err != io.EOF {
			return fmt.Errorf("read of %d bytes at %d gave %d, %v; want %d", n, off, got, err, expect)
		}
		if got == 0 {
			continue
		}
		if d := difference(buf[:got], want[off:off+int64(got)]); d >= 0 {
			return fmt.Errorf("byte %d differs, in a read of %d bytes at %d", off+int64(d), n, off)
		}
	}
	return nil
}

func TestMountCanBeMapped(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, img)
	f := open(t, s.disk)
	defer f.Close()
	got, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(got, want); d >= 0 {
		t.Errorf("byte %d of the mapping differs", d)
	}
	if err := unix.Munmap(got); err != nil {
		t.Error(err)
	}
}

func TestMountTellsHoles(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	s := readOnly(t, img)
	f := open(t, s.disk)
	defer f.Close()
	size := sizeOf(t, f)

	list := segments(t, f)
	var end, data int64
	for _, seg := range append(list, segment{size, size}) {
		for off := end; off < seg.begin; off += mib {
			b := make([]byte, min(mib, seg.begin-off))
			if _, err := f.ReadAt(b, off); err != nil || !zero(b) {
				t.Errorf("the hole from %d to %d does not read as zeros: %v", end, seg.begin, err)
				break
			}
		}
		end, data = seg.end, data+seg.end-seg.begin
	}
	if data == 0 || data >= size {
		t.Errorf("%d of %d bytes are data, want some and not all", data, size)
	}
	if data > info(t, img).AllocatedBytes {
		t.Errorf("%d bytes are data, more than are allocated", data)
	}
	for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
		for _, off := range []int64{size, size + 1, 1 << 50} {
			if got, err := unix.Seek(int(f.Fd()), off, whence); !errors.Is(err, syscall.ENXIO) {
				t.Errorf("seek %d from %d: %d, %v; want ENXIO", whence, off, got, err)
			}
		}
	}

	for _, how := range []string{"auto", "always", "never"} {
		copied := filepath.Join(t.TempDir(), "copy")
		must(t, "cp", "--sparse="+how, s.disk, copied)
		sameContent(t, copied, raw)
		if got := stat(t, copied).Blocks * 512; how != "never" && got > data+mib {
			t.Errorf("cp --sparse=%s: the copy takes %d bytes, the data %d", how, got, data)
		}
	}
}

func TestMountHasExtendedAttributes(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, _ := sampleImage(t)
	i := info(t, img)
	s := serve(t, img)
	for name, want := range map[string]string{
		"type":                 i.Type,
		"disk_size":            strconv.FormatInt(i.DiskSize, 10),
		"block_size":           strconv.FormatInt(i.BlockSize, 10),
		"logical_sector_size":  strconv.FormatInt(i.LogicalSectorSize, 10),
		"physical_sector_size": strconv.FormatInt(i.PhysicalSectorSize, 10),
		"data_write_guid":      i.Headers[i.CurrentHeader-1].DataWriteGUID,
		"log_state":            i.Log.State,
		"pid":                  strconv.Itoa(s.cmd.Process.Pid),
		"mode":                 "rw",
	} {
		for _, path := range []string{s.disk, s.dir} {
			b := make([]byte, 1024)
			n, err := unix.Getxattr(path, "user.vhdx."+name, b)
			if err != nil || string(b[:n]) != want {
				t.Errorf("user.vhdx.%s of %s is %q, %v; want %q", name, path, b[:max(n, 0)], err, want)
			}
		}
	}
	if _, err := unix.Getxattr(s.disk, "user.vhdx.none", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an attribute that is not there: %v", err)
	}
	if n, err := unix.Listxattr(s.disk, nil); err != nil || n == 0 {
		t.Errorf("listxattr: %d bytes, %v", n, err)
	}
}

// Where a process may open few files, nothing is mounted and the reason is told; with the fewest that are said to be
// enough, many long reads at once are answered.
func TestFewDescriptors(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "prlimit")
	img := create(t, "64MiB", "--block-size", "1MiB")
	s := serve(t, img)
	for i := range int64(32) {
		writeAt(t, s.disk, fill(byte(i+1)), i*mib)
	}
	s.end(t)

	for _, args := range [][]string{{"-f"}, {}, {"attach"}} {
		dir := newDir(t)
		out, err := command("prlimit", append(append([]string{"--nofile=12", program.path(t)}, args...), img, dir)...)
		if err == nil || !strings.Contains(out, "may open only 12 files; a mount needs at least 64") || !strings.Contains(out, "LimitNOFILE=") {
			t.Errorf("vhdxfs %v: %v\n%s", args, err, out)
		}
		if _, mounted := mountAt(dir); mounted {
			t.Errorf("vhdxfs %v: mounted", args)
			unmount(t, dir)
		}
	}

	dir := newDir(t)
	must(t, "prlimit", "--nofile=64", program.path(t), img, dir)
	t.Cleanup(func() { unmount(t, dir) })
	var readers sync.WaitGroup
	for i := range int64(32) {
		readers.Go(func() {
			f, err := os.Open(filepath.Join(dir, "disk.raw"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			got := make([]byte, 512<<10)
			if _, err := f.ReadAt(got, i*mib); err != nil || string(got) != string(fill(byte(i + 1))[:len(got)]) {
				t.Errorf("MiB %d: %v, or other bytes", i, err)
			}
		})
	}
	readers.Wait()
}
