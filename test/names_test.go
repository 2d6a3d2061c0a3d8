package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bind mounts a file or a directory at another place as well, until the test ends.
func bind(t *testing.T, from, to string) {
	t.Helper()
	if st, err := os.Stat(from); err == nil && st.IsDir() {
		must(t, "mkdir", "-p", to)
	} else {
		must(t, "touch", to)
	}
	must(t, "mount", "--bind", from, to)
	t.Cleanup(func() { command("umount", "-l", to) })
}

// An image is known by its file, by whatever name it is called.
func TestMountedImageHasManyNames(t *testing.T) {
	requireLoop(t)
	img := create(t, "16MiB")
	in := func(name string) string { return filepath.Dir(img) + "/" + name }
	must(t, "ln", "-s", img, in("link"))
	must(t, "ln", img, in("hard"))
	must(t, "ln", "-s", filepath.Dir(img), in("directory"))
	requireTools(t, "mount")
	bind(t, img, in("bound"))
	for _, name := range []string{"link", "hard", "directory/link", "bound", "directory/../" + filepath.Base(filepath.Dir(img)) + "/link"} {
		l := attachImage(t, img)
		mustVhdxfs(t, "detach", in(name))
		checkDetached(t, l)
	}

	// The mount, bound to other places.
	l := attachImage(t, img)
	bind(t, l.MountPoint, in("point"))
	bind(t, l.MountPoint+"/disk.raw", in("raw"))
	for _, name := range []string{"point", "point/disk.raw", "raw"} {
		mustVhdxfs(t, "compact", "-q", in(name))
	}
	must(t, "umount", in("raw"))
	must(t, "umount", in("point"))

	// What is mounted on its device.
	must(t, "mkfs.ext4", "-q", l.Devices[0].Device)
	inner := newDir(t)
	must(t, "mount", l.Devices[0].Device, inner)
	r := vhdxfs(t, "detach", inner)
	mustVhdxfs(t, "compact", "-q", inner)
	unmount(t, inner)
	if r.status != 32 || !strings.Contains(r.stderr, "is mounted at "+inner) {
		t.Errorf("detach of a file system on its device: status %d, %q", r.status, r.stderr)
	}
	mustVhdxfs(t, "detach", l.Devices[0].Device)
}

// A mount is not known by a name that its image once had, and tells what became of it.
func TestMountedImageLosesItsName(t *testing.T) {
	requireFUSE(t)
	img := create(t, "16MiB")
	moved := img + ".old"
	for _, tc := range []struct {
		name    string
		command []string
		text    string
		state   string
	}{
		{"renamed", []string{"mv", img, moved}, img + " (renamed to " + moved + ") 16 MiB rw mounted at ", "renamed"},
		{"deleted", []string{"rm", moved}, "(deleted) 16 MiB rw mounted at ", "deleted"},
	} {
		name := tc.command[1]
		log := filepath.Join(t.TempDir(), "log")
		point := newDir(t)
		mustVhdxfs(t, "-o", "log="+log, name, point)
		must(t, tc.command[0], tc.command[1:]...)
		if text := mustVhdxfs(t, "list"); !strings.Contains(words(text), tc.text+point) {
			t.Errorf("list: %q, want %q", text, tc.text+point)
		}
		r := vhdxfs(t, "detach", name)
		if r.status != 6 || !strings.Contains(r.stderr, tc.state) || !strings.Contains(r.stderr, point) {
			t.Errorf("%s: detach by the old name: status %d, %q", tc.name, r.status, r.stderr)
		}
		mustVhdxfs(t, "create", "--size", "16MiB", name) // another image takes the name
		if r := vhdxfs(t, "detach", name); r.status != 6 {
			t.Errorf("%s: detach of another image: status %d, %q", tc.name, r.status, r.stderr)
		}
		mustVhdxfs(t, "resize", "-q", name, "+1MiB")
		must(t, "rm", name)
		if tc.state == "renamed" {
			mustVhdxfs(t, "detach", moved)
		} else {
			mustVhdxfs(t, "detach", point)
		}
		if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "was "+tc.state) {
			t.Errorf("%s: the log: %v\n%s", tc.name, err, text)
		}
	}
}

// Each mount namespace may have a mount at the same path. What is done in one harms nothing in the other.
func TestSameMountPointInTwoNamespaces(t *testing.T) {
	requireLoop(t)
	requireTools(t, "unshare", "mount")
	img, other := create(t, "16MiB"), create(t, "32MiB")
	point := newDir(t)
	mustVhdxfs(t, "attach", img, point)
	t.Cleanup(func() { detachLeft(t, img) })
	l, _ := list(t, img)
	out, err := command("unshare", "--mount", "--propagation", "private", "sh", "-ec",
		`umount -l "$1"; "$0" attach "$2" "$1"; "$0" list; "$0" detach "$1"`, program.path(t), point, other)
	if err != nil {
		t.Errorf("in another namespace: %v\n%s", err, out)
	}
	if strings.Contains(out, l.Devices[0].Device+"\n") || strings.Contains(out, l.Devices[0].Device+",") {
		t.Errorf("the device of one mount is listed as the other's:\n%s", out)
	}
	if now, _ := list(t, img); len(now.Devices) != 1 || now.Devices[0].Device != l.Devices[0].Device {
		t.Errorf("afterwards there is %+v, want %+v", now, l)
	}
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
}
