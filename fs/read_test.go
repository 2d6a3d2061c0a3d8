package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

func TestReadBytes(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	check := func(t *testing.T, off int64, n int) {
		t.Helper()
		want := d.want[min(off, d.Size()):min(off+int64(n), d.Size())]
		got, status := readAll(t, f, uint64(off), n)
		if !status.Ok() || !bytes.Equal(got, want) {
			t.Errorf("read of %d at %d: %d bytes, %v; want the %d of the disk", n, off, len(got), status, len(want))
		}
	}
	for _, n := range []int{1, 511, 512, 4096, minSplice - 1, minSplice, maxRead, maxRequest - 2*pageSize, maxRequest - 2*pageSize + 1, maxRequest} {
		for off := int64(0); off <= d.Size()+4096; off += 64<<10 - 512 {
			check(t, off, n)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		check(t, rnd.Int64N(d.Size()+10), 1+rnd.IntN(300<<10))
	}
}

func TestReadsAtOnce(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range 200 {
				off, n := rnd.Int64N(d.Size()), 1+rnd.IntN(200<<10)
				want := d.want[off:min(off+int64(n), d.Size())]
				if got, status := readAll(t, f, uint64(off), n); !status.Ok() || !bytes.Equal(got, want) {
					t.Errorf("read of %d at %d: wrong bytes, %v", n, off, status)
				}
			}
		})
	}
	wg.Wait()
}

// A reply has few parts however finely data and zeros alternate: writev(2) takes 1024.
func TestReplyParts(t *testing.T) {
	d := &fakeDisk{}
	mem := newMemory(randomBytes(8192))
	for d.Size() < maxRequest {
		d.add(512, mem, 0)
		d.add(512, nil, 0)
	}
	f := newTestFileSystem(t, d, Options{})
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}}
	res, status := f.read(in, make([]byte, maxRequest), func() {})
	if !status.Ok() {
		t.Fatal(status)
	}
	defer res.Done()
	if n := len(res.parts); n != 1 {
		t.Errorf("%d parts, want 1", n)
	}
	if zeros != [maxRequest]byte{} {
		t.Error("the shared zeros were written")
	}
}

