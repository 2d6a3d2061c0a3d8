package fs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

func TestAttributes(t *testing.T) {
	num := func(v uint32) *uint32 { return &v }
	for _, tc := range []struct {
		name       string
		o          Options
		root, file uint32
		uid, gid   uint32
	}{
		{"of the image", Options{}, 0o551, 0o440, 7, 8},
		{"umask", Options{Umask: num(0o077)}, 0o500, 0o400, 7, 8},
		{"umask opens", Options{Umask: num(0o022)}, 0o555, 0o444, 7, 8},
		{"mode", Options{Mode: num(0o640)}, 0o551, 0o640, 7, 8},
		{"mode and umask", Options{Mode: num(0o644), Umask: num(0o007)}, 0o550, 0o644, 7, 8},
		{"overlay", Options{Overlay: "tmp"}, 0o551, 0o440, uint32(os.Geteuid()), uint32(os.Getegid())},
		{"owner", Options{UID: num(1), GID: num(0)}, 0o551, 0o440, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newFakeDisk(t)
			f := newTestFileSystem(t, d, tc.o)
			var root, file fuse.AttrOut
			if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: rootNode}}, &root); !s.Ok() {
				t.Fatal(s)
			}
			if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: diskNode}}, &file); !s.Ok() {
				t.Fatal(s)
			}
			if root.Mode != syscall.S_IFDIR|tc.root || file.Mode != syscall.S_IFREG|tc.file {
				t.Errorf("modes %o and %o, want directory %o and file %o", root.Mode, file.Mode, tc.root, tc.file)
			}
			if file.Uid != tc.uid || file.Gid != tc.gid {
				t.Errorf("owner %d:%d, want %d:%d", file.Uid, file.Gid, tc.uid, tc.gid)
			}
			if file.Size != uint64(d.Size()) || file.Blocks*512 != uint64(d.AllocatedBytes()) {
				t.Errorf("size %d, blocks %d; want %d bytes, %d of them held", file.Size, file.Blocks, d.Size(), d.AllocatedBytes())
			}
			if file.Timeout() != cacheTimeout {
				t.Errorf("timeout %v", file.Timeout())
			}
		})
	}
}

// As long as it is not known how much of the disk is held, the kernel asks again.
func TestAttrUntilCounted(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	for _, counted := range []bool{false, true} {
		d.uncounted = !counted
		var got fuse.AttrOut
		f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: diskNode}}, &got)
		var entry fuse.EntryOut
		f.Lookup(nil, &fuse.InHeader{NodeId: rootNode}, mounts.FileName, &entry)
		if got.Timeout() > 0 != counted || entry.AttrTimeout() > 0 != counted || entry.EntryTimeout() == 0 {
			t.Errorf("counted %v: attributes are kept for %v and %v, the name for %v", counted, got.Timeout(), entry.AttrTimeout(), entry.EntryTimeout())
		}
	}
}

func TestLookup(t *testing.T) {
	f := newTestFileSystem(t, newFakeDisk(t), Options{})
	for _, tc := range []struct {
		node uint64
		name string
		want uint64
		s    fuse.Status
	}{
		{rootNode, mounts.FileName, diskNode, fuse.OK},
		{rootNode, "DISK.RAW", 0, fuse.OK}, // node 0: no such name
		{diskNode, mounts.FileName, 0, fuse.ENOTDIR},
	} {
		var out fuse.EntryOut
		if s := f.Lookup(nil, &fuse.InHeader{NodeId: tc.node}, tc.name, &out); s != tc.s || out.NodeId != tc.want {
			t.Errorf("lookup of %s in %d: node %d, %v; want %d, %v", tc.name, tc.node, out.NodeId, s, tc.want, tc.s)
		}
	}
	if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: 3}}, new(fuse.AttrOut)); s != fuse.ENOENT {
		t.Errorf("attributes of node 3: %v, want ENOENT", s)
	}
}

