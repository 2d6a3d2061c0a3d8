package fs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// These tests mount for real. They use system calls on the mount rather than package os, whose files are
// registered with the runtime's poller, which can wait for an answer of this very process.

// needMount skips where nothing can be mounted.
func needMount(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short, since it mounts")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: mounting is tested as root only")
	}
	fd, err := unix.Open(mounts.FUSEDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("%s: %v", mounts.FUSEDevice, err)
	}
	unix.Close(fd)
}

// mountTest mounts d and sees to it that the mount goes away.
func mountTest(t *testing.T, d *fakeDisk, o Options) *Server {
	t.Helper()
	return mountDisk(t, d, d.info.Path, o)
}

// mountDisk is mountTest for any disk.
func mountDisk(t *testing.T, d Disk, image string, o Options) *Server {
	t.Helper()
	needMount(t)
	o.MountPoint, o.Image, o.Log = t.TempDir(), image, quiet()
	s, err := Mount(d, o)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("this container may not mount: ", err)
		}
		t.Fatal(err)
	}
	overdue := deadline(t, s.MountPoint())
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		s.Wait()
		overdue.Stop()
	})
	return s
}

// deadline gives a test some minutes for what it does with a mount. Then the connection is aborted, so that a request
// without an answer fails, and with it the test, instead of waiting for ever.
func deadline(t *testing.T, point string) *time.Timer {
	const limit = 3 * time.Minute
	return time.AfterFunc(limit, func() {
		t.Errorf("the mount at %s is still there after %v; its connection is aborted: %v", point, limit, unix.Unmount(point, unix.MNT_FORCE))
		unix.Unmount(point, unix.MNT_DETACH)
	})
}

