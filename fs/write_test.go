package fs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// newWritable has 64 KiB, and fails as it is told.
func newWritable(fail map[string]error) *fakeDisk {
	d := &fakeDisk{writable: true, fail: fail}
	d.add(64<<10, nil, 0)
	return d
}

var onDisk = fuse.InHeader{NodeId: diskNode}

func TestWrite(t *testing.T) {
	const size = 64 << 10
	for _, tc := range []struct {
		name   string
		in     fuse.WriteIn
		o      Options
		data   []string
		want   uint32
		status fuse.Status
		calls  string
	}{
		{name: "plain", in: fuse.WriteIn{Offset: 3}, data: []string{"abc"}, want: 3, calls: "write[3 abc]"},
		{name: "in pieces", in: fuse.WriteIn{Offset: 3}, data: []string{"abc", "", "de"}, want: 5, calls: "write[3 abc] write[6 de]"},
		{name: "up to the end", in: fuse.WriteIn{Offset: size - 3}, data: []string{"abc"}, want: 3, calls: "write[65533 abc]"},
		{name: "across the end", in: fuse.WriteIn{Offset: size - 3}, data: []string{"ab", "cd", "ef"}, want: 3, calls: "write[65533 ab] write[65535 c]"},
		{name: "at the end", in: fuse.WriteIn{Offset: size}, data: []string{"a"}, status: fuse.Status(unix.EFBIG)},
		{name: "far behind the end", in: fuse.WriteIn{Offset: 1<<64 - 1}, data: []string{"a"}, status: fuse.Status(unix.EFBIG)},
		{name: "O_DSYNC", in: fuse.WriteIn{Flags: unix.O_WRONLY | unix.O_DSYNC}, data: []string{"a"}, want: 1, calls: "write[0 a] sync[]"},
		{name: "O_SYNC", in: fuse.WriteIn{Flags: unix.O_RDWR | unix.O_SYNC}, data: []string{"a"}, want: 1, calls: "write[0 a] sync[]"},
		{name: "mounted with sync", o: Options{Flags: unix.MS_SYNCHRONOUS}, data: []string{"a"}, want: 1, calls: "write[0 a] sync[]"},
		{name: "O_DIRECT", in: fuse.WriteIn{Flags: unix.O_WRONLY | unix.O_DIRECT}, data: []string{"a"}, want: 1, calls: "write[0 a]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newWritable(nil)
			f := newTestFileSystem(t, d, tc.o)
			tc.in.InHeader = onDisk
			data := make([][]byte, len(tc.data))
			for i, s := range tc.data {
				data[i] = []byte(s)
			}
			n, status := f.Writev(nil, &tc.in, data)
			if n != tc.want || status != tc.status {
				t.Errorf("%d, %v; want %d, %v", n, status, tc.want, tc.status)
			}
			if calls := d.take(); calls != tc.calls {
				t.Errorf("calls %q, want %q", calls, tc.calls)
			}
		})
	}
}

