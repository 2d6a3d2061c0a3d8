package fs

import (
	"fmt"
	"math"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// disk.raw grows as truncate(2) asks for it, and reads and writes know of its new end at once. Where the image cannot
// have that size, disk.raw keeps its own.
func TestGrow(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	f := newTestFileSystem(t, d, Options{})
	size := uint64(d.Size())
	grow := func(to uint64) (uint64, fuse.Status) {
		var out fuse.AttrOut
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: diskNode}, Valid: fuse.FATTR_SIZE, Size: to}}
		s := f.SetAttr(nil, &in, &out)
		return out.Size, s
	}
	if got, s := grow(size + 8192); !s.Ok() || got != size+8192 {
		t.Errorf("size %d, %v; want %d", got, s, size+8192)
	}
	if got, want := d.take(), fmt.Sprintf("grow[%d]", size+8192); got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	if n, s := f.Write(nil, &fuse.WriteIn{InHeader: fuse.InHeader{NodeId: diskNode}, Offset: size + 8190}, []byte("abcd")); n != 2 || !s.Ok() {
		t.Errorf("a write over the new end: %d, %v; want 2", n, s)
	}
	var st fuse.StatfsOut
	if f.StatFs(nil, &fuse.InHeader{}, &st); st.Blocks*uint64(st.Frsize) != size+8192 {
		t.Errorf("statfs tells of %d bytes, want %d", st.Blocks*uint64(st.Frsize), size+8192)
	}
	for err, want := range map[error]fuse.Status{vhdx.ErrSize: fuse.EINVAL, vhdx.ErrReshaping: fuse.Status(unix.EBUSY), unix.ENOSPC: fuse.Status(unix.ENOSPC)} {
		d.fail = map[string]error{"grow": err}
		if _, s := grow(size + 16384); s != want {
			t.Errorf("%v is answered by %v, want %v", err, s, want)
		}
	}
	if _, s := grow(math.MaxUint64); s != fuse.Status(unix.EFBIG) {
		t.Errorf("the largest size: %v, want EFBIG", s)
	}
	if a := f.attr(diskNode); a.Size != size+8192 {
		t.Errorf("size %d, want %d", a.Size, size+8192)
	}
}
