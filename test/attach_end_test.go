package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// attachKilled attaches an image, kills the program before it has a loop device, and returns the mount point, which is
// mounted.
func attachKilled(t *testing.T, img string) (dir string) {
	t.Helper()
	note := filepath.Join(t.TempDir(), "losetup")
	env := fakeTool(t, "losetup", `case "$*" in *--find*) echo $$ >`+note+`; exec sleep 60;; esac; exec REAL "$@"`)
	before := runDirs(t)
	cmd := exec.Command(program.path(t), "attach", img)
	cmd.Env = append(os.Environ(), env)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { detachLeft(t, img) })
	var losetup int
	eventually(t, "losetup", func() bool {
		text, _ := os.ReadFile(note)
		losetup, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return losetup > 0
	})
	cmd.Process.Kill()
	cmd.Wait()
	syscall.Kill(losetup, syscall.SIGKILL)
	for _, d := range runDirs(t) {
		if !slices.Contains(before, d) {
			dir = d
		}
	}
	if dir == "" {
		t.Fatal("attach has made no mount point")
	}
	return dir
}

// What an attach leaves that was killed is removed by the next one when nobody uses it any more: not while it is
// mounted, wherever that is, and not what somebody has made by hand.
func TestAttachSweeps(t *testing.T) {
	requireLoop(t)
	requireTools(t, "unshare", "nsenter")
	byHand := "/run/vhdxfs/vhdxfs-test-by-hand"
	if err := os.MkdirAll(byHand, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(byHand) })
	attachOther := func() {
		t.Helper()
		other := create(t, "64MiB")
		l := attachImage(t, other)
		mustVhdxfs(t, "detach", other)
		checkDetached(t, l)
	}
	there := func(dir string) bool { return slices.Contains(runDirs(t), dir) }

	img := create(t, "64MiB")
	dir := attachKilled(t, img)
	attachOther()
	if _, mounted := mountAt(dir); !mounted || !there(dir) {
		t.Errorf("%s is mounted: %v, there: %v", dir, mounted, there(dir))
	}
	for _, pid := range daemons(dir) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	unmount(t, dir)
	if !there(dir) {
		t.Errorf("%s is gone, and nobody was there to remove it", dir)
	}
	attachOther()
	if there(dir) {
		t.Errorf("%s is left", dir)
	}
	if !there(byHand) {
		t.Errorf("%s is gone", byHand)
	}

	// In another mount namespace.
	device := strings.TrimSpace(must(t, "unshare", "--mount", "--propagation", "private", program.path(t), "attach", img))
	dirs := slices.DeleteFunc(runDirs(t), func(d string) bool { return d == byHand })
	if len(dirs) == 0 {
		t.Fatal("attach has made no mount point")
	}
	dir = dirs[0]
	pids := daemons(dir)
	if len(pids) != 1 {
		t.Fatalf("processes %v serve %s, want one", pids, dir)
	}
	in := []string{"nsenter", "--target", strconv.Itoa(pids[0]), "--mount", program.path(t)}
	t.Cleanup(func() {
		if out, err := command(in[0], append(in[1:], "detach", img)...); err != nil {
			t.Errorf("detach in the other namespace: %v\n%s", err, out)
			syscall.Kill(pids[0], syscall.SIGKILL)
			command("losetup", "--detach", device)
		}
	})
	attachOther()
	if out := must(t, in[0], append(in[1:], "list")...); !strings.Contains(out, img+" ") || !strings.Contains(out, "mounted at "+dir) {
		t.Errorf("after an attach in this namespace, there is in the other one: %s", out)
	}
}

// Many at once neither take each other's mount points nor leave one.
func TestAttachAtOnce(t *testing.T) {
	detectRaces(t)
	requireLoop(t)
	before := runDirs(t)
	var images []string
	for range 4 {
		images = append(images, create(t, "16MiB"))
	}
	var all sync.WaitGroup
	for _, img := range images {
		all.Go(func() {
			for range 5 {
				for _, what := range []string{"attach", "detach"} {
					if out, err := command(program.path(t), what, img); err != nil {
						t.Errorf("%s: %v\n%s", what, err, out)
						return
					}
				}
			}
		})
	}
	all.Wait()
	if now := runDirs(t); !slices.Equal(now, before) {
		t.Errorf("directories %q are there, and before there were %q", now, before)
	}
}

