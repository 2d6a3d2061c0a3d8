package test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// requireKernelReads skips the test where the kernel cannot read images by itself.
func requireKernelReads(t *testing.T) {
	t.Helper()
	requireFUSE(t)
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	list, _ := os.ReadFile("/proc/filesystems")
	if os.Geteuid() != 0 || major*1000+minor < 6018 || !strings.Contains(string(list), "\terofs\n") {
		t.Skip("needs root and a kernel from 6.18 on with EROFS")
	}
	var host unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &host); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC}, int64(host.Type)) {
		t.Skipf("needs a directory for temporary files on ext4, XFS, Btrfs or tmpfs, not on type %#x", host.Type)
	}
}

// bothWays mounts an image twice: the kernel reads it by itself, and the program does. Both show the same.
func bothWays(t *testing.T, img string, options ...string) {
	t.Helper()
	s := readOnly(t, img, options...)
	k := readOnly(t, img, append(options, "kernel=on")...)
	if got := xattr(t, k.dir, "kernel"); got != "on" {
		t.Fatalf("the kernel does not read the image: %s", got)
	}
	sameShown(t, k, s)
	if st := k.stats(t); st["reads"] != 0 || st["passed_opens"] == 0 {
		t.Errorf("%d reads by the program, %d opens for the kernel", st["reads"], st["passed_opens"])
	}
	k.end(t)
	s.end(t)
}

// sameShown fails the test unless two mounts show the same bytes, holes and attributes.
func sameShown(t *testing.T, got, want *served) {
	t.Helper()
	if stat(t, want.disk).Size <= wholeDigestLimit {
		sameContent(t, got.disk, want.disk)
	} else {
		a, _ := sparseDigest(t, got.disk)
		if b, _ := sparseDigest(t, want.disk); a != b {
			t.Error("other data")
		}
	}
	g, w := open(t, got.disk), open(t, want.disk)
	defer g.Close()
	defer w.Close()
	if a, b := segments(t, g), segments(t, w); !slices.Equal(a, b) {
		t.Errorf("data in %v, want %v", a, b)
	}
	a, b := stat(t, got.disk), stat(t, want.disk)
	if a.Size != b.Size || a.Blocks != b.Blocks || a.Mode != b.Mode || a.Mtim != b.Mtim || a.Ino != b.Ino {
		t.Errorf("attributes %+v, want %+v", a, b)
	}
}

// scatter writes n pieces of random bytes, of all sizes and at all places, to the disk of an image.
func scatter(t *testing.T, img string, seed uint64, n int) {
	t.Helper()
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	rng := rand.New(rand.NewPCG(seed, 14))
	size := sizeOf(t, f)
	for range n {
		b := randomBytes(rng, 1+rng.IntN(1<<rng.IntN(20)))
		if _, err := f.WriteAt(b, rng.Int64N(size-int64(len(b)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.end(t)
}

// The kernel shows the same bytes of every kind of image as the program does.
func TestKernelReads(t *testing.T) {
	t.Parallel()
	requireKernelReads(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			img := v.create(t, "64MiB")
			scatter(t, img, 1, 80)
			bothWays(t, img)
		})
	}
	t.Run("blocks of 32 MiB, no sandbox", func(t *testing.T) {
		t.Parallel()
		img := create(t, "200MiB", "--block-size", "32MiB")
		bothWays(t, img)
		scatter(t, img, 2, 4)
		bothWays(t, img, "sandbox=off")
	})
	t.Run("an odd size", func(t *testing.T) {
		t.Parallel()
		img := create(t, strconv.Itoa(40*mib+7*512), "--block-size", "1MiB")
		scatter(t, img, 3, 100)
		writeLast(t, img)
		bothWays(t, img)
	})
	t.Run("a chain", func(t *testing.T) {
		t.Parallel()
		img := variantNamed(t, "differencing").create(t, "64MiB")
		for i := range uint64(6) {
			scatter(t, img, 4+i, 30)
			img = childOf(t, img, "64MiB", "--block-size", []string{"1MiB", "4MiB", "32MiB"}[i%3])
		}
		scatter(t, img, 11, 5)
		bothWays(t, img)
	})
	t.Run("larger than the parent", func(t *testing.T) {
		t.Parallel()
		parent := create(t, strconv.Itoa(10*mib+512))
		scatter(t, parent, 12, 50)
		img := childOf(t, parent, "64MiB")
		bothWays(t, img)
		scatter(t, img, 13, 20)
		bothWays(t, img)
	})
	t.Run("by qemu", func(t *testing.T) {
		t.Parallel()
		img := qemuCreate(t, 64*mib, "subformat=dynamic,block_size=1M")
		qemuWrite(t, img, randomWrites(rand.New(rand.NewPCG(5, 5)), 64*mib, 40)...)
		bothWays(t, img)
	})
	t.Run("a log to replay", func(t *testing.T) {
		t.Parallel()
		img := create(t, "64MiB", "--block-size", "1MiB")
		leaveDirty(t, img)
		bothWays(t, img)
	})
	t.Run("partitions", func(t *testing.T) {
		t.Parallel()
		requireTools(t, "sfdisk")
		img := create(t, "64MiB", "--block-size", "1MiB")
		scatter(t, img, 6, 100)
		s := serve(t, img)
		must(t, "sh", "-c", `printf 'label: dos\nstart=63, size=20001\nstart=40960, size=40960\n' | sfdisk --quiet --no-reread --no-tell-kernel "$1"`, "sh", s.disk)
		s.end(t)
		bothWays(t, img, "partition=1") // at an odd sector
		bothWays(t, img, "partition=2")
	})
}

// writeLast writes the last sector of a disk.
func writeLast(t *testing.T, img string) {
	t.Helper()
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 512), sizeOf(t, f)-512); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.end(t)
}