func TestReadDir(t *testing.T) {
	f := newTestFileSystem(t, newFakeDisk(t), Options{})
	names := []string{".", "..", mounts.FileName}
	for off := range uint64(5) {
		want := names[min(off, 3):]
		in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: rootNode}, Offset: off}
		list := fuse.NewDirEntryList(make([]byte, 4096), off)
		if s := f.ReadDir(nil, in, list); !s.Ok() {
			t.Fatal(s)
		}
		plain, err := fuse.ParseDirEntries(list.Bytes())
		if err != nil || !slices.EqualFunc(plain, want, func(e fuse.DirEntry, n string) bool { return e.Name == n }) {
			t.Errorf("READDIR from %d: %v, %v; want %q", off, plain, err, want)
		}
		list = fuse.NewDirEntryList(make([]byte, 4096), off)
		if s := f.ReadDirPlus(nil, in, list); !s.Ok() {
			t.Fatal(s)
		}
		plus, outs, err := fuse.ParseDirLookupEntries(list.Bytes())
		if err != nil || !slices.EqualFunc(plus, want, func(e fuse.DirEntry, n string) bool { return e.Name == n }) {
			t.Fatalf("READDIRPLUS from %d: %v, %v; want %q", off, plus, err, want)
		}
		for i, out := range outs {
			if isDisk := plus[i].Name == mounts.FileName; isDisk != (out.NodeId == diskNode) {
				t.Errorf("READDIRPLUS: %s is node %d", plus[i].Name, out.NodeId)
			}
		}
	}
	// A list without room for all of it is continued by the next request.
	list := fuse.NewDirEntryList(make([]byte, 40), 0)
	if s := f.ReadDir(nil, &fuse.ReadIn{}, list); !s.Ok() || list.Offset != 1 {
		t.Errorf("small READDIR: %v, next offset %d, want 1", s, list.Offset)
	}
	if s := f.OpenDir(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: diskNode}}, new(fuse.OpenOut)); s != fuse.ENOTDIR {
		t.Errorf("opendir of the file: %v", s)
	}
}

func TestStatFs(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	var out fuse.StatfsOut
	if s := f.StatFs(nil, &fuse.InHeader{}, &out); !s.Ok() {
		t.Fatal(s)
	}
	if out.Blocks*uint64(out.Frsize) != uint64(d.Size()) ||
		out.Bfree*uint64(out.Frsize) != uint64(d.Size()-d.AllocatedBytes()) || out.Bavail != out.Bfree || out.Bfree == 0 {
		t.Errorf("%+v, want %d bytes, all free but %d", out, d.Size(), d.AllocatedBytes())
	}
}

// fullDisk is a disk with all its blocks allocated.
type fullDisk struct{ *fakeDisk }

func (d fullDisk) AllocatedBytes() int64 { return d.Size() }

// A monitor does not take a disk for full whose blocks are all allocated.
func TestStatFsFullDisk(t *testing.T) {
	f := newTestFileSystem(t, fullDisk{newFakeDisk(t)}, Options{})
	var out fuse.StatfsOut
	if s := f.StatFs(nil, &fuse.InHeader{}, &out); !s.Ok() || out.Bfree < out.Blocks/4 || out.Bavail != out.Bfree {
		t.Errorf("%v, %+v; want a quarter free", s, out)
	}
}

func TestXAttrs(t *testing.T) {
	d := newFakeDisk(t)
	d.info.Parent = &vhdx.ParentInfo{Image: &vhdx.Info{
		Path:   "/p1.vhdx",
		Parent: &vhdx.ParentInfo{Image: &vhdx.Info{Path: "/p2.vhdx"}},
	}}
	f := newTestFileSystem(t, d, Options{})
	for _, node := range []uint64{rootNode, diskNode} {
		t.Run(fmt.Sprintf("node %d", node), func(t *testing.T) { testXAttrs(t, f, d, &fuse.InHeader{NodeId: node}) })
	}
	for _, writable := range []bool{false, true} {
		d.writable = writable
		f := newTestFileSystem(t, d, Options{})
		buf := make([]byte, 10)
		n, s := f.GetXAttr(nil, &fuse.InHeader{NodeId: rootNode}, "user.vhdx.mode", buf)
		if want := map[bool]string{false: "ro", true: "rw"}[writable]; !s.Ok() || string(buf[:n]) != want {
			t.Errorf("mode %q, %v; want %s", buf[:n], s, want)
		}
	}
}

