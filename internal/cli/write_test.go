package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/delta"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// writeDisk writes data at the start of the disk mounted at dir, and syncs it.
func writeDisk(t *testing.T, dir string, data []byte) {
	t.Helper()
	fd, err := unix.Open(filepath.Join(dir, "disk.raw"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, data, 0); err != nil || n != len(data) {
		t.Fatalf("write: %d, %v", n, err)
	}
	if err := unix.Fsync(fd); err != nil {
		t.Fatal(err)
	}
}

// readDisk returns the first n bytes of the disk mounted at dir.
func readDisk(t *testing.T, dir string, n int) []byte {
	t.Helper()
	fd, err := unix.Open(filepath.Join(dir, "disk.raw"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := make([]byte, n)
	if _, err := unix.Pread(fd, p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// unmountImage ends a mount and waits for its server to have closed the image.
func unmountImage(t *testing.T, dir string) {
	t.Helper()
	var err error
	eventually(t, "nobody to look at the mount", func() bool { // as list does, called by another test
		err = unix.Unmount(dir, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the server", func() bool { return server(t, dir) == 0 })
}

// wantMount fails unless a mount is there as wanted.
func wantMount(t *testing.T, r result, dir, mode, stderr string) {
	t.Helper()
	m, said := mounted(t, dir), withoutHint(r.stderr)
	if r.status != 0 || m == nil || !strings.HasPrefix(m.Options, mode+",") {
		t.Fatalf("status %d, %q, mount %+v; want one that is %s", r.status, r.stderr, m, mode)
	}
	if stderr == "" && said != "" || !strings.Contains(said, stderr) {
		t.Errorf("stderr %q, want %q", r.stderr, stderr)
	}
}

// withoutHint leaves out the line by which a mount says that there is no syslog.
func withoutHint(stderr string) string {
	var b strings.Builder
	for line := range strings.Lines(stderr) {
		if !strings.Contains(line, noSyslog) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestMountForWriting(t *testing.T) {
	image, dir := newImage(t), t.TempDir()
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	wantMount(t, mountImage(t, image, dir), dir, "rw", "")
	readDisk(t, dir, 1<<20)
	unmountImage(t, dir)
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%v, or a mount that was only read from has changed the image", err)
	}

	data := bytes.Repeat([]byte("0123456789"), 100<<10)
	wantMount(t, mountImage(t, image, dir, "-o", "rw,sync,commit=1,idle_clean=1,discard=off,detect_zeroes=off,direct_io"), dir, "rw", "")
	writeDisk(t, dir, data)
	unmountImage(t, dir)
	if r := run(t, "check", image); r.status != 0 {
		t.Errorf("check: status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	for _, args := range [][]string{{"-r"}, {"-o", "ro"}} {
		wantMount(t, mountImage(t, image, dir, args...), dir, "ro", "")
		if got := readDisk(t, dir, len(data)); !bytes.Equal(got, data) {
			t.Errorf("%q: other bytes than were written", args)
		}
		unmountImage(t, dir)
	}
}

// What was synced survives the death of the server, and the next mount says that something was to be repaired.
func TestMountAfterKill(t *testing.T) {
	image, dir := newImage(t), t.TempDir()
	wantMount(t, mountImage(t, image, dir, "-o", "idle_clean=0"), dir, "rw", "")
	// The descriptor stays open, or the image would be clean again.
	fd, err := unix.Open(filepath.Join(dir, "disk.raw"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	data := bytes.Repeat([]byte("abc"), 1<<20)
	writeDisk(t, dir, data)
	if err := unix.Kill(server(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the server", func() bool { return server(t, dir) == 0 })
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}

	wantMount(t, mountImage(t, image, dir, "-r"), dir, "ro", "")
	if got := readDisk(t, dir, len(data)); !bytes.Equal(got, data) {
		t.Error("read-only: other bytes than were synced")
	}
	unmountImage(t, dir)
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%v, or the read-only mount has changed the image", err)
	}

	wantMount(t, mountImage(t, image, dir), dir, "rw", "its log was replayed")
	if got := readDisk(t, dir, len(data)); !bytes.Equal(got, data) {
		t.Error("other bytes than were synced")
	}
	unmountImage(t, dir)
	wantMount(t, mountImage(t, image, dir), dir, "rw", "")
}

// An image that cannot be written is no mount, or with ro_fallback one that can be read.
func TestMountOfUnwritable(t *testing.T) {
	needMount(t)
	image := newImage(t)
	reader, err := vhdx.Open(image, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })

	onReadOnly := filepath.Join(t.TempDir(), "new.vhdx")
	readOnlyHost(t, onReadOnly, newImage(t))

	for _, tc := range []struct{ name, image, want string }{
		{"another program reads it", image, fmt.Sprintf("(process %d)", os.Getpid())},
		{"read-only file system", onReadOnly, "read-only file system"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			r := mountImage(t, tc.image, dir)
			if r.status != statusMount || !strings.Contains(r.stderr, tc.want) || !strings.Contains(r.stderr, "use -o ro") {
				t.Errorf("status %d, %q; want %d, %q and what to do", r.status, r.stderr, statusMount, tc.want)
			}
			checkMessage(t, r)
			if mounted(t, dir) != nil {
				t.Fatal("there is a mount")
			}
			wantMount(t, mountImage(t, tc.image, dir, "-o", "ro_fallback"), dir, "ro", tc.want)
			unmountImage(t, dir)
			wantMount(t, mountImage(t, tc.image, dir, "-o", "ro"), dir, "ro", "")
			unmountImage(t, dir)
		})
	}
	// Where it cannot be read either, the first reason counts.
	broken := newImage(t)
	damage(t, broken, 0, 8)
	if r := run(t, broken, t.TempDir(), "-o", "ro_fallback"); r.status != statusMount || !strings.Contains(r.stderr, "rule R2") {
		t.Errorf("damaged image: status %d, %q", r.status, r.stderr)
	}
}

// readOnlyHost puts a copy of an image at path, in a file system that is read-only.
func readOnlyHost(t *testing.T, path, image string) {
	t.Helper()
	dir := filepath.Dir(path)
	if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
		t.Skip("tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	data, err := os.ReadFile(image)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The process that serves a mount for writing is one that the kernel does not make wait for itself, in each of its
// threads, and one that it does not end. In the foreground it has kept its number.
func TestMountForShortMemory(t *testing.T) {
	needMount(t)
	const ioFlusher = 0x00180000 // PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, in the flags of /proc/PID/stat
	permitted := make(chan bool)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		permitted <- unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil
	}()
	mayFlush := <-permitted
	if isIOFlusher() {
		t.Error("a mount in the process of the tests has made it an I/O flusher")
	}
	check := func(t *testing.T, pid int) {
		t.Helper()
		if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(score) != "500\n" {
			t.Errorf("oom_score_adj %q, %v; want 500", score, err)
		}
		if !mayFlush {
			t.Skip("a process needs CAP_SYS_RESOURCE to become an I/O flusher")
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads %q, %v", threads, err)
		}
		for _, name := range threads {
			stat, err := os.ReadFile(name)
			if err != nil {
				continue // it has ended
			}
			fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			if flags, err := strconv.ParseUint(fields[6], 10, 64); err != nil || flags&ioFlusher != ioFlusher {
				t.Errorf("%s: flags %#x, %v", name, flags, err)
			}
		}
	}
	t.Run("background", func(t *testing.T) {
		image, dir := newImage(t), t.TempDir()
		wantMount(t, mountImage(t, image, dir, "-o", "oom_score_adj=500"), dir, "rw", "")
		check(t, server(t, dir))
	})
	t.Run("foreground", func(t *testing.T) {
		image, dir := newImage(t), t.TempDir()
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd := exec.Command(program, "-f", "-o", "oom_score_adj=500", image, dir)
		cmd.Env = append(os.Environ(), programVariable+"=1")
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
				t.Errorf("%v, %q", err, stderr.String())
			}
		})
		eventually(t, "the mount", func() bool { return mounted(t, dir) != nil })
		check(t, cmd.Process.Pid)
	})
}

// A parent is not mounted for writing, as long as a child of it that fits lies beside it.
func TestMountOfParent(t *testing.T) {
	needMount(t)
	image := newImage(t)
	child := filepath.Join(filepath.Dir(image), "child.avhdx")
	if r := run(t, "create", "--parent", image, child); r.status != 0 {
		t.Fatal(r.stderr)
	}
	dir := t.TempDir()
	r := mountImage(t, image, dir)
	if r.status != statusMount || !strings.Contains(r.stderr, image+" is the parent of "+child) || !strings.Contains(r.stderr, "orphan_children") {
		t.Fatalf("status %d, %q; want a refusal that names the child", r.status, r.stderr)
	}
	checkMessage(t, r)
	for _, tc := range []struct{ options, mode, want string }{
		{"ro", "ro", ""},
		{"ro_fallback", "ro", "is the parent of"},
		{"overlay=tmp", "rw", ""},
		{"orphan_children", "rw", ""},
	} {
		wantMount(t, mountImage(t, image, dir, "-o", tc.options), dir, tc.mode, tc.want)
		unmountImage(t, dir)
	}
	wantMount(t, mountImage(t, child, dir), dir, "rw", "")
	unmountImage(t, dir)
}

// A base that an interrupted apply has changed in part is not mounted for writing, and a mount says so.
func TestMountOfHalfApplied(t *testing.T) {
	needMount(t)
	for name, copied := range map[string]string{"copy beside it": "", "copy elsewhere": filepath.Join(t.TempDir(), "copy")} {
		t.Run(name, func(t *testing.T) { mountHalfApplied(t, copied) })
	}
}

func mountHalfApplied(t *testing.T, copied string) {
	image := newImage(t)
	other := filepath.Join(filepath.Dir(image), "other.vhdx")
	raw := filepath.Join(t.TempDir(), "other.raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("other"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "convert", raw, other)
	made := filepath.Join(t.TempDir(), "delta.avhdx")
	mustRun(t, "diff", "--output", made, image, other)
	f, err := os.Open(made)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	phase := func(name string, _ int64) {
		if strings.HasPrefix(name, "merge") {
			cancel(errors.New("interrupted"))
		}
	}
	how := delta.ApplyOptions{Copy: copied, Phase: phase, Progress: func(int64) {}}
	if _, err := delta.Apply(ctx, f, nil, image, how); err == nil {
		t.Fatal("it was not interrupted")
	}
	dir := t.TempDir()
	r := mountImage(t, image, dir)
	if r.status != statusMount || !strings.Contains(r.stderr, "is a mix of two disks") {
		t.Fatalf("status %d, %q; want a refusal", r.status, r.stderr)
	}
	checkMessage(t, r)
	for _, tc := range []struct{ options, mode string }{{"ro", "ro"}, {"overlay=tmp", "rw"}, {"orphan_children", "rw"}} {
		wantMount(t, mountImage(t, image, dir, "-o", tc.options), dir, tc.mode, "is a mix of two disks")
		unmountImage(t, dir)
	}
	for _, args := range [][]string{{"resize", image, "+1M"}, {"compact", image}, {"hash", image}, {"snapshot", image},
		{"convert", image, filepath.Join(dir, "copy.raw")}, {"create", "--parent", image, filepath.Join(dir, "child.vhdx")}} {
		if r := run(t, args...); r.status == statusOK || !strings.Contains(r.stderr, "is a mix of two disks") {
			t.Errorf("vhdxfs %q: status %d, %q; want a refusal", args, r.status, r.stderr)
		} else {
			checkMessage(t, r)
		}
	}
	if r := run(t, "info", "-v", image); r.status != statusOK || !strings.Contains(r.stdout, "is a mix of two disks") {
		t.Errorf("info: status %d, %q", r.status, r.stdout)
	}
	if copied == "" {
		mustRun(t, "apply", how.CopyOf(image), image)
	} else {
		mustRun(t, "apply", "--copy", copied, copied, image)
	}
	wantMount(t, mountImage(t, image, dir), dir, "rw", "")
	unmountImage(t, dir)
}

// A child that was merged and left behind keeps its parent from being changed until it is removed. The message says so, but not
// of one that other images are based on, nor of one that is needed.
func TestMergedChildIsLeft(t *testing.T) {
	_, path := newChainOf(t, "one.avhdx")
	mustRun(t, "merge", path("one.avhdx"))
	mustRun(t, "convert", path("base.vhdx"), path("want.raw"))
	refused := func(want bool, args ...string) {
		t.Helper()
		r := run(t, args...)
		if r.status == statusOK || !strings.Contains(r.stderr, path("one.avhdx")) ||
			strings.Contains(r.stderr, "the same disk") != want || strings.Contains(r.stderr, "remove") != want {
			t.Errorf("vhdxfs %q: status %d, %q", args, r.status, r.stderr)
		}
		checkMessage(t, r)
	}
	all := func(want bool) {
		t.Helper()
		refused(want, "snapshot", path("base.vhdx"))
		refused(want, "snapshot", "--keep-name", path("base.vhdx"))
		refused(want, "resize", path("base.vhdx"), "+1M")
		refused(want, "mount", path("base.vhdx"), t.TempDir())
	}
	all(true)
	// Another child of the parent cannot be merged as long as the first is there.
	mustRun(t, "create", "--parent", path("base.vhdx"), path("other.avhdx"))
	refused(true, "merge", path("other.avhdx"))
	if err := os.Remove(path("other.avhdx")); err != nil {
		t.Fatal(err)
	}
	// Images that are based on it need it.
	mustRun(t, "create", "--parent", path("one.avhdx"), path("two.avhdx"))
	all(false)
	if err := os.Remove(path("two.avhdx")); err != nil {
		t.Fatal(err)
	}
	// It was written to.
	im, err := vhdx.Open(path("one.avhdx"), vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte("more"), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	all(false)
	mustRun(t, "merge", path("one.avhdx"))
	all(true)
	if err := os.Remove(path("one.avhdx")); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "resize", path("base.vhdx"), "+1M")
}
