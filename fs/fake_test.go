package fs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// fakeDisk is a disk whose extents the test lays out. want is its content. What would change it is recorded, and
// not done.
type fakeDisk struct {
	extents   []vhdx.Extent
	want      []byte
	info      vhdx.Info
	way       safefile.Way
	err       error // of every Resolve and Seek, when set
	uncounted bool
	writable  bool

	seekFault bool          // SeekData and SeekHole panic
	infos     atomic.Int64  // calls of Info
	reading   atomic.Int64  // reads that have not ended
	snapshots chan struct{} // one for each Snapshot that may go on; nil for all

	mu    sync.Mutex       // guards what follows
	calls []string         // of the methods that change something or make it durable
	fail  map[string]error // by method: what it returns
}

// called records a call and returns its error.
func (d *fakeDisk) called(method string, args []any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, method+fmt.Sprint(args))
	return d.fail[method]
}

// heard reports whether a call is among those since the last take.
func (d *fakeDisk) heard(call string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.calls, call)
}

// take returns what was called since the last take.
func (d *fakeDisk) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := strings.Join(d.calls, " ")
	d.calls = nil
	return calls
}

// epoch is what BeginRead of a fakeDisk returns.
const epoch = 42

func (d *fakeDisk) InMemory(off, n int64) bool { return true }

func (d *fakeDisk) BeginRead() uint64 {
	d.reading.Add(1)
	return epoch
}

func (d *fakeDisk) EndRead(e uint64) {
	if e != epoch {
		panic("EndRead with something else than BeginRead returned")
	}
	d.reading.Add(-1)
}

func (d *fakeDisk) Writable() bool { return d.writable }

