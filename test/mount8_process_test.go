package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// processRows are about the process that serves: how it comes, what it is told, how it goes.
var processRows = []row{
	{"it leaves the caller", func(t *testing.T, p *place) {
		p.mount(t)
		pid := p.server(t)
		sid, err := unix.Getsid(pid)
		p.that(t, "a session of its own", fmt.Sprintf("%v, %v", sid == pid, err), sid == pid)
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		p.that(t, "the working directory is /", fmt.Sprintf("%s, %v", cwd, err), cwd == "/")
	}},
	{"it keeps nothing open that was the caller's", func(t *testing.T, p *place) {
		lock := filepath.Join(t.TempDir(), "lock")
		p.rename(lock, "LOCK")
		p.run(t, 0, "", "flock", lock, "mount", "-t", "vhdx", p.img, p.dir)
		p.run(t, 0, "", "flock", "--nonblock", lock, "true")
	}},
	{"without an environment", func(t *testing.T, p *place) {
		p.run(t, 0, "", "env", "-i", "/bin/mount", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "rw")
		p.run(t, 0, "", "env", "-i", "/bin/umount", p.dir)
		p.unmounted(t)
	}},
	{"an automounter", automount},
	{"a service of systemd, in the foreground", func(t *testing.T, p *place) {
		s := newNotifySocket(t)
		cmd := p.service(t, s, "WATCHDOG_USEC=200000", program.path(t), "-f", p.img, p.dir)
		p.that(t, "READY=1", s.wait(t, "READY=1"), true)
		p.mounted(t, "rw")
		p.that(t, "WATCHDOG=1", s.wait(t, "WATCHDOG=1"), true)
		cmd.Process.Signal(syscall.SIGTERM)
		p.that(t, "STOPPING=1", s.wait(t, "STOPPING=1"), true)
		err := cmd.Wait()
		p.that(t, "status 0", fmt.Sprint(err), err == nil)
		p.unmounted(t)
	}},
	{"a service of systemd, for an image with line feeds in its name", func(t *testing.T, p *place) {
		img := p.img + "\nMAINPID=1\nx"
		if err := os.Link(p.img, img); err != nil {
			t.Fatal(err)
		}
		s := newNotifySocket(t)
		cmd := p.service(t, s, program.path(t), "-f", img, p.dir)
		said := s.wait(t, "READY=1")
		p.that(t, "the name is in the status alone", said, !strings.Contains(said, " MAINPID=1"))
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}},
	{"a watchdog when the image cannot be read", func(t *testing.T, p *place) {
		p.mount(t)
		p.run(t, 0, "", "dd", "if=/dev/urandom", "of="+p.disk, "bs=1M", "count=1", "conv=notrunc,fsync")
		p.run(t, 0, "", "umount", p.dir)
		s, log := newNotifySocket(t), filepath.Join(t.TempDir(), "log")
		p.service(t, s, "WATCHDOG_USEC=200000", program.path(t), "-f", "-o", "ro,log="+log, p.img, p.dir)
		s.wait(t, "WATCHDOG=1")
		if err := os.Truncate(p.img, 1<<20); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a word in the log", func() bool {
			said, _ := os.ReadFile(log)
			return bytes.Contains(said, []byte("not feeding the watchdog of systemd"))
		})
		p.that(t, "it is not fed", "it is not", true)
	}},
	{"a service of systemd, in the background", func(t *testing.T, p *place) {
		s := newNotifySocket(t)
		p.runWith(t, []string{"NOTIFY_SOCKET=" + s.path}, 0, "", program.path(t), p.img, p.dir)
		said := s.wait(t, "READY=1")
		p.that(t, "READY=1 and MAINPID", said, strings.Contains(said, fmt.Sprint("MAINPID=", p.server(t))))
	}},
	{"mount(8) called by a service", func(t *testing.T, p *place) {
		s := newNotifySocket(t)
		p.runWith(t, []string{"NOTIFY_SOCKET=" + s.path}, 0, "", "mount", "-t", "vhdx", p.img, p.dir)
		p.that(t, "nothing is said to systemd", fmt.Sprintf("%q", s.heard()), s.heard() == "")
	}},
	{"a first and a second SIGTERM while it is used", func(t *testing.T, p *place) {
		log := filepath.Join(t.TempDir(), "log")
		p.mount(t, "idle_clean=0,log="+log)
		pid := p.server(t)
		user := p.user(t, `exec 3<>"$1"; dd if=/dev/urandom of="$1" bs=1M count=8 conv=notrunc status=none`)
		syscall.Kill(pid, syscall.SIGTERM)
		eventually(t, "the mount to go", func() bool { _, n := p.mountAt(p.dir); return n == 0 })
		err := readThrough(user)
		p.that(t, "after the first, who has it open reads on", fmt.Sprint(err), err == nil)
		syscall.Kill(pid, syscall.SIGTERM)
		p.eventuallyEnded(t, pid)
		err = readThrough(user)
		p.that(t, "after the second he gets errors", fmt.Sprint(err), err != nil)
		checkClean(t, p.img)
		said, _ := os.ReadFile(log)
		p.that(t, "the log tells", meaningful(lastLine(said)), bytes.Contains(said, []byte("is in use; the mount point is detached")) &&
			bytes.Contains(said, []byte("second signal: closing")) && bytes.Contains(said, []byte("is clean")))
	}},
	{"SIGTERM after the mount was moved", func(t *testing.T, p *place) {
		dir := newDir(t)
		p.mount(t)
		pid := p.server(t)
		p.rename(dir, "OTHER")
		p.run(t, 0, "", "mount", "--move", p.dir, dir)
		syscall.Kill(pid, syscall.SIGTERM)
		p.eventuallyEnded(t, pid)
		_, n := p.mountAt(dir)
		p.that(t, "no mount", fmt.Sprint(n, " mounts"), n == 0)
	}},
	{"SIGTERM after a directory on the way was renamed", func(t *testing.T, p *place) {
		above := filepath.Join(p.dir, "above")
		dir := filepath.Join(above, "dir")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		p.run(t, 0, "", "mount", "-t", "vhdx", p.img, dir)
		pid := p.daemons()[0]
		if err := os.Rename(above, above+"2"); err != nil {
			t.Fatal(err)
		}
		syscall.Kill(pid, syscall.SIGTERM)
		p.eventuallyEnded(t, pid)
		_, n := p.mountAt(filepath.Join(above+"2", "dir"))
		p.that(t, "no mount", fmt.Sprint(n, " mounts"), n == 0)
	}},
	{"a connection that is cut", func(t *testing.T, p *place) {
		log := filepath.Join(t.TempDir(), "log")
		p.mount(t, "log="+log)
		pid := p.server(t)
		p.user(t, `exec 3<"$1"`)
		p.run(t, 32, "busy", "umount", "-i", "-f", p.dir)
		p.eventuallyEnded(t, pid)
		p.unmounted(t)
		said, _ := os.ReadFile(log)
		p.that(t, "the log tells", meaningful(lastLine(said)), bytes.Contains(said, []byte("was aborted (umount -f)")))
		p.mount(t)
	}},
	{"killed before it could report", func(t *testing.T, p *place) {
		pipe := filepath.Join(t.TempDir(), "pipe") // it waits there for a reader, having mounted
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := p.start(t, "mount", "-t", "vhdx", "-o", "pidfile="+pipe, p.img, p.dir)
		eventually(t, "the mount", func() bool { _, n := p.mountAt(p.dir); return n == 1 })
		p.killServer(t)
		cmd.Wait()
		status := cmd.ProcessState.ExitCode()
		p.that(t, "a failure", fmt.Sprint("status ", status), status == 2)
		p.unmounted(t)
	}},
	{"a terminal that closes", func(t *testing.T, p *place) {
		requireTools(t, "script")
		// The terminal of script(1) ends with the shell in it.
		p.run(t, 0, "", "script", "-q", "-e", "-c", fmt.Sprintf("mount -t vhdx %s %s", p.img, p.dir), "/dev/null")
		p.mounted(t, "rw")
		pid := p.server(t)
		syscall.Kill(pid, syscall.SIGHUP)
		p.run(t, 0, "", "cmp", "-n", "4096", p.disk, "/dev/zero")
	}},
	{"nohup", func(t *testing.T, p *place) {
		cmd := p.start(t, "nohup", program.path(t), "-f", p.img, p.dir)
		eventually(t, "the mount", func() bool { _, n := p.mountAt(p.dir); return n == 1 })
		cmd.Process.Signal(syscall.SIGHUP)
		p.run(t, 0, "", "cmp", "-n", "4096", p.disk, "/dev/zero")
		p.mounted(t, "rw")
		p.run(t, 0, "", "umount", p.dir)
		cmd.Wait()
	}},
	{"no syslog", func(t *testing.T, p *place) {
		if _, err := os.Stat("/dev/log"); err == nil {
			t.Skip("there is one here")
		}
		r := p.in(nil, "mount", "-t", "vhdx", p.img, p.dir)
		p.that(t, "it says how to name a file", r.stderr, strings.Contains(r.stderr, "Use -o log=FILE"))
		p.run(t, 0, "", "umount", p.dir)
		r = p.in(nil, "mount", "-t", "vhdx", "-o", "log="+p.img+".log", p.img, p.dir)
		p.that(t, "with one it says nothing", r.stderr, r.stderr == "" && r.status == 0)
	}},
}