// leaveDirty writes to an image, and leaves it with a log to replay.
func leaveDirty(t *testing.T, img string) {
	t.Helper()
	s := serveToKill(t, img, "-o", "commit=0,idle_clean=0")
	f := openDisk(t, s.disk, 0)
	writePattern(t, f, 0x42, 5*mib, 3*mib)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Kill()
	<-s.done
	f.Close()
	unmount(t, s.dir)
	if got := mustVhdxfs(t, "info", "--json", img); !strings.Contains(got, "replayed in memory") {
		t.Fatalf("the kill left nothing to replay:\n%s", got)
	}
}

// So it is with what other programs wrote.
func TestKernelReadsCorpus(t *testing.T) {
	t.Parallel()
	requireKernelReads(t)
	c := openCorpus(t)
	for _, ci := range c.Files {
		if ci.Type == "differencing" || ci.VirtualSize > wholeDigestLimit*16 {
			continue
		}
		t.Run(ci.Name, func(t *testing.T) { bothWays(t, c.unpack(t, ci, t.TempDir(), "image.vhdx")) })
	}
	t.Run("differencing", func(t *testing.T) {
		child, parent := c.child(t)
		dir := t.TempDir()
		c.unpack(t, parent, dir, child.parentName(t))
		bothWays(t, c.unpack(t, child, dir, "child.avhdx"), "ignore_parent_mismatch")
	})
}

