package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A panicDisk is a disk whose snapshots end by a panic.
type panicDisk struct{ *fakeDisk }

func (panicDisk) Snapshot(context.Context, string, vhdx.SnapshotOptions) (*vhdx.SnapshotResult, error) {
	panic("out of order")
}

// A panic is an error of the snapshot, and the next one can begin. Of earlier ones, as many are told as there is room for.
func TestSnapshotThatPanics(t *testing.T) {
	s := &snapshotter{disk: panicDisk{&fakeDisk{writable: true}}}
	for i := range maxEarlier + 2 {
		id := strings.Repeat(string(rune('a'+i)), mounts.MaxXAttrSize/4)
		if status := s.set([]byte(`{"id":"` + id + `"}`)); status != fuse.OK {
			t.Fatal(status)
		}
		s.running.Wait()
		text := s.xattrs()[mounts.SnapshotXAttr]
		var told mounts.Snapshot
		if err := json.Unmarshal([]byte(text), &told); err != nil || told.ID != id || told.Running || !strings.Contains(told.Error, "out of order") {
			t.Errorf("told is %.100q, %v", text, err)
		}
		if len(text) > mounts.MaxXAttrSize || len(told.Earlier) != min(i, 2) {
			t.Errorf("%d bytes tell of %d earlier ones", len(text), len(told.Earlier))
		}
	}
}

// What is too long by itself harms nothing.
func TestSnapshotWithALongName(t *testing.T) {
	s := &snapshotter{disk: panicDisk{&fakeDisk{writable: true}}}
	id := strings.Repeat("<", mounts.MaxXAttrSize/4) // of which JSON makes six characters each
	if status := s.set([]byte(`{"id":"` + id + `"}`)); status != fuse.OK {
		t.Fatal(status)
	}
	s.running.Wait()
	var told mounts.Snapshot
	if err := json.Unmarshal([]byte(s.xattrs()[mounts.SnapshotXAttr]), &told); err != nil || told.ID != id || told.Running {
		t.Errorf("told is %t, %v", told.Running, err)
	}
}

// A snapshot is asked for and told of by an attribute, one at a time, by root and the owner alone.
func TestSnapshotAttribute(t *testing.T) {
	d := &fakeDisk{writable: true, info: vhdx.Info{Path: "/srv/data.vhdx"}, fail: map[string]error{}, snapshots: make(chan struct{})}
	f := newTestFileSystem(t, d, Options{})
	set := func(uid uint32, value string) fuse.Status {
		in := fuse.SetXAttrIn{}
		in.NodeId, in.Uid = rootNode, uid
		return f.SetXAttr(nil, &in, mounts.XAttrPrefix+mounts.SnapshotXAttr, []byte(value))
	}
	get := func() (s mounts.Snapshot) {
		t.Helper()
		buf := make([]byte, mounts.MaxXAttrSize)
		n, status := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, mounts.XAttrPrefix+mounts.SnapshotXAttr, buf)
		if status != fuse.OK {
			t.Fatal(status)
		}
		if err := json.Unmarshal(buf[:n], &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if _, status := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, mounts.XAttrPrefix+mounts.SnapshotXAttr, nil); status != fuse.ENOATTR {
		t.Errorf("before the first: %v", status)
	}
	if s := set(12345, `{"id":"a"}`); s != fuse.EPERM {
		t.Errorf("a stranger: %v", s)
	}
	if s := set(0, `now`); s != fuse.EINVAL {
		t.Errorf("no request: %v", s)
	}
	if s := set(0, `{"id":"a","name":"x.avhdx","parent_paths":["p"]}`); s != fuse.OK {
		t.Fatal(s)
	}
	if s := get(); !s.Running || s.ID != "a" {
		t.Errorf("%+v", s)
	}
	if s := set(0, `{"id":"b"}`); s != fuse.EBUSY {
		t.Errorf("a second one: %v", s)
	}
	next := func() mounts.Snapshot {
		d.snapshots <- struct{}{}
		f.snapshotter.running.Wait()
		return get()
	}
	if s := next(); s.Running || s.ID != "a" || s.Result == nil || s.Result.Child != "x.avhdx" || d.take() != "snapshot[x.avhdx false [p]]" {
		t.Errorf("%+v", s)
	}
	for _, err := range []error{fs.ErrExist, vhdx.ErrOptions, fs.ErrPermission, unix.ENOSPC} {
		d.fail["snapshot"] = fmt.Errorf("it is so: %w", err)
		if s := set(0, `{"id":"c","keep_name":true}`); s != fuse.OK {
			t.Fatal(s)
		}
		if s := next(); s.Running || s.Result != nil || s.Error != "it is so: "+err.Error() || s.Refused != (err != unix.ENOSPC) {
			t.Errorf("%+v", s)
		}
	}
	// Each request finds its own outcome, also behind others; there is a bound, and long names take the oldest away.
	d.fail["snapshot"] = nil
	for i, name := range []string{"x", strings.Repeat("y", mounts.MaxXAttrSize/2), strings.Repeat("z", mounts.MaxXAttrSize/2)} {
		for n := range 2 * maxEarlier {
			if s := set(0, fmt.Sprintf(`{"id":"%d-%d","name":%q}`, i, n, name)); s != fuse.OK {
				t.Fatal(s)
			}
			now := next()
			if now.ID != fmt.Sprintf("%d-%d", i, n) || len(now.Earlier) > maxEarlier {
				t.Fatalf("%d: %s and %d earlier ones", n, now.ID, len(now.Earlier))
			}
			for j, e := range now.Earlier {
				if n-j > 0 && (e.ID != fmt.Sprintf("%d-%d", i, n-j-1) || e.Result == nil || e.Result.Child != name || e.Earlier != nil) {
					t.Fatalf("%d, %d: %+v", n, j, e)
				}
			}
			if i == 0 && len(now.Earlier) != maxEarlier && n >= maxEarlier {
				t.Fatalf("%d: %d earlier ones", n, len(now.Earlier))
			}
		}
	}
	f.snapshotter.end()
	if s := set(0, `{"id":"d"}`); s != fuse.EBUSY {
		t.Errorf("behind the end: %v", s)
	}
	d.writable = false
	if s := newTestFileSystem(t, d, Options{}).SetXAttr(nil, &fuse.SetXAttrIn{}, mounts.XAttrPrefix+mounts.SnapshotXAttr, []byte(`{}`)); s != fuse.EROFS {
		t.Errorf("read-only: %v", s)
	}
}