func (d *fakeDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.called("write", []any{off, string(p)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *fakeDisk) Zero(off, n int64) error     { return d.called("zero", []any{off, n}) }
func (d *fakeDisk) Discard(off, n int64) error  { return d.called("discard", []any{off, n}) }
func (d *fakeDisk) Allocate(off, n int64) error { return d.called("allocate", []any{off, n}) }
func (d *fakeDisk) Sync() error                 { return d.called("sync", nil) }
func (d *fakeDisk) Clean() error                { return d.called("clean", nil) }

func (d *fakeDisk) Grow(_ context.Context, size int64) error {
	err := d.called("grow", []any{size})
	if err == nil {
		d.add(size-d.Size(), nil, 0)
	}
	return err
}

func (d *fakeDisk) Merge(ctx context.Context, child string, o vhdx.MergeOptions) (*vhdx.MergeResult, error) {
	if child == "" {
		return nil, fmt.Errorf("no child: %w", vhdx.ErrOptions)
	}
	o.Phase("merging", 10)
	o.Progress(3)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (d *fakeDisk) Compact(ctx context.Context, o vhdx.CompactOptions) (*vhdx.CompactResult, error) {
	o.Phase("working", 10)
	o.Progress(3)
	<-ctx.Done()
	return &vhdx.CompactResult{Moved: 3}, context.Cause(ctx)
}

func (d *fakeDisk) Path() string { return d.info.Path }

func (d *fakeDisk) File(int) (*vhdx.ImageFile, error) {
	fi, err := os.Stat(d.info.Path)
	return &vhdx.ImageFile{Path: d.info.Path, Info: fi}, err
}

func (d *fakeDisk) Access() ([]safefile.Access, error) {
	f, err := os.Open(d.info.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a, err := safefile.AccessOf(f)
	return []safefile.Access{a}, err
}

func (d *fakeDisk) Way(int) (safefile.Way, error) { return d.way, nil }

// Snapshot waits until a test lets it go on.
func (d *fakeDisk) Snapshot(_ context.Context, name string, o vhdx.SnapshotOptions) (*vhdx.SnapshotResult, error) {
	if d.snapshots != nil {
		<-d.snapshots
	}
	if err := d.called("snapshot", []any{name, o.KeepName, o.ParentPaths}); err != nil {
		return nil, err
	}
	return &vhdx.SnapshotResult{Frozen: d.info.Path, Child: name}, nil
}

// add appends n bytes that file holds from fileOff on, or zeros where file is nil.
func (d *fakeDisk) add(n int64, file imagefile.File, fileOff int64) {
	d.extents = append(d.extents, vhdx.Extent{DiskOff: d.Size(), Len: n, File: file, FileOff: fileOff})
	p := make([]byte, n)
	if file != nil {
		if _, err := file.ReadAt(p, fileOff); err != nil && err != io.EOF {
			panic(err)
		}
	}
	d.want = append(d.want, p...)
}

func (d *fakeDisk) Size() int64 { return int64(len(d.want)) }

func (d *fakeDisk) AllocatedBytes() (n int64) {
	for _, e := range d.extents {
		if e.File != nil {
			n += e.Len
		}
	}
	return n
}

func (d *fakeDisk) Counted() bool { return !d.uncounted }

func (d *fakeDisk) Validated() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fail["Validated"]
}

func (d *fakeDisk) Info() *vhdx.Info  { d.infos.Add(1); return &d.info }
func (d *fakeDisk) SectorSize() int64 { return d.info.LogicalSectorSize }

func (d *fakeDisk) Stats() vhdx.Stats { return vhdx.Stats{CacheHits: 5, DirtyPages: 2} }

func (d *fakeDisk) Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error) {
	if d.err != nil {
		return dst, d.err
	}
	for _, e := range d.extents {
		from, to := max(off, e.DiskOff), min(off+n, e.End())
		if from >= to {
			continue
		}
		e.FileOff += from - e.DiskOff
		e.DiskOff, e.Len = from, to-from
		dst = append(dst, e)
	}
	return dst, nil
}

func (d *fakeDisk) seek(off int64, data bool) (int64, error) {
	if d.seekFault {
		panic("out of order")
	}
	if d.err != nil {
		return 0, d.err
	}
	for _, e := range d.extents {
		if e.End() > off && (e.File != nil) == data {
			return max(off, e.DiskOff), nil
		}
	}
	if data {
		return 0, io.EOF
	}
	return d.Size(), nil
}

func (d *fakeDisk) SeekData(off int64) (int64, error) { return d.seek(off, true) }
func (d *fakeDisk) SeekHole(off int64) (int64, error) { return d.seek(off, false) }

// memory is a file without a descriptor, for reading.
type memory struct {
	imagefile.Plain
	*bytes.Reader
}

func newMemory(b []byte) memory { return memory{Reader: bytes.NewReader(b)} }

func (m memory) WriteAt([]byte, int64) (int, error) { return 0, syscall.EBADF }
func (m memory) Truncate(int64) error               { return syscall.EBADF }
func (m memory) Sync() error                        { return nil }
func (m memory) Size() (int64, error)               { return m.Reader.Size(), nil }
func (m memory) Close() error                       { return nil }

func randomBytes(n int) []byte {
	p := make([]byte, n)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// newFakeDisk has data of a file with a descriptor and of one without, long and short holes, and a
// length that is no multiple of a page.
func newFakeDisk(t testing.TB) *fakeDisk {
	t.Helper()
	data := randomBytes(3 << 20)
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, data, 0o640); err != nil {
		t.Fatal(err)
	}
	file, err := imagefile.Open(name, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	mem := newMemory(data)

	d := &fakeDisk{info: vhdx.Info{
		Path: name, Type: vhdx.Dynamic, BlockSize: 1 << 20, LogicalSectorSize: 512, PhysicalSectorSize: 4096,
		Creator: "a test", DiskID: uuid.UUID{1}, CurrentHeader: 2, Log: vhdx.LogInfo{State: vhdx.LogClean},
	}}
	d.info.Headers[1].DataWriteGUID = uuid.UUID{2}
	d.info.Headers[1].FileWriteGUID = uuid.UUID{3}
	d.add(1<<20, file, 1<<20)
	d.add(1<<20, nil, 0)
	for i := range int64(64) { // alternating sectors, as a sector bitmap gives
		d.add(512, mem, i*4096)
		d.add(512, nil, 0)
	}
	d.add(64<<10, mem, 3)
	d.add(4096, nil, 0)
	d.add(1<<20, file, 2<<20)
	d.add(512*3, nil, 0)
	d.info.DiskSize = d.Size()
	return d
}

func newTestFileSystem(t testing.TB, d Disk, o Options) *fileSystem {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet()
	}
	o.Image = d.Info().Path
	return newFileSystem(d, &o, imageAttr{uid: 7, gid: 8, perm: 0o640})
}

func quiet() *logrus.Logger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// readAll returns what a READ request answers.
func readAll(t testing.TB, f *fileSystem, off uint64, n int) ([]byte, fuse.Status) {
	t.Helper()
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: off, Size: uint32(n)}
	buf := bytes.Repeat([]byte{0xaa}, n)
	res, status := f.read(in, buf, func() {})
	if !status.Ok() {
		return nil, status
	}
	defer res.Done()
	got, err := res.bytes(buf)
	if err != nil || len(got) != res.size {
		t.Fatalf("read of %d at %d: %d bytes of %d, %v", n, off, len(got), res.size, err)
	}
	return bytes.Clone(got), fuse.OK
}
