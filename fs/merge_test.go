package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A mergingDisk merges as merge does.
type mergingDisk struct {
	*fakeDisk
	merge func(ctx context.Context, child string, o vhdx.MergeOptions) (*vhdx.MergeResult, error)
}

func (d *mergingDisk) Merge(ctx context.Context, child string, o vhdx.MergeOptions) (*vhdx.MergeResult, error) {
	return d.merge(ctx, child, o)
}

// setMerge sets the attribute by which a mount is told to merge.
func setMerge(f *fileSystem, uid uint32, value string) fuse.Status {
	in := fuse.SetXAttrIn{InHeader: fuse.InHeader{NodeId: diskNode, Caller: fuse.Caller{Owner: fuse.Owner{Uid: uid}}}}
	return f.SetXAttr(nil, &in, mounts.XAttrPrefix+mounts.MergeXAttr, []byte(value))
}

// askMerge reads that attribute.
func askMerge(t *testing.T, f *fileSystem) (m mounts.Merge) {
	t.Helper()
	buf := make([]byte, mounts.MaxXAttrSize)
	n, s := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, mounts.XAttrPrefix+mounts.MergeXAttr, buf)
	if !s.Ok() {
		t.Fatal(s)
	}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// A merge is begun, asked for and stopped by an attribute, one at a time, by root and the owner alone.
func TestMerge(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	f := newTestFileSystem(t, d, Options{})
	if _, s := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, mounts.XAttrPrefix+mounts.MergeXAttr, nil); s != fuse.ENOATTR {
		t.Errorf("before the first: %v, want ENODATA", s)
	}
	self := uint32(os.Geteuid())
	const first = `{"id":"a","child":"c.avhdx"}`
	for _, tc := range []struct {
		uid   uint32
		value string
		want  fuse.Status
	}{
		{self + 1, first, fuse.EPERM},
		{self, `{"id":"a","stop":true}`, fuse.OK}, // of which there is none
		{self, first, fuse.OK},
		{self, first, fuse.EBUSY},
		{self, `{"id":"b","child":"b.avhdx"}`, fuse.EBUSY},
		{self + 1, `{"id":"a","stop":true}`, fuse.EPERM},
		{self, `{"id":"b","stop":true}`, fuse.OK}, // of another one, which it leaves alone
	} {
		if s := setMerge(f, tc.uid, tc.value); s != tc.want {
			t.Errorf("%s by user %d: %v, want %v", tc.value, tc.uid, s, tc.want)
		}
	}
	m := askMerge(t, f)
	for ; m.Done == 0; m = askMerge(t, f) {
	}
	if m.ID != "a" || !m.Running || m.Phase != "merging" || m.Done != 3 || m.Total != 10 || m.Result != nil {
		t.Errorf("while it runs: %+v", m)
	}
	if s := setMerge(f, self, `{"id":"a","stop":true}`); s != fuse.OK {
		t.Error(s)
	}
	f.merger.running.Wait()
	if m = askMerge(t, f); m.ID != "a" || m.Running || m.Error != errStopped.Error() || m.Refused {
		t.Errorf("after it was stopped: %+v", m)
	}
	f.merger.end()
	if s := setMerge(f, self, first); s != fuse.EBUSY {
		t.Errorf("while the disk is being closed: %v, want EBUSY", s)
	}
	d.writable = false
	if s := setMerge(newTestFileSystem(t, d, Options{}), self, first); s != fuse.EROFS {
		t.Errorf("of a read-only mount: %v, want EROFS", s)
	}
}

// What was asked for reaches the disk, and its answer the program that asked.
func TestMergeTellsTheDiskAndTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &mergingDisk{fakeDisk: &fakeDisk{writable: true, info: vhdx.Info{Path: "/srv/c.avhdx"}}}
		f := newTestFileSystem(t, d, Options{})
		var child string
		var got vhdx.MergeOptions
		result := &vhdx.MergeResult{Merged: []string{"/srv/c.avhdx"}, Into: "/srv/a.vhdx", Path: "/srv/c.avhdx", Data: 5}
		var fails error
		d.merge = func(_ context.Context, c string, o vhdx.MergeOptions) (*vhdx.MergeResult, error) {
			child, got = c, o
			o.Phase("merge c.avhdx", 10)
			o.Progress(6)
			o.Shared(4)
			if fails != nil {
				return nil, fails
			}
			return result, nil
		}
		request := mounts.MergeRequest{
			ID: "a", Child: "/srv/c.avhdx", Into: "/srv/a.vhdx", Delete: true, KeepName: true, DryRun: true, Rate: 1 << 20, Reflink: "always",
		}
		b, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		if s := setMerge(f, 0, string(b)); s != fuse.OK {
			t.Fatal(s)
		}
		synctest.Wait()
		if child != request.Child || got.Into != request.Into || !got.Delete || !got.KeepName || !got.DryRun || got.Rate != request.Rate || got.Reflink != imagefile.ReflinkAlways {
			t.Errorf("the disk was told to merge %s by %+v", child, got)
		}
		m := askMerge(t, f)
		if m.ID != "a" || m.Running || m.Error != "" || m.Done != 6 || m.Total != 10 || m.Shared != 4 || m.Result == nil || m.Result.Into != result.Into || m.Result.Data != 5 {
			t.Errorf("the program was told %+v", m)
		}
		for _, err := range []error{vhdx.ErrOptions, fs.ErrPermission, unix.ENOSPC} {
			fails = fmt.Errorf("it is so: %w", err)
			if s := setMerge(f, 0, string(b)); s != fuse.OK {
				t.Fatal(s)
			}
			synctest.Wait()
			if m := askMerge(t, f); m.Running || m.Result != nil || m.Error != fails.Error() || m.Refused != (err != unix.ENOSPC) {
				t.Errorf("%v: the program was told %+v", err, m)
			}
		}
	})
}

