package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// shortLeases makes the times of leases short while a test runs.
func shortLeases(t *testing.T) {
	useLeases(t, lease.Terms{
		Length: 300 * time.Millisecond, Beat: 50 * time.Millisecond, Grace: 100 * time.Millisecond,
		Watch: 120 * time.Millisecond, Settle: 20 * time.Millisecond,
	})
}

func useLeases(t *testing.T, terms lease.Terms) {
	usual := lease.Usual
	lease.Usual = terms
	t.Cleanup(func() { lease.Usual = usual })
}

// A remoteFile is a file on a storage that several hosts use, as one of them has it. It knows no locks.
type remoteFile struct {
	File
	link sync.RWMutex // held alone while the host is cut off
}

func (f *remoteFile) Host() imagefile.Host { return imagefile.Host{Shared: true, Holes: imagefile.Yes} }
func (f *remoteFile) Close() error         { return nil }
func (f *remoteFile) Unlock() error        { return nil }

func (f *remoteFile) Relock(imagefile.LockKind) (bool, error) { return false, nil }

func (f *remoteFile) ReadFresh(p []byte, off int64) (int, error) { return f.ReadAt(p, off) }

func (f *remoteFile) ReadAt(p []byte, off int64) (int, error) {
	f.link.RLock()
	defer f.link.RUnlock()
	return f.File.ReadAt(p, off)
}

func (f *remoteFile) WriteAt(p []byte, off int64) (int, error) {
	f.link.RLock()
	defer f.link.RUnlock()
	return f.File.WriteAt(p, off)
}

// hostOpens opens the image in f for writing, as another host does.
func hostOpens(t *testing.T, f File) (*Image, *remoteFile) {
	t.Helper()
	r := &remoteFile{File: f}
	im, err := loadWritable(Options{Writable: true}, r)
	if err != nil {
		t.Fatal(err)
	}
	return im, r
}

func guids(t *testing.T, f File) (h ondisk.Header, e lease.Epoch) {
	t.Helper()
	hs, err := readHeaders(f)
	if err != nil {
		t.Fatal(err)
	}
	h = hs.header()
	e, _ = lease.EpochOf(h.FileWriteGUID)
	return h, e
}

