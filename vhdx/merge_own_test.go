package vhdx

import (
	"bytes"
	"context"
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// An ownMerge is a disk in use, with one parent, that a test merges itself.
type ownMerge struct {
	t     *testing.T
	im    *Image
	m     *liveMerge
	files map[string]File
}

// newOwnMerge opens a chain of two images in memory, in files that wrap makes, the child's first.
func newOwnMerge(t *testing.T, child, parent spec, wrap func(i int, f File) File) *ownMerge {
	t.Helper()
	c := mergeChain(child, parent)
	f := dirOf(len(c))
	host := &cutDir{c: &circuit{cut: math.MaxInt}, files: map[string]File{}, gone: map[string]bool{}}
	for i, of := range c {
		file := wrap(i, of.memFile)
		f.files[f.names[i]], host.files["/directory/"+f.names[i]] = file, file
	}
	op := newOpener(Options{Writable: true})
	top, err := f.layer(op, f.names[0])
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(op, top)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	im := &Image{own: w.own, writer: w}
	o := MergeOptions{Delete: true, Phase: func(string, int64) {}, Progress: func(int64) {}, Shared: func(int64) {}}
	m := &liveMerge{merge: merge{MergeOptions: o, ctx: context.Background()}, im: im, w: w, files: host, lastBytes: lastBytes}
	if err := m.plan("/directory/" + f.names[0]); err != nil {
		t.Fatal(err)
	}
	return &ownMerge{t, im, m, f.files}
}

func (o *ownMerge) write(b byte, off, n int64) {
	o.t.Helper()
	if _, err := o.im.WriteAt(bytes.Repeat([]byte{b}, int(n)), off); err != nil {
		o.t.Fatal(err)
	}
}

// The copy of a block that was all zeros is made without its bytes. What was written to it since it was looked at, but before its
// parts were forgotten, is copied later.
func TestMergeOfZerosThatAreWritten(t *testing.T) {
	const block = 4 * ondisk.MiB
	s := spec{diskSize: 2 * block, blockSize: block, blocks: []blockSpec{{0, ondisk.Zero}}}
	o := newOwnMerge(t, s, spec{diskSize: s.diskSize, blockSize: block}, func(_ int, f File) File { return f })
	m := o.m
	if err := m.open(); err != nil {
		t.Fatal(err)
	}
	into := m.run[1]
	m.opened[into].frozen.child = o.im.current
	m.changes, m.buf = newFollower(o.im.Size()), make([]byte, ownPiece)
	m.w.follow(m.changes)
	written := false
	alone := func(off int64, do func() error) error {
		if !written {
			written = true
			// The write came before the parts were forgotten.
			o.write(7, 3*ondisk.MiB, 4096)
			m.changes.take(3 * ondisk.MiB)
		}
		return m.alone(off, do)
	}
	if _, _, err := m.copyPart(into, 0, alone); err != nil {
		t.Fatal(err)
	}
	if err := m.copyChanged(into, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := into.ReadAt(got, 3*ondisk.MiB); err != nil || got[0] != 7 {
		t.Errorf("the parent has %d where the disk has 7 (%v)", got[0], err)
	}
	if err := m.end(); err != nil {
		t.Fatal(err)
	}
}

// What a merge changes in a file that is open twice goes to the descriptor that may write. A File must not get another method that
// changes something without a thought of this.
func TestFrozenFileWritesToTheOther(t *testing.T) {
	changing := []string{"WriteAt", "Truncate", "Sync", "PunchHole", "Allocate", "ZeroRange", "Clone", "Close"}
	other := []string{
		"ReadAt", "Size", "NextData", "NextHole", "Host", "Sparse", "IsDevice", "Fd", "Identity", "PathNow", "Named", "Lock", "Relock",
		"Unlock", "ReadFresh", "Forget", "Unshare", "Share",
	}
	if n := reflect.TypeFor[File]().NumMethod(); n != len(changing)+len(other) {
		t.Errorf("a File has %d methods, and %d are known here", n, len(changing)+len(other))
	}
	for _, name := range changing {
		called := ""
		read := calledFile{File: newMemFile(0), called: func(n string) { called = "the one for reading" }}
		write := calledFile{File: newMemFile(0), called: func(n string) { called = n }}
		f := reflect.ValueOf(&frozenFile{read, write}).MethodByName(name)
		args := make([]reflect.Value, f.Type().NumIn())
		for i := range args {
			args[i] = reflect.Zero(f.Type().In(i))
		}
		f.Call(args)
		if called != name && name != "Close" {
			t.Errorf("%s goes to %q", name, called)
		}
	}
}

// A calledFile tells which of the methods that change something was called.
type calledFile struct {
	File
	called func(name string)
}

var errCalled = errors.New("called")

func (f calledFile) WriteAt(p []byte, off int64) (int, error) {
	f.called("WriteAt")
	return 0, errCalled
}
func (f calledFile) Truncate(size int64) error    { f.called("Truncate"); return errCalled }
func (f calledFile) Sync() error                  { f.called("Sync"); return errCalled }
func (f calledFile) PunchHole(off, n int64) error { f.called("PunchHole"); return errCalled }
func (f calledFile) Allocate(off, n int64) error  { f.called("Allocate"); return errCalled }
func (f calledFile) ZeroRange(off, n int64) error { f.called("ZeroRange"); return errCalled }
func (f calledFile) Clone(off int64, src File, at, n int64) error {
	f.called("Clone")
	return errCalled
}

// After the change-over the writer knows of the parent's file whether it may have holes.
func TestMergeIntoAFileWithoutHoles(t *testing.T) {
	s := spec{diskSize: 4 * ondisk.MiB}
	punched := new(punched)
	o := newOwnMerge(t, s, s, func(i int, f File) File {
		if i == 0 {
			return noAlloc{f, true}
		}
		punched.noAlloc = noAlloc{f, false}
		return punched
	})
	o.write(5, 0, 2*ondisk.MiB)
	if err := o.m.do(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		o.write(6, 0, 4*ondisk.MiB)
		if err := o.im.Zero(0, ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		if err := o.im.Clean(); err != nil {
			t.Fatal(err)
		}
	}
	if holes := punched.take(); len(holes) > 0 {
		t.Errorf("holes %v in a file that may have none", holes)
	}
}

// Space that the merge gave up in the parent, and that a read might still use by then, is given back to the one that writes the
// parent from then on.
func TestMergeKeepsFreedSpace(t *testing.T) {
	notShort(t, "the merge waits for a read, as long as it has patience")
	s := spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}
	o := newOwnMerge(t, spec{diskSize: s.diskSize, blocks: []blockSpec{{0, ondisk.Zero}, {1, ondisk.Zero}}}, s, func(_ int, f File) File { return f })
	before := o.im.current()
	o.m.Phase = func(string, int64) {
		reading := o.im.BeginRead()
		go func() { // it ends while the change-over waits for it
			for o.im.current() == before {
				time.Sleep(time.Millisecond)
			}
			o.im.EndRead(reading)
		}()
	}
	if err := o.m.do(); err != nil {
		t.Fatal(err)
	}
	fresh := newLayer(o.im.current().file, "again", o.im.current().cache)
	if err := fresh.load(); err != nil {
		t.Fatal(err)
	}
	free := func() int64 {
		a := &o.im.writer.space
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.used.free()
	}
	for deadline := time.Now().Add(time.Minute); free() != fresh.space.free(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are free in memory, and %d in the file", free()/ondisk.MiB, fresh.space.free()/ondisk.MiB)
		}
	}
}