// A large read of one extent goes through a pipe, and a hole takes nothing of the buffer.
func TestReadByTheCheapestMeans(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	for _, tc := range []struct {
		name string
		off  uint64
		n    int
		pipe bool
	}{
		{"large, one extent with a descriptor", 0, 128 << 10, true},
		{"small", 0, 4096, false},
		{"hole", 1 << 20, 128 << 10, false},
		{"across extents", 1<<20 - 64<<10, 128 << 10, false},
		{"file without a descriptor", 2<<20 + 64<<10, 64 << 10, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: tc.off}
			res, status := f.read(in, make([]byte, tc.n), func() {})
			if !status.Ok() {
				t.Fatal(status)
			}
			defer res.Done()
			if got := res.pipe != nil; got != tc.pipe {
				t.Errorf("answered by a pipe: %v, want %v", got, tc.pipe)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := imagefile.Open(short, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	for _, tc := range []struct {
		name string
		disk *fakeDisk
		want fuse.Status
		log  string
	}{
		{"corrupt", &fakeDisk{err: fmt.Errorf("entry 7: %w", vhdx.ErrCorrupt)}, fuse.EIO, "entry 7"},
		{"errno of the image file", &fakeDisk{err: &os.PathError{Op: "read", Err: syscall.ESTALE}}, fuse.Status(syscall.ESTALE), "stale"},
		{"read-only", &fakeDisk{err: vhdx.ErrReadOnly}, fuse.EROFS, "read-only"},
		{"no extents", &fakeDisk{}, fuse.EIO, "hold 0 of"},
		{"file that fails", &fakeDisk{extents: []vhdx.Extent{{Len: 1 << 20, File: failingFile{}}}}, fuse.EIO, "input/output error"},
		{"file too short to splice from", &fakeDisk{extents: []vhdx.Extent{{Len: 1 << 20, File: file, FileOff: 64 << 10}}}, fuse.EIO, "unexpected EOF"},
		{"gap", &fakeDisk{extents: []vhdx.Extent{{Len: 4096}, {DiskOff: 8192, Len: 1 << 20}}}, fuse.EIO, "does not continue"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var logged bytes.Buffer
			log := logrus.New()
			log.SetOutput(&logged)
			tc.disk.want = make([]byte, 1<<20)
			f := newTestFileSystem(t, tc.disk, Options{Log: log})
			if _, status := readAll(t, f, 0, 128<<10); status != tc.want {
				t.Errorf("status %v, want %v", status, tc.want)
			}
			if !strings.Contains(logged.String(), tc.log) || !strings.Contains(logged.String(), "offset=0") {
				t.Errorf("log %q, want it to say %q and the offset", logged.String(), tc.log)
			}
		})
	}
}

type failingFile struct{ memory }

func (failingFile) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

func TestLseek(t *testing.T) {
	d := &fakeDisk{}
	mem := newMemory(make([]byte, 8192))
	d.add(4096, nil, 0)
	d.add(4096, mem, 0)
	d.add(4096, nil, 0)
	enxio := fuse.Status(syscall.ENXIO)
	for _, tc := range []struct {
		whence uint32
		off    uint64
		want   uint64
		status fuse.Status
	}{
		{unix.SEEK_DATA, 0, 4096, fuse.OK},
		{unix.SEEK_DATA, 5000, 5000, fuse.OK},
		{unix.SEEK_DATA, 8192, 0, enxio},
		{unix.SEEK_HOLE, 0, 0, fuse.OK},
		{unix.SEEK_HOLE, 5000, 8192, fuse.OK},
		{unix.SEEK_HOLE, 12287, 12287, fuse.OK},
		{unix.SEEK_HOLE, 12288, 0, enxio},
		{unix.SEEK_DATA, 12288, 0, enxio},
		{unix.SEEK_DATA, 1 << 63, 0, enxio},
		{unix.SEEK_HOLE, 1<<64 - 1, 0, enxio},
		{0, 0, 0, fuse.EINVAL},
	} {
		f := newTestFileSystem(t, d, Options{})
		var out fuse.LseekOut
		in := &fuse.LseekIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: tc.off, Whence: tc.whence}
		if status := f.Lseek(nil, in, &out); status != tc.status || out.Offset != tc.want {
			t.Errorf("whence %d from %d: %d, %v; want %d, %v", tc.whence, tc.off, out.Offset, status, tc.want, tc.status)
		}
	}
	d.err = errors.New("bad entry")
	f := newTestFileSystem(t, d, Options{})
	in := &fuse.LseekIn{InHeader: fuse.InHeader{NodeId: diskNode}, Whence: unix.SEEK_DATA}
	if status := f.Lseek(nil, in, new(fuse.LseekOut)); status != fuse.EIO {
		t.Errorf("seek that fails: %v, want EIO", status)
	}
}

func TestOpen(t *testing.T) {
	f := newTestFileSystem(t, newFakeDisk(t), Options{})
	for _, tc := range []struct {
		node  uint64
		flags uint32
		want  fuse.Status
	}{
		{diskNode, syscall.O_RDONLY, fuse.OK},
		{diskNode, syscall.O_RDONLY | syscall.O_DIRECT, fuse.OK},
		{diskNode, syscall.O_WRONLY, fuse.EROFS},
		{diskNode, syscall.O_RDWR, fuse.EROFS},
		{diskNode, syscall.O_RDONLY | syscall.O_TRUNC, fuse.EROFS},
		{rootNode, syscall.O_RDONLY, fuse.EISDIR},
	} {
		var out fuse.OpenOut
		in := &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: tc.node}, Flags: tc.flags}
		if got := f.Open(nil, in, &out); got != tc.want {
			t.Errorf("open node %d with %#o: %v, want %v", tc.node, tc.flags, got, tc.want)
		} else if got.Ok() && out.OpenFlags&fuse.FOPEN_KEEP_CACHE == 0 {
			t.Errorf("open with %#o drops the page cache", tc.flags)
		}
	}
}

func TestOpenFlags(t *testing.T) {
	for _, direct := range []bool{false, true} {
		f := newTestFileSystem(t, newWritable(nil), Options{DirectIO: direct})
		for flags, write := range map[uint32]bool{syscall.O_RDONLY: false, syscall.O_WRONLY: true, syscall.O_RDWR: true} {
			var out fuse.OpenOut
			if s := f.Open(nil, &fuse.OpenIn{InHeader: onDisk, Flags: flags}, &out); !s.Ok() {
				t.Fatal(s)
			}
			if got := out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0; got != direct {
				t.Errorf("opened with %#x, direct_io %t: passes by the cache: %t", flags, direct, got)
			}
			if got := out.OpenFlags&fuse.FOPEN_NOFLUSH == 0; got != write || (out.Fh == writeHandle) != write {
				t.Errorf("opened with %#x: a close is told: %t, handle %d", flags, got, out.Fh)
			}
		}
	}
}

var raceDetector bool

// The read path allocates nothing once its reply has room.
func TestReadAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool drop objects")
	}
	d := &fakeDisk{}
	d.add(1<<20, newMemory(randomBytes(1<<20)), 0)
	d.add(1<<20, nil, 0)
	f := newTestFileSystem(t, d, Options{})
	buf := make([]byte, 128<<10)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: 1<<20 - 64<<10}
	allocs := testing.AllocsPerRun(200, func() {
		res, status := f.read(in, buf, func() {})
		if !status.Ok() {
			t.Fatal(status)
		}
		res.Done()
	})
	if allocs >= 1 { // a pool may lose an object to the garbage collector now and then
		t.Errorf("%v allocations for a read, want none", allocs)
	}
}

func BenchmarkRead(b *testing.B) {
	d := newFakeDisk(b)
	f := newTestFileSystem(b, d, Options{})
	for _, n := range []int{4 << 10, 32 << 10, 64 << 10, 128 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				res, status := f.read(in, buf, func() {})
				if !status.Ok() {
					b.Fatal(status)
				}
				res.Done()
			}
		})
	}
}