func lastLine(text []byte) string {
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// A notifySocket is what systemd gives a service of Type=notify.
type notifySocket struct {
	path string
	conn *net.UnixConn
}

func newNotifySocket(t *testing.T) *notifySocket {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // the path of a socket may not be long
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		os.RemoveAll(dir)
	})
	return &notifySocket{path, conn}
}

// wait returns the next message that has a word.
func (s *notifySocket) wait(t *testing.T, word string) string {
	t.Helper()
	b := make([]byte, 4096)
	s.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		n, err := s.conn.Read(b)
		if err != nil {
			t.Fatalf("no message has %s: %v", word, err)
		}
		if said := string(b[:n]); strings.Contains(said, word) {
			return strings.ReplaceAll(said, "\n", " ")
		}
	}
}

// heard returns a message that is there already.
func (s *notifySocket) heard() string {
	b := make([]byte, 4096)
	s.conn.SetReadDeadline(time.Now())
	n, _ := s.conn.Read(b)
	return string(b[:n])
}

// service starts a program, with variables of its environment before it, as systemd does.
func (p *place) service(t *testing.T, s *notifySocket, args ...string) *exec.Cmd {
	t.Helper()
	p.rename(s.path, "SOCKET", program.path(t), "vhdxfs")
	return p.start(t, append([]string{"env", "NOTIFY_SOCKET=" + s.path}, args...)...)
}