// What fails is told with the number that says why, and as a whole: a short write would be taken for a full one.
func TestWriteErrors(t *testing.T) {
	failed := fmt.Errorf("%w: %w", vhdx.ErrFailed, &pathError{unix.ENOSPC})
	for _, tc := range []struct {
		name   string
		fail   map[string]error
		write  fuse.Status
		fsync  fuse.Status
		logged bool
	}{
		{"no space", map[string]error{"write": fmt.Errorf("write: %w", unix.ENOSPC)}, fuse.Status(unix.ENOSPC), fuse.OK, true},
		{"bad sector", map[string]error{"write": fmt.Errorf("write: %w", unix.EIO)}, fuse.EIO, fuse.OK, true},
		{"error without a number", map[string]error{"write": errors.New("odd")}, fuse.EIO, fuse.OK, true},
		{"corrupt", map[string]error{"write": vhdx.ErrCorrupt}, fuse.EIO, fuse.OK, true},
		{"failed before", map[string]error{"write": failed, "sync": failed}, fuse.EIO, fuse.EIO, false},
		{"sync fails", map[string]error{"sync": unix.EIO}, fuse.OK, fuse.EIO, true},
		{"sync without space", map[string]error{"sync": unix.ENOSPC}, fuse.OK, fuse.Status(unix.ENOSPC), true},
		{"read-only", map[string]error{"write": vhdx.ErrReadOnly}, fuse.EROFS, fuse.OK, true},
		{"beyond the end", map[string]error{"write": vhdx.ErrBeyondEnd}, fuse.Status(unix.EFBIG), fuse.OK, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var logged bytes.Buffer
			log := logrus.New()
			log.SetOutput(&logged)
			f := newTestFileSystem(t, newWritable(tc.fail), Options{Log: log})
			in := &fuse.WriteIn{InHeader: onDisk}
			if n, status := f.Write(nil, in, []byte("abc")); status != tc.write || n != 0 && !status.Ok() {
				t.Errorf("write: %d, %v; want %v", n, status, tc.write)
			}
			if status := f.Fsync(nil, &fuse.FsyncIn{InHeader: onDisk}); status != tc.fsync {
				t.Errorf("fsync: %v, want %v", status, tc.fsync)
			}
			// What was written with O_SYNC and is not durable was not written.
			in.Flags = unix.O_SYNC
			want := tc.write
			if want.Ok() {
				want = tc.fsync
			}
			if n, status := f.Write(nil, in, []byte("abc")); status != want || n != 0 && !status.Ok() {
				t.Errorf("write with O_SYNC: %d, %v; want %v", n, status, want)
			}
			if (logged.Len() > 0) != tc.logged {
				t.Errorf("log %q, want one: %v", logged.String(), tc.logged)
			}
		})
	}
}

type pathError struct{ err error }

func (e *pathError) Error() string { return "a path: " + e.err.Error() }
func (e *pathError) Unwrap() error { return e.err }

// Thousands of the same failure do not fill the log.
func TestFailureLog(t *testing.T) {
	var logged bytes.Buffer
	log := logrus.New()
	log.SetOutput(&logged)
	l := newFailureLog(log)
	for range 1000 {
		l.log(logrus.ErrorLevel, "write", 1, unix.ENOSPC, errors.New("full"))
		l.log(logrus.ErrorLevel, "write", 1, unix.EIO, errors.New("bad"))
	}
	if n := strings.Count(logged.String(), "full"); n == 0 || n > 100 {
		t.Errorf("%d lines of 1000", n)
	}
	if !strings.Contains(logged.String(), "bad") {
		t.Error("a failure of another kind is not logged")
	}
	kind := failure{"write", unix.ENOSPC}
	later := l.kinds[kind].logged.Add(failureInterval)
	if skipped, ok := l.due(kind, later); !ok || skipped == 0 {
		t.Errorf("a second later: %v, %d were skipped", ok, skipped)
	}
	if skipped, ok := l.due(kind, later); ok || skipped != 0 {
		t.Errorf("at once again: %v, %d", ok, skipped)
	}
	if skipped, ok := l.due(kind, later.Add(failureInterval)); !ok || skipped != 1 {
		t.Errorf("another second later: %v, %d were skipped; want 1", ok, skipped)
	}
}

