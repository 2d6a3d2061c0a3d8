package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTest opens a new file that holds content, as often as files are asked for.
func openTest(t *testing.T, content []byte, n int) (path string, files []*hostFile) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for range n {
		f, err := Open(path, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f.(*hostFile))
	}
	return path, files
}

// What cannot be done is reported: a change that failed and counts as done loses data.
func TestClosedFile(t *testing.T) {
	_, files := openTest(t, make([]byte, 1<<20), 2)
	f, other := files[0], files[1]
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"Size":      func() error { _, err := f.Size(); return err },
		"Sync":      f.Sync,
		"PunchHole": func() error { return f.PunchHole(0, 4096) },
		"Allocate":  func() error { return f.Allocate(0, 4096) },
		"ZeroRange": func() error { return f.ZeroRange(0, 4096) },
		"Clone":     func() error { return f.Clone(0, other, 0, 4096) },
		"Truncate":  func() error { return f.Truncate(0) },
		"NextData":  func() error { _, err := f.NextData(0); return err },
		"Named":     func() error { _, err := f.Named("other"); return err },
		"Identity":  func() error { _, err := f.Identity(); return err },
		"Forget":    f.Forget,
		"ReadFresh": func() error { _, err := f.ReadFresh(make([]byte, 4096), 0); return err },
		"Lock":      func() error { return f.Lock(LockOn, Exclusive) },
		"Relock":    func() error { _, err := f.Relock(Exclusive); return err },
		"Unshare":   func() error { return f.Unshare(LockOn) },
		"Share":     f.Share,
		"Unlock":    f.Unlock,
	} {
		if do() == nil {
			t.Errorf("%s of a closed file succeeds", name)
		}
	}
	if p := f.PathNow(); p != "" {
		t.Errorf("the path of a closed file is %q", p)
	}
	if h := f.findHost(); h != (Host{Holes: No}) {
		t.Errorf("the host of a closed file is %+v", h)
	}
}

