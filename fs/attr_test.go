package fs

import (
	"os"
	"path/filepath"
	"testing"

	"vhdxfs/internal/safefile"
)

// Owner and permissions of disk.raw are those of the open file, whatever has its name by now, and are closed to those whom
// a folder on the way to it does not let pass.
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
		if a.closeOff(&c.o, c.way, true); a.perm != c.want {
			t.Errorf("%s: %o, want %o", name, a.perm, c.want)
		}
	}
	a = imageAttr{uid: 7, gid: 8, perm: 0o666}
	if a.closeOff(&Options{}, nil, false); a.perm != 0o600 {
		t.Errorf("where the way is not known: %o", a.perm)
	}
}

// A name that nobody knows costs no look at the image and its parents; every name that is told is known.
func TestUnknownXAttr(t *testing.T) {
	d := newFakeDisk(t)
	f := newTestFileSystem(t, d, Options{})
	last, asked := len(f.xattrs)-1, 0
	image := f.xattrs[last]
	f.xattrs[last] = func() map[string]string { asked++; return image() }
	if v, ok := f.xattr("nosuch"); ok || asked > 0 {
		t.Errorf("%q, %v; the image was looked at %d times", v, ok, asked)
	}
	for name, want := range image() {
		if v, ok := f.xattr(name); !ok || v != want {
			t.Errorf("%s: %q, %v; want %q", name, v, ok, want)
		}
	}
}
