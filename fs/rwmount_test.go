package fs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// rwSize is the size of the disks that these tests write, in bytes.
const rwSize = 32 << 20

// mountImage mounts a new image for reading and writing, and checks it when the test is over.
func mountImage(t *testing.T, sector int64, o Options) *Server {
	t.Helper()
	needMount(t)
	path := filepath.Join(t.TempDir(), "image.vhdx")
	if err := vhdx.Create(path, vhdx.CreateOptions{Size: rwSize, BlockSize: 1 << 20, LogicalSectorSize: sector}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(path, vhdx.Options{Writable: true, DetectZeroes: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the unmount
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		r, err := vhdx.Check(path, vhdx.Options{})
		if err != nil || len(r.Errors) > 0 {
			t.Errorf("the image that was written: %v, %+v", err, r)
		}
	})
	return mountDisk(t, im, path, o)
}

// A written disk reads as it was written, by every way of reading and writing.
func TestMountedWrites(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sector int64
		o      Options
		flags  int
		align  int64 // of offsets and lengths, bytes
	}{
		{"buffered", 512, Options{}, 0, 1},
		{"O_DIRECT", 512, Options{}, unix.O_DIRECT, 512},
		{"4096-byte sectors", 4096, Options{}, 0, 1},
		{"direct_io", 512, Options{DirectIO: true}, 0, 1},
		{"sync", 512, Options{Flags: unix.MS_SYNCHRONOUS}, unix.O_DIRECT, 4096},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := mountImage(t, tc.sector, tc.o)
			fd := openDisk(t, s, unix.O_RDWR|tc.flags)
			model := make([]byte, rwSize)
			rnd := rand.New(rand.NewPCG(7, uint64(tc.align)))
			page := directBuffer(t, 256<<10)
			for i := range 300 {
				off := rnd.Int64N(rwSize) / tc.align * tc.align
				n := min((1+rnd.Int64N(256<<10)+tc.align-1)/tc.align*tc.align, int64(len(page)), rwSize-off)
				p := page[:n]
				switch i % 6 {
				case 0:
					if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 8*n); err != nil {
						t.Fatal(err)
					}
					clear(model[off:min(off+8*n, rwSize)])
				case 1:
					if err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, off, n); err != nil {
						t.Fatal(err)
					}
					clear(model[off : off+n])
				case 2:
					if err := unix.Fallocate(fd, 0, off, n); err != nil {
						t.Fatal(err)
					}
				case 3:
					if got, err := unix.Pread(fd, p, off); err != nil || !bytes.Equal(p[:got], model[off:off+n]) {
						t.Fatalf("%d: read of %d at %d: %d, %v, or other bytes", i, n, off, got, err)
					}
				default:
					for j := range p {
						p[j] = byte(rnd.Uint32())
					}
					if got, err := unix.Pwrite(fd, p, off); err != nil || int64(got) != n {
						t.Fatalf("%d: write of %d at %d: %d, %v", i, n, off, got, err)
					}
					copy(model[off:], p)
				}
			}
			if err := unix.Fsync(fd); err != nil {
				t.Fatal(err)
			}
			for _, flags := range []int{unix.O_RDONLY, unix.O_RDONLY | unix.O_DIRECT} {
				fd := openDisk(t, s, flags)
				buf := directBuffer(t, 1<<20)
				for off := int64(0); off < rwSize; off += int64(len(buf)) {
					if n, err := unix.Pread(fd, buf, off); err != nil || !bytes.Equal(buf[:n], model[off:off+int64(len(buf))]) {
						t.Fatalf("flags %#x: %d bytes at %d, %v, or other bytes", flags, n, off, err)
					}
				}
			}
		})
	}
}

// directBuffer returns a buffer that O_DIRECT takes.
func directBuffer(t *testing.T, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(p) })
	return p
}

