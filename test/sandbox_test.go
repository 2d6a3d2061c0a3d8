package test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// probing is the program with trials of what it must not be able to do while it serves a mount.
var probing = build{name: "vhdxfs-probing", flags: []string{"-tags", "probe"}, static: true}

var probeLine = regexp.MustCompile(`probe ([^:]*): (.*)`)

// requireSandbox skips where the kernel cannot confine a process fully.
func requireSandbox(t *testing.T, s *served) {
	t.Helper()
	if state := xattr(t, s.dir, "sandbox"); !strings.HasPrefix(state, "on: ") {
		t.Skipf("the sandbox is %s", state)
	}
}

// TestSandboxRefuses tries, from inside the process that serves a mount, what a program tries that has taken it over.
func TestSandboxRefuses(t *testing.T) {
	for _, options := range []string{"rw", "ro", "overlay=tmp"} {
		t.Run(options, func(t *testing.T) {
			directory := filepath.Join(t.TempDir(), "images")
			if err := os.Mkdir(directory, 0o755); err != nil {
				t.Fatal(err)
			}
			bystander := filepath.Join(filepath.Dir(directory), "bystander")
			if err := os.WriteFile(bystander, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(filepath.Dir(directory), "other.sock"), Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			notify := filepath.Join(filepath.Dir(directory), "notify.sock")
			systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer systemd.Close()
			t.Setenv("NOTIFY_SOCKET", notify)
			img := filepath.Join(directory, "disk.vhdx")
			mustVhdxfs(t, "create", "--size", "64M", img)
			s := probing.serve(t, img, "-o", options)
			requireSandbox(t, s)
			eventually(t, "the end of the trials", func() bool { return strings.Contains(s.log.String(), "probe end") })
			tried := probeLine.FindAllStringSubmatch(s.log.String(), -1)
			if len(tried) < 90 {
				t.Errorf("%d trials were made:\n%s", len(tried), s.log.String())
			}
			for _, m := range tried {
				refused := slices.ContainsFunc([]string{"not permitted", "permission denied", "not implemented", "cross-device link"}, func(end string) bool {
					return strings.HasSuffix(m[2], end)
				})
				if !refused && m[1] != "end" {
					t.Errorf("%s: %s; want it refused", m[1], m[2])
				}
			}
			if b, err := os.ReadFile(bystander); err != nil || string(b) != "mine" {
				t.Errorf("the file beside the directory: %q, %v", b, err)
			}
			if list, err := os.ReadDir(directory); err != nil || len(list) != 1 {
				t.Errorf("in the directory: %v, %v; want the image alone", list, err)
			}
			if err := other.SetReadDeadline(time.Now()); err != nil {
				t.Fatal(err)
			}
			if n, err := other.Read(make([]byte, 16)); err == nil {
				t.Errorf("another socket got a message of %d bytes", n)
			}
			s.end(t)
		})
	}
}

// TestSandboxState sees in /proc that the process that serves has what the options say, and tells so.
func TestSandboxState(t *testing.T) {
	const chown, override, readSearch, owner = 1, 2, 4, 8
	for _, c := range []struct {
		options      string
		capabilities uint64
	}{
		{"rw", chown | override | readSearch | owner},
		{"ro", 0},
		{"sandbox=on", chown | override | readSearch | owner},
	} {
		t.Run(c.options, func(t *testing.T) {
			s := release.serve(t, create(t, "64M"), "-o", c.options)
			requireSandbox(t, s)
			tasks, err := filepath.Glob("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/task/*/status")
			if err != nil || len(tasks) == 0 {
				t.Fatalf("no threads: %v", err)
			}
			for _, task := range tasks {
				status, err := os.ReadFile(task)
				if err != nil {
					continue // a thread that has ended
				}
				for name, want := range map[string]uint64{"NoNewPrivs": 1, "Seccomp": 2, "CapPrm": c.capabilities, "CapEff": c.capabilities, "CapInh": 0} {
					if got := statusField(t, string(status), name); got != want && (os.Geteuid() == 0 || !strings.HasPrefix(name, "Cap")) {
						t.Errorf("%s: %s is %#x, want %#x", task, name, got, want)
					}
				}
			}
			if out := mustVhdxfs(t, "list"); !strings.Contains(out, s.dir) || strings.Contains(out, "not confined") {
				t.Errorf("list:\n%s", out)
			}
			s.end(t)
		})
	}

	s := serve(t, create(t, "64M"), "-o", "sandbox=off")
	if state := xattr(t, s.dir, "sandbox"); state != "off" {
		t.Errorf("sandbox=off: %s", state)
	}
	if out := mustVhdxfs(t, "list"); !strings.Contains(out, "not confined") {
		t.Errorf("list of a mount with sandbox=off:\n%s", out)
	}
}

// Where memory is short, the kernel forgets the directories of /proc that are not open, and makes new ones, which the rules of
// the sandbox do not cover.
func TestSandboxKeepsProc(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have the kernel forget directories")
	}
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	s := serve(t, create(t, "64M"), "-o", "metrics=unix:"+socket)
	requireSandbox(t, s)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		t.Skipf("needs a kernel that forgets when it is told to: %v", err)
	}
	if values, _ := scrape(t, socket); values["process_resident_memory_bytes"] == "" {
		t.Error("the process cannot read its own files in /proc any more")
	}
}