// Where the kernel cannot read the image, the program does, silently, and the mount says why.
func TestKernelReadsFallBack(t *testing.T) {
	requireKernelReads(t)
	img := create(t, "32MiB", "--block-size", "1MiB")
	scatter(t, img, 7, 50)
	want := rawOf(t, img)
	falls := func(t *testing.T, img, want, why string, options ...string) {
		t.Helper()
		s := serve(t, img, options...)
		if got := xattr(t, s.dir, "kernel"); !strings.HasPrefix(got, "off: ") || !strings.Contains(got, why) {
			t.Errorf("%q, want off: …%s…", got, why)
		}
		if want != "" {
			sameContent(t, s.disk, want)
			f, err := os.OpenFile(s.disk, os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Error(err)
			}
			f.Close()
		}
		s.end(t)
	}
	t.Run("info", func(t *testing.T) {
		s := serve(t, img, "-o", "kernel=on,ro,direct_io")
		if got := mustVhdxfs(t, "info", s.dir); !strings.Contains(got, "kernel=on without effect (option direct_io)") {
			t.Errorf("info says nothing of it:\n%s", got)
		}
		s.end(t)
	})
	t.Run("read/write", func(t *testing.T) { falls(t, img, want, "not read-only", "-o", "kernel=on") })
	t.Run("overlay", func(t *testing.T) { falls(t, img, want, "not read-only", "-o", "kernel=on,overlay=tmp") })
	t.Run("direct_io", func(t *testing.T) { falls(t, img, want, "direct_io", "-o", "ro,kernel=on,direct_io") })
	t.Run("too much metadata", func(t *testing.T) {
		large := filepath.Join(t.TempDir(), "large.vhdx")
		mustVhdxfs(t, "create", "--size", "64TiB", "--block-size", "1MiB", large)
		placeBlocks(t, large, map[int64]byte{0: 1, 5000: 2, 64<<20 - 1: 3})
		falls(t, large, "", "chunks of 1048576 bytes", "-o", "ro,kernel=on")
	})
	t.Run("on a device", func(t *testing.T) {
		requireLoop(t)
		falls(t, attach(t, img, 512), want, "block device", "-o", "ro,kernel=on")
	})
	t.Run("on a FUSE file system", func(t *testing.T) {
		outer := filepath.Join(t.TempDir(), "outer.vhdx")
		mustVhdxfs(t, "convert", "--input-format", "raw", img, outer)
		s := readOnly(t, outer)
		falls(t, s.disk, want, "file system of type", "-o", "ro,kernel=on,allow_other")
	})
	t.Run("as an ordinary user", func(t *testing.T) {
		letPass(t, img)
		must(t, "chmod", "0644", img)
		dir := newDir(t)
		letPass(t, dir)
		must(t, "chown", nobody, dir)
		args := asNobody(program.path(t), "-o", "ro,kernel=on", img, dir)
		must(t, args[0], args[1:]...)
		t.Cleanup(func() { unmount(t, dir) })
		args = asNobody("getfattr", "--absolute-names", "--only-values", "-n", "user.vhdx.kernel", dir)
		if got := must(t, args[0], args[1:]...); !strings.HasPrefix(got, "off: ") || !strings.Contains(got, "not permitted") {
			t.Errorf("%q", got)
		}
		args = asNobody("cmp", filepath.Join(dir, "disk.raw"), "-")
		must(t, "sh", append([]string{"-c", `exec "$@" < ` + quote(want), "sh"}, args...)...)
	})
	t.Run("not asked for", func(t *testing.T) {
		for _, options := range []string{"ro", "ro,kernel=off", "ro,kernel=auto", "rw"} {
			s := serve(t, img, "-o", options)
			if got := xattr(t, s.dir, "kernel"); got != "off" {
				t.Errorf("%s: %q", options, got)
			}
			s.end(t)
		}
	})
	for _, fstype := range []string{"tmpfs", "xfs", "btrfs", "ext4"} { // where it can
		t.Run("on "+fstype, func(t *testing.T) {
			dir := smallFS(t, fstype, "320")
			must(t, "cp", img, dir)
			bothWays(t, filepath.Join(dir, filepath.Base(img)))
		})
	}
}

// All that programs do with a file is done with one that the kernel reads, but for O_DIRECT.
func TestKernelReadsUses(t *testing.T) {
	requireKernelReads(t)
	img := create(t, "32MiB", "--block-size", "1MiB")
	scatter(t, img, 8, 60)
	raw := rawOf(t, img)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := readOnly(t, img, "kernel=on")
	f := open(t, s.disk)
	defer f.Close()

	m, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m, want) {
		t.Error("mapped: other bytes")
	}
	if got := must(t, "sh", "-c", `cat "$1" | sha256sum`, "sh", s.disk); got != must(t, "sh", "-c", `sha256sum < "$1"`, "sh", raw) { // cat splices
		t.Error("through a pipe: other bytes")
	}
	for _, flags := range []int{unix.O_DIRECT, os.O_RDWR, os.O_WRONLY | os.O_TRUNC} {
		if err := openAs(s.disk, flags); err == nil {
			t.Errorf("opened with %#x", flags)
		}
	}
	if err := openAs(s.disk, unix.O_DIRECT); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("O_DIRECT: %v", err)
	}
	for range 3 { // once more, after what was refused
		g := open(t, s.disk)
		if err := readRandomly(g, want, rand.New(rand.NewPCG(1, 9))); err != nil {
			t.Error(err)
		}
		g.Close()
	}
	if err := syscall.Unmount(s.dir, 0); err != syscall.EBUSY {
		t.Errorf("unmounted while it is open: %v", err)
	}
	if l, ok := list(t, img); !ok || l.Kernel != "on" {
		t.Errorf("list: %+v", l)
	}
	if got := mustVhdxfs(t, "list"); !strings.Contains(got, "read by the kernel") {
		t.Errorf("list:\n%s", got)
	}
	if got := mustVhdxfs(t, "info", s.dir); !strings.Contains(got, "read by the kernel") {
		t.Errorf("info:\n%s", got)
	}
	f.Close()
	if err := syscall.Unmount(s.dir, 0); err != syscall.EBUSY {
		t.Errorf("unmounted while it is mapped: %v", err)
	}
	unix.Munmap(m)
	s.end(t)
}

