package test

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// refused fails the test unless the command fails and says that a lock is the reason.
func refused(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := command(name, args...)
	if err == nil {
		t.Errorf("%s %s: not refused\n%s", name, strings.Join(args, " "), out)
	} else if !strings.Contains(out, "lock") {
		t.Errorf("%s %s: refused for another reason than the lock:\n%s", name, strings.Join(args, " "), out)
	}
}

// refusedBy fails the test unless vhdxfs is refused with a message that names the image and the process that holds it.
func refusedBy(t *testing.T, pid int, img string, args ...string) {
	t.Helper()
	r := vhdxfs(t, args...)
	if r.status == 0 || !strings.Contains(r.stderr, img) || !strings.Contains(r.stderr, strconv.Itoa(pid)) {
		t.Errorf("vhdxfs %s: exit status %d; the message must name %s and process %d, which holds it:\n%s",
			strings.Join(args, " "), r.status, img, pid, r.stderr)
	}
}

func TestLocksOfAWritableMount(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img", "qemu-io", "qemu-nbd")
	img, raw := sampleImage(t)
	s := serve(t, img)
	out := filepath.Join(t.TempDir(), "out")
	refused(t, "qemu-img", "info", img)
	refused(t, "qemu-img", "check", "-f", "vhdx", img)
	refused(t, "qemu-img", "check", "-r", "all", "-f", "vhdx", img)
	refused(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, out)
	refused(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", img, raw)
	refused(t, "qemu-io", "-r", "-f", "vhdx", "-c", "read 0 512", img)
	refused(t, "qemu-io", "-f", "vhdx", "-c", "write 0 512", img)
	refused(t, "qemu-nbd", "--read-only", "--format=vhdx", "--socket="+filepath.Join(t.TempDir(), "nbd"), img)
	// Who asks not to be stopped is not.
	must(t, "qemu-img", "info", "-U", img)
	must(t, "qemu-img", "convert", "-U", "-f", "vhdx", "-O", "raw", img, out)
	sameContent(t, out, raw)
	must(t, "qemu-io", "-U", "-r", "-f", "vhdx", "-c", "read 0 512", img)

	for _, args := range [][]string{
		{"-f", img, newDir(t)},
		{"-f", "-o", "ro", img, newDir(t)},
		{img, newDir(t)},
		{"convert", img, out + ".vhdx"},
	} {
		refusedBy(t, s.cmd.Process.Pid, img, args...)
	}
	mustVhdxfs(t, "info", img) // which knows its own mounts
	second := readOnly(t, img, "lock=off")
	sameContent(t, second.disk, raw)
	second.end(t)
	sameContent(t, s.disk, raw)
	s.end(t)
	must(t, "qemu-img", "check", "-f", "vhdx", img) // the locks are gone
}

func TestLocksOfQemuNBD(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-nbd")
	img, raw := sampleImage(t)
	pid, _ := nbdHolds(t, img, "--read-only")
	refusedBy(t, pid, img, "-f", img, newDir(t))
	sameContent(t, readOnly(t, img).disk, raw) // readers beside readers

	other, _ := sampleImage(t)
	pid, _ = nbdHolds(t, other)
	refusedBy(t, pid, other, "-f", other, newDir(t))
	refusedBy(t, pid, other, "-f", "-o", "ro", other, newDir(t))
	// Asked for, it does without a lock, or tries one.
	for _, lock := range []string{"off", "try"} {
		if r := vhdxfs(t, "info", "-o", "lock="+lock, other); r.status != 0 {
			t.Errorf("info with lock=%s: exit status %d\n%s", lock, r.status, r.stderr)
		}
	}
}

// nbdHolds exports an image by qemu-nbd, for reading and writing unless the options say otherwise, and returns the
// process and its socket. The test's end ends it.
func nbdHolds(t *testing.T, img string, options ...string) (pid int, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "nbd")
	cmd := exec.Command("qemu-nbd", append(options, "--persistent", "--format=vhdx", "--socket="+socket, img)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	eventually(t, "qemu-nbd to listen at "+socket, func() bool {
		m, _ := filepath.Glob(socket)
		return len(m) == 1
	})
	return cmd.Process.Pid, socket
}

// A parent must not change below its child, whoever would change it, and children may share one.
func TestLocksOfAParent(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img", "qemu-io")
	parent := create(t, "16MiB", "--block-size", "1MiB")
	qemuWrite(t, parent, "write -P 7 1M 4M")
	child := childOf(t, parent, "16MiB", "--block-size", "1MiB")
	s := serve(t, child)
	f := openDisk(t, s.disk, 0)
	if _, err := f.WriteAt([]byte("the child's"), 2*mib); err != nil {
		t.Fatal(err)
	}
	f.Close()
	refused(t, "qemu-io", "-f", "vhdx", "-c", "write 0 512", parent)
	refused(t, "qemu-img", "check", "-r", "all", "-f", "vhdx", parent)
	refusedBy(t, s.cmd.Process.Pid, parent, "-f", parent, newDir(t))
	must(t, "qemu-img", "check", "-f", "vhdx", parent)
	other := readOnly(t, parent)
	if got := readAt(t, other.disk, 2*mib, 1)[0]; got != 7 {
		t.Errorf("the parent shows %d, want 7", got)
	}
	other.end(t)
	s.end(t)

	// The other way round: a parent that somebody writes to has no children.
	writer := serve(t, parent, "-o", "orphan_children")
	refusedBy(t, writer.cmd.Process.Pid, parent, "-f", child, newDir(t))
	refusedBy(t, writer.cmd.Process.Pid, parent, "-f", "-o", "ro", child, newDir(t))
	writer.end(t)
	release := qemuHolds(t, parent)
	if r := vhdxfs(t, "-f", child, newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, parent) {
		t.Errorf("parent open in qemu-io: exit status %d\n%s", r.status, r.stderr)
	}
	release()
	// Nobody changed it, so the child still knows it.
	serve(t, child).end(t)
	checkClean(t, child)
}

// A child often has its parent's name, in another directory. The program looks beside the child first, and must not take
// its own lock for somebody else's.
func TestChildNamedLikeItsParent(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	parent := create(t, "16MiB")
	child := filepath.Join(t.TempDir(), filepath.Base(parent))
	must(t, "mv", childOf(t, parent, "16MiB"), child)
	for _, option := range []string{"rw", "ro"} {
		r := vhdxfs(t, "-f", "-o", option, child, newDir(t))
		if r.status != mountStatus || !strings.Contains(r.stderr, "R65") || strings.Contains(r.stderr, "lock=off") {
			t.Errorf("%s, its own parent: exit status %d\n%s", option, r.status, r.stderr)
		}
		serve(t, child, "-o", option+",parent_dir="+filepath.Dir(parent)).end(t)
	}
}

// Who holds an image is found without a question to other mounts, whose programs may hang, even if a file on one is
// open and locked.
func TestRefusedWhileAnotherMountHangs(t *testing.T) {
	img, other := create(t, "64MiB"), create(t, "64MiB")
	s, hung := serve(t, img), serve(t, other)
	// Files that are open in this process would keep the programs that it starts.
	for _, hold := range []string{`exec 3<"$1"`, `exec 3<"$1"; flock --shared 3`} {
		cmd := exec.Command("sh", "-c", hold+"; echo ready; exec sleep infinity", "sh", hung.disk)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Wait() })
		t.Cleanup(func() { cmd.Process.Kill() })
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	f := openDisk(t, hung.disk, 0)
	writePattern(t, f, 0x41, 0, 4096) // what the kernel knows of the file is outdated now
	f.Close()
	pid := hung.cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Nothing ends a program that waits for the mount, so it goes on even when the test fails.
	resume := sync.OnceFunc(func() { syscall.Kill(pid, syscall.SIGCONT) })
	timeout := time.AfterFunc(time.Minute, func() {
		t.Error("a command asked the mount that hangs")
		resume()
	})
	t.Cleanup(func() {
		timeout.Stop()
		resume()
	})
	eventually(t, "all threads to stop", func() bool { return stopped(pid) })
	refusedBy(t, s.cmd.Process.Pid, img, img, newDir(t))
	mustVhdxfs(t, "info", img)
}
