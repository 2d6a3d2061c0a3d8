package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// newTestWindow makes a window of a fake disk, whose ends lie in the middle of extents.
func newTestWindow(t *testing.T, d *fakeDisk) *window {
	t.Helper()
	w, err := newWindow(d, Window{Partition: 3, Off: 1<<20 - 700, Len: d.Size() - 2<<20})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// What a window shows is the part of the disk that it is of, and nothing before or behind.
func TestWindowReads(t *testing.T) {
	d := newFakeDisk(t)
	w := newTestWindow(t, d)
	f := newTestFileSystem(t, w, Options{})
	want := d.want[w.off:][:w.size]
	if got, s := readAll(t, f, 0, len(want)); !s.Ok() || !bytes.Equal(got, want) {
		t.Errorf("the whole window: %v, %d bytes, equal %v", s, len(got), bytes.Equal(got, want))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		off := rng.IntN(len(want))
		n := 1 + rng.IntN(300<<10)
		got, s := readAll(t, f, uint64(off), n)
		if end := min(off+n, len(want)); !s.Ok() || !bytes.Equal(got, want[off:end]) {
			t.Fatalf("%d bytes at %d: %v, %d bytes, want %d that are equal", n, off, s, len(got), end-off)
		}
	}
	for _, off := range []uint64{uint64(w.size), uint64(w.size) + 1, math.MaxUint64} {
		if got, s := readAll(t, f, off, 4096); !s.Ok() || len(got) != 0 {
			t.Errorf("at %d: %v, %d bytes; want the end", off, s, len(got))
		}
	}
	if a := f.attr(diskNode); a.Size != uint64(w.size) {
		t.Errorf("size %d, want %d", a.Size, w.size)
	}
	if n := d.reading.Load(); n != 0 {
		t.Errorf("%d reads did not end", n)
	}
}

// Where data and holes begin is as on the disk, and the window's end is that of what has begun before.
func TestWindowSeeks(t *testing.T) {
	d := newFakeDisk(t)
	w := newTestWindow(t, d)
	seek := func(of Disk, data bool, off int64) (int64, error) {
		if data {
			return of.SeekData(off)
		}
		return of.SeekHole(off)
	}
	for off := int64(0); off < w.size; off += 1777 {
		for _, data := range []bool{true, false} {
			want, werr := seek(d, data, w.off+off)
			want -= w.off
			switch {
			case data && (werr == io.EOF || want >= w.size):
				want, werr = 0, io.EOF
			case !data:
				want, werr = min(want, w.size), nil
			}
			if got, err := seek(w, data, off); got != want || err != werr {
				t.Fatalf("data %v from %d: %d, %v; want %d, %v", data, off, got, err, want, werr)
			}
		}
	}
	for _, off := range []int64{-1, w.size, w.size + 1, math.MaxInt64} {
		for _, data := range []bool{true, false} {
			if got, err := seek(w, data, off); err != io.EOF {
				t.Errorf("data %v from %d: %d, %v; want the end", data, off, got, err)
			}
		}
	}
}

// An error of the disk is one of the window. What the disk gives up outside of it while the mount lasts leaves nothing below zero.
func TestWindowErrorsAndCounts(t *testing.T) {
	d := newFakeDisk(t)
	w := newTestWindow(t, d)
	if n := w.AllocatedBytes(); n <= 0 || n > w.size {
		t.Errorf("%d bytes of %d are allocated", n, w.size)
	}
	extents := d.extents
	d.extents = nil
	if n := w.AllocatedBytes(); n != 0 {
		t.Errorf("with nothing left, %d bytes are allocated", n)
	}
	d.extents = extents
	d.err = unix.EIO
	if _, err := newWindow(d, Window{Off: 0, Len: 4096}); !errors.Is(err, unix.EIO) {
		t.Errorf("a window of what cannot be read: %v", err)
	}
	for name, seek := range map[string]func(int64) (int64, error){"data": w.SeekData, "hole": w.SeekHole} {
		if to, err := seek(0); !errors.Is(err, unix.EIO) || to != 0 {
			t.Errorf("seek of %s: %d, %v", name, to, err)
		}
	}
	if got, err := w.Resolve(nil, 0, 4096); !errors.Is(err, unix.EIO) || len(got) != 0 {
		t.Errorf("resolve: %v, %v", got, err)
	}
}

// Data that begins right behind a window is none of its own.
func TestWindowSeekEndsAtData(t *testing.T) {
	d := newFakeDisk(t)
	e := d.extents[1] // a hole, with data behind it
	w, err := newWindow(d, Window{Partition: 1, Off: e.DiskOff, Len: e.Len})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.SeekData(0); e.File != nil || err != io.EOF {
		t.Errorf("data at %d, %v; want none", got, err)
	}
	if got, err := w.SeekHole(0); got != 0 || err != nil {
		t.Errorf("a hole at %d, %v; want 0", got, err)
	}
}

// A change inside the window reaches the disk at its place. One that does not lie wholly inside never reaches it.
func TestWindowChanges(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	w := newTestWindow(t, d)
	for name, change := range map[string]func(off, n int64) error{
		"write": func(off, n int64) error {
			_, err := w.WriteAt(make([]byte, n), off)
			return err
		},
		"zero": w.Zero, "discard": w.Discard, "allocate": w.Allocate,
	} {
		for _, r := range [][2]int64{{0, 10}, {w.size - 10, 10}, {77, 4096}} {
			if err := change(r[0], r[1]); err != nil {
				t.Errorf("%s of %d: %v", name, r, err)
			}
			var what any = r[1]
			if name == "write" {
				what = string(make([]byte, r[1]))
			}
			if got, want := d.take(), name+fmt.Sprint([]any{w.off + r[0], what}); got != want {
				t.Errorf("%s of %d: the disk heard %.60q, want %.60q", name, r, got, want)
			}
		}
		for _, r := range [][2]int64{{-1, 1}, {w.size, 1}, {w.size - 10, 11}, {math.MaxInt64, 1}, {-w.off, 10}} {
			if err := change(r[0], r[1]); !errors.Is(err, vhdx.ErrBeyondEnd) {
				t.Errorf("%s of %d: %v, want %v", name, r, err, vhdx.ErrBeyondEnd)
			}
		}
		if got := d.take(); got != "" {
			t.Errorf("%s: the disk heard %q", name, got)
		}
	}
	f := newTestFileSystem(t, w, Options{})
	for _, size := range []uint64{uint64(w.size) + 4096, uint64(w.size) - 4096, 0} {
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: diskNode}, Valid: fuse.FATTR_SIZE, Size: size}}
		if s := f.SetAttr(nil, &in, new(fuse.AttrOut)); s != fuse.EPERM {
			t.Errorf("truncate to %d: %v, want EPERM", size, s)
		}
	}
	in := fuse.FallocateIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: uint64(w.size) - 4096, Length: 1 << 20, Mode: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}
	if s := f.Fallocate(nil, &in); !s.Ok() {
		t.Error(s)
	}
	if got, want := d.take(), fmt.Sprint("discard", []any{w.off + w.size - 4096, 4096}); got != want {
		t.Errorf("a discard over the end: the disk heard %q, want %q", got, want)
	}
}

