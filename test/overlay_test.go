package test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// overlaid mounts img with an overlay.
func overlaid(t *testing.T, img, overlay string) *served {
	t.Helper()
	return serve(t, img, "-o", "overlay="+overlay)
}

// writeInPlaces writes the pattern to some places of a mounted disk, discards one, and syncs.
func writeInPlaces(t *testing.T, disk string, pattern byte) {
	t.Helper()
	f := openDisk(t, disk, 0)
	defer f.Close()
	writePattern(t, f, pattern, 512, 3*mib)
	writePattern(t, f, pattern, 17*mib+4096, 4096)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 10*mib, 2*mib); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// What is written over an image of any kind is in the overlay, also the next time. The image stays what it was, until the
// overlay is merged into it.
func TestOverlayIsKept(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			img := v.create(t, "32MiB")
			before := sha256File(t, img)
			over := filepath.Join(t.TempDir(), "over.vhdx")

			s := overlaid(t, img, over)
			writeInPlaces(t, s.disk, 0x5A)
			want := sha256File(t, s.disk)
			if r := vhdxfs(t, "info", img); r.status != 0 { // it is open for reading alone
				t.Errorf("info of the image while it is overlaid: %s", r.stderr)
			}
			s.end(t)
			unchanged(t, img, before)
			if got := stat(t, over).Mode & 0o777; got != stat(t, img).Mode&0o777 {
				t.Errorf("the overlay has mode %o, the image another", got)
			}

			again := overlaid(t, img, over)
			if got := sha256File(t, again.disk); got != want {
				t.Error("what was written is not there at the next mount")
			}
			again.end(t)
			plain := readOnly(t, img)
			if got := sha256File(t, plain.disk); got == want {
				t.Error("the image shows what was written over it")
			}
			plain.end(t)
			unchanged(t, img, before)
			mustVhdxfs(t, "check", "-o", "parent="+img, over)

			if v.child { // the directory of its own parent is not that of the overlay; and the parent must stay as it is
				return
			}
			mustVhdxfs(t, "merge", "-o", "parent="+img, over)
			merged := readOnly(t, img)
			if got := sha256File(t, merged.disk); got != want {
				t.Error("the merged image does not show what was written over it")
			}
		})
	}
}

// A throw-away overlay has no name while it is used, and is gone however its mount ends. Several mounts of one image each
// have their own.
func TestOverlayIsThrownAway(t *testing.T) {
	requireFUSE(t)
	detectRaces(t)
	img, _ := sampleImage(t)
	before := sha256File(t, img)
	tmp := newDir(t)
	t.Setenv("TMPDIR", tmp)
	empty := func(when string) {
		t.Helper()
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v in TMPDIR", when, left, err)
		}
	}
	one, other := overlaid(t, img, "tmp"), overlaid(t, img, "tmp")
	untouched := sha256File(t, other.disk)
	empty("while it is mounted")
	writeInPlaces(t, one.disk, 0x77)
	if got := sha256File(t, other.disk); got != untouched {
		t.Error("another mount shows what was written")
	}
	if got := sha256File(t, one.disk); got == untouched {
		t.Error("what was written does not show")
	}
	one.end(t)
	if got := mustVhdxfs(t, "list"); !strings.Contains(words(got), "rw, overlay tmp mounted at "+other.dir) || !strings.Contains(got, img) {
		t.Errorf("the mount that is left is not listed by its image:\n%s", got)
	}
	if r := vhdxfs(t, "snapshot", img); r.status != usageStatus || !strings.Contains(r.stderr, "its overlay has no file to freeze") {
		t.Errorf("snapshot: status %d, %s", r.status, r.stderr)
	}
	other.end(t)
	empty("after the mounts")

	killed := serveToKill(t, img, "-o", "overlay=tmp")
	writeInPlaces(t, killed.disk, 0x78)
	killed.cmd.Process.Kill()
	<-killed.done
	unmount(t, killed.dir)
	empty("after a kill")
	unchanged(t, img, before)
}

// The directory of the image, or that of the overlay, has a name that cannot stand in an image: a throw-away overlay never
// needs it, and a file can be beside the image.
func TestOverlayOfOddPath(t *testing.T) {
	requireFUSE(t)
	img, _ := sampleImage(t)
	dir := filepath.Join(newDir(t), "2026-11-21T10:00\\ \xff")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(dir, "disk.vhdx")
	if err := os.Rename(img, odd); err != nil {
		t.Fatal(err)
	}
	before := sha256File(t, odd)
	for _, overlay := range []string{"tmp", filepath.Join(dir, "over.avhdx")} {
		t.Setenv("TMPDIR", dir)
		d := overlaid(t, odd, overlay)
		writeInPlaces(t, d.disk, 0x31)
		d.end(t)
		unchanged(t, odd, before)
	}
	r := vhdxfs(t, "-o", "overlay="+filepath.Join(filepath.Dir(dir), "over.avhdx"), odd, newDir(t))
	if r.status != mountStatus || !strings.Contains(r.stderr, "create the child in the directory of the parent") {
		t.Errorf("an overlay elsewhere: status %d, %s", r.status, r.stderr)
	}
}