func TestSame(t *testing.T) {
	_, a := openTest(t, nil, 2)
	_, b := openTest(t, nil, 1)
	for _, tc := range []struct {
		name string
		a, b File
		want bool
	}{
		{"opened twice", a[0], a[1], true},
		{"two files", a[0], b[0], false},
		{"one in memory", &inMemory{}, a[0], false},
		{"one on disk", a[0], &inMemory{}, false},
	} {
		if got := Same(tc.a, tc.b); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	x := &inMemory{}
	if !Same(x, x) || Same(x, &inMemory{n: 1}) {
		t.Error("files in memory are compared wrongly")
	}
	a[1].Close()
	if Same(a[0], a[1]) || Same(a[1], a[0]) || Same(a[1], a[1]) {
		t.Error("a closed file is the same as one")
	}
}

// inMemory is a file without an identity.
type inMemory struct {
	Plain
	bytes.Reader
	n int
}

func (*inMemory) WriteAt([]byte, int64) (int, error) { return 0, nil }
func (*inMemory) Close() error                       { return nil }
func (*inMemory) Size() (int64, error)               { return 0, nil }
func (*inMemory) Truncate(int64) error               { return nil }
func (*inMemory) Sync() error                        { return nil }

// Errors say that something cannot be done at all, or that it failed. What failed must not count as what is not there.
func TestKindsOfErrors(t *testing.T) {
	for err, want := range map[error]struct{ unsupported, noLocks bool }{
		errors.ErrUnsupported: {true, false},
		unix.EOPNOTSUPP:       {true, true},
		unix.ENOSYS:           {true, true},
		unix.EINVAL:           {true, true},
		unix.ENOLCK:           {false, true},
		unix.EIO:              {false, false},
		unix.ENOSPC:           {false, false},
		unix.EAGAIN:           {false, false},
		unix.EPERM:            {false, false},
	} {
		wrapped := &os.PathError{Op: "x", Path: "y", Err: err}
		if IsUnsupported(wrapped) != want.unsupported || noLocks(wrapped) != want.noLocks {
			t.Errorf("%v: %v %v, want %v", err, IsUnsupported(wrapped), noLocks(wrapped), want)
		}
	}
}

// Holes are believed only where it is known that they are none that lose data.
func TestHolesOfAHost(t *testing.T) {
	_, files := openTest(t, nil, 1)
	f := files[0]
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	for fact, want := range map[Fact][4]int64{ // the data and the hole after byte 0, those after the last data
		Yes:     {1 << 20, 0, -1, 2<<20 + 4096},
		Unknown: {0, math.MaxInt64, 2<<20 + 4096, math.MaxInt64},
		No:      {0, math.MaxInt64, 2<<20 + 4096, math.MaxInt64},
	} {
		f.host = func() Host { return Host{FindsHoles: fact} }
		var got [4]int64
		for i, off := range []int64{0, 2<<20 + 4096} {
			data, err := f.NextData(off)
			if errors.Is(err, io.EOF) {
				data = -1
			} else if err != nil {
				t.Error(err)
			}
			hole, err := f.NextHole(off)
			if err != nil {
				t.Error(err)
			}
			got[2*i], got[2*i+1] = data, hole
		}
		if got != want {
			t.Errorf("%v: %v, want %v", fact, got, want)
		}
		for _, off := range []int64{3 << 20, 4 << 20} {
			if data, err := f.NextData(off); !errors.Is(err, io.EOF) {
				t.Errorf("%v: data after the end at %d: %d, %v", fact, off, data, err)
			}
		}
		if data, err := f.NextData(3<<20 - 1); fact != Yes && (data != 3<<20-1 || err != nil) {
			t.Errorf("%v: the last byte: %d, %v", fact, data, err)
		}
	}
	for fact, want := range map[Fact]bool{Yes: true, Unknown: true, No: false} {
		if f.host = func() Host { return Host{Holes: fact} }; f.Sparse() != want {
			t.Errorf("holes %v: sparse is %v", fact, f.Sparse())
		}
	}
}

// What another descriptor has written is read, with O_DIRECT and without it, and less at the end of the file.
func TestReadFresh(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 8192/16)
	content = append(content, 7)
	path, files := openTest(t, content, 2)
	f, without := files[0], files[1]
	without.freshOnce.Do(func() {}) // it has no O_DIRECT
	refuses, err := Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer refuses.Close()
	odd := refuses.(*hostFile)
	if odd.direct() == nil {
		t.Skip("no O_DIRECT here")
	}
	odd.fresh.Close() // every read of it fails
	if f.direct() == nil || without.direct() != nil {
		t.Fatal("the descriptors are not those of the test")
	}
	for name, g := range map[string]*hostFile{"O_DIRECT": f, "without": without} {
		for _, off := range []int64{0, 4096} {
			p := make([]byte, 4096)
			if n, err := g.ReadFresh(p, off); n != 4096 || err != nil || !bytes.Equal(p, content[off:][:4096]) {
				t.Errorf("%s: at %d: %d, %v", name, off, n, err)
			}
		}
		p := make([]byte, 4096)
		if n, err := g.ReadFresh(p, 8192); n != 1 || err != io.EOF || p[0] != 7 {
			t.Errorf("%s: at the end: %d, %v, %d", name, n, err, p[0])
		}
		if n, err := g.ReadFresh(p, 12288); n != 0 || err != io.EOF {
			t.Errorf("%s: behind the end: %d, %v", name, n, err)
		}
		if n, err := g.ReadFresh(make([]byte, 100), 0); n != 100 && err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: a part of a sector: %d, %v", name, n, err)
		}
	}
	if n, err := odd.ReadFresh(make([]byte, 4096), 0); n != 0 || err == nil || err == io.EOF {
		t.Errorf("a read that fails: %d, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.fresh.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the second descriptor stays open: %v", err)
	}
}

// The memory for O_DIRECT is aligned and as long as was asked for.
func TestAligned(t *testing.T) {
	for _, n := range []int{4096, 65536} {
		b := aligned(n)
		if len(b) != n || fmt.Sprintf("%p", b)[len(fmt.Sprintf("%p", b))-3:] != "000" {
			t.Errorf("%d bytes at %p", len(b), b)
		}
	}
}