func TestWindowAllocated(t *testing.T) {
	d := newFakeDisk(t)
	w := newTestWindow(t, d)
	held := int64(0)
	for _, e := range d.extents {
		if from, to := max(e.DiskOff, w.off), min(e.End(), w.off+w.size); e.File != nil && from < to {
			held += to - from
		}
	}
	if got := w.AllocatedBytes(); got != held || held == 0 {
		t.Errorf("%d bytes, want %d", got, held)
	}
	d.add(4096, d.extents[0].File, 0) // stands for a block that was written
	if got := w.AllocatedBytes(); got != held+4096 {
		t.Errorf("%d bytes after a write, want %d", got, held+4096)
	}
	d.add(8192, d.extents[0].File, 0) // stands for what a compaction does outside: less there would be here, too
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Compact(ctx, vhdx.CompactOptions{Phase: func(string, int64) {}, Progress: func(int64) {}})
	if got := w.AllocatedBytes(); got != held {
		t.Errorf("%d bytes after a compaction, want %d", got, held)
	}
	for _, bad := range []Window{{1, -1, 10}, {1, 0, 0}, {1, d.Size() - 4096, 4097}, {1, 0, math.MaxInt64}, {1, math.MaxInt64, 1}, {1, 0, -5}} {
		if _, err := newWindow(d, bad); err == nil {
			t.Errorf("%+v is taken for a part of the disk", bad)
		}
	}
	damage := errors.New("damaged") // then it is not known how much the disk holds
	d.fail = map[string]error{"Validated": damage}
	if _, err := newWindow(d, Window{Partition: 3, Off: 0, Len: 4096}); !errors.Is(err, damage) {
		t.Errorf("a damaged disk: %v", err)
	}
}
