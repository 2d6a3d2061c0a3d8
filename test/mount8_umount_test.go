package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// umountRows are calls of umount(8), and what mount(8) finds after a process has died.
var umountRows = []row{
	{"it returns when all is written and the process has ended", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.server(t)
		p.run(t, 0, "", "sh", "-c", `dd if=/dev/urandom of="$1" bs=1M count=40 conv=notrunc status=none && umount "$2"`, "sh", p.disk, p.dir)
		p.ended(t, pid)
		p.unmounted(t)
		checkClean(t, p.img)
	}},
	{"three at the same time", func(t *testing.T, p *place) {
		for range 3 {
			p.mount(t)
			r := p.run(t, 0, "", "sh", "-c", `umount "$1" & umount "$1" & umount "$1" & wait`, "sh", p.dir)
			p.unmounted(t)
			p.that(t, "nobody finds it in use", meaningful(r.stderr), !strings.Contains(r.stderr, "in use") && !strings.Contains(r.stderr, "argument"))
			p.eventuallyEndedAll(t)
		}
	}},
	{"-i passes the helper by", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "", "umount", "-i", p.dir)
		p.unmounted(t)
	}},
	{"-n and -v", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, p.img+" unmounted from "+p.dir, "umount", "-n", "-v", p.dir)
		p.unmounted(t)
	}},
	{"-c, as systemd has it", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.server(t)
		p.run(t, 0, "", "umount", "-c", p.dir)
		p.ended(t, pid)
	}},
	{"--fake", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "", "umount", "--fake", p.dir)
		p.mounted(t, "rw")
	}},
	{"in use by a process", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.user(t, `exec 3<"$1"`)
		p.run(t, 32, fmt.Sprintf("in use by sleep (process %d)", pid), "umount", p.dir)
		p.mounted(t, "rw")
		p.run(t, 32, fmt.Sprintf("in use by sleep (process %d)", pid), "umount", "-f", p.dir)
		p.mounted(t, "rw")
	}},
	{"in use by a process that is in it", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.user(t, `cd "$2"`)
		p.run(t, 32, fmt.Sprintf("in use by sleep (process %d)", pid), "umount", p.dir)
	}},
	{"in use by a loop device", func(t *testing.T, p *place) {
		p.mount(t)
		dev := strings.TrimSpace(p.in(nil, "losetup", "-f", "--show", p.disk).stdout)
		t.Cleanup(func() { p.in(nil, "losetup", "-d", dev) })
		p.rename(dev, "/dev/loopN")
		p.run(t, 32, fmt.Sprintf("the loop device %s (losetup -d %s)", dev, dev), "umount", p.dir)
		p.mounted(t, "rw")
		p.run(t, 0, "", "losetup", "-d", dev)
		p.eventually(t, "umount", 0, "umount", p.dir)
	}},
	{"in use by a mount below it", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "", "mount", "--bind", p.fstab, p.disk)
		p.run(t, 32, "the mount at "+p.disk, "umount", p.dir)
		p.run(t, 0, "", "umount", "-i", p.disk)
	}},
	{"-l of a mount in use", func(t *testing.T, p *place) {
		p.mount(t)
		server := p.server(t)
		user := p.user(t, `exec 3<"$1"`)
		p.run(t, 0, "", "umount", "-l", p.dir)
		p.unmounted(t)
		err := readThrough(user)
		p.that(t, "who has it open reads on", fmt.Sprint(err), err == nil)
		syscall.Kill(user, syscall.SIGKILL)
		p.eventuallyEnded(t, server)
		checkClean(t, p.img)
	}},
	{"-f says why it does not", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "aborting the connection would lose", "umount", "-f", p.dir)
		p.unmounted(t)
		checkClean(t, p.img)
	}},
	{"-r makes a mount in use read-only", func(t *testing.T, p *place) {
		p.mount(t)
		p.user(t, `exec 3<"$1"`)
		p.run(t, 0, "it is now read-only", "umount.fuse.vhdxfs", p.dir, "-r")
		p.mounted(t, "ro", "nosuid", "nodev")
	}},
	{"the dead mount of a killed process", func(t *testing.T, p *place) {
		p.mount(t)
		p.killServer(t)
		p.run(t, 2, "not connected", "ls", p.dir)
		p.run(t, 0, "", "umount", p.dir)
		p.unmounted(t)
	}},
	{"a mount over the dead one", func(t *testing.T, p *place) {
		p.mount(t)
		p.killServer(t)
		p.run(t, 32, "holds a dead FUSE mount; remove it with: umount", "mount", "-t", "vhdx", "-o", "noclean_stale", p.img, p.dir)
		p.mounted(t, "rw")
		p.run(t, 0, "removed the dead mount of", "mount", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "rw")
		p.run(t, 0, "", "cat", p.disk)
	}},
	{"a process that hangs", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.server(t)
		syscall.Kill(pid, syscall.SIGSTOP)
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
		eventually(t, "all threads to stop", func() bool { return stopped(pid) })
		p.run(t, 32, "does not answer", "mount.vhdx", p.img, p.dir)
		p.run(t, 0, "does not answer; unmounting without waiting for it", "umount.fuse.vhdxfs", p.dir)
		p.unmounted(t)
		syscall.Kill(pid, syscall.SIGCONT)
		p.eventuallyEnded(t, pid)
	}},
	{"no mount of ours", func(t *testing.T, p *place) {
		p.run(t, 32, "is not a mount point of a VHDX image", "umount.fuse.vhdxfs", p.dir)
		p.run(t, 32, "not mounted", "umount", p.dir)
		p.run(t, 1, "missing MOUNTPOINT", "umount.fuse.vhdxfs")
	}},
	{"still mounted in another place", func(t *testing.T, p *place) {
		p.mount(t)
		server := p.server(t)
		again := newDir(t)
		p.run(t, 0, "", "mount", "--bind", p.dir, again)
		p.run(t, 0, "also mounted on "+again, "umount", p.dir)
		p.run(t, 0, "", "umount", again)
		p.eventuallyEnded(t, server)
		checkClean(t, p.img)
	}},
	{"still mounted in another namespace", func(t *testing.T, p *place) {
		p.mount(t)
		server := p.server(t)
		other := p.process(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep infinity")
		p.run(t, 0, "still has it mounted in another namespace", "umount", p.dir)
		p.unmounted(t)
		other.Process.Kill()
		other.Wait()
		p.eventuallyEnded(t, server)
		checkClean(t, p.img)
	}},
}