// What is no request begins nothing: one that was cut anywhere, that names no image, or asks for what there is not.
func TestMergeRefusesOddRequests(t *testing.T) {
	d := &mergingDisk{fakeDisk: &fakeDisk{writable: true, info: vhdx.Info{Path: "/srv/c.avhdx"}}}
	f := newTestFileSystem(t, d, Options{})
	d.merge = func(context.Context, string, vhdx.MergeOptions) (*vhdx.MergeResult, error) {
		t.Error("a merge has begun")
		return nil, nil
	}
	const good = `{"id":"a","child":"c.avhdx","into":"a.vhdx","rate":1048576,"reflink":"auto"}`
	values := []string{
		`null`, `{}`, `[]`, `"a"`, `1`, "\x00", good + good, good + "\x00",
		`{"id":"a"}`, `{"child":"c.avhdx"}`, `{"id":"a","child":""}`, `{"id":"","child":"c.avhdx"}`, `{"stop":true}`,
		`{"id":1,"child":"c.avhdx"}`, `{"id":"a","child":"c.avhdx","rate":-1}`, `{"id":"a","child":"c.avhdx","rate":1e30}`,
		`{"id":"a","child":"c.avhdx","reflink":"perhaps"}`,
		`{"id":"a","child":"c.avhdx","shred":true}`, // of a later version, which this one would not do
	}
	for n := range len(good) {
		values = append(values, good[:n])
	}
	control := &control{s: &Server{fs: f}}
	for _, v := range values {
		if s := setMerge(f, 0, v); s != fuse.EINVAL {
			t.Errorf("%q: %v, want EINVAL", v, s)
		}
		if e := control.Set(mounts.MergeXAttr, []byte(v)); e != unix.EINVAL {
			t.Errorf("%q over the socket: %v, want EINVAL", v, e)
		}
	}
	f.merger.end()
	if told := f.merger.xattrs(); told != nil {
		t.Errorf("%v", told)
	}
}

// A merge whose command was killed ends after a minute. One that is asked for goes on.
func TestMergeEndsWithItsCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &mergingDisk{fakeDisk: &fakeDisk{writable: true, info: vhdx.Info{Path: "/srv/c.avhdx"}}}
		d.merge = func(ctx context.Context, _ string, _ vhdx.MergeOptions) (*vhdx.MergeResult, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		f := newTestFileSystem(t, d, Options{})
		if s := setMerge(f, 0, `{"id":"a","child":"c.avhdx"}`); s != fuse.OK {
			t.Fatal(s)
		}
		for range 20 {
			time.Sleep(mergePatience / 2)
			if m := askMerge(t, f); !m.Running {
				t.Fatalf("while it is asked for: %+v", m)
			}
		}
		time.Sleep(mergePatience + 2*remountWatch)
		synctest.Wait()
		if m := askMerge(t, f); m.Running || m.Error != errUnasked.Error() {
			t.Errorf("when its command was killed: %+v", m)
		}
	})
}

// The end of a mount, however it comes, ends the merge, and waits for it.
func TestMergeEndsWithTheMount(t *testing.T) {
	for _, way := range []string{"unmount", "stop", "cut"} {
		t.Run(way, func(t *testing.T) {
			d := newFakeDisk(t)
			d.writable = true
			s := mountTest(t, d, Options{})
			if status := setMerge(s.fs, uint32(os.Geteuid()), `{"id":"a","child":"c.avhdx"}`); status != fuse.OK {
				t.Fatal(status)
			}
			for askMerge(t, s.fs).Done == 0 {
			}
			var err error
			switch way {
			case "unmount":
				if err = s.Unmount(); err == nil {
					s.Wait()
				}
			case "stop":
				err = s.Stop()
			case "cut":
				if err = unix.Unmount(s.MountPoint(), unix.MNT_FORCE); err == nil { // it is in use by no program, so it goes
					s.Wait()
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if m := askMerge(t, s.fs); m.Running || m.Error != errStopped.Error() {
				t.Errorf("%+v", m)
			}
			if status := setMerge(s.fs, uint32(os.Geteuid()), `{"id":"b","child":"c.avhdx"}`); status != fuse.EBUSY {
				t.Errorf("behind the end: %v, want EBUSY", status)
			}
		})
	}
}

// A merge ends when the mount is made read-only, and says why; over the socket none begins then.
func TestMergeEndsByRemount(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	s := mountTest(t, d, Options{})
	c := &control{s: s}
	const request = `{"id":"a","child":"c.avhdx"}`
	if e := c.Set(mounts.MergeXAttr, []byte(request)); e != 0 {
		t.Fatal(e)
	}
	if err := unix.Mount("", s.MountPoint(), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s.fs.merger.running.Wait()
	if m := askMerge(t, s.fs); m.Running || m.Error != errRemounted.Error() {
		t.Errorf("%+v", m)
	}
	if e := c.Set(mounts.MergeXAttr, []byte(request)); e != unix.EROFS {
		t.Errorf("of a mount that is read-only now: %v, want EROFS", e)
	}
}
