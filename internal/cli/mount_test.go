package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// needMount skips where nothing can be mounted.
func needMount(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short, since it mounts")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: mounting is tested as root only")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/fuse: %v", err)
	}
	unix.Close(fd)
}

// mounted returns the mount at dir, and nil where there is none.
func mounted(t *testing.T, dir string) *mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) == 0 {
		return nil
	}
	return mounts[0]
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 3000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited in vain for: ", what)
}

// server returns the process that serves the mount at dir, by its command line.
func server(t *testing.T, dir string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lines {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		line, err := os.ReadFile(name)
		if err == nil && pid != os.Getpid() && bytes.Contains(line, []byte("\x00"+dir+"\x00")) {
			return pid
		}
	}
	return 0
}

// mountImage mounts in the background, and sees to it that the mount goes away.
func mountImage(t *testing.T, image, dir string, options ...string) result {
	t.Helper()
	needMount(t)
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		eventually(t, "the end of the server", func() bool { return server(t, dir) == 0 })
	})
	// SPEC and DIR first, as mount(8) has them.
	return run(t, append([]string{image, dir}, options...)...)
}

func TestMountInBackground(t *testing.T) {
	image, dir := newImage(t), t.TempDir()
	t.Chdir(filepath.Dir(image)) // relative paths must survive the change of the working directory
	r := mountImage(t, filepath.Base(image), dir, "-o", "ro,nofail,x-systemd.automount")
	if r.status != 0 || withoutHint(r.stderr) != "" {
		t.Fatalf("status %d, %q", r.status, r.stderr)
	}
	m := mounted(t, dir)
	if m == nil || m.Source != image || m.FSType != "fuse.vhdxfs" {
		t.Fatalf("mount table right after the command: %+v", m)
	}
	p := make([]byte, 4096)
	fd, err := unix.Open(filepath.Join(dir, "disk.raw"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.Pread(fd, p, 64<<20-512)
	unix.Close(fd)
	if err != nil || n != 512 || !bytes.Equal(p[:n], make([]byte, 512)) {
		t.Errorf("read at the end: %d, %v", n, err)
	}

	pid := server(t, dir)
	if pid == 0 {
		t.Fatal("no process serves the mount")
	}
	if cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("working directory %s, %v; want /", cwd, err)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if to, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + fd); err != nil || to != os.DevNull {
			t.Errorf("descriptor %s is %s, %v", fd, to, err)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v; want one of its own, %d", sid, err, pid)
	}
	if err := unix.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}

	// A second mount at the same place is refused, and so is one of the same image; the first one stays.
	for _, second := range []struct{ image, dir, want string }{
		{newImage(t), dir, "is already mounted on "},
		{image, t.TempDir(), fmt.Sprintf("(process %d)", pid)},
	} {
		r = run(t, second.image, second.dir)
		if r.status != statusMount || !strings.Contains(r.stderr, second.want) {
			t.Errorf("second mount: status %d, %q, want it to say %q", r.status, r.stderr, second.want)
		}
		checkMessage(t, r)
	}
	if mounted(t, dir) == nil {
		t.Error("the first mount has gone")
	}

	if err := unix.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mount to go", func() bool { return mounted(t, dir) == nil })
}

// A terminal that closes takes a mount in the foreground down cleanly, as ctx does here.
func TestMountInForeground(t *testing.T) {
	needMount(t)
	image, dir := newImage(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() { done <- Run(ctx, []string{"vhdxfs", "-f", "-o", "fsname=x", image, dir}, &stderr, &stderr) }()
	eventually(t, "the mount", func() bool { return mounted(t, dir) != nil })
	if m := mounted(t, dir); m.Source != "x" {
		t.Errorf("source %q, want that of fsname", m.Source)
	}
	cancel()
	if status := <-done; status != 0 || stderr.Len() > 0 {
		t.Errorf("status %d, %q", status, stderr.String())
	}
	if mounted(t, dir) != nil {
		t.Error("the mount is still there")
	}
}

func TestMountErrors(t *testing.T) {
	needMount(t)
	image, dir := newImage(t), t.TempDir()
	broken := newImage(t)
	damage(t, broken, 0, 8)
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no image", []string{filepath.Join(dir, "none.vhdx"), dir}, "no such file"},
		{"damaged image", []string{broken, dir}, "rule R2"},
		{"no mount point", []string{image, filepath.Join(dir, "none")}, "does not exist; create it with"},
		{"a file as mount point", []string{image, image}, "not a directory"},
		{"remount", []string{image, dir, "-o", "remount,ro,user_id=0"}, "no VHDX image is mounted on"},
		{"log that cannot be written", []string{image, dir, "-o", "log=" + filepath.Join(dir, "none", "log")}, "option log"},
	} {
		for _, foreground := range []bool{false, true} {
			args := tc.args
			if foreground {
				args = append([]string{"-f"}, args...)
			}
			r := run(t, args...)
			if r.status != statusMount || !strings.Contains(r.stderr, tc.want) {
				t.Errorf("%s, foreground %v: status %d, %q; want %d and %q", tc.name, foreground, r.status, r.stderr, statusMount, tc.want)
			}
			checkMessage(t, r)
		}
	}
	if mounted(t, dir) != nil {
		t.Error("a failure left a mount behind")
	}
}