// Of two programs one at the most can write, in each mode but those that say otherwise, and one that was refused keeps none out.
func TestLocksOfTwo(t *testing.T) {
	for _, tc := range []struct {
		name   string
		first  LockKind
		mode   LockMode
		second LockKind
		want   error
		third  bool // when the first has gone, a third may write
	}{
		{"two readers", Shared, LockOn, Shared, nil, false},
		{"a writer beside a reader", Shared, LockOn, Exclusive, ErrLocked, true},
		{"a reader beside a writer", Exclusive, LockOn, Shared, ErrLocked, true},
		{"two writers", Exclusive, LockOn, Exclusive, ErrLocked, true},
		{"a reader that tries", Exclusive, LockTry, Shared, nil, true},
		{"a reader without locks", Exclusive, LockOff, Shared, nil, true},
		{"a writer without locks", Exclusive, LockOff, Exclusive, ErrLocked, true},
		{"a writer without locks beside a reader", Shared, LockOff, Exclusive, nil, true},
	} {
		path, files := openTest(t, nil, 3)
		if err := files[0].Lock(LockOn, tc.first); err != nil {
			t.Fatal(err)
		}
		err := files[1].Lock(tc.mode, tc.second)
		if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if l, ok := errors.AsType[*LockedError](err); ok {
			self := fmt.Sprintf("(process %d)", os.Getpid())
			if l.Path != path || !slices.Equal(l.Holders, []int{os.Getpid()}) || !strings.Contains(l.Error(), self) {
				t.Errorf("%s: %+v: %v", tc.name, l, l)
			}
		}
		if err := files[0].Unlock(); err != nil {
			t.Error(err)
		}
		if err := files[2].Lock(LockOn, Exclusive); (err == nil) != tc.third {
			t.Errorf("%s: a third: %v", tc.name, err)
		}
	}
}

// A file whose locks become exclusive and shared again is never free for a writer, and one that cannot is shared as before.
func TestUnshareAndShare(t *testing.T) {
	_, files := openTest(t, nil, 3)
	f, reader, writer := files[0], files[1], files[2]
	writers := func() bool {
		err := writer.Lock(LockOn, Exclusive)
		_ = writer.Unlock()
		return err == nil
	}
	readers := func() bool {
		err := reader.Lock(LockOn, Shared)
		_ = reader.Unlock()
		return err == nil
	}
	if err := f.Lock(LockOn, Shared); err != nil {
		t.Fatal(err)
	}
	if !readers() || writers() {
		t.Error("shared: readers are kept out, or writers are not")
	}
	if err := reader.Lock(LockOn, Shared); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []LockMode{LockOn, LockTry, ""} {
		if err := f.Unshare(mode); !errors.Is(err, ErrLocked) {
			t.Errorf("unshare beside a reader, mode %q: %v", mode, err)
		}
	}
	if held, err := reader.lockHeld(usedLocks + permWrite); held || err != nil {
		t.Errorf("a refused unshare keeps the lock of a writer: %v, %v", held, err)
	}
	if err := f.Unshare(LockOff); err != nil {
		t.Errorf("unshare without locks: %v", err)
	}
	_ = reader.Unlock()
	if err := f.Unshare(LockOn); err != nil {
		t.Fatal(err)
	}
	if readers() || writers() {
		t.Error("exclusive: others are not kept out")
	}
	if err := f.Share(); err != nil {
		t.Fatal(err)
	}
	if !readers() || writers() {
		t.Error("shared again: readers are kept out, or writers are not")
	}
}

// Locks that were lost are noticed when they are taken again, and so is another program that has come meanwhile.
func TestRelock(t *testing.T) {
	_, files := openTest(t, nil, 2)
	f, other := files[0], files[1]
	if f.direct() == nil {
		t.Skip("no second descriptor without O_DIRECT")
	}
	if err := f.Lock(LockOn, Exclusive); err != nil {
		t.Fatal(err)
	}
	if lost, err := f.Relock(Exclusive); lost || err != nil {
		t.Errorf("held: lost %v, %v", lost, err)
	}
	_ = f.Unlock()
	if lost, err := f.Relock(Exclusive); !lost || err != nil {
		t.Errorf("lost: %v, %v", lost, err)
	}
	if err := other.Lock(LockOn, Shared); !errors.Is(err, ErrLocked) {
		t.Errorf("taken again, but another comes in: %v", err)
	}
	_ = f.Unlock()
	if err := other.Lock(LockOn, Exclusive); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Relock(Exclusive); !errors.Is(err, ErrLocked) {
		t.Errorf("another writes: %v", err)
	}
}

