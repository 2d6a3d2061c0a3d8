package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// abort cuts the connection below a mount, as umount -f does of one in use.
func abort(t *testing.T, s *Server) {
	t.Helper()
	_, minor, _ := strings.Cut(s.device, ":")
	if err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0); err != nil {
		t.Skip("the kernel's list of connections: ", err)
	}
}

// soon waits for what the kernel does in its own time.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 3000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited in vain for: ", what)
}

func TestUnmountMoved(t *testing.T) {
	s := mountTest(t, newFakeDisk(t), Options{})
	elsewhere := t.TempDir()
	private(t, elsewhere)
	to := filepath.Join(elsewhere, "to")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(s.MountPoint(), to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmountDir(t, s.MountPoint())
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	if m, err := mounts.At(to); err != nil || m != nil {
		t.Fatalf("mount at the new place: %v, %v", m, err)
	}
	s.Wait()
	if err := s.DetachDead(); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// private puts a file system of its own at dir, whose mounts go nowhere else.
func private(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
		t.Skip("tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

// When a mount is gone, the kernel gives its number to the next one, of another image. That one is left alone.
func TestUnmountLeavesTheNextMount(t *testing.T) {
	next := mountTest(t, newFakeDisk(t), Options{})
	gone := &mounter{o: Options{MountPoint: t.TempDir(), Log: next.log}, device: next.device, source: "/another.vhdx"}
	if err := errors.Join(gone.Unmount(), gone.DetachDead()); err != nil {
		t.Error(err)
	}
	if m, err := mounts.At(next.mountPoint); err != nil || m == nil {
		t.Errorf("the next mount is gone: %v", err)
	}
}

func TestDetachDead(t *testing.T) {
	s := mountTest(t, newFakeDisk(t), Options{})
	abort(t, s)
	s.Wait()
	if err := s.DetachDead(); err == nil || !strings.Contains(err.Error(), "was cut") {
		t.Errorf("after the connection was cut: %v", err)
	}
	if m, err := mounts.At(s.MountPoint()); err != nil || m != nil {
		t.Errorf("mount table: %v, %v", m, err)
	}
}

func TestStaleMount(t *testing.T) {
	d := newFakeDisk(t)
	s := mountTest(t, d, Options{Source: "dead"})
	abort(t, s)
	s.Wait()
	if _, err := mounts.Attribute(s.MountPoint(), "pid"); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("attribute of a dead mount: %v", err)
	}
	o := Options{MountPoint: s.MountPoint(), Image: d.info.Path, Log: quiet(), KeepStale: true}
	if err := o.CheckMountPoint(); err == nil || !strings.Contains(err.Error(), "remove it with: umount") {
		t.Errorf("with KeepStale: %v", err)
	}
	o.KeepStale = false
	again, err := Mount(d, o)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := mounts.Attribute(again.MountPoint(), "pid"); err != nil || v != fmt.Sprint(os.Getpid()) {
		t.Errorf("attribute: %q, %v", v, err)
	}
	if err := again.Unmount(); err != nil {
		t.Error(err)
	}
	again.Wait()
	if m, err := mounts.At(s.MountPoint()); err != nil || m != nil {
		t.Errorf("the dead mount is still below: %v, %v", m, err)
	}
}

// Stop finishes changes under way and refuses later ones; the image is made clean in between.
func TestStop(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	s := mountTest(t, d, Options{})
	fd := openDisk(t, s, unix.O_RDWR)
	if n, err := unix.Pwrite(fd, []byte("x"), 0); n != 1 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	d.take()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != unix.EIO {
		t.Errorf("write: %v, want EIO", err)
	}
	if err := unix.Fsync(fd); err != unix.EIO {
		t.Errorf("fsync: %v, want EIO", err)
	}
	if got := d.take(); got != "clean[]" {
		t.Errorf("calls %q, want one of Clean", got)
	}
	if got := pread(t, fd, 4096, 0); len(got) != 4096 {
		t.Errorf("%d bytes read", len(got))
	}
}

func TestCheckFindsWhatCannotBeRead(t *testing.T) {
	d := newFakeDisk(t)
	s := mountTest(t, d, Options{})
	if err := s.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	d.err = errors.New("broken")
	if err := s.Check(); err == nil {
		t.Error("check of a disk that cannot be read: no error")
	}
	d.err = nil
}

// With errors=remount-ro, changes are refused with EROFS after a failed sync, and the mount becomes read-only when
// the last writer has gone.
func TestReadOnlyOnError(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	s := mountTest(t, d, Options{ReadOnlyOnError: true, Flags: unix.MS_NOEXEC})
	fd := openDisk(t, s, unix.O_RDWR)
	d.mu.Lock()
	d.fail = map[string]error{}
	for _, method := range []string{"write", "sync", "clean"} {
		d.fail[method] = fmt.Errorf("%w: test", vhdx.ErrFailed)
	}
	d.mu.Unlock()
	if err := unix.Fsync(fd); err != unix.EIO {
		t.Errorf("fsync: %v, want EIO", err)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != unix.EROFS {
		t.Errorf("write: %v, want EROFS", err)
	}
	options := func() string {
		m, err := mounts.At(s.MountPoint())
		if err != nil || m == nil {
			t.Fatalf("mount table: %v, %v", m, err)
		}
		return m.Options
	}
	if got := options(); !strings.HasPrefix(got, "rw,") {
		t.Errorf("while it is open for writing the mount has %s", got)
	}
	again, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	unix.Close(again)
	soon(t, "the mount to become read-only", func() bool { return strings.HasPrefix(options(), "ro,noexec") })
}

func TestResolveMountPoint(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "dir", "link2": dir + "/link", "loop": "loop", "up": "../" + filepath.Base(dir) + "/dir"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"dir", "dir/", "link", "link2", "up", "dir/../dir"} {
		if got, err := mounts.Resolve(dir + "/" + path); err != nil || got != dir+"/dir" {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	for path, want := range map[string]error{"none": unix.ENOENT, "loop": unix.ELOOP, "none/x": unix.ENOENT} {
		if got, err := mounts.Resolve(dir + "/" + path); !errors.Is(err, want) {
			t.Errorf("%s: %s, %v; want %v", path, got, err, want)
		}
	}
	if got, err := mounts.Resolve("/"); err != nil || got != "/" {
		t.Errorf("/: %s, %v", got, err)
	}
}
