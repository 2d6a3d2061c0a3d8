package fs

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A compaction is begun, asked for and stopped by an attribute, one at a time, by root and the owner alone.
func TestCompaction(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	f := newTestFileSystem(t, d, Options{})
	set := func(uid uint32, word string) fuse.Status {
		in := fuse.SetXAttrIn{InHeader: fuse.InHeader{NodeId: diskNode, Caller: fuse.Caller{Owner: fuse.Owner{Uid: uid}}}}
		return f.SetXAttr(nil, &in, mounts.XAttrPrefix+mounts.CompactXAttr, []byte(word))
	}
	ask := func() (c mounts.Compaction, s fuse.Status) {
		buf := make([]byte, mounts.MaxXAttrSize)
		n, s := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, mounts.XAttrPrefix+mounts.CompactXAttr, buf)
		if s.Ok() {
			if err := json.Unmarshal(buf[:n], &c); err != nil {
				t.Fatal(err)
			}
		}
		return c, s
	}
	self := uint32(os.Geteuid())
	if _, s := ask(); s != fuse.ENOATTR {
		t.Errorf("before the first one: %v, want ENODATA", s)
	}
	for _, tc := range []struct {
		uid  uint32
		word string
		want fuse.Status
	}{
		{self + 1, mounts.CompactStart, fuse.EPERM},
		{self, "begin", fuse.EINVAL},
		{self, mounts.CompactStop, fuse.OK},
		{self, mounts.CompactStart, fuse.OK},
		{self, mounts.CompactStart, fuse.Status(unix.EBUSY)},
		{self + 1, mounts.CompactStop, fuse.EPERM},
	} {
		if s := set(tc.uid, tc.word); s != tc.want {
			t.Errorf("%q by user %d: %v, want %v", tc.word, tc.uid, s, tc.want)
		}
	}
	c, _ := ask()
	for ; c.Done == 0; c, _ = ask() {
	}
	if !c.Running || c.Phase != "working" || c.Done != 3 || c.Total != 10 || c.Result != nil {
		t.Errorf("while it runs: %+v", c)
	}
	if s := set(self, mounts.CompactStop); !s.Ok() {
		t.Error(s)
	}
	f.compactor.end()
	if c, _ = ask(); c.Running || c.Result == nil || c.Result.Moved != 3 || c.Error != errStopped.Error() {
		t.Errorf("after it was stopped: %+v", c)
	}
	if s := set(self, mounts.CompactStart); s != fuse.Status(unix.EBUSY) {
		t.Errorf("while the disk is being closed: %v, want EBUSY", s)
	}
	d.writable = false
	if s := newTestFileSystem(t, d, Options{}).SetXAttr(nil, &fuse.SetXAttrIn{}, mounts.XAttrPrefix+mounts.CompactXAttr, []byte(mounts.CompactStart)); s != fuse.EROFS {
		t.Errorf("of a read-only mount: %v, want EROFS", s)
	}
}

// A compaction ends when the mount is made read-only, also behind the back of the program, and says why.
func TestCompactionEndsByRemount(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	s := mountTest(t, d, Options{})
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", s.MountPoint(), "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, flags := range []uintptr{unix.MS_RDONLY, unix.MS_RDONLY | unix.MS_BIND} {
		if status := s.fs.compactor.start(vhdx.CompactOptions{}); !status.Ok() {
			t.Fatal(status)
		}
		remount(flags)
		ended := make(chan struct{})
		go func() {
			s.fs.compactor.running.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("flags %#x: it goes on", flags)
		}
		var c mounts.Compaction
		if err := json.Unmarshal([]byte(s.fs.compactor.xattrs()[mounts.CompactXAttr]), &c); err != nil || c.Running || c.Error != errRemounted.Error() {
			t.Errorf("flags %#x: %+v, %v; want the end by %q", flags, c, err, errRemounted)
		}
		remount(flags &^ unix.MS_RDONLY)
	}
}