func TestFallocate(t *testing.T) {
	const (
		size  = 64 << 10
		punch = unix.FALLOC_FL_PUNCH_HOLE
		zero  = unix.FALLOC_FL_ZERO_RANGE
		keep  = unix.FALLOC_FL_KEEP_SIZE
		efbig = fuse.Status(unix.EFBIG)
		notup = fuse.Status(unix.EOPNOTSUPP)
	)
	for _, tc := range []struct {
		mode   uint32
		off, n uint64
		status fuse.Status
		calls  string
	}{
		{punch | keep, 512, 1024, fuse.OK, "discard[512 1024]"},
		{punch | keep, 0, size, fuse.OK, "discard[0 65536]"},
		{punch | keep, size - 512, 1 << 40, fuse.OK, "discard[65024 512]"},
		{punch | keep, size, 512, fuse.OK, ""},
		{punch | keep, 1 << 40, 512, fuse.OK, ""},
		{punch, 0, 512, notup, ""},
		{zero | keep, 512, 1024, fuse.OK, "zero[512 1024]"},
		{zero | keep, size - 512, 1024, fuse.OK, "zero[65024 512]"},
		{zero, 512, 1024, fuse.OK, "zero[512 1024]"},
		{zero, size - 512, 512, fuse.OK, "zero[65024 512]"},
		{zero, size - 512, 513, efbig, ""},
		{0, 512, 1024, fuse.OK, "allocate[512 1024]"},
		{keep, 512, 1024, fuse.OK, "allocate[512 1024]"},
		{0, 0, size + 1, efbig, ""},
		{keep, size, 1, efbig, ""},
		{keep, 1<<63 - 1, 1<<63 - 1, efbig, ""},
		{0, 1 << 63, 1, efbig, ""},
		{punch | keep, 0, 1<<64 - 1, efbig, ""},
		{punch | keep, 0, 1<<63 - 1, fuse.OK, "discard[0 65536]"},
		{punch | keep, 512, 1<<63 - 1, fuse.OK, "discard[512 65024]"},
		{0, 0, 0, fuse.EINVAL, ""},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, notup, ""},
		{unix.FALLOC_FL_INSERT_RANGE, 0, 4096, notup, ""},
		{unix.FALLOC_FL_UNSHARE_RANGE, 0, 4096, notup, ""},
		{punch | zero | keep, 0, 4096, notup, ""},
	} {
		d := newWritable(nil)
		f := newTestFileSystem(t, d, Options{})
		in := &fuse.FallocateIn{InHeader: onDisk, Mode: tc.mode, Offset: tc.off, Length: tc.n}
		if status := f.Fallocate(nil, in); status != tc.status {
			t.Errorf("mode %#x, %d bytes at %d: %v, want %v", tc.mode, tc.n, tc.off, status, tc.status)
		}
		if calls := d.take(); calls != tc.calls {
			t.Errorf("mode %#x, %d bytes at %d: calls %q, want %q", tc.mode, tc.n, tc.off, calls, tc.calls)
		}
		d.writable = false
		if status := newTestFileSystem(t, d, Options{}).Fallocate(nil, in); status != fuse.EROFS || d.take() != "" {
			t.Errorf("mode %#x on a read-only disk: %v, want EROFS", tc.mode, status)
		}
	}
	for _, tc := range []struct {
		method string
		mode   uint32
		err    error
		want   fuse.Status
	}{
		{"discard", punch | keep, vhdx.ErrNoDiscard, notup},
		{"discard", punch | keep, unix.EIO, fuse.EIO},
		{"zero", zero | keep, unix.ENOSPC, fuse.Status(unix.ENOSPC)},
		{"allocate", 0, unix.ENOSPC, fuse.Status(unix.ENOSPC)},
		{"allocate", 0, vhdx.ErrFailed, fuse.EIO},
		{"sync", 0, unix.EIO, fuse.EIO},
	} {
		f := newTestFileSystem(t, newWritable(map[string]error{tc.method: tc.err}), Options{Flags: unix.MS_SYNCHRONOUS})
		if status := f.Fallocate(nil, &fuse.FallocateIn{InHeader: onDisk, Mode: tc.mode, Length: 512}); status != tc.want {
			t.Errorf("%s that fails with %v: %v, want %v", tc.method, tc.err, status, tc.want)
		}
	}
}

// A range that reads as zero, or has space, from now on is a change of the file.
func TestFallocateChangesTheTimes(t *testing.T) {
	f := newTestFileSystem(t, newWritable(nil), Options{})
	var before, after fuse.AttrOut
	f.GetAttr(nil, &fuse.GetAttrIn{InHeader: onDisk}, &before)
	if s := f.Fallocate(nil, &fuse.FallocateIn{InHeader: onDisk, Mode: unix.FALLOC_FL_ZERO_RANGE, Length: 512}); !s.Ok() {
		t.Fatal(s)
	}
	f.GetAttr(nil, &fuse.GetAttrIn{InHeader: onDisk}, &after)
	if before.Mtime == after.Mtime || after.Mtime != after.Ctime || after.Mtimensec != after.Ctimensec {
		t.Errorf("the times were %d and %d, and are %d and %d", before.Mtime, before.Ctime, after.Mtime, after.Ctime)
	}
}