// Many at once, each in a region of its own, with blocks that two of them share.
func TestMountedWritesAtOnce(t *testing.T) {
	s := mountImage(t, 512, Options{})
	const workers, region = 8, rwSize/8 - 4096 // a block belongs to two workers at each border
	var wg sync.WaitGroup
	for w := range int64(workers) {
		fd := openDisk(t, s, unix.O_RDWR)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			model := make([]byte, region)
			for i := range 150 {
				off := rnd.Int64N(region)
				n := min(1+rnd.Int64N(64<<10), region-off)
				p := model[off : off+n]
				if i%5 == 0 {
					clear(p)
					if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w*region+off, n); err != nil {
						t.Errorf("punch: %v", err)
						return
					}
					continue
				}
				for j := range p {
					p[j] = byte(rnd.Uint32())
				}
				if got, err := unix.Pwrite(fd, p, w*region+off); err != nil || int64(got) != n {
					t.Errorf("write: %d, %v", got, err)
					return
				}
				if i%20 == 0 {
					if err := unix.Fsync(fd); err != nil {
						t.Errorf("fsync: %v", err)
						return
					}
				}
			}
			got := make([]byte, region)
			if n, err := unix.Pread(fd, got, w*region); err != nil || !bytes.Equal(got[:n], model) {
				t.Errorf("worker %d: %d bytes, %v, or other bytes", w, n, err)
			}
		})
	}
	wg.Wait()
}

