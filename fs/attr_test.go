package fs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/otheruser"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Owner and permissions of disk.raw are those of the open file, even if another file has its name by now. They are closed to
// users that a directory on the way to it does not let pass.
func TestAttributesOfTheOpenFile(t *testing.T) {
	dir := t.TempDir()
	image, other := filepath.Join(dir, "image"), filepath.Join(dir, "other")
	for path, mode := range map[string]os.FileMode{image: 0o600, other: 0o666} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	d := newFakeDisk(t)
	d.info.Path = image
	a, err := (&Options{Image: other, AllowOther: true}).statImage(d)
	if err != nil || a.perm != 0o600 {
		t.Errorf("permissions %o, %v; want those of the open file", a.perm, err)
	}

	if os.Geteuid() != 0 {
		t.Skip("a mounter who is not root owns what he mounts")
	}
	open := safefile.Access{Perm: 0o755}
	uid := uint32(7)
	for name, c := range map[string]struct {
		o    Options
		way  safefile.Way
		perm uint32
		want uint32
	}{
		"all may pass":                  {Options{}, safefile.Way{open, open}, 0o644, 0o644},
		"only root may pass":            {Options{}, safefile.Way{open, {Perm: 0o700}, open}, 0o666, 0},
		"only the owner may pass":       {Options{}, safefile.Way{{UID: 7, Perm: 0o700}, open}, 0o666, 0o600},
		"only the group may pass":       {Options{}, safefile.Way{{GID: 8, Perm: 0o750}, open}, 0o664, 0o060},
		"all but the group may pass":    {Options{}, safefile.Way{{GID: 8, Perm: 0o705}, open}, 0o666, 0o606},
		"it can be listed only":         {Options{}, safefile.Way{{Perm: 0o744}, open}, 0o644, 0},
		"the mounter has named a user":  {Options{UID: &uid}, safefile.Way{{Perm: 0o700}}, 0o666, 0o600},
		"the mounter has named a group": {Options{GID: &uid}, safefile.Way{{Perm: 0o700}}, 0o660, 0o060},
	} {
		a := imageAttr{uid: 7, gid: 8, perm: c.perm}
		if a.closeOff(&c.o, []source{{safefile.Access{UID: 7, GID: 8, Perm: os.FileMode(c.perm)}, c.way, true}}); a.perm != c.want {
			t.Errorf("%s: %o, want %o", name, a.perm, c.want)
		}
	}
	a = imageAttr{uid: 7, gid: 8, perm: 0o666}
	if a.closeOff(&Options{}, []source{{safefile.Access{UID: 7, GID: 8, Perm: 0o666}, nil, false}}); a.perm != 0o600 {
		t.Errorf("where the way is not known: %o", a.perm)
	}
}