func openDisk(t *testing.T, s *Server, flags int) int {
	t.Helper()
	fd, err := unix.Open(filepath.Join(s.MountPoint(), mounts.FileName), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// pread reads until n bytes or the end of the file.
func pread(t *testing.T, fd, n int, off int64) []byte {
	t.Helper()
	p := make([]byte, n)
	got := 0
	for got < n {
		m, err := unix.Pread(fd, p[got:], off+int64(got))
		if err != nil {
			t.Fatalf("read of %d at %d: %v", n-got, off+int64(got), err)
		}
		if m == 0 {
			break
		}
		got += m
	}
	return p[:got]
}

func TestMountedFile(t *testing.T) {
	d := newFakeDisk(t)
	s := mountTest(t, d, Options{Source: `a b,c\d`, DefaultPermissions: true, Flags: unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC})

	m, err := mounts.At(s.MountPoint())
	if err != nil || m == nil {
		t.Fatalf("mount table: %v, %v", m, err)
	}
	if m.Source != `a b,c\d` || m.FSType != "fuse.vhdxfs" || !strings.Contains(m.Options, "noexec") || !strings.Contains(m.VFSOptions, "ro") {
		t.Errorf("mount table: %+v", m)
	}

	for _, flags := range []int{unix.O_RDONLY, unix.O_RDONLY | unix.O_DIRECT} {
		fd := openDisk(t, s, flags)
		if got := pread(t, fd, len(d.want)+4096, 0); !bytes.Equal(got, d.want) {
			t.Errorf("open flags %#x: %d bytes, and not those of the disk", flags, len(got))
		}
	}
	fd := openDisk(t, s, unix.O_RDONLY)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != d.Size() || st.Blocks*512 != d.AllocatedBytes() || st.Mode != unix.S_IFREG|0o440 {
		t.Errorf("stat: size %d, blocks %d, mode %o", st.Size, st.Blocks, st.Mode)
	}
	if off, err := unix.Seek(fd, 1<<20, unix.SEEK_DATA); err != nil || off != 2<<20 {
		t.Errorf("SEEK_DATA: %d, %v; want %d", off, err, 2<<20)
	}
	if _, err := unix.Seek(fd, d.Size()-512, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA in the last hole: %v, want ENXIO", err)
	}
	if off, err := unix.Seek(fd, 100, unix.SEEK_HOLE); err != nil || off != 1<<20 {
		t.Errorf("SEEK_HOLE: %d, %v; want %d", off, err, 1<<20)
	}
	buf := make([]byte, 100)
	if n, err := unix.Fgetxattr(fd, "user.vhdx.type", buf); err != nil || string(buf[:n]) != "dynamic" {
		t.Errorf("user.vhdx.type = %q, %v", buf[:max(n, 0)], err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(s.MountPoint(), &sfs); err != nil || int64(sfs.Blocks)*sfs.Frsize != d.Size() || int64(sfs.Bfree)*sfs.Frsize != d.Size()-d.AllocatedBytes() {
		t.Errorf("statfs: %+v, %v", sfs, err)
	}
	entries, err := os.ReadDir(s.MountPoint())
	if err != nil || len(entries) != 1 || entries[0].Name() != mounts.FileName {
		t.Errorf("directory: %v, %v", entries, err)
	}
	path := filepath.Join(s.MountPoint(), mounts.FileName)
	for name, err := range map[string]error{
		"truncate": unix.Truncate(path, 0),
		"chmod":    unix.Chmod(path, 0o600),
		"unlink":   unix.Unlink(path),
		"rename":   unix.Rename(path, path+"x"),
		"mkdir":    unix.Mkdir(path+"x", 0o700),
		"setxattr": unix.Setxattr(path, "user.x", []byte("x"), 0),
		"open":     openError(path, unix.O_RDWR),
		"create":   openError(path+"x", unix.O_RDWR|unix.O_CREAT),
	} {
		if err != unix.EROFS {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
}

func openError(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// What cannot be read is an error to the reader, and only there: the file keeps its size.
func TestMountedReadError(t *testing.T) {
	d := newFakeDisk(t)
	// The first 64 KiB come from a place where the file has no bytes any more.
	end, err := d.extents[0].File.Size()
	if err != nil {
		t.Fatal(err)
	}
	bad := d.extents[0]
	bad.Len, bad.FileOff = 512<<10, end-(64<<10)
	rest := d.extents[0]
	rest.DiskOff, rest.Len, rest.FileOff = bad.Len, rest.Len-bad.Len, rest.FileOff+bad.Len
	d.extents = append([]vhdx.Extent{bad, rest}, d.extents[1:]...)

	s := mountTest(t, d, Options{})
	fd := openDisk(t, s, unix.O_RDONLY)
	if _, err := unix.Pread(fd, make([]byte, 256<<10), 128<<10); err != unix.EIO {
		t.Errorf("read of what is missing: %v, want EIO", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != d.Size() {
		t.Errorf("size after the error: %d, %v; want %d", st.Size, err, d.Size())
	}
	if got := pread(t, fd, 4096, bad.Len); !bytes.Equal(got, d.want[bad.Len:bad.Len+4096]) {
		t.Error("the rest cannot be read any more")
	}
}

// A mount in use is detached, and served until its user closes it.
func TestUnmountBusy(t *testing.T) {
	d := newFakeDisk(t)
	s := mountTest(t, d, Options{})
	fd := openDisk(t, s, unix.O_RDONLY)
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	if m, err := mounts.At(s.MountPoint()); err != nil || m != nil {
		t.Fatalf("mount table after unmount: %v, %v", m, err)
	}
	select {
	case <-s.Done():
		t.Fatal("the server ended although disk.raw is open")
	default:
	}
	if got := pread(t, fd, 1<<20, 2<<20); !bytes.Equal(got, d.want[2<<20:3<<20]) {
		t.Error("the open file no longer reads")
	}
	unix.Close(fd)
	s.Wait()
	if err := s.Unmount(); err != nil {
		t.Errorf("second unmount: %v", err)
	}
}

func TestUnmountByAnother(t *testing.T) {
	s := mountTest(t, newFakeDisk(t), Options{})
	unmountDir(t, s.MountPoint())
	s.Wait()
}

// unmountDir unmounts what is at dir. Another test may have a look at all mounts just now.
func unmountDir(t *testing.T, dir string) {
	t.Helper()
	var err error
	soon(t, "nobody to look at the mount", func() bool {
		err = unix.Unmount(dir, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Unmount does not take away what was mounted on top.
func TestUnmountHidden(t *testing.T) {
	s := mountTest(t, newFakeDisk(t), Options{})
	if err := unix.Mount("on-top", s.MountPoint(), "tmpfs", 0, ""); err != nil {
		t.Skip("tmpfs: ", err)
	}
	if err := s.Unmount(); err == nil || !strings.Contains(err.Error(), "on-top") {
		t.Errorf("unmount below another mount: %v", err)
	}
	if err := unix.Unmount(s.MountPoint(), 0); err != nil {
		t.Fatal(err)
	}
}

func TestMountPointErrors(t *testing.T) {
	needMount(t)
	d := newFakeDisk(t)
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	used := mountTest(t, d, Options{Source: "first"}).MountPoint()
	for _, tc := range []struct{ path, want string }{
		{filepath.Join(dir, "none"), "does not exist; create it with"},
		{file, "not a directory"},
		{full, "not empty"},
		{used, "first is already mounted on "},
	} {
		s, err := Mount(d, Options{MountPoint: tc.path, Image: d.info.Path, Log: quiet()})
		if err == nil {
			s.Unmount()
			s.Wait()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("mount on %s: %v, want an error that says %q", tc.path, err, tc.want)
		}
	}
	s, err := Mount(d, Options{MountPoint: full, Image: d.info.Path, NonEmpty: true, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
}

// What the kernel shows of itself is not hidden by a mount, also not where the user has said that it may be.
func TestMountPointOfTheKernel(t *testing.T) {
	for path, want := range map[string]string{"/proc": "is in proc,", "/proc/self/fd": "is in proc,", "/sys": "is in sysfs,", "/sys/class": "is in sysfs,"} {
		o := Options{MountPoint: path, NonEmpty: true, Log: quiet()}
		if err := o.CheckMountPoint(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that says %q", path, err, want)
		}
	}
}

func TestFusermountErrors(t *testing.T) {
	for _, tc := range []struct{ said, want string }{
		{"fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n", "add the line user_allow_other"},
		{"fusermount3: fuse device not found, try 'modprobe fuse' first\n", "FUSE is not available"},
		{"fusermount3: user has no write access to mountpoint /mnt\n", "fusermount3: user has no write access to mountpoint /mnt"},
		{"/usr/bin/fusermount3: user has no write access to mountpoint /mnt\n", "fusermount3: user has no write access to mountpoint /mnt"},
		{"/usr/bin/fusermount3: mount failed: Operation not permitted\n", "fusermount3: mount failed: Operation not permitted; a container needs --cap-add SYS_ADMIN"},
		{"", "fusermount3: exit"},
	} {
		err := mounts.FusermountError(bytes.NewBufferString(tc.said), errors.New("exit status 1"))
		if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q becomes %q, want %q", tc.said, err, tc.want)
		}
	}
}