func TestMountedLimits(t *testing.T) {
	s := mountImage(t, 512, Options{Flags: unix.MS_NODEV | unix.MS_NOSUID})
	fd := openDisk(t, s, unix.O_RDWR)
	path := filepath.Join(s.MountPoint(), mounts.FileName)
	if n, err := unix.Pwrite(fd, make([]byte, 8192), rwSize-4096); n != 4096 || err != nil {
		t.Errorf("write across the end: %d, %v; want 4096", n, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != rwSize {
		t.Errorf("size %d, %v; want %d", st.Size, err, rwSize)
	}
	for name, tc := range map[string]struct{ got, want error }{
		"write at the end":       {second(unix.Pwrite(fd, []byte{1}, rwSize)), unix.EFBIG},
		"truncate to the size":   {unix.Ftruncate(fd, rwSize), nil},
		"shrink":                 {unix.Ftruncate(fd, 0), unix.EPERM},
		"grow by half a sector":  {unix.Truncate(path, rwSize+1), unix.EINVAL},
		"grow by fallocate":      {unix.Fallocate(fd, 0, rwSize, 1), unix.EFBIG},
		"collapse":               {unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP},
		"open with O_TRUNC":      {openError(path, unix.O_RDWR|unix.O_TRUNC), unix.EPERM},
		"create":                 {openError(path+"x", unix.O_RDWR|unix.O_CREAT), unix.EPERM},
		"unlink":                 {unix.Unlink(path), unix.EPERM},
		"chmod":                  {unix.Chmod(path, 0o777), unix.EPERM},
		"setxattr":               {unix.Setxattr(path, "user.x", []byte("x"), 0), unix.EOPNOTSUPP},
		"utimes":                 {unix.Utimes(path, []unix.Timeval{{Sec: 1}, {Sec: 2}}), nil},
		"fsync of the directory": {fsyncDirectory(s.MountPoint()), nil},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %v, want %v", name, tc.got, tc.want)
		}
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Size != rwSize || st.Mtim.Sec != 2 {
		t.Errorf("size %d, mtime %d, %v", st.Size, st.Mtim.Sec, err)
	}
	// The kernel learns of what a write changed without being told.
	before := st
	if _, err := unix.Pwrite(fd, bytes.Repeat([]byte{1}, 4<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Blocks < before.Blocks+4<<20/512 || st.Mtim.Sec <= 2 {
		t.Errorf("blocks %d after %d, mtime %d, %v", st.Blocks, before.Blocks, st.Mtim.Sec, err)
	}
	before = st
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4<<20, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Blocks > before.Blocks-4<<20/512 {
		t.Errorf("blocks %d, and %d before a hole of 4 MiB", st.Blocks, before.Blocks)
	}
	buf := make([]byte, 16)
	if n, err := unix.Getxattr(path, "user.vhdx.type", buf); err != nil || string(buf[:n]) != "dynamic" {
		t.Errorf("user.vhdx.type = %q, %v", buf[:max(n, 0)], err)
	}
}

func second(_ int, err error) error { return err }

func fsyncDirectory(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

// Each kind of sync reaches the disk, and so does a close of a file that was open for writing.
func TestMountedSyncs(t *testing.T) {
	sector := directBuffer(t, 512)
	for i := range sector {
		sector[i] = 'a'
	}
	write := func(fd int) error { return second(unix.Pwrite(fd, sector, 512)) }
	written := fmt.Sprintf("write[512 %s]", sector)
	for _, tc := range []struct {
		name  string
		o     Options
		flags int
		do    func(fd int) error
		want  string
	}{
		{"write", Options{}, unix.O_RDWR, write, written + " sync[] clean[]"},
		{"fsync", Options{}, unix.O_RDWR, unix.Fsync, "sync[] clean[]"},
		{"fdatasync", Options{}, unix.O_WRONLY, unix.Fdatasync, "sync[] clean[]"},
		{"O_SYNC", Options{}, unix.O_WRONLY | unix.O_SYNC, write, written + " sync[] clean[]"},
		{"O_DSYNC", Options{}, unix.O_WRONLY | unix.O_DSYNC, write, written + " sync[] clean[]"},
		{"O_DIRECT|O_DSYNC", Options{}, unix.O_WRONLY | unix.O_DIRECT | unix.O_DSYNC, write, written + " sync[] clean[]"},
		{"mounted with sync", Options{Flags: unix.MS_SYNCHRONOUS}, unix.O_WRONLY, write, written + " sync[] clean[]"},
		{"direct_io, O_DSYNC", Options{DirectIO: true}, unix.O_WRONLY | unix.O_DSYNC, write, written + " sync[] clean[]"},
		{"fsync by a reader", Options{}, unix.O_RDONLY, unix.Fsync, "sync[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newWritable(nil)
			d.info.Path = t.TempDir()
			s := mountTest(t, d, tc.o)
			fd, err := unix.Open(filepath.Join(s.MountPoint(), mounts.FileName), tc.flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.do(fd); err != nil {
				t.Error(err)
			}
			unix.Close(fd)
			// The kernel does not wait for the reply to RELEASE, and an unmount takes back what was not fetched.
			for strings.Contains(tc.want, "clean[]") && !d.heard("clean[]") {
				time.Sleep(time.Millisecond)
			}
			if err := s.Unmount(); err != nil {
				t.Fatal(err)
			}
			s.Wait()
			// Most kernels send an FSYNC after a write that was synced already, and a close is another sync.
			calls := regexp.MustCompile(`(sync\[\] )+`).ReplaceAllString(d.take(), "sync[] ")
			if calls != tc.want {
				t.Errorf("calls %q, want %q", calls, tc.want)
			}
		})
	}
}

// An error of the disk reaches the program that caused it, with its number, and no other.
func TestMountedWriteErrors(t *testing.T) {
	for _, tc := range []struct {
		fail        map[string]error
		write, sync error
	}{
		{map[string]error{"write": unix.ENOSPC}, unix.ENOSPC, nil},
		{map[string]error{"write": unix.EIO}, unix.EIO, nil},
		{map[string]error{"write": vhdx.ErrFailed, "sync": vhdx.ErrFailed}, unix.EIO, unix.EIO},
		{map[string]error{"sync": unix.EIO}, nil, unix.EIO},
	} {
		d := newWritable(tc.fail)
		d.info.Path = t.TempDir()
		s := mountTest(t, d, Options{})
		for _, flags := range []int{0, unix.O_DIRECT} {
			fd := openDisk(t, s, unix.O_RDWR|flags)
			buf := directBuffer(t, 4096)
			if _, err := unix.Pwrite(fd, buf, 0); err != tc.write && (tc.write != nil || err != nil) {
				t.Errorf("%v: write: %v, want %v", tc.fail, err, tc.write)
			}
			if err := unix.Fsync(fd); err != tc.sync && (tc.sync != nil || err != nil) {
				t.Errorf("%v: fsync: %v, want %v", tc.fail, err, tc.sync)
			}
			again, err := unix.Dup(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Close(again); err != tc.sync && (tc.sync != nil || err != nil) {
				t.Errorf("%v: close: %v, want %v", tc.fail, err, tc.sync)
			}
			if _, err := unix.Pread(fd, buf, 8192); err != nil {
				t.Errorf("%v: read: %v", tc.fail, err)
			}
		}
	}
}