// mount mounts the image, with options.
func (p *place) mount(t *testing.T, options ...string) {
	t.Helper()
	list := strings.Join(append([]string{"rw"}, options...), ",")
	p.run(t, 0, "", "mount", "-t", "vhdx", "-o", list, p.img, p.dir)
}

// user starts a process in the namespace that does as the script says, with the disk as $1 and the mount point as
// $2, and then sleeps. The end of the test ends it.
func (p *place) user(t *testing.T, script string) int {
	t.Helper()
	return p.process(t, "sh", "-c", script+"; echo ready; exec sleep infinity", "sh", p.disk, p.dir).Process.Pid
}

// process starts a program in the namespace and returns when it has written something.
func (p *place) process(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(p.holder), "--mount", "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		_, err = out.Read(make([]byte, 1))
	}
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return cmd
}

// stopped reports whether all threads of a process are stopped.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, f := range threads {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, []byte(") T ")) {
			return false
		}
	}
	return len(threads) > 0
}

// readThrough reads from the descriptor 3 of a process, which need not have a name any more. What it reads nobody has
// read before.
func readThrough(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 3, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	_, err = unix.Pread(fd, make([]byte, 4096), 48*mib)
	return err
}

// killServer kills the process that serves dir, and waits until the kernel has cut the connection: that comes after the
// process has lost its program, when the last of its threads has closed its descriptors. Who waits for the mount to be
// ready may have removed it by then.
func (p *place) killServer(t *testing.T) {
	t.Helper()
	syscall.Kill(p.server(t), syscall.SIGKILL)
	eventually(t, "the mount to be dead", func() bool {
		_, n := p.mountAt(p.dir)
		return n == 0 || strings.Contains(p.in(nil, "ls", p.dir).stderr, "not connected")
	})
}

// eventuallyEnded waits for the end of a process.
func (p *place) eventuallyEnded(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the end of the process that serves", func() bool { return !runs(pid) })
}