// statusField returns a number of /proc/PID/status; those of capabilities are hexadecimal.
func statusField(t *testing.T, status, name string) uint64 {
	t.Helper()
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		if key != name {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("no %s", name)
	return 0
}

// TestReadersAreConfined sees that the commands that only read give up their rights before, and where an image is mounted
// for writing still find the mount.
func TestReadersAreConfined(t *testing.T) {
	requireTools(t, "strace")
	parent := create(t, "64M")
	img := childOf(t, parent, "64M")
	for _, args := range [][]string{{"info"}, {"check"}, {"map"}, {"chain"}, {"diff"}, {"compare", img}} {
		t.Run(args[0], func(t *testing.T) {
			out, err := command("strace", slices.Concat([]string{"-f", "-qq", "-e", "trace=landlock_restrict_self,seccomp,openat,openat2", release.path(t)}, args, []string{img})...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			confined := strings.LastIndex(out, "landlock_restrict_self(")
			if filtered := strings.Index(out, "seccomp(SECCOMP_SET_MODE_FILTER"); confined < 0 || filtered < 0 {
				t.Skipf("the kernel here cannot do that:\n%s", out)
			}
			if read := strings.LastIndex(out, filepath.Base(img)); read < confined {
				t.Errorf("the image was opened before alone:\n%s", out)
			}
		})
	}
	s := serve(t, parent, "-o", "orphan_children")
	for _, args := range [][]string{{"info", img}, {"check", img}, {"info", parent}} {
		if r := vhdxfs(t, args...); r.status != 0 && !strings.Contains(r.stderr, strconv.Itoa(s.cmd.Process.Pid)) {
			t.Errorf("vhdxfs %s beside the mount: status %d\n%s%s", strings.Join(args, " "), r.status, r.stdout, r.stderr)
		}
	}
}

// mountInBackground mounts img in the background and returns the mount point and the process that serves. The mount may be
// left dead by the test.
func mountInBackground(t *testing.T, img, options string) (dir string, pid int) {
	t.Helper()
	requireFUSE(t)
	dir = newDir(t)
	t.Cleanup(func() { command("umount", "--lazy", dir) })
	mustVhdxfs(t, "-o", options, img, dir)
	pid, err := strconv.Atoi(xattr(t, dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	return dir, pid
}

// TestMonitorIsKilled sees that a process that serves ends without its monitor, says so, and leaves a clean image.
func TestMonitorIsKilled(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	img, log := create(t, "64M"), filepath.Join(t.TempDir(), "log")
	dir, pid := mountInBackground(t, img, "idle_clean=0,commit=0,log="+log)
	writeThrough(t, filepath.Join(dir, "disk.raw"), []byte("written before"))
	syscall.Kill(monitorOf(t, pid), syscall.SIGKILL)
	eventually(t, "the end of the process", func() bool { return !runs(pid) })
	if said, err := os.ReadFile(log); err != nil || !strings.Contains(string(said), "the monitor process has ended") {
		t.Errorf("the log does not tell why: %s, %v", said, err)
	}
	command("umount", "--lazy", dir)
	checkClean(t, img)
}

// TestServerIsKilled sees that the monitor goes with a process that serves, and takes the pidfile away.
func TestServerIsKilled(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	img, pidFile := create(t, "64M"), filepath.Join(t.TempDir(), "pid")
	dir, pid := mountInBackground(t, img, "pidfile="+pidFile)
	if b, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(pid) {
		t.Errorf("the pidfile has %q, %v; want %d", b, err, pid)
	}
	monitor := monitorOf(t, pid)
	syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "the end of the monitor", func() bool { return !runs(monitor) })
	if _, err := os.Stat(pidFile); err == nil {
		t.Error("the pidfile is left")
	}
	// The mount is dead, and taken away by the next one.
	mustVhdxfs(t, img, dir)
	command("umount", dir)
}