// A host without locks that others see is refused, unless that was asked for, and its own locks are given up.
func TestHostWithOwnLocks(t *testing.T) {
	for _, tc := range []struct {
		mode   LockMode
		kind   LockKind
		shared bool
		ok     bool
	}{
		{LockOn, Shared, false, false}, {LockOn, Exclusive, false, false}, {LockOn, Exclusive, true, false},
		{"", Shared, false, true}, {"", Exclusive, false, false}, {"", Exclusive, true, true},
		{LockTry, Exclusive, false, true}, {LockLease, Exclusive, true, true}, {LockOff, Exclusive, false, true},
	} {
		_, files := openTest(t, nil, 2)
		files[0].host = func() Host { return Host{Type: "nfs", OwnLocks: "nolock", Shared: tc.shared} }
		err := files[0].Lock(tc.mode, tc.kind)
		if (err == nil) != tc.ok || err != nil && (!errors.Is(err, ErrNoLocks) || !strings.Contains(err.Error(), "(nfs)") || !strings.Contains(err.Error(), "nolock")) {
			t.Errorf("%+v: %v", tc, err)
		}
		if held, herr := files[1].lockHeld(unsharedLocks + permWrite); herr != nil || held != (tc.ok && tc.mode != LockOff) {
			t.Errorf("%+v: locked is %v, %v", tc, held, herr)
		}
	}
}

// What is replaced is locked, if it is a file, and in use by none.
func TestLockForReplacement(t *testing.T) {
	path, files := openTest(t, nil, 2)
	l, err := LockForReplacement(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := files[0].Lock(LockOn, Shared); !errors.Is(err, ErrLocked) {
		t.Errorf("beside a replacement: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := files[0].Lock(LockOn, Shared); err != nil {
		t.Fatal(err)
	}
	if _, err := LockForReplacement(path); !errors.Is(err, ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	for _, other := range []string{filepath.Join(filepath.Dir(path), "none"), filepath.Dir(path)} {
		if l, err := LockForReplacement(other); err != nil || l.Close() != nil {
			t.Errorf("%s: %v", other, err)
		}
	}
}

// A process has a file open for writing, or not.
func TestWrittenBy(t *testing.T) {
	path, _ := openTest(t, nil, 0)
	id, err := CachedFileID(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		flags int
		want  bool
	}{{os.O_RDONLY, false}, {os.O_WRONLY, true}, {os.O_RDWR, true}, {unix.O_PATH, false}} {
		f, err := os.OpenFile(path, tc.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if writes, err := WrittenBy(os.Getpid(), id); writes != tc.want || err != nil {
			t.Errorf("flags %#x: %v, %v", tc.flags, writes, err)
		}
		f.Close()
	}
	other, _ := openTest(t, nil, 1)
	if writes, err := WrittenBy(os.Getpid(), id); writes || err != nil {
		t.Errorf("%s is taken for %s: %v", other, path, err)
	}
	if _, err := WrittenBy(1<<30, id); err == nil {
		t.Error("a process that is not there can be looked at")
	}
}

// Files are told apart by all of their numbers, and devices by their own.
func TestFileID(t *testing.T) {
	id := FileID{Major: 1, Minor: 2, Inode: 3, PID: 4}
	for other, want := range map[FileID]bool{
		{Major: 1, Minor: 2, Inode: 3, PID: 5}: true,
		{Major: 9, Minor: 2, Inode: 3}:         false,
		{Major: 1, Minor: 9, Inode: 3}:         false,
		{Major: 1, Minor: 2, Inode: 9}:         false,
	} {
		if id.is(other) != want {
			t.Errorf("%+v is %+v: %v", id, other, !want)
		}
	}
	path, _ := openTest(t, nil, 0)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if got, err := CachedFileID(path); err != nil || got != (FileID{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), Inode: st.Ino}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := CachedFileID(path + ".none"); err == nil {
		t.Error("a file that is not there has numbers")
	}
	device := filepath.Join(filepath.Dir(path), "device")
	if err := unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(259, 77))); err != nil {
		t.Skip("no device can be made: ", err)
	}
	if got, err := CachedFileID(device); err != nil || got != (FileID{Major: 259, Minor: 77}) {
		t.Errorf("a device: %+v, %v", got, err)
	}
}

// Blocks that are shared are powers of two of a size that all hosts know.
func TestShareUnit(t *testing.T) {
	if n := ShareUnit(&inMemory{}); n != 4096 {
		t.Errorf("without a descriptor: %d", n)
	}
	_, files := openTest(t, make([]byte, 8192), 1)
	if n := ShareUnit(files[0]); n < 4096 || n > 65536 || n&(n-1) != 0 {
		t.Errorf("%d", n)
	}
	if err := files[0].Clone(0, &inMemory{}, 0, 4096); !IsUnsupported(err) {
		t.Errorf("a clone of memory: %v", err)
	}
	if err := CanClone(files[0], &inMemory{}); !IsUnsupported(err) {
		t.Errorf("a clone of memory is possible: %v", err)
	}
}