// start starts a program in the namespace. The end of the test ends it.
func (p *place) start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	p.called = p.short.Replace(strings.Join(args, " "))
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(p.holder), "--mount", "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	return cmd
}

// automount mounts by the kernel's automounter. It lets through to the mount point the process group of the program
// that answers for it, and makes all others wait, so a mount that leaves that group too early waits for itself.
func automount(t *testing.T, p *place) {
	requireKernelFS(t, "autofs")
	requireTools(t, "python3")
	const daemon = `
import ctypes, os, struct, subprocess, sys, fcntl
image, dir = sys.argv[1:]
r, w = os.pipe()
libc = ctypes.CDLL(None, use_errno=True)
opts = "fd=%d,pgrp=%d,minproto=5,maxproto=5,direct" % (w, os.getpgrp())
if libc.mount(b"test", dir.encode(), b"autofs", 0, opts.encode()):
    sys.exit("mount of autofs: " + os.strerror(ctypes.get_errno()))
os.close(w)
mounted = os.open(dir, os.O_RDONLY)
print("ready", flush=True)
packet = os.read(r, 4096)
token = struct.unpack_from("iiI", packet)[2]
done = subprocess.run(["mount", "-t", "vhdx", image, dir])
fcntl.ioctl(mounted, 0x9360 if done.returncode == 0 else 0x9361, token)
print(done.returncode, flush=True)
sys.stdin.read()
`
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(p.holder), "--mount", "--", "python3", "-c", daemon, p.img, p.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Skip("no autofs here: ", err)
	}
	p.run(t, 0, "disk.raw", "ls", p.dir)
	m, n := p.mountAt(p.dir)
	p.that(t, "a mount on top of the automounter's", fmt.Sprintf("%d mounts, %s on top", n, m.fstype), n == 2 && m.fstype == "fuse.vhdxfs")
	p.run(t, 0, "", "umount", p.dir)
}