// The image is made clean when the last file open for writing is closed, and not when one open for reading is.
func TestLastRelease(t *testing.T) {
	d := newWritable(nil)
	f := newTestFileSystem(t, d, Options{})
	open := func(flags uint32) *fuse.ReleaseIn {
		t.Helper()
		var out fuse.OpenOut
		if s := f.Open(nil, &fuse.OpenIn{InHeader: onDisk, Flags: flags}, &out); !s.Ok() {
			t.Fatal(s)
		}
		return &fuse.ReleaseIn{InHeader: onDisk, Fh: out.Fh, Flags: flags}
	}
	release := func(in *fuse.ReleaseIn, want string) {
		t.Helper()
		f.Release(nil, in)
		if calls := d.take(); calls != want {
			t.Errorf("calls %q, want %q", calls, want)
		}
	}
	reader, first, second := open(syscall.O_RDONLY), open(syscall.O_RDWR), open(syscall.O_WRONLY)
	release(reader, "")
	release(first, "")
	release(second, "clean[]")
	release(open(syscall.O_RDONLY), "")
	var out fuse.OpenOut
	if s := f.Open(nil, &fuse.OpenIn{InHeader: onDisk, Flags: syscall.O_RDWR | syscall.O_TRUNC}, &out); s != fuse.EPERM {
		t.Errorf("open with O_TRUNC: %v, want EPERM", s)
	}
	release(open(syscall.O_RDWR), "clean[]") // what was refused above does not count
}

// Every read that began has ended, however it went.
func TestReadsEnd(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	for _, tc := range []struct {
		name string
		off  uint64
		n    int
		err  error
	}{
		{"by a pipe", 0, 256 << 10, nil},
		{"small", 0, 4096, nil},
		{"hole", 1 << 20, 4096, nil},
		{"across extents", 1<<20 - 4096, 8192, nil},
		{"behind the end", 1 << 40, 4096, nil},
		{"nothing", 0, 0, nil},
		{"Resolve fails", 0, 4096, errors.New("bad entry")},
	} {
		d.err = tc.err
		in := &fuse.ReadIn{InHeader: onDisk, Offset: tc.off}
		res, status := f.read(in, make([]byte, tc.n), func() {})
		if status.Ok() != (tc.err == nil) {
			t.Errorf("%s: %v", tc.name, status)
		}
		if status.Ok() {
			if n := d.reading.Load(); n != 1 {
				t.Errorf("%s: %d reads are going on before the kernel has the bytes, want 1", tc.name, n)
			}
			res.Done()
		}
		if n := d.reading.Load(); n != 0 {
			t.Fatalf("%s: %d reads never end", tc.name, n)
		}
	}
	d = &fakeDisk{extents: []vhdx.Extent{{Len: 4096, File: failingFile{}}}, want: make([]byte, 4096)}
	f = newTestFileSystem(t, d, Options{})
	if _, status := f.read(&fuse.ReadIn{InHeader: onDisk}, make([]byte, 4096), func() {}); status != fuse.EIO {
		t.Errorf("file that fails: %v", status)
	}
	if n := d.reading.Load(); n != 0 {
		t.Errorf("file that fails: %d reads never end", n)
	}
}