// attach makes a device of what the kernel reads.
func TestKernelReadsAttached(t *testing.T) {
	requireKernelReads(t)
	img, tree := diskWithGPT(t, 4096)
	l := attachImage(t, img, "-r", "-o", "kernel=on")
	if l.Kernel != "on" {
		t.Fatalf("attach: %+v", l)
	}
	inside := mountInside(t, l.Devices[0].Partitions[0].Device, "ext4")
	sameTree(t, "on the device", inside, withoutLostFound(readTree(t, tree)))
	unmount(t, inside)
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
}

// kernelComplaints returns what the kernel has logged of FUSE and EROFS, but for mounts.
func kernelComplaints(t *testing.T) (lines []string) {
	t.Helper()
	for line := range strings.Lines(must(t, "dmesg")) {
		if (strings.Contains(line, "erofs") || strings.Contains(line, "fuse")) && !strings.Contains(line, "mounted with root inode") {
			lines = append(lines, line)
		}
	}
	return lines
}

// Images made to cost much are refused, or shown, in both ways alike, and the kernel has nothing to say of them.
func TestKernelReadsHostile(t *testing.T) {
	requireKernelReads(t)
	before := kernelComplaints(t)
	for _, h := range hostileImages {
		t.Run(h.name, func(t *testing.T) {
			img := h.make(t, t.TempDir())
			var dirs []string
			for _, options := range []string{"ro", "ro,kernel=on"} {
				dir := newDir(t)
				r := vhdxfs(t, "-o", options, img, dir)
				if r.status == 0 {
					t.Cleanup(func() { unmount(t, dir) })
					dirs = append(dirs, dir)
				}
				if r.status < 0 || r.status == 70 || strings.Contains(r.stderr, "panic:") {
					t.Errorf("%s: status %d, %s", options, r.status, r.stderr)
				}
			}
			if len(dirs) == 0 {
				t.Log("refused")
				return
			}
			if len(dirs) != 2 {
				t.Fatal("mounted in one way alone")
			}
			t.Log("kernel:", xattr(t, dirs[1], "kernel"))
			s, k := open(t, filepath.Join(dirs[0], "disk.raw")), open(t, filepath.Join(dirs[1], "disk.raw"))
			defer s.Close()
			defer k.Close()
			rng := rand.New(rand.NewPCG(1, 14))
			a, b := make([]byte, mib), make([]byte, mib)
			for range 200 {
				off, n := rng.Int64N(sizeOf(t, s)), 1+rng.IntN(1<<rng.IntN(20))
				ln, lerr := s.ReadAt(a[:n], off)
				kn, kerr := k.ReadAt(b[:n], off)
				if ln != kn || (lerr == nil) != (kerr == nil) || !bytes.Equal(a[:ln], b[:kn]) {
					t.Fatalf("%d bytes at %d: %d, %v and %d, %v", n, off, ln, lerr, kn, kerr)
				}
			}
		})
	}
	if after := kernelComplaints(t); len(after) > len(before) {
		t.Errorf("the kernel says:\n%s", strings.Join(after[len(before):], ""))
	}
}

// The owner of an image may change it beneath a mount that the kernel reads. What is read is what the file holds where the
// map has led at first, zeros or an error, the mount can be ended, and the kernel has nothing to say.
func TestKernelReadsChangedImage(t *testing.T) {
	requireKernelReads(t)
	before := kernelComplaints(t)
	img := create(t, "32MiB", "--block-size", "1MiB")
	scatter(t, img, 15, 100)
	s := readOnly(t, img, "kernel=on")
	owner, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	f := open(t, s.disk)
	defer f.Close()
	rng := rand.New(rand.NewPCG(16, 16))
	bat := regionOffset(t, img, batRegion)
	b := make([]byte, 64<<10)
	failed := 0
	for i := range 200 {
		if _, err := owner.WriteAt(randomBytes(rng, 64), bat+rng.Int64N(256)); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if err := owner.Truncate(2*mib + rng.Int64N(30*mib)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.ReadAt(b, rng.Int64N(31*mib)); err != nil {
			failed++
		}
	}
	t.Logf("%d of 200 reads failed", failed)
	f.Close()
	s.end(t)
	if after := kernelComplaints(t); len(after) > len(before) {
		t.Errorf("the kernel says:\n%s", strings.Join(after[len(before):], ""))
	}
}
