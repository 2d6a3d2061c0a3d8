package fs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/erofs"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// imageOf returns an open file with n random bytes.
func imageOf(t *testing.T, n int) imagefile.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, randomBytes(n), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := imagefile.Open(name, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// runsOf returns what the plan of a disk sends.
func runsOf(t *testing.T, p *kernelPlan) (runs []erofs.Run) {
	t.Helper()
	var b bytes.Buffer
	if err := p.send(&b); err != nil {
		t.Fatal(err)
	}
	for {
		r, err := erofs.ReadRun(&b)
		if err == io.EOF {
			return runs
		}
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r)
	}
}

// shown returns what a disk holds by its plan: the bytes of the runs, in which no kernel has a part.
func shown(t *testing.T, p *kernelPlan) (b []byte) {
	t.Helper()
	for _, r := range runsOf(t, p) {
		n := min(int64(r.Chunks)<<p.ChunkBits, p.Size-int64(len(b)))
		part := make([]byte, n)
		if r.Device > 0 {
			if _, err := unix.Pread(p.devices[r.Device-1], part, int64(r.Block)<<p.BlockBits); err != nil {
				t.Fatal(err)
			}
		}
		b = append(b, part...)
	}
	return b
}

// The plan of any disk shows the same bytes as the disk, in chunks as large as its pieces allow.
func TestKernelPlan(t *testing.T) {
	files := []imagefile.File{imageOf(t, 8<<20), imageOf(t, 8<<20)}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		unit := int64(512) << rng.IntN(8) // of what is in one piece
		place := int64(512) << rng.IntN(8)
		d := &fakeDisk{}
		for range 1 + rng.IntN(40) {
			n := unit * (1 + rng.Int64N(8))
			if f := rng.IntN(3); f < 2 {
				d.add(n, files[f], rng.Int64N((8<<20-n)/place)*place)
			} else {
				d.add(n, nil, 0)
			}
		}
		d.add(1+rng.Int64N(unit), files[0], 4096)
		p, err := newKernelPlan(d)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := shown(t, p); !bytes.Equal(got, d.want) {
			t.Errorf("seed %d, %+v: another disk", seed, p.Geometry)
		}
		if int64(1)<<p.ChunkBits < unit && len(d.extents) > 2 || p.BlockBits == erofs.MinBlockBits && unit >= 4096 && place >= 4096 {
			t.Errorf("seed %d: %+v for pieces of %d bytes at multiples of %d", seed, p.Geometry, unit, place)
		}
	}
}

// What lies together in a file is one run, in one chunk if it fits in.
func TestKernelPlanJoins(t *testing.T) {
	f := imageOf(t, 8<<20)
	d := &fakeDisk{}
	for i := range int64(8) {
		d.add(1<<20, f, i<<20)
	}
	p, err := newKernelPlan(d)
	if err != nil {
		t.Fatal(err)
	}
	if runs := runsOf(t, p); len(runs) != 1 || runs[0] != (erofs.Run{Chunks: 1, Device: 1}) || p.ChunkBits != erofs.MaxChunkBits {
		t.Errorf("%+v, %+v", p.Geometry, runs)
	}
}

// A disk that the kernel cannot be told of has no plan, and the error says why.
func TestKernelPlanRefuses(t *testing.T) {
	f := imageOf(t, 8<<20)
	sectors := &fakeDisk{}
	for i := range int64(8) {
		sectors.add(512, f, i*1024+256)
	}
	inMemory := &fakeDisk{}
	inMemory.add(4096, newMemory(make([]byte, 4096)), 0)
	broken := &fakeDisk{err: syscall.EBADMSG}
	broken.add(4096, nil, 0)
	tooMany := hugeDisk{&fakeDisk{}, (erofs.MaxChunks + 1) << 12}
	tooMany.add(4096, f, 0)
	for want, d := range map[string]Disk{
		"at byte 256 of a file":         sectors,
		"log of the image was replayed": inMemory,
		syscall.EBADMSG.Error():         broken,
		erofs.ErrBounds.Error():         &fakeDisk{},
		"chunks of 4096 bytes":          tooMany,
		"the mount is not read-only":    &fakeDisk{writable: true},
	} {
		_, err := passThrough(d, &Options{}, -1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := passThrough(&fakeDisk{}, &Options{DirectIO: true}, -1); err == nil || !strings.Contains(err.Error(), "direct_io") {
		t.Error(err)
	}
}

// A hugeDisk is a disk of a size that no test has the memory for.
type hugeDisk struct {
	*fakeDisk
	size int64
}

func (d hugeDisk) Size() int64 { return d.size }

// Resolve has a hole behind the first page.
func (d hugeDisk) Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error) {
	if off == 0 {
		dst, _ = d.fakeDisk.Resolve(dst, 0, 4096)
		off, n = 4096, n-4096
	}
	return append(dst, vhdx.Extent{DiskOff: off, Len: n}), nil
}

// A disk that the kernel reads by itself is opened for that alone, and knows no O_DIRECT.
func TestOpenPassed(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	f.kernel.id = 7
	for _, c := range []struct {
		flags int
		want  fuse.Status
	}{
		{syscall.O_RDONLY, fuse.OK},
		{syscall.O_RDONLY | unix.O_DIRECT, fuse.EINVAL},
		{syscall.O_RDWR, fuse.EROFS},
		{syscall.O_WRONLY | unix.O_DIRECT, fuse.EROFS},
		{syscall.O_RDONLY | syscall.O_TRUNC, fuse.EROFS},
	} {
		in, out := fuse.OpenIn{Flags: uint32(c.flags)}, fuse.OpenOut{}
		in.NodeId = diskNode
		got := f.Open(nil, &in, &out)
		if got != c.want || got == fuse.OK && (out.BackingID != 7 || out.OpenFlags&fuse.FOPEN_PASSTHROUGH == 0) {
			t.Errorf("flags %#x: %v, %+v", c.flags, got, out)
		}
	}
}

// If the reader of a plan fails, the plan ends with its error.
func TestPassThroughRefused(t *testing.T) {
	d := &fakeDisk{}
	d.add(4096, imageOf(t, 8192), 0)
	refused := errors.New("refused")
	if _, err := passThrough(d, &Options{Mounter: refusingMounter{err: refused}}, -1); !errors.Is(err, refused) {
		t.Error(err)
	}
	if _, err := passThrough(faultyDisk{d}, &Options{Mounter: refusingMounter{}}, -1); err == nil {
		t.Error("a fault of this program is no error")
	}
}

// Reads are passed through for a FUSE connection alone, and what a server asks for again and again is not done.
func TestMounterPassesThroughOnce(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	m := NewMounter(Options{})
	if _, err := m.PassThrough(KernelFile{Device: int(null.Fd())}); err == nil || !strings.Contains(err.Error(), "no FUSE connection") {
		t.Error(err)
	}
	if _, err := m.PassThrough(KernelFile{}); err != syscall.EALREADY {
		t.Error(err)
	}
}

// A faultyDisk ends each Resolve with a fault.
type faultyDisk struct{ *fakeDisk }

func (faultyDisk) Resolve([]vhdx.Extent, int64, int64) ([]vhdx.Extent, error) { panic("out of order") }

// A refusingMounter only refuses to pass reads through.
type refusingMounter struct {
	Mounter
	err error
}

func (m refusingMounter) PassThrough(KernelFile) (int32, error) { return 0, m.err }