func TestSetAttr(t *testing.T) {
	const size = 64 << 10
	set := func(valid uint32, change func(*fuse.SetAttrIn)) *fuse.SetAttrIn {
		in := &fuse.SetAttrIn{}
		in.NodeId, in.Valid = diskNode, valid
		change(in)
		return in
	}
	for _, tc := range []struct {
		name string
		in   *fuse.SetAttrIn
		want fuse.Status
	}{
		{"same size", set(fuse.FATTR_SIZE, func(in *fuse.SetAttrIn) { in.Size = size }), fuse.OK},
		{"shrink", set(fuse.FATTR_SIZE, func(in *fuse.SetAttrIn) { in.Size = size - 1 }), fuse.EPERM},
		{"empty", set(fuse.FATTR_SIZE|fuse.FATTR_FH, func(in *fuse.SetAttrIn) {}), fuse.EPERM},
		{"a size that is not set", set(fuse.FATTR_MTIME, func(in *fuse.SetAttrIn) { in.Size = 2 * size }), fuse.OK},
		{"same mode", set(fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = syscall.S_IFREG | 0o640 }), fuse.OK},
		{"mode", set(fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = 0o666 }), fuse.EPERM},
		{"set-user-ID", set(fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.Mode = 0o4640 }), fuse.EPERM},
		{"same owner", set(fuse.FATTR_UID|fuse.FATTR_GID, func(in *fuse.SetAttrIn) { in.Uid, in.Gid = 7, 8 }), fuse.OK},
		{"owner", set(fuse.FATTR_UID, func(in *fuse.SetAttrIn) { in.Uid = 8 }), fuse.EPERM},
		{"group", set(fuse.FATTR_GID, func(in *fuse.SetAttrIn) { in.Gid = 7 }), fuse.EPERM},
		{"directory", set(fuse.FATTR_MODE, func(in *fuse.SetAttrIn) { in.NodeId, in.Mode = rootNode, 0o777 }), fuse.EPERM},
	} {
		f := newTestFileSystem(t, newWritable(nil), Options{})
		var out fuse.AttrOut
		if status := f.SetAttr(nil, tc.in, &out); status != tc.want || status.Ok() && out.Size != size {
			t.Errorf("%s: %v, size %d; want %v", tc.name, status, out.Size, tc.want)
		}
	}

	f := newTestFileSystem(t, newWritable(nil), Options{})
	var out fuse.AttrOut
	times := set(fuse.FATTR_ATIME|fuse.FATTR_MTIME, func(in *fuse.SetAttrIn) { in.Atime, in.Mtime, in.Mtimensec = 1, 2, 3 })
	if s := f.SetAttr(nil, times, &out); !s.Ok() || out.Atime != 1 || out.Mtime != 2 || out.Mtimensec != 3 {
		t.Errorf("times: %v, %d and %d.%09d; want 1 and 2.000000003", s, out.Atime, out.Mtime, out.Mtimensec)
	}
	for _, valid := range []uint32{fuse.FATTR_ATIME, fuse.FATTR_MTIME} {
		f.times.change.Store(0)
		if s := f.SetAttr(nil, set(valid, func(in *fuse.SetAttrIn) { in.Atime, in.Mtime, in.Mtimensec = 1, 2, 3 }), &out); !s.Ok() || out.Ctime == 0 {
			t.Errorf("times %#x: %v, changed at %d", valid, s, out.Ctime)
		}
	}
	if _, s := f.Write(nil, &fuse.WriteIn{InHeader: onDisk}, []byte("a")); !s.Ok() {
		t.Fatal(s)
	}
	f.GetAttr(nil, &fuse.GetAttrIn{InHeader: onDisk}, &out)
	if out.Atime != 1 || out.Mtime <= 2 || out.Ctime != out.Mtime || out.Ctimensec != out.Mtimensec {
		t.Errorf("times after a write: %d, %d, %d; want 1, now, now", out.Atime, out.Mtime, out.Ctime)
	}
}

