package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A foreignFS is what any program can serve that mounts with the type fuse.vhdxfs.
type foreignFS struct {
	fuse.RawFileSystem
	attributes map[string]string
	hang       chan struct{} // until it is closed, nothing is answered; nil is never
	asked      atomic.Int64  // requests for attributes
	read       atomic.Bool   // anything of a file
	flush      chan struct{} // until it is closed, no file can be closed; nil is never
}

func (f *foreignFS) wait() {
	if f.hang != nil {
		<-f.hang
	}
}

func (f *foreignFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.wait()
	out.Ino, out.Mode = in.NodeId, unix.S_IFDIR|0o777
	if in.NodeId != fuse.FUSE_ROOT_ID {
		out.Mode = unix.S_IFREG | 0o666
	}
	return fuse.OK
}

func (f *foreignFS) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.wait()
	if name != "disk.raw" {
		return fuse.ENOENT
	}
	out.NodeId, out.Ino, out.Mode = 2, 2, unix.S_IFREG|0o666
	return fuse.OK
}

func (f *foreignFS) GetXAttr(_ <-chan struct{}, _ *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	f.asked.Add(1)
	f.wait()
	v, ok := f.attributes[strings.TrimPrefix(name, "user.vhdx.")]
	switch {
	case !ok:
		return 0, fuse.ENOATTR
	case len(dest) < len(v):
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (f *foreignFS) SetXAttr(_ <-chan struct{}, _ *fuse.SetXAttrIn, _ string, _ []byte) fuse.Status {
	f.asked.Add(1)
	return fuse.OK
}

// serveForeign mounts f as a user's own program would by fusermount3, open to all, and as if it were a mount of source.
func serveForeign(t *testing.T, f *foreignFS, source string, uid int) (dir string) {
	t.Helper()
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount for another user")
	}
	dir = newDir(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other", fd, uid, uid)
	if err := unix.Mount(source, dir, "fuse.vhdxfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		t.Skipf("cannot mount: %v", err)
	}
	f.RawFileSystem = fuse.NewDefaultRawFileSystem()
	server, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{DisableReadDirPlus: true})
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		t.Fatal(err)
	}
	go server.Serve()
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		server.Wait()
	})
	return dir
}

// What another user's program says of its mount misleads no command of root, and holds none up.
func TestForeignMount(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			img := create(t, "64MiB", "--block-size", "1MiB")
			real := serve(t, img)
			sleep := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1000")
			if err := sleep.Start(); err != nil {
				t.Skipf("needs setpriv: %v", err)
			}
			defer sleep.Wait()
			defer sleep.Process.Kill()
			f := &foreignFS{attributes: map[string]string{"pid": strconv.Itoa(sleep.Process.Pid), "mode": "rw", "path": img}}
			for _, name := range []string{"pid_namespace", "image_id", "logical_sector_size"} {
				f.attributes[name] = xattr(t, real.dir, name)
			}
			if hangs {
				f.hang = make(chan struct{})
				defer close(f.hang)
			}
			dir := serveForeign(t, f, img, 65534)

			for _, m := range listAll(t) {
				if want := map[string]string{dir: "unknown", real.dir: "serving"}[m.MountPoint]; want != "" && m.State != want {
					t.Errorf("list: %s is %s, want %s", m.MountPoint, m.State, want)
				}
			}
			for _, args := range [][]string{{"compact", dir}, {"snapshot", dir}} {
				if r := vhdxfs(t, args...); r.status == 0 || !strings.Contains(r.stderr, "another user") {
					t.Errorf("%s: status %d, %q", args[0], r.status, r.stderr)
				}
			}
			mustVhdxfs(t, "compact", "-q", img) // by the mount that is root's own
			mustVhdxfs(t, "detach", img)
			real.wait(t)

			// Root's own image is not mounted now, whatever the other mount says.
			if r := vhdxfs(t, "detach", img); r.status != 6 {
				t.Errorf("detach: status %d, %q", r.status, r.stderr)
			}
			mustVhdxfs(t, "resize", "-q", img, "+16MiB")
			mustVhdxfs(t, "compact", "-q", img)
			mustVhdxfs(t, "snapshot", img, filepath.Join(filepath.Dir(img), "kid.avhdx"))

			// The process that it names is no reason to wait.
			out, err := command("bash", "-c", `exec -a umount.fuse.vhdxfs "$0" "$1"`, program.path(t), dir)
			if err != nil {
				t.Errorf("umount: %v, %s", err, out)
			}
			if slices.ContainsFunc(mounts(), func(m mountEntry) bool { return m.point == dir }) {
				t.Error("it is still mounted")
			}
			if n := f.asked.Load(); n > 0 {
				t.Errorf("another user's program was asked %d times", n)
			}
		})
	}
}

// A process that asks a mount has nothing open that the user of the mount could take from it.
func TestAskerHoldsNothing(t *testing.T) {
	f := &foreignFS{hang: make(chan struct{})}
	dir := serveForeign(t, f, "/no.vhdx", 0) // a mount of this user that has no socket, so that it is asked by its attributes
	secret, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	list := exec.Command(program.path(t), "list")
	list.ExtraFiles = []*os.File{secret}
	if err := list.Start(); err != nil {
		t.Fatal(err)
	}
	defer list.Wait()
	released := false
	defer func() {
		if !released {
			close(f.hang)
		}
	}()
	asker := 0
	eventually(t, "the process that asks", func() bool {
		for pid, args := range processes() {
			if len(args) > 2 && args[1] == "internal-ask" && args[2] == dir {
				asker = pid
			}
		}
		return asker != 0 && f.asked.Load() > 0
	})
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", asker))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", asker, fd.Name()))
		if n, _ := strconv.Atoi(fd.Name()); n > 2 && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/fs/cgroup/") { // those of Go itself
			t.Errorf("the process that asks has descriptor %d open, %s", n, to)
		}
	}
	close(f.hang)
	released = true
}

// beside runs the program again and again until the function that it returns is called.
func beside(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	path, done, ended := program.path(t), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				exec.Command(path, args...).Run()
			}
		}
	}()
	return func() { close(done); <-ended }
}

// What is detached beside other commands that look at devices goes all the same, and so does the mount below.
func TestDetachBesideList(t *testing.T) {
	detectRaces(t)
	requireLoop(t)
	img := create(t, "16MiB")
	for range 2 { // of which one may keep what the other has just let go
		defer beside(t, "list")()
	}
	for round := range 15 {
		l := attachImage(t, img)
		if round%3 > 0 {
			mustVhdxfs(t, "detach", img)
			checkDetached(t, l)
			continue
		}
		must(t, "losetup", "--detach", l.Devices[0].Device)
		must(t, "umount", l.MountPoint)
		eventually(t, "the end of the server", func() bool { return len(daemons(l.MountPoint)) == 0 })
		checkDetached(t, l)
	}
}

// A mount is unmounted at once, however often other commands look at what is mounted.
func TestUmountBesideList(t *testing.T) {
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount without fusermount3")
	}
	img := create(t, "16MiB")
	defer beside(t, "list")()
	dir := newDir(t)
	for range 12 {
		mustVhdxfs(t, "-o", "log=/dev/null", img, dir)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("umount beside list: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		eventually(t, "the end of the server", func() bool { return len(daemons(dir)) == 0 })
	}
}