// A disk is shown only to users who can open the image and each of its parents. Their ACLs count.
func TestAttributesOfPrivateFiles(t *testing.T) {
	dir := otheruser.Dir(t) // which all may pass
	image, parent := filepath.Join(dir, "child.vhdx"), filepath.Join(dir, "parent.vhdx")
	if err := vhdx.Create(parent, vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := vhdx.Create(image, vhdx.CreateOptions{Parent: parent}); err != nil {
		t.Fatal(err)
	}
	const acl = "system.posix_acl_access"
	entries := func(user, group, mask, others byte) []byte { // the owner may read and write; user 7 has an entry
		b := []byte{2, 0, 0, 0}
		for _, e := range [][3]byte{{1, 6, 255}, {2, user, 7}, {4, group, 255}, {16, mask, 255}, {32, others, 255}} {
			id := []byte{e[2], 0, 0, 0}
			if e[2] == 255 {
				id = []byte{255, 255, 255, 255}
			}
			b = append(append(b, e[0], 0, e[1], 0), id...)
		}
		return b
	}
	type file struct {
		uid, gid int
		mode     os.FileMode
		acl      []byte
	}
	for name, c := range map[string]struct {
		image, parent file
		want          uint32
	}{
		"open":                          {file{9, 9, 0o666, nil}, file{0, 0, 0o644, nil}, 0o666},
		"a private parent":              {file{9, 9, 0o666, nil}, file{0, 0, 0o600, nil}, 0},
		"a private parent of the owner": {file{9, 9, 0o666, nil}, file{9, 0, 0o600, nil}, 0o600},
		"both of root":                  {file{0, 0, 0o644, nil}, file{0, 0, 0o600, nil}, 0o600},
		"a parent of the group":         {file{9, 9, 0o664, nil}, file{0, 9, 0o640, nil}, 0o660},
		"a parent without the group":    {file{9, 9, 0o666, nil}, file{0, 8, 0o604, nil}, 0o600},
		"an image with an ACL":          {file{0, 9, 0o600, entries(6, 0, 6, 0)}, file{0, 0, 0o644, nil}, 0o600},
		"an ACL that keeps a user out":  {file{0, 9, 0o600, entries(0, 4, 6, 4)}, file{0, 0, 0o644, nil}, 0o600},
		"an ACL that lets all read":     {file{0, 9, 0o600, entries(6, 6, 6, 4)}, file{0, 0, 0o644, nil}, 0o644},
		"a parent with an ACL":          {file{0, 9, 0o664, nil}, file{0, 9, 0o600, entries(4, 0, 4, 0)}, 0o600},
	} {
		for path, f := range map[string]file{image: c.image, parent: c.parent} {
			_ = unix.Removexattr(path, acl)
			if err := errors.Join(os.Chown(path, f.uid, f.gid), os.Chmod(path, f.mode)); err != nil {
				t.Fatal(err)
			}
			if f.acl != nil {
				if err := unix.Setxattr(path, acl, f.acl, 0); err != nil {
					t.Skipf("no ACLs here: %v", err)
				}
			}
		}
		im, err := vhdx.Open(image, vhdx.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a, err := (&Options{Image: image, AllowOther: true}).statImage(im)
		if err != nil || a.perm != c.want {
			t.Errorf("%s: permissions %o, %v; want %o", name, a.perm, err, c.want)
		}
		im.Close()
	}
}

// A name that there cannot be costs no look at anything, one that there is costs one look at what tells it, and of the
// parents nothing is put together twice.
func TestXAttrWork(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	for i := range 200 {
		p := &vhdx.Info{Path: strconv.Itoa(i), Parent: d.info.Parent}
		d.info.Parent = &vhdx.ParentInfo{Image: p}
	}
	f := newTestFileSystem(t, d, Options{})
	looks := 0
	for i := range f.xattrs {
		look := f.xattrs[i].look
		f.xattrs[i].look = func() map[string]string { looks++; return look() }
	}
	for _, name := range []string{"nosuch", "stat", "image", "", "type2"} {
		if v, ok := f.xattr(name); ok || looks > 0 {
			t.Errorf("%s: %q, %v; there were %d looks", name, v, ok, looks)
		}
	}
	for i, group := range f.xattrs {
		for name, want := range group.look() {
			looks = 0
			d.infos.Store(0)
			v, ok := f.xattr(name)
			if !ok || v != want && !strings.HasPrefix(name, "stats") || looks != 1 {
				t.Errorf("%s: %q, %v after %d looks; want %q", name, v, ok, looks, want)
			}
			if n := d.infos.Load(); i < len(f.xattrs)-1 && n > 0 || n > 1 {
				t.Errorf("%s: the image was asked %d times", name, n)
			}
		}
	}
	d.infos.Store(0)
	caller := &fuse.InHeader{NodeId: rootNode}
	if _, s := f.ListXAttr(nil, caller, make([]byte, 1<<16)); !s.Ok() || d.infos.Load() != 1 {
		t.Errorf("list: %v, the image was asked %d times", s, d.infos.Load())
	}

	teller := imageTeller{disk: d}
	address := func(m map[string]string) uintptr { return reflect.ValueOf(m).Pointer() }
	first := teller.xattrs()
	chain := teller.parents
	if again := teller.xattrs(); address(again) != address(first) {
		t.Error("what did not change was put together again")
	}
	d.info.DiskSize++
	if now := teller.xattrs(); now["disk_size"] == first["disk_size"] || teller.parents != chain {
		t.Errorf("after a change: size %s, before %s; the parents were put together again: %v", now["disk_size"], first["disk_size"], teller.parents != chain)
	}
}

// Users that may read disk.raw may list names, as they may read values.
func TestListXAttrAccess(t *testing.T) {
	d := newFakeDisk(t)
	for mode, want := range map[uint32][4]bool{ // to root, the owner, the group, others
		0o600: {true, true, false, false}, 0o644: {true, true, true, true}, 0o640: {true, true, true, false},
		0o604: {true, true, false, true}, 0o000: {true, false, false, false}, 0o200: {true, false, false, false},
	} {
		f := newTestFileSystem(t, d, Options{Mode: &mode})
		for i, c := range []fuse.Owner{{}, {Uid: 7, Gid: 99}, {Uid: 99, Gid: 8}, {Uid: 99, Gid: 99}} {
			for _, node := range []uint64{rootNode, diskNode} {
				h := &fuse.InHeader{NodeId: node, Caller: fuse.Caller{Owner: c, Pid: uint32(os.Getpid())}}
				if _, s := f.ListXAttr(nil, h, make([]byte, 1<<16)); s.Ok() != want[i] || !s.Ok() && s != fuse.EACCES {
					t.Errorf("mode %o, user %d, group %d: %v", mode, c.Uid, c.Gid, s)
				}
			}
		}
	}
}

// The files of which disk.raw shows something are the image, from a level on, and its parents, and no more.
func TestSourcesOfTheImage(t *testing.T) {
	d := newFakeDisk(t)
	for level := range 3 {
		sources, err := sourcesOf(d, level)
		if err != nil || len(sources) != 1 || !sources[0].known {
			t.Errorf("from level %d on: %+v, %v", level, sources, err)
		}
	}
}