// On a disk that can be written, nothing but the bytes of disk.raw can be changed.
func TestRefusals(t *testing.T) {
	d := newWritable(nil)
	f := newTestFileSystem(t, d, Options{})
	notup := fuse.Status(unix.EOPNOTSUPP)
	_, copied := f.CopyFileRange(nil, &fuse.CopyFileRangeIn{})
	_, toDir := f.Write(nil, &fuse.WriteIn{}, nil)
	for name, tc := range map[string]struct{ got, want fuse.Status }{
		"mknod":           {f.Mknod(nil, &fuse.MknodIn{}, "x", nil), fuse.EPERM},
		"mkdir":           {f.Mkdir(nil, &fuse.MkdirIn{}, "x", nil), fuse.EPERM},
		"unlink":          {f.Unlink(nil, &fuse.InHeader{}, mounts.FileName), fuse.EPERM},
		"rmdir":           {f.Rmdir(nil, &fuse.InHeader{}, "x"), fuse.EPERM},
		"rename":          {f.Rename(nil, &fuse.RenameIn{}, mounts.FileName, "x"), fuse.EPERM},
		"link":            {f.Link(nil, &fuse.LinkIn{}, "x", nil), fuse.EPERM},
		"symlink":         {f.Symlink(nil, &fuse.InHeader{}, "x", "y", nil), fuse.EPERM},
		"create":          {f.Create(nil, &fuse.CreateIn{}, "x", nil), fuse.EPERM},
		"tmpfile":         {f.Tmpfile(nil, &fuse.CreateIn{}, nil), fuse.EPERM},
		"setxattr":        {f.SetXAttr(nil, &fuse.SetXAttrIn{}, "user.x", nil), notup},
		"removexattr":     {f.RemoveXAttr(nil, &fuse.InHeader{}, "user.x"), notup},
		"copy_file_range": {copied, fuse.ENOSYS}, // the kernel reads and writes instead
		"flush of a dir":  {f.Flush(nil, &fuse.FlushIn{Fh: writeHandle}), fuse.OK},
		"flush by reader": {f.Flush(nil, &fuse.FlushIn{InHeader: onDisk}), fuse.OK},
		"fsyncdir":        {f.FsyncDir(nil, &fuse.FsyncIn{}), fuse.OK},
		"access":          {f.Access(nil, &fuse.AccessIn{Mask: 2}), fuse.OK},
		"write to a dir":  {toDir, fuse.EISDIR},
		"fallocate a dir": {f.Fallocate(nil, &fuse.FallocateIn{Length: 1}), fuse.EISDIR},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %v, want %v", name, tc.got, tc.want)
		}
	}
	if calls := d.take(); calls != "" {
		t.Errorf("calls %q, want none", calls)
	}
}

// A write beyond the end of the disk that the kernel collected fails, also if a part of it was inside, and is in the
// log with what to do, as its program has heard of no error.
func TestCollectedWriteBeyondTheEnd(t *testing.T) {
	for _, tc := range []struct {
		name   string
		flags  uint32
		off    uint64
		want   uint32
		status fuse.Status
		warns  bool
		calls  string
	}{
		{"at the end", fuse.WRITE_CACHE, 64 << 10, 0, fuse.Status(unix.EFBIG), true, ""},
		{"across the end", fuse.WRITE_CACHE, 64<<10 - 1, 0, fuse.Status(unix.EFBIG), true, "write[65535 a]"},
		{"up to the end", fuse.WRITE_CACHE, 64<<10 - 2, 2, fuse.OK, false, "write[65534 ab]"},
		{"not collected", 0, 64 << 10, 0, fuse.Status(unix.EFBIG), false, ""},
		{"across the end, not collected", 0, 64<<10 - 1, 1, fuse.OK, false, "write[65535 a]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var text strings.Builder
			log := logrus.New()
			log.SetOutput(&text)
			d := newWritable(nil)
			f := newTestFileSystem(t, d, Options{Log: log})
			n, status := f.Write(nil, &fuse.WriteIn{InHeader: onDisk, Offset: tc.off, Size: 2, WriteFlags: tc.flags}, []byte("ab"))
			if n != tc.want || status != tc.status {
				t.Errorf("%d, %v; want %d, %v", n, status, tc.want, tc.status)
			}
			if got := d.take(); got != tc.calls {
				t.Errorf("calls %s; want %s", got, tc.calls)
			}
			if got := strings.Contains(text.String(), "truncate -s 65536"); got != tc.warns {
				t.Errorf("a warning: %v, want %v; the log has %q", got, tc.warns, &text)
			}
		})
	}
}