// remountRows are calls of mount(8) with the option remount.
var remountRows = []row{
	{"read-only and back", func(t *testing.T, p *place) {
		p.mount(t, "noexec")
		pid := p.server(t)
		p.run(t, 0, "", "mount", "-f", "-o", "remount,ro", p.dir)
		p.mounted(t, "rw", "noexec")
		p.run(t, 0, "", "mount", "-o", "remount,ro", p.dir)
		p.mounted(t, "ro", "nosuid", "nodev", "noexec")
		p.run(t, 1, "Read-only file system", "dd", "if=/dev/zero", "of="+p.disk, "bs=4k", "count=1", "conv=notrunc")
		p.run(t, 0, "", "mount", "-o", "remount,rw", p.dir)
		p.mounted(t, "rw", "nosuid", "nodev", "noexec")
		p.run(t, 0, "", "dd", "if=/dev/zero", "of="+p.disk, "bs=4k", "count=1", "conv=notrunc")
		p.that(t, "the same process serves", fmt.Sprint(len(p.daemons()), " processes"), p.server(t) == pid && len(p.daemons()) == 1)
	}},
	{"by the line in fstab", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx noauto,noexec,cache_size=16M 0 0", p.img, p.dir)
		p.run(t, 0, "", "mount", p.dir)
		p.run(t, 0, "", "mount", "-o", "remount,ro", p.dir)
		p.mounted(t, "ro", "nosuid", "nodev", "noexec")
		p.run(t, 0, "", "mount", "-o", "remount,rw", p.dir)
		p.mounted(t, "rw", "nosuid", "nodev", "noexec")
	}},
	{"read-only while it is written", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.user(t, `exec 3<>"$1"`)
		p.run(t, 32, fmt.Sprintf("in use by sleep (process %d)", pid), "mount", "-o", "remount,ro", p.dir)
		p.mounted(t, "rw")
	}},
	{"read-only below a loop device", func(t *testing.T, p *place) {
		p.mount(t)
		dev := strings.TrimSpace(p.in(nil, "losetup", "-f", "--show", p.disk).stdout)
		t.Cleanup(func() {
			p.in(nil, "losetup", "-d", dev)
			p.eventually(t, "umount", 0, "umount", p.dir)
		})
		p.rename(dev, "/dev/loopN")
		p.run(t, 32, "the loop device "+dev, "mount", "-o", "remount,ro", p.dir)
	}},
	{"writable, of an image that is open read-only", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdx", "-o", "ro", p.img, p.dir)
		p.run(t, 32, "open read-only", "mount", "-o", "remount,rw", p.dir)
		p.mounted(t, "ro")
	}},
	{"flags", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "", "mount", "-o", "remount,noexec,noatime", p.dir)
		p.mounted(t, "rw", "nosuid", "nodev", "noexec", "noatime")
		p.run(t, 0, "", "mount", "-o", "remount,exec,suid,relatime", p.dir)
		p.mounted(t, "rw", "nodev", "relatime")
		m, _ := p.mountAt(p.dir)
		p.that(t, "neither noexec nor nosuid", m.options, !strings.Contains(m.options, "noexec") && !strings.Contains(m.options, "nosuid"))
		p.run(t, 0, "", "mount", "-o", "remount,nosuid,noexec", p.dir)
		p.run(t, 0, "", "mount.vhdx", p.img, p.dir, "-o", "remount,exec,relatime")
		p.mounted(t, "rw", "nosuid", "nodev", "relatime")
	}},
	{"other options", func(t *testing.T, p *place) {
		p.mount(t, "commit=7")
		p.run(t, 0, "", "mount", "-o", "remount,ro,commit=7", p.dir)
		p.run(t, 32, "cannot change commit=8, discard=off", "mount", "-o", "remount,ro,commit=8,discard=off", p.dir)
		p.run(t, 1, `unknown option "frobnicate"`, "mount", "-o", "remount,frobnicate", p.dir)
	}},
	{"where nothing is mounted, or something else", func(t *testing.T, p *place) {
		p.run(t, 32, "no VHDX image is mounted", "mount.vhdx", p.img, p.dir, "-o", "remount,ro")
		p.mount(t)
		p.run(t, 32, "not /other", "mount.vhdx", "/other", p.dir, "-o", "remount,ro")
		p.mounted(t, "rw")
	}},
}
