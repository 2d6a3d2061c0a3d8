package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A mount by root is open to others, but not what they could not open without it: neither the disk, nor what the extended
// attributes of either node tell of the image.
func TestPrivateImageStaysPrivate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	requireTools(t, "setpriv", "getfattr")
	for name, c := range map[string]struct {
		image, directory os.FileMode
		options          string
		open             bool
	}{
		"open":                {0o644, 0o755, "allow_other", true},
		"a private image":     {0o600, 0o755, "allow_other", false},
		"a private directory": {0o644, 0o700, "allow_other", false},
		"opened by the mode":  {0o600, 0o700, "allow_other,mode=0644", true},
	} {
		t.Run(name, func(t *testing.T) {
			directory := newDir(t)
			img := filepath.Join(directory, "img.vhdx")
			mustVhdxfs(t, "create", "-q", "--size", "16M", img)
			letPass(t, img)
			if err := os.Chmod(img, c.image); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(directory, c.directory); err != nil {
				t.Fatal(err)
			}
			s := serve(t, img, "-o", c.options)
			letPass(t, s.dir)
			for _, args := range [][]string{
				{"head", "-c1", s.disk}, {"getfattr", "-n", "user.vhdx.disk_id", s.dir}, {"getfattr", "-n", "user.vhdx.json", s.disk},
			} {
				out, err := command(asNobody(args...)[0], asNobody(args...)[1:]...)
				if (err == nil) != c.open || err != nil && !strings.Contains(out, "ermission denied") {
					t.Errorf("%v: %v, %q", args, err, out)
				}
			}
			if out, err := command("getfattr", "-n", "user.vhdx.disk_id", s.dir); err != nil {
				t.Errorf("root may not ask: %v, %s", err, out)
			}
		})
	}
}

// What another user has mounted is not named by its image to root, who is told how to unmount it.
func TestRootNamesAnothersMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	requireTools(t, "setpriv", "fusermount3")
	directory := newDir(t)
	letPass(t, directory)
	if err := os.Chown(directory, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	img, dir := filepath.Join(directory, "img.vhdx"), filepath.Join(directory, "mnt")
	for _, args := range [][]string{{"mkdir", dir}, {program.path(t), "create", "-q", img, "16M"}, {program.path(t), img, dir}} {
		if out, err := command(asNobody(args...)[0], asNobody(args...)[1:]...); err != nil {
			t.Fatalf("%v: %v, %s", args, err, out)
		}
	}
	t.Cleanup(func() { _, _ = command("umount", "-l", dir) })
	if r := vhdxfs(t, "detach", img); r.status != 6 || !strings.Contains(r.stderr, "name its mount point: vhdxfs umount "+dir) {
		t.Errorf("detach: status %d, %s", r.status, r.stderr)
	}
	mustVhdxfs(t, "umount", dir)
}