func testXAttrs(t *testing.T, f *fileSystem, d *fakeDisk, node *fuse.InHeader) {
	size, s := f.ListXAttr(nil, node, nil)
	if s != fuse.ERANGE || size == 0 {
		t.Fatalf("list without room: %d, %v; want the size and ERANGE", size, s)
	}
	list := make([]byte, size)
	if n, s := f.ListXAttr(nil, node, list); !s.Ok() || n != size {
		t.Fatalf("list: %d, %v; want %d", n, s, size)
	}
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	for name, want := range map[string]string{
		"type": "dynamic", "block_size": "1048576", "logical_sector_size": "512", "physical_sector_size": "4096",
		"pid": strconv.Itoa(os.Getpid()), "mode": "ro",
		"creator": "a test", "log_state": "clean", "parent_chain": "/p1.vhdx\n/p2.vhdx", "path": d.info.Path,
		"disk_id":         "01000000-0000-0000-0000-000000000000",
		"data_write_guid": "02000000-0000-0000-0000-000000000000",
		"file_write_guid": "03000000-0000-0000-0000-000000000000",
	} {
		name = mounts.XAttrPrefix + name
		if !slices.Contains(names, name) {
			t.Errorf("%s is not listed", name)
		}
		buf := make([]byte, 200)
		if n, s := f.GetXAttr(nil, node, name, buf); !s.Ok() || string(buf[:n]) != want {
			t.Errorf("%s = %q, %v; want %q", name, buf[:n], s, want)
		}
		if n, s := f.GetXAttr(nil, node, name, nil); s != fuse.ERANGE || int(n) != len(want) {
			t.Errorf("%s without room: %d, %v; want %d and ERANGE", name, n, s, len(want))
		}
	}
	buf := make([]byte, mounts.MaxXAttrSize)
	n, s := f.GetXAttr(nil, node, mounts.XAttrPrefix+"json", buf)
	var info vhdx.Info
	if err := json.Unmarshal(buf[:n], &info); err != nil || !s.Ok() || !reflect.DeepEqual(info, d.info) {
		t.Errorf("json: %v, %v, %+v", s, err, info)
	}
	for _, name := range []string{"security.capability", "type", mounts.XAttrPrefix + "no"} {
		if _, s := f.GetXAttr(nil, node, name, buf); s != fuse.ENOATTR {
			t.Errorf("%s: %v, want ENODATA", name, s)
		}
	}
}

// What is too long for an extended attribute is left out, and harms no other.
func TestXAttrTooLong(t *testing.T) {
	d := newFakeDisk(t)
	d.info.Creator = strings.Repeat("x", mounts.MaxXAttrSize+1)
	f := newTestFileSystem(t, d, Options{})
	node := &fuse.InHeader{NodeId: diskNode}
	buf := make([]byte, 2*mounts.MaxXAttrSize)
	for _, name := range []string{"creator", "json"} {
		if n, s := f.GetXAttr(nil, node, mounts.XAttrPrefix+name, buf); s != fuse.ENOATTR {
			t.Errorf("%s: %d bytes, %v", name, n, s)
		}
	}
	n, s := f.ListXAttr(nil, node, buf)
	if list := buf[:n]; !s.Ok() || !bytes.Contains(list, []byte("user.vhdx.type\x00")) || bytes.Contains(list, []byte("creator")) {
		t.Errorf("list %q, %v", list, s)
	}
}

// What is just not too long is told, the names are in order, and an image of which the current header is not known is one, too.
func TestXAttrsAtTheirBounds(t *testing.T) {
	d := newFakeDisk(t)
	d.info.Creator = strings.Repeat("x", mounts.MaxXAttrSize)
	f := newTestFileSystem(t, d, Options{})
	node := &fuse.InHeader{NodeId: diskNode}
	buf := make([]byte, 2*mounts.MaxXAttrSize)
	if n, s := f.GetXAttr(nil, node, mounts.XAttrPrefix+"creator", buf); !s.Ok() || n != mounts.MaxXAttrSize {
		t.Errorf("%d bytes, %v", n, s)
	}
	n, s := f.ListXAttr(nil, node, buf)
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	if !s.Ok() || !slices.IsSorted(names) || !slices.Contains(names, mounts.XAttrPrefix+"creator") {
		t.Errorf("list %q, %v", names, s)
	}
	for n, known := range map[int]bool{-1: false, 0: false, 1: true, 2: true, 3: false} {
		d.info.CurrentHeader = n
		if _, told := imageXAttrs(&d.info, parentsText{})["data_write_guid"]; told != known {
			t.Errorf("with header %d: DataWriteGuid is told: %t", n, told)
		}
	}
}