// An image that was not closed cleanly can be written over; its log is replayed in memory. So can an overlay be used
// again that was not closed, and replay=no refuses both.
func TestOverlayOfDirtyImages(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img := create(t, "32MiB", "--block-size", "1MiB")
	over := filepath.Join(t.TempDir(), "over.vhdx")
	dirty := func(file string, pattern byte, options string) (sum string) {
		t.Helper()
		s := serveToKill(t, img, "-o", "commit=0,idle_clean=0"+options)
		f := openDisk(t, s.disk, 0)
		writePattern(t, f, pattern, 5*mib, 3*mib)
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		sum = sha256File(t, s.disk)
		s.cmd.Process.Kill()
		<-s.done
		f.Close()
		unmount(t, s.dir)
		args := []string{"info", "--json", file}
		if file == over {
			args = append(args, "-o", "parent="+img)
		}
		if got := mustVhdxfs(t, args...); !strings.Contains(got, "replayed in memory") {
			t.Fatalf("the kill left nothing to replay:\n%s", got)
		}
		return sum
	}
	refused := func() {
		t.Helper()
		if r := vhdxfs(t, "-o", "replay=no,overlay="+over, img, newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, "replay=no forbids") {
			t.Errorf("replay=no: status %d, %s", r.status, r.stderr)
		}
	}
	dirty(img, 0x31, "")
	before := sha256File(t, img)
	refused()
	want := dirty(over, 0x32, ",overlay="+over)
	unchanged(t, img, before)
	s := overlaid(t, img, over)
	if got := sha256File(t, s.disk); got != want {
		t.Error("what was synced before the kill is not there")
	}
	s.end(t)
	unchanged(t, img, before)
}

// What cannot be an overlay, or does not fit, is refused, and stays what it is.
func TestOverlayRefused(t *testing.T) {
	img, dir := create(t, "32MiB"), t.TempDir()
	plain, over, directory := create(t, "8MiB"), filepath.Join(dir, "over.vhdx"), newDir(t)
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no image"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(img, link); err != nil {
		t.Fatal(err)
	}
	s := overlaid(t, img, over)
	writeInPlaces(t, s.disk, 1)
	s.end(t)
	files := []string{img, plain, over, text}
	refuse := func(options string, status int, says string) {
		t.Helper()
		var sums []string
		for _, f := range files {
			sums = append(sums, sha256File(t, f))
		}
		mnt := newDir(t)
		r := vhdxfs(t, "-o", options, img, mnt)
		if r.status != status || !strings.Contains(r.stderr, says) {
			t.Errorf("-o %s: status %d, %s; want %d and %q", options, r.status, r.stderr, status, says)
		}
		if _, mounted := mountAt(mnt); mounted {
			unmount(t, mnt)
			t.Errorf("-o %s: it is mounted", options)
		}
		for i, f := range files {
			unchanged(t, f, sums[i])
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("-o %s leaves %v", options, left)
		}
	}
	refuse("ro,overlay="+over, usageStatus, "exclude each other")
	refuse("ro_fallback,overlay=tmp", usageStatus, "exclude each other")
	refuse("overlay=", usageStatus, "needs a value")
	refuse("overlay="+img, mountStatus, "the file is the parent itself")
	refuse("overlay="+link, mountStatus, "the file is the parent itself")
	refuse("overlay="+plain, mountStatus, "is not an overlay: it has no parent")
	refuse("overlay="+text, mountStatus, "a VHDX file has at least")
	refuse("overlay="+directory, mountStatus, "is a directory")
	refuse("overlay="+filepath.Join(dir, "none", "over.vhdx"), mountStatus, "no such file or directory")
	refuse("overlay="+"/proc/over.vhdx", mountStatus, "overlay:")
	t.Run("in use", func(t *testing.T) {
		overlaid(t, img, over)
		refuse("overlay="+over, mountStatus, "in use by the mount of "+img)
	})
	t.Run("image in use", func(t *testing.T) {
		serve(t, img)
		refuse("overlay=tmp", mountStatus, "has the image open")
	})
	changed := serve(t, img)
	writeInPlaces(t, changed.disk, 2)
	changed.end(t)
	refuse("overlay="+over, mountStatus, "does not fit")
}

// Who can only read an image can write over it, an ordinary user, too; and who cannot read it cannot read disk.raw.
func TestOverlayOfAnImageOfOthers(t *testing.T) {
	p := newHost(t).place(t, "overlay")
	p.forNobody(t)
	if err := errors.Join(os.Chown(p.img, 0, 0), os.Chmod(p.img, 0o444)); err != nil {
		t.Fatal(err)
	}
	before := sha256File(t, p.img)
	mount := asNobody(program.path(t), "-o", "overlay=tmp", p.img, p.dir)
	p.runWith(t, []string{"TMPDIR=" + p.dir}, 0, "", mount...) // where nothing is left
	p.mounted(t, "rw")
	p.run(t, 0, "644 65534", asNobody("stat", "-c", "%a %u", p.disk)...)
	p.run(t, 0, "", asNobody("dd", "if=/dev/urandom", "of="+p.disk, "bs=1M", "count=3", "conv=notrunc,fsync")...)
	p.run(t, 0, "", "umount", p.dir)
	p.unmounted(t)
	unchanged(t, p.img, before)

	if err := os.Chmod(p.img, 0o400); err != nil {
		t.Fatal(err)
	}
	p.runWith(t, []string{"TMPDIR=" + p.dir}, 1, "permission denied", mount...)
	p.mount(t, "overlay=tmp")
	p.run(t, 1, "Permission denied", asNobody("dd", "if="+p.disk, "of=/dev/null", "count=1")...)
	p.run(t, 0, "", "umount", p.dir)
	unchanged(t, p.img, before)
}