// SIGTERM takes the loop device along that attach has made. One that is in use goes when that ends.
func TestAttachEndsBySignal(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "sfdisk")
	img := create(t, "64MiB")
	gone := func(l listed) {
		t.Helper()
		eventually(t, "the end of the process", func() bool { return len(daemons(l.MountPoint)) == 0 })
		checkDetached(t, l)
		device := filepath.Join("/sys/block", filepath.Base(l.Devices[0].Device), "loop/backing_file")
		if b, err := os.ReadFile(device); err == nil && strings.TrimSpace(string(b)) == "/disk.raw" {
			t.Errorf("%s is left", l.Devices[0].Device)
		}
		if slices.Contains(runDirs(t), l.MountPoint) {
			t.Errorf("%s is left", l.MountPoint)
		}
		checkClean(t, img)
	}
	terminate := func(l listed) {
		t.Helper()
		if err := syscall.Kill(l.PID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if pids := daemons(l.MountPoint); len(pids) > 0 { // the test has failed
				command("losetup", "--detach", l.Devices[0].Device)
				syscall.Kill(pids[0], syscall.SIGKILL)
			}
		})
	}

	l := attachImage(t, img)
	must(t, "sh", "-c", "echo start=1MiB, size=32MiB | sfdisk --quiet --no-reread --no-tell-kernel "+l.Devices[0].Device)
	terminate(l)
	gone(l)

	log := filepath.Join(t.TempDir(), "log")
	l = attachImage(t, img, "-o", "log="+log)
	if len(l.Devices[0].Partitions) != 1 {
		t.Fatalf("attached: %+v", l.Devices)
	}
	part := l.Devices[0].Partitions[0].Device
	must(t, "mkfs.ext4", "-q", part)
	dir := newDir(t)
	must(t, "mount", part, dir)
	t.Cleanup(func() {
		if _, mounted := mountAt(dir); mounted {
			unmount(t, dir)
		}
	})
	terminate(l)
	want := part + " is mounted at " + dir
	eventually(t, "the log to say who uses the device", func() bool {
		text, _ := os.ReadFile(log)
		return strings.Contains(string(text), want)
	})
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644); err != nil {
		t.Error(err)
	}
	must(t, "sync", "--file-system", dir)
	unmount(t, dir)
	gone(l)

	l = attachImage(t, img, "-r")
	must(t, "mount", "-o", "ro,noload", l.Devices[0].Partitions[0].Device, dir)
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "kept" {
		t.Errorf("what was written after the signal: %q, %v", b, err)
	}
	unmount(t, dir)
	mustVhdxfs(t, "detach", img)
}

// A mount that another one hides, or whose image a server still writes after a lazy unmount, is not taken for none: a caller of
// detach, umount or close relies on the image being closed.
func TestImageStillOpenIsNotCalledUnmounted(t *testing.T) {
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount over a mount")
	}
	img, point := filepath.Join(newDir(t), "a.vhdx"), newDir(t)
	mustVhdxfs(t, "create", "--size", "16M", img)
	refused := func(want string, names ...string) {
		t.Helper()
		for _, name := range names {
			for _, c := range []string{"detach", "umount", "close"} {
				if r := vhdxfs(t, c, name); r.status != mountStatus || !strings.Contains(r.stderr, want) {
					t.Errorf("%s %s: status %d, %q; want %d and %q", c, name, r.status, r.stderr, mountStatus, want)
				}
			}
		}
	}
	mustVhdxfs(t, img, point)
	server := must(t, "getfattr", "--only-values", "--absolute-names", "-n", "user.vhdx.pid", point)
	must(t, "mount", "-t", "tmpfs", "tmpfs", point)
	refused("is hidden by another one", img, point)
	must(t, "umount", point)

	f, err := os.Open(filepath.Join(point, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	must(t, "umount", "--lazy", point)
	refused("still has it open for writing", img)
	must(t, "kill", "-STOP", server) // it answers nothing
	t.Cleanup(func() { command("kill", "-CONT", server) })
	refused("still has it open for writing", img)
	must(t, "kill", "-CONT", server)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if r := vhdxfs(t, "detach", img); r.status != 6 {
		t.Errorf("after the end: status %d, %q", r.status, r.stderr)
	}
}
