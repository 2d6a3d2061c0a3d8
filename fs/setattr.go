package fs

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// times are those of disk.raw: the image's at first, then those of the last write or utimes. They live as long as
// the mount.
type times struct{ access, modify, change atomic.Int64 } // ns since 1970

func (t *times) set(atime, mtime, ctime time.Time) {
	t.access.Store(atime.UnixNano())
	t.modify.Store(mtime.UnixNano())
	t.change.Store(ctime.UnixNano())
}

// modified notes a change of the contents.
func (t *times) modified() {
	now := time.Now().UnixNano()
	t.modify.Store(now)
	t.change.Store(now)
}

// fill puts the times into the attributes.
func (t *times) fill(a *fuse.Attr) {
	atime, mtime, ctime := time.Unix(0, t.access.Load()), time.Unix(0, t.modify.Load()), time.Unix(0, t.change.Load())
	a.SetTimes(&atime, &mtime, &ctime)
}

// SetAttr sets the times of disk.raw, and makes the disk larger, which is durable when it is answered. Its owner and mode
// are given by the image and the options of the mount: to set them to what they are is no change, anything else is
// EPERM, and so is a smaller disk: a program that means to write disk.raw anew would destroy it.
func (f *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	a := f.attr(in.NodeId)
	switch {
	case !f.writable:
		return fuse.EROFS
	case !f.access(&in.InHeader):
		return fuse.EACCES
	case a == nil:
		return fuse.ENOENT
	}
	const permissions = 0o7777
	size, sizeSet := in.GetSize()
	mode, modeSet := in.GetMode()
	uid, uidSet := in.GetUID()
	gid, gidSet := in.GetGID()
	switch {
	case in.NodeId != diskNode,
		sizeSet && size < a.Size,
		modeSet && mode&permissions != a.Mode&permissions,
		uidSet && uid != a.Uid,
		gidSet && gid != a.Gid:
		return fuse.EPERM
	}
	if sizeSet && size > a.Size {
		if size > math.MaxInt64 {
			return fuse.Status(unix.EFBIG)
		}
		if err := f.disk.Grow(context.Background(), int64(size)); err != nil {
			return f.errno("resize", int64(size), err)
		}
		f.times.modified()
	}
	t, set := in.GetATime()
	if set {
		f.times.access.Store(t.UnixNano())
	}
	if t, ok := in.GetMTime(); ok {
		f.times.modify.Store(t.UnixNano())
		set = true
	}
	if set {
		f.times.change.Store(time.Now().UnixNano())
	}
	out.SetTimeout(f.attrTimeout())
	out.Attr = *f.attr(in.NodeId)
	return fuse.OK
}