// A host that was cut off, and comes back after another one has taken its image over, neither writes nor reads it again; and the
// other one has all that the first one was told is durable.
func TestTakeOver(t *testing.T) {
	shortLeases(t)
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.NotPresent}, {2, ondisk.NotPresent}}})
	a, link := hostOpens(t, img.memFile)
	mine := bytes.Repeat([]byte{0xa1}, 8192)
	for _, off := range []int64{4096, ondisk.MiB} {
		if _, err := a.WriteAt(mine, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}

	link.link.Lock() // and not for a moment
	b, _ := hostOpens(t, img.memFile)
	got := make([]byte, len(mine))
	for _, off := range []int64{4096, ondisk.MiB} {
		if _, err := b.ReadAt(got, off); err != nil || !bytes.Equal(got, mine) {
			t.Errorf("at %#x the second host reads %x..., %v; want what the first has synced", off, got[:2], err)
		}
	}
	theirs := bytes.Repeat([]byte{0xb2}, 8192)
	if _, err := b.WriteAt(theirs, 4096); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	link.link.Unlock()

	changes := img.changes.Load()
	if _, err := a.WriteAt(mine, 4096); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host writes with %v", err)
	}
	if _, err := a.ReadAt(got, 4096); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host reads with %v", err)
	}
	if _, err := a.Extent(2 * ondisk.MiB); !errors.Is(err, ErrTakenOver) { // which no file holds
		t.Errorf("the first host looks for extents with %v", err)
	}
	if err := a.Sync(); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host syncs with %v", err)
	}
	if in := a.Info(); in.Lease == nil || in.Lease.State != LeaseTakenOver || in.Lease.Host == "" {
		t.Errorf("the first host tells of the lease %+v", in.Lease)
	}
	if err := a.Close(); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host closes with %v", err)
	}
	if n := img.changes.Load() - changes; n != 0 {
		t.Errorf("the first host has changed the file %d times", n)
	}
	if _, err := b.ReadAt(got, 4096); err != nil || !bytes.Equal(got, theirs) {
		t.Errorf("the second host reads %x..., %v", got[:2], err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, e := guids(t, img.memFile); !e.Released {
		t.Errorf("after the close the epoch is %+v", e)
	}
	c, _ := hostOpens(t, img.memFile)
	if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, theirs) {
		t.Errorf("the next host reads %x..., %v", got[:2], err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A host that is alive and writes, while the storage has lost its lock, loses the image at one moment: the other one has all
// that it was told is durable, up to the last write.
func TestTakeOverOfLivingHost(t *testing.T) {
	shortLeases(t)
	var blocks []blockSpec
	for i := range int64(40) {
		blocks = append(blocks, blockSpec{i, ondisk.NotPresent})
	}
	img := build(spec{blocks: blocks})
	a, _ := hostOpens(t, img.memFile)
	synced := make(chan byte)
	go func() {
		n := byte(0)
		defer func() { synced <- n }()
		for next := n + 1; next <= 40; next++ {
			if _, err := a.WriteAt([]byte{next}, int64(next-1)*ondisk.MiB); err != nil {
				return
			}
			if err := a.Sync(); err != nil {
				return
			}
			n = next
			time.Sleep(20 * time.Millisecond) // so that it goes on for longer than the other one looks for changes of the headers
		}
	}()
	for { // as long as the headers change, the other one is refused
		im, err := loadWritable(Options{Writable: true}, &remoteFile{File: img.memFile})
		if errors.Is(err, ErrLocked) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		n := <-synced
		for i := range n {
			got := []byte{0}
			if _, err := im.ReadAt(got, int64(i)*ondisk.MiB); err != nil || got[0] != i+1 {
				t.Errorf("of %d writes that were synced, number %d reads %d, %v", n, i+1, got[0], err)
			}
		}
		t.Logf("%d writes were synced", n)
		break
	}
	_ = a.Close()
}

// A host that is alive and does not write loses the image, too.
func TestTakeOverOfIdleHost(t *testing.T) {
	shortLeases(t)
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	a, _ := hostOpens(t, img.memFile)
	b, _ := hostOpens(t, img.memFile)
	if _, err := a.WriteAt([]byte{1}, 0); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host writes with %v", err)
	}
	if _, err := b.WriteAt([]byte{2}, 0); err != nil {
		t.Error(err)
	}
	_ = a.Close()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// A mount alone changes FileWriteGuid, and nothing that a child knows its parent by; the next one need not wait.
func TestLeaseKeepsTheDisk(t *testing.T) {
	shortLeases(t)
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	before, _ := guids(t, img.memFile)
	a, _ := hostOpens(t, img.memFile)
	held, e := guids(t, img.memFile)
	if e == (lease.Epoch{}) || e.Released {
		t.Errorf("while it is open the epoch is %+v", e)
	}
	if held.DataWriteGUID != before.DataWriteGUID || held.LogGUID != before.LogGUID {
		t.Errorf("the headers are %+v; they were %+v", held, before)
	}
	if _, err := a.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := a.Clean(); err != nil {
		t.Fatal(err)
	}
	if h, again := guids(t, img.memFile); again != e || h.FileWriteGUID == held.FileWriteGUID {
		t.Errorf("after a change the epoch is %+v with the GUID %v; it was %+v with %v", again, h.FileWriteGUID, e, held.FileWriteGUID)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, e := guids(t, img.memFile); !e.Released {
		t.Errorf("after the close the epoch is %+v", e)
	}
}

// What changes an image through other ways than a mount takes the lease, too, and releases it.
func TestLeaseOfEachWriter(t *testing.T) {
	shortLeases(t)
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx")
	if err := Create(base, CreateOptions{Size: 64 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	o := Options{Lock: LockLease}
	released := func(path string) {
		t.Helper()
		f, err := imagefile.Open(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, e := guids(t, f); !e.Released {
			t.Errorf("%s: the epoch is %+v", path, e)
		}
	}
	w := o
	w.Writable = true
	im, err := Open(base, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := im.Snapshot(context.Background(), filepath.Base(child), SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	released(base)
	if in := im.Info(); in.Lease == nil || in.Lease.State != LeaseHeld {
		t.Errorf("after the snapshot the lease of the child is %+v", in.Lease)
	}
	if _, err := im.WriteAt([]byte{2}, 4096); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	released(child)
	if _, err := Merge(context.Background(), child, MergeOptions{Open: o}); err != nil {
		t.Fatal(err)
	}
	released(base)
	im, err = Open(base, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.Compact(context.Background(), CompactOptions{}); err != nil {
		t.Error(err)
	}
	if err := im.Grow(context.Background(), 128*ondisk.MiB); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4097)
	if _, err := im.ReadAt(got, 0); err != nil || got[0] != 1 || got[4096] != 2 {
		t.Errorf("the disk reads %d and %d, %v", got[0], got[4096], err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	released(base)
	if rep, err := Check(base, Options{}); err != nil || len(rep.Errors) > 0 {
		t.Errorf("check: %v, %v", rep, err)
	}
}

// A lease of a host that is off can be broken; then the next writer does not wait.
func TestBreakLease(t *testing.T) {
	shortLeases(t)
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	o := Options{Lock: LockLease}
	if r, err := BreakLease(path, o); err != nil || r.Broken {
		t.Errorf("without a lease: %+v, %v", r, err)
	}
	im, err := Open(path, Options{Lock: LockLease, Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := BreakLease(path, o); !errors.Is(err, ErrLocked) {
		t.Errorf("while it is in use: %v", err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	leaveBehind(t, im)
	r, err := BreakLease(path, o)
	if err != nil || !r.Broken || r.Lease == nil || r.Lease.Host == "" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := BreakLease(path, o); err != nil || r.Broken {
		t.Errorf("again: %+v, %v", r, err)
	}
	TellWait = func(why string) { t.Errorf("after that, a writer waits: %s", why) }
	defer func() { TellWait = nil }()
	if im, err = Open(path, Options{Lock: LockLease, Writable: true}); err != nil {
		t.Fatal(err)
	}
	got := []byte{0}
	if _, err := im.ReadAt(got, 0); err != nil || got[0] != 1 {
		t.Errorf("what was synced reads %d, %v", got[0], err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// leaveBehind ends what has an image open as the death of its host does.
func leaveBehind(t *testing.T, im *Image) {
	t.Helper()
	im.writer.stop()
	if err := im.current().close(); err != nil { // the headers name a log, so the lease is not released
		t.Fatal(err)
	}
}

// A repair and its undo take the lease, too: another host that is in loses the image, and the next one need not wait. The undo
// brings back every byte.
func TestLeaseOfRepair(t *testing.T) {
	shortLeases(t)
	for _, shrinks := range []bool{false, true} {
		img := damagedForUndo(shrinks)
		path := chain{img}.writeTo(t, t.TempDir())
		r := mustRepair(t, path, RepairOptions{FreeLeaks: true, Open: Options{Lock: LockLease}})
		f, err := imagefile.Open(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if e, held, err := lease.Holder(f); held || err != nil {
			t.Errorf("after the repair %v has the image, %v", e, err)
		}
		if _, e := guids(t, f); !e.Released {
			t.Errorf("after the repair the epoch is %+v", e)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Lock: LockLease}); err != nil || u.Restored == 0 || !img.sameAs(t, path) {
			t.Errorf("undo: %+v, %v", u, err)
		}
		if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Lock: LockLease}); err != nil || u.Restored != 0 || !img.sameAs(t, path) {
			t.Errorf("undo again: %+v, %v", u, err)
		}
	}
}

// repairAs repairs the image in f as another host does.
func repairAs(t *testing.T, f File, undo undoPlace) error {
	r, err := planOn(t, f).underLease()
	if err != nil {
		return err
	}
	_, err = r.apply(undo)
	return errors.Join(err, r.top.file.Close())
}

// undoAs undoes a repair as another host does.
func undoAs(t *testing.T, f File, u *undoReader) error {
	held, err := u.underLease(f, "image.vhdx", UndoOptions{})
	if err != nil {
		return err
	}
	_, err = u.restore(t.Context(), held, false)
	return errors.Join(err, held.Close())
}

// A cachingFile is a remoteFile of which the host keeps what it has read, as the kernel does, until it is told to forget it.
type cachingFile struct {
	*remoteFile

	mu     sync.Mutex // guards cached
	cached map[int64][]byte
}

func (f *cachingFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := 0; n < len(p); {
		at := off + int64(n)
		page := at &^ (ondisk.PageSize - 1)
		b := f.cached[page]
		if b == nil {
			b = make([]byte, ondisk.PageSize)
			if _, err := f.remoteFile.ReadAt(b, page); err != nil {
				return n, err
			}
			f.cached[page] = b
		}
		n += copy(p[n:], b[at-page:])
	}
	return len(p), nil
}

func (f *cachingFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := off &^ (ondisk.PageSize - 1); page < off+int64(len(p)); page += ondisk.PageSize {
		delete(f.cached, page)
	}
	return f.remoteFile.WriteAt(p, off)
}

func (f *cachingFile) Forget() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.cached)
	return nil
}

// A host that comes in after another one has come and gone, since it has read the image, has what that one wrote.
func TestLeaseForgetsWhatWasCached(t *testing.T) {
	shortLeases(t)
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.NotPresent}}})
	op := newOpener(Options{Writable: true})
	l, err := loadFiles(op, &cachingFile{remoteFile: &remoteFile{File: img.memFile}, cached: make(map[int64][]byte)})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := hostOpens(t, img.memFile)
	for _, off := range []int64{0, ondisk.MiB} {
		if _, err := a.WriteAt([]byte("other"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(op, l)
	if err != nil {
		t.Fatal(err)
	}
	b := &Image{own: w.own, writer: w}
	b.close = b.closeAll
	got := make([]byte, 5)
	for _, off := range []int64{0, ondisk.MiB} {
		if _, err := b.ReadAt(got, off); err != nil || string(got) != "other" {
			t.Errorf("at %#x it reads %q, %v", off, got, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// blindLeases makes the times of leases short, and has no host look by itself whether it still has its image: it learns of that
// as one does that was asleep.
func blindLeases(t *testing.T) {
	useLeases(t, lease.Terms{
		Length: 100 * time.Millisecond, Beat: time.Hour, Grace: 100 * time.Millisecond,
		Watch: 30 * time.Millisecond, Settle: 20 * time.Millisecond,
	})
}

// otherHost is another host, which can take the image at path over.
func otherHost(t *testing.T, path string) (takeOver func()) {
	t.Helper()
	f, err := imagefile.Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func() {
		t.Helper()
		b, err := lease.Enter(&remoteFile{File: f}, lease.Options{Host: "other"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
	}
}

// baseAndChild makes a disk and an empty child of it in a new directory.
func baseAndChild(t *testing.T) (dir, base, child string) {
	t.Helper()
	dir = t.TempDir()
	base, child = filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx")
	if err := Create(base, CreateOptions{Size: 64 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	if err := Create(child, CreateOptions{Parent: base}); err != nil {
		t.Fatal(err)
	}
	return dir, base, child
}

func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A host that loses its image while it makes a snapshot gives no name away that is the other host's now. If it has done so
// before, the disk ends there: what is written later would be lost, since the child has no parent any more.
func TestTakeOverInSnapshot(t *testing.T) {
	blindLeases(t)
	for _, c := range []struct {
		keepName bool
		step     string
		named    bool // before
	}{
		{false, "begin", false}, {false, "complete", false}, {false, "commit", true},
		{true, "link", false}, {true, "begin", false}, {true, "complete", false}, {true, "commit", false}, {true, "rename", true},
	} {
		t.Run(fmt.Sprintf("%t %s", c.keepName, c.step), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.vhdx")
			if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB}); err != nil {
				t.Fatal(err)
			}
			im, err := Open(path, Options{Lock: LockLease, Writable: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := im.WriteAt([]byte{1}, 0); err != nil {
				t.Fatal(err)
			}
			takeOver := otherHost(t, path)
			o := SnapshotOptions{KeepName: c.keepName, step: func(name string) {
				if name == c.step {
					takeOver()
				}
			}}
			if _, err := im.Snapshot(t.Context(), "b.vhdx", o); !errors.Is(err, ErrTakenOver) {
				t.Errorf("the snapshot ends with %v", err)
			}
			if names := filesIn(t, dir); !c.named && (len(names) != 1 || names[0] != "a.vhdx") {
				t.Errorf("the directory has %q", names)
			}
			if _, err := im.WriteAt([]byte{2}, 0); !errors.Is(err, ErrTakenOver) {
				t.Errorf("a write: %v", err)
			}
			if _, err := im.ReadAt([]byte{0}, 0); !errors.Is(err, ErrTakenOver) {
				t.Errorf("a read: %v", err)
			}
			if in := im.Info(); in.Lease == nil || in.Lease.State != LeaseTakenOver || in.Lease.Host != "other" {
				t.Errorf("the lease is %+v", in.Lease)
			}
			if err := im.Close(); err != nil && !errors.Is(err, ErrTakenOver) {
				t.Error(err)
			}
		})
	}
}

// A suspendedFile is a remoteFile of a host that is suspended after one of its changes, until another host has the image.
type suspendedFile struct {
	*remoteFile
	changes, at int // so many were made; after which it is suspended
	asleep      func()
}

func (f *suspendedFile) changed(n int, err error) (int, error) {
	if f.changes++; f.changes == f.at {
		f.asleep()
	}
	return n, err
}

func (f *suspendedFile) WriteAt(p []byte, off int64) (int, error) {
	return f.changed(f.remoteFile.WriteAt(p, off))
}

func (f *suspendedFile) Sync() error {
	_, err := f.changed(0, f.remoteFile.Sync())
	return err
}

func (f *suspendedFile) Truncate(size int64) error {
	_, err := f.changed(0, f.remoteFile.Truncate(size))
	return err
}

func (f *suspendedFile) PunchHole(off, n int64) error {
	_, err := f.changed(0, f.remoteFile.PunchHole(off, n))
	return err
}

// A host that is suspended while it compacts or resizes a disk in use, wherever that is, changes nothing any more once another one
// has the image; and that one has what was synced.
func TestTakeOverOfReshapedImage(t *testing.T) {
	blindLeases(t)
	const blocks = 8
	shapes := map[string]func(im *Image) error{
		"compact": func(im *Image) error { _, err := im.Compact(t.Context(), CompactOptions{}); return err },
		"grow":    func(im *Image) error { return im.Grow(t.Context(), 4096*ondisk.MiB) },
	}
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, 4096) }
	// run has a host suspended after so many changes, and returns how many it has made in all.
	run := func(t *testing.T, shape func(*Image) error, at int) int {
		var all []blockSpec
		for i := range int64(blocks) {
			all = append(all, blockSpec{i, ondisk.NotPresent})
		}
		img := build(spec{diskSize: blocks * ondisk.MiB, blocks: all})
		f := &suspendedFile{remoteFile: &remoteFile{File: img.memFile}}
		a, err := loadWritable(Options{Writable: true}, f)
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			if _, err := a.WriteAt(content(i), int64(i)*ondisk.MiB); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Discard(0, blocks/2*ondisk.MiB); err != nil { // the others can move to the front
			t.Fatal(err)
		}
		if err := a.Sync(); err != nil {
			t.Fatal(err)
		}
		a.writer.stop() // the changes are counted one by one, and the worker would make some beside them
		var b *Image
		var changes int64
		f.changes, f.at, f.asleep = 0, at, func() {
			b, _ = hostOpens(t, img.memFile)
			for i := range blocks {
				want, got := content(i), make([]byte, 4096)
				if i < blocks/2 {
					clear(want)
				}
				if _, err := b.ReadAt(got, int64(i)*ondisk.MiB); err != nil || !bytes.Equal(got, want) {
					t.Errorf("the other host reads %d of block %d, %v; want %d", got[0], i, err, want[0])
				}
				if _, err := b.WriteAt(content(i+blocks), int64(i)*ondisk.MiB); err != nil {
					t.Error(err)
				}
			}
			if err := b.Sync(); err != nil {
				t.Error(err)
			}
			changes = img.changes.Load()
		}
		err = shape(a)
		if b == nil {
			if err != nil {
				t.Errorf("without another host: %v", err)
			}
			n := f.changes
			f.at = -1 // the number of changes differs by a few, and the close may make the one that is asked for
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			return n
		}
		if f.changes > at && err == nil || err != nil && !errors.Is(err, ErrTakenOver) {
			t.Errorf("it ends with %v", err)
		}
		if _, err := a.WriteAt(content(0), 0); !errors.Is(err, ErrTakenOver) {
			t.Errorf("then a write: %v", err)
		}
		if err := a.Close(); !errors.Is(err, ErrTakenOver) {
			t.Errorf("then the close: %v", err)
		}
		if n := img.changes.Load() - changes; n != 0 {
			t.Errorf("it has changed the file %d times", n)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		c, err := loadReadOnly(img.memFile)
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			got := make([]byte, 4096)
			if _, err := c.ReadAt(got, int64(i)*ondisk.MiB); err != nil || !bytes.Equal(got, content(i+blocks)) {
				t.Errorf("in the end block %d reads %d, %v", i, got[0], err)
			}
		}
		return f.changes
	}
	for name, shape := range shapes {
		n := run(t, shape, -1)
		if n < 8 {
			t.Errorf("%s: %d changes only", name, n)
		}
		step := 1
		if testing.Short() {
			step = 5
		}
		for at := 1; at <= n; at += step {
			t.Run(fmt.Sprintf("%s %d", name, at), func(t *testing.T) {
				t.Parallel()
				run(t, shape, at)
			})
		}
	}
}

// A host that loses an image, or its parent, at the end of a merge neither removes it nor gives its name away.
func TestTakeOverAtTheEndOfMerge(t *testing.T) {
	blindLeases(t)
	for _, c := range []struct {
		lost     string
		keepName bool
	}{{"child.vhdx", false}, {"child.vhdx", true}, {"base.vhdx", true}} {
		t.Run(fmt.Sprintf("%s %t", c.lost, c.keepName), func(t *testing.T) {
			dir, _, child := baseAndChild(t)
			run, closeAll, err := openRun(child, Options{Lock: LockLease}, 2)
			if err != nil {
				t.Fatal(err)
			}
			otherHost(t, filepath.Join(dir, c.lost))()
			m := &merge{MergeOptions: MergeOptions{Delete: true, KeepName: c.keepName}, ctx: t.Context(), run: run}
			if err := m.tidy(); !errors.Is(err, ErrTakenOver) {
				t.Errorf("the merge ends with %v", err)
			}
			if names := filesIn(t, dir); len(names) != 2 {
				t.Errorf("the directory has %q", names)
			}
			if err := closeAll(); err != nil && !errors.Is(err, ErrTakenOver) {
				t.Error(err)
			}
		})
	}
}

// A repair takes the image from a host that is in, with what that has synced until it noticed.
func TestRepairTakesOver(t *testing.T) {
	shortLeases(t)
	img := damagedForUndo(true)
	a, link := hostOpens(t, img.memFile)
	if _, err := a.WriteAt([]byte("synced"), 100); err != nil {
		t.Fatal(err)
	}
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}
	link.link.Lock()
	undo := &undoDouble{}
	err := repairAs(t, &remoteFile{File: img.memFile}, undo)
	link.link.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteAt([]byte("late"), 100); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the first host writes with %v", err)
	}
	_ = a.Close()
	b, _ := hostOpens(t, img.memFile)
	got := make([]byte, 6)
	if _, err := b.ReadAt(got, 100); err != nil || string(got) != "synced" {
		t.Errorf("after the repair the disk reads %q, %v", got, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// A host that repairs an image and is cut off stops before its next change once another one has taken the image over.
func TestRepairIsCutOff(t *testing.T) {
	shortLeases(t)
	img := damagedForUndo(true)
	r, err := planOn(t, &remoteFile{File: img.memFile}).underLease()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := hostOpens(t, img.memFile)
	before := img.changes.Load()
	if _, err := r.apply(&undoDouble{}); !errors.Is(err, ErrTakenOver) {
		t.Errorf("the repair ends with %v", err)
	}
	if n := img.changes.Load() - before; n != 0 {
		t.Errorf("it has changed the image %d times", n)
	}
	_ = r.top.file.Close()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Wherever the power is cut in a repair with a lease, and in its undo, the undo file restores the image to the byte.
func TestPowerCutInRepairUnderLease(t *testing.T) {
	useLeases(t, lease.Terms{
		Length: 150 * time.Millisecond, Beat: 40 * time.Millisecond, Grace: 20 * time.Millisecond,
		Watch: 30 * time.Millisecond, Settle: 10 * time.Millisecond,
	})
	for name, img := range crashImages() {
		if testing.Short() && name != "grows" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			cuts := 0
			err := untilDone(1, 1, func(cut int) (bool, error) {
				c := &circuit{cut: cut}
				disk := host{}.disk(img.memFile, img.size)
				undo := &undoDouble{c: c}
				err := repairAs(t, &remoteFile{File: wiredFile{disk, c}}, undo)
				done := c.powered()
				if (err == nil) != done {
					return done, fmt.Errorf("cut %d: %w", cut, err)
				}
				cuts++
				if !undo.there {
					return done, nil
				}
				if err := undoneAfterCuts(t, img, disk, undo, rng); err != nil {
					return done, fmt.Errorf("cut %d: %w", cut, err)
				}
				return done, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if cuts < 10 && !testing.Short() {
				t.Errorf("%d cuts only", cuts)
			}
		})
	}
}

// undoneAfterCuts undoes a repair of img after a power cut, with another one, and returns an error if it is not there again then.
func undoneAfterCuts(t *testing.T, img *image, disk *powercut.Disk, undo *undoDouble, rng *rand.Rand) error {
	left := disk.AfterCut(rng)
	u, _, err := undo.open()
	if err != nil {
		return err
	}
	left.CutAt(1 + rng.IntN(14))
	if err := undoAs(t, &remoteFile{File: left}, u); err != nil && !errors.Is(err, powercut.ErrCut) {
		return fmt.Errorf("undo: %w", err)
	}
	left = left.AfterCut(rng)
	if err := undoAs(t, &remoteFile{File: left}, u); err != nil {
		return fmt.Errorf("undo again: %w", err)
	}
	if !sameBytes(left, img.memFile) {
		return errors.New("the undo file did not bring back what was there")
	}
	return nil
}

// A snapshot of an image whose writer has not closed it keeps that writer off first.
func TestLeaseOfSnapshot(t *testing.T) {
	shortLeases(t)
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	f, err := imagefile.Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	other, err := lease.Hold(f, lease.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Snapshot(t.Context(), path, "", SnapshotOptions{Open: Options{Lock: LockLease}}); err != nil {
		t.Fatal(err)
	}
	if f, err = imagefile.Open(path, 0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if e, held, err := lease.Holder(f); held || err != nil {
		t.Errorf("%v has the image, %v", e, err)
	}
}

// A mount that only reads an image, or a parent, tells that a host has not closed it.
func TestReaderIsToldOfWriters(t *testing.T) {
	shortLeases(t)
	_, base, child := baseAndChild(t)
	told := func(path string, o Options) string {
		t.Helper()
		var text bytes.Buffer
		log := logrus.New()
		log.SetOutput(&text)
		o.Lock, o.Log = LockLease, log
		im, err := Open(path, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	for path, o := range map[string]Options{base: {}, child: {Writable: true}} {
		if text := told(path, o); text != "" {
			t.Errorf("%s: before a host had it: %s", path, text)
		}
	}
	f, err := imagefile.Open(base, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	other, err := lease.Hold(f, lease.Options{Host: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for path, o := range map[string]Options{base: {}, child: {Writable: true}} {
		if text := told(path, o); !strings.Contains(text, "base.vhdx was in use by another host (other, since ") {
			t.Errorf("%s: it tells %q", path, text)
		}
	}
}