func TestEverythingElseIsReadOnly(t *testing.T) {
	f := newTestFileSystem(t, newFakeDisk(t), Options{})
	_, write := f.Write(nil, &fuse.WriteIn{}, nil)
	_, writev := f.Writev(nil, &fuse.WriteIn{}, nil)
	_, copied := f.CopyFileRange(nil, &fuse.CopyFileRangeIn{})
	for name, s := range map[string]fuse.Status{
		"write": write, "writev": writev, "copy_file_range": copied,
		"setattr":     f.SetAttr(nil, &fuse.SetAttrIn{}, nil),
		"mknod":       f.Mknod(nil, &fuse.MknodIn{}, "x", nil),
		"mkdir":       f.Mkdir(nil, &fuse.MkdirIn{}, "x", nil),
		"unlink":      f.Unlink(nil, &fuse.InHeader{}, mounts.FileName),
		"rmdir":       f.Rmdir(nil, &fuse.InHeader{}, "x"),
		"rename":      f.Rename(nil, &fuse.RenameIn{}, mounts.FileName, "x"),
		"link":        f.Link(nil, &fuse.LinkIn{}, "x", nil),
		"symlink":     f.Symlink(nil, &fuse.InHeader{}, "x", "y", nil),
		"setxattr":    f.SetXAttr(nil, &fuse.SetXAttrIn{}, "user.x", nil),
		"removexattr": f.RemoveXAttr(nil, &fuse.InHeader{}, "user.x"),
		"create":      f.Create(nil, &fuse.CreateIn{}, "x", nil),
		"tmpfile":     f.Tmpfile(nil, &fuse.CreateIn{}, nil),
		"fallocate":   f.Fallocate(nil, &fuse.FallocateIn{}),
		"access":      f.Access(nil, &fuse.AccessIn{Mask: 2}),
	} {
		if s != fuse.EROFS {
			t.Errorf("%s: %v, want EROFS", name, s)
		}
	}
	for name, s := range map[string]fuse.Status{
		"fsync":    f.Fsync(nil, &fuse.FsyncIn{}),
		"fsyncdir": f.FsyncDir(nil, &fuse.FsyncIn{}),
		"access":   f.Access(nil, &fuse.AccessIn{Mask: 4}),
	} {
		if !s.Ok() {
			t.Errorf("%s: %v, want OK", name, s)
		}
	}
}

// With allow_root, a third user gets at nothing.
func TestAllowRoot(t *testing.T) {
	owner := uint32(syscall.Geteuid())
	f := newTestFileSystem(t, newFakeDisk(t), Options{AllowRoot: true})
	for _, tc := range []struct {
		uid  uint32
		want fuse.Status
	}{{0, fuse.OK}, {owner, fuse.OK}, {owner + 1, fuse.EACCES}} {
		var disk, root fuse.InHeader
		disk.NodeId, root.NodeId = diskNode, rootNode
		disk.Uid, root.Uid = tc.uid, tc.uid
		_, get := f.GetXAttr(nil, &disk, "user.vhdx.type", make([]byte, 100))
		_, list := f.ListXAttr(nil, &disk, make([]byte, 4096))
		for name, s := range map[string]fuse.Status{
			"lookup":    f.Lookup(nil, &root, mounts.FileName, new(fuse.EntryOut)),
			"getattr":   f.GetAttr(nil, &fuse.GetAttrIn{InHeader: disk}, new(fuse.AttrOut)),
			"access":    f.Access(nil, &fuse.AccessIn{InHeader: disk}),
			"open":      f.Open(nil, &fuse.OpenIn{InHeader: disk}, new(fuse.OpenOut)),
			"opendir":   f.OpenDir(nil, &fuse.OpenIn{InHeader: root}, new(fuse.OpenOut)),
			"getxattr":  get,
			"listxattr": list,
		} {
			if s != tc.want {
				t.Errorf("%s by user %d: %v, want %v", name, tc.uid, s, tc.want)
			}
		}
	}
}
