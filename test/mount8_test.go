package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
)

// TestMount8 tries the program as mount(8) and umount(8) call it, with the real ones and a real fstab. It happens in a
// mount namespace of its own, where the names of the helpers are in /sbin. With -v it prints a table of what was
// called, what was expected, and what happened.
func TestMount8(t *testing.T) {
	h := newHost(t)
	for _, group := range []struct {
		name string
		rows []row
	}{
		{"mount", mountRows},
		{"fstab", fstabRows},
		{"remount", remountRows},
		{"umount", umountRows},
		{"bad input", badRows},
		{"users", userRows},
		{"processes", processRows},
		{"options", optionRows()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, r := range group.rows {
				t.Run(r.what, func(t *testing.T) {
					defer func() { h.row++ }()
					r.do(t, h.place(t, r.what))
				})
			}
		})
	}
	t.Log("\n" + h.table())
}

// A row is something that users of mount(8) meet.
type row struct {
	what string
	do   func(*testing.T, *place)
}

// A host is a mount namespace with the helpers in /sbin and an /etc/fstab of its own.
type host struct {
	holder int    // a process that is in the namespace and does nothing
	fstab  string // the file that is /etc/fstab in there
	trials []trial
	row    int
}

// A trial is a line of the table.
type trial struct {
	row                              int
	what, called, expected, happened string
	ok                               bool
}

func newHost(t *testing.T) *host {
	t.Helper()
	requireLoop(t)
	requireTools(t, "unshare", "nsenter", "setpriv", "flock", "getfattr")
	if err := os.Chmod(root, 0o755); err != nil { // ordinary users are to reach the program
		t.Fatal(err)
	}
	return newHostWith(t, program.path(t))
}

// leaveMounts is what a script does first in a mount namespace of its own that stays for a while: the mounts of other
// tests would live on in it, and their programs and loop devices wait for that.
const leaveMounts = `while read -r _ at type _; do
case $type,$at in fuse.vhdxfs,*|*,"$TMPDIR"/*) umount -l -i "$(printf %b "$at")" || true;; esac
done </proc/self/mounts
`

// newHostWith makes a host whose helpers are the program at path.
func newHostWith(t *testing.T, path string) *host {
	t.Helper()
	h := &host{fstab: filepath.Join(t.TempDir(), "fstab")}
	if err := os.WriteFile(h.fstab, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// All of /sbin stays there, beside the names of the helpers. All users may open /dev/fuse.
	const setup = `set -e
` + leaveMounts + `mkdir -p /run/mount
sbin=$(readlink -f /sbin)
mount --bind "$sbin" "$1"
mount -t tmpfs -o mode=755 sbin "$sbin"
ln -s "$1"/* "$sbin"
for n in mount.vhdx mount.vhdxfs mount.fuse.vhdxfs umount.fuse.vhdxfs; do ln -sf "$2" "$sbin/$n"; done
mount --bind "$3" /etc/fstab
mount -t tmpfs -o mode=755 run /run/mount
mknod -m 666 "$1.fuse" c 10 229
mount --bind "$1.fuse" /dev/fuse
echo ready
exec sleep infinity`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh", newDir(t), path, h.fstab)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.clear(t)
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		cmd.Wait()
		t.Skipf("needs a mount namespace with a /sbin of its own: %s", stderr.String())
	}
	h.holder = cmd.Process.Pid
	return h
}

// clear ends what the rows have left in the namespace.
func (h *host) clear(t *testing.T) {
	for _, pid := range h.daemons() {
		t.Logf("left: process %d", pid)
		syscall.Kill(pid, syscall.SIGCONT)
		syscall.Kill(pid, syscall.SIGTERM)
		syscall.Kill(pid, syscall.SIGTERM)
	}
	eventually(t, "the end of what serves in the namespace", func() bool { return len(h.daemons()) == 0 })
}

// daemons lists the processes of the program in the namespace, without the monitors, which end with them.
func (h *host) daemons() []int {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", h.holder))
	if err != nil {
		return nil
	}
	var pids []int
	for pid, args := range processes() {
		if len(args) > 1 && args[1] == "internal-monitor" {
			continue
		}
		ns, nerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		exe, eerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if nerr == nil && eerr == nil && ns == own && filepath.Base(exe) == "vhdxfs" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mountAt returns the last mount at dir in the namespace, and how many there are.
func (h *host) mountAt(dir string) (top mountEntry, n int) {
	for _, m := range mountsOf(h.holder) {
		if m.point == dir {
			top = m
			n++
		}
	}
	return top, n
}

// table shows all trials.
func (h *host) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tWHAT\tCALLED\tEXPECTED\tHAPPENED")
	last := -1
	for _, tr := range h.trials {
		what, mark := tr.what, "ok"
		if tr.row == last {
			what = ""
		}
		last = tr.row
		if !tr.ok {
			mark = "WRONG"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", mark, what, cell(tr.called), cell(tr.expected), cell(tr.happened))
	}
	w.Flush()
	return b.String()
}

// cell shortens a text to what a table has room for. The whole of it is in the log of its row.
func cell(text string) string {
	const room = 100
	if r := []rune(text); len(r) > room {
		return string(r[:room-1]) + "…"
	}
	return text
}

// A place is what one row works on.
type place struct {
	*host
	what   string
	img    string // an empty image of 64 MiB
	dir    string // an empty directory
	disk   string // dir/disk.raw
	called string
	short  *strings.Replacer
}

func (h *host) place(t *testing.T, what string) *place {
	t.Helper()
	p := &place{host: h, what: what, img: create(t, "64M", "--block-size", "1M"), dir: newDir(t)}
	p.disk = filepath.Join(p.dir, "disk.raw")
	p.rename()
	t.Cleanup(func() {
		for range 3 {
			if _, n := h.mountAt(p.dir); n == 0 {
				break
			}
			h.in(nil, "umount", "-i", "-l", p.dir)
		}
		p.eventuallyEndedAll(t) // the next row counts processes
	})
	return p
}

// rename has the table call the paths by what they are, and others by the names given: path, name, path, name ...
func (p *place) rename(more ...string) {
	p.short = strings.NewReplacer(append(more, p.disk, "DIR/disk.raw", p.dir, "DIR", p.img, "IMAGE")...)
}

// in runs a program in the namespace, with an empty environment but for what is given, as systemd does. A program
// that does not end is ended by a signal.
func (h *host) in(env []string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	enter := append([]string{"--target", strconv.Itoa(h.holder), "--mount", "--"}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", enter...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	status := -1
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) {
		status = cmd.ProcessState.ExitCode()
	}
	return result{stdout.String(), stderr.String(), status}
}

// run calls a program and expects an exit status, and words in what it writes.
func (p *place) run(t *testing.T, status int, says string, args ...string) result {
	t.Helper()
	return p.runWith(t, nil, status, says, args...)
}

func (p *place) runWith(t *testing.T, env []string, status int, says string, args ...string) result {
	t.Helper()
	p.called = p.short.Replace(strings.Join(args, " "))
	r := p.in(env, args...)
	said := r.stdout + r.stderr
	checkLog(t, said)
	expected := fmt.Sprint("status ", status)
	if says != "" {
		expected += ", saying " + strconv.Quote(p.short.Replace(says))
	}
	happened := fmt.Sprint("status ", r.status)
	if line := meaningful(said); line != "" {
		happened += ": " + p.short.Replace(line)
	}
	p.record(t, expected, happened, r.status == status && strings.Contains(said, says))
	return r
}

// meaningful returns what a program wrote, on one line and without the hint that there is no syslog.
func meaningful(said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "no syslog; events of this mount") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " / ")
}

// that states what else is expected after a call.
func (p *place) that(t *testing.T, expected, happened string, ok bool) {
	t.Helper()
	p.record(t, expected, p.short.Replace(happened), ok)
	p.called = ""
}

func (p *place) record(t *testing.T, expected, happened string, ok bool) {
	t.Helper()
	p.trials = append(p.trials, trial{p.row, p.what, p.called, expected, happened, ok})
	t.Logf("called: %s; expected: %s; happened: %s", p.called, expected, happened)
	if !ok {
		t.Error("that is wrong")
	}
}

// mounted expects one mount of the image at dir, read/write ("rw") or read-only ("ro"), served by one process.
func (p *place) mounted(t *testing.T, mode string, flags ...string) {
	t.Helper()
	p.called = ""
	m, n := p.mountAt(p.dir)
	ok := n == 1 && m.fstype == "fuse.vhdxfs" && m.readOnly == (mode == "ro")
	for _, f := range flags {
		ok = ok && strings.Contains(","+m.options+",", ","+f+",")
	}
	happened := fmt.Sprintf("%d mounts", n)
	if n > 0 {
		happened = fmt.Sprintf("%s, %s, %s", m.source, m.fstype, m.options)
	}
	p.that(t, strings.Join(append([]string{"one mount, " + mode}, flags...), ","), happened, ok)
}

// unmounted expects no mount at dir.
func (p *place) unmounted(t *testing.T) {
	t.Helper()
	p.called = ""
	_, n := p.mountAt(p.dir)
	p.that(t, "no mount", fmt.Sprintf("%d mounts", n), n == 0)
}

// server returns the process that serves dir.
func (p *place) server(t *testing.T) int {
	t.Helper()
	r := p.in(nil, "getfattr", "--only-values", "--absolute-names", "-n", "user.vhdx.pid", p.dir)
	pid, err := strconv.Atoi(r.stdout)
	if err != nil {
		t.Fatalf("who serves %s: %s%s", p.dir, r.stdout, r.stderr)
	}
	return pid
}

// ended expects that a process has ended by now.
func (p *place) ended(t *testing.T, pid int) {
	t.Helper()
	p.called = ""
	state := "it has"
	if runs(pid) {
		state = "it runs"
	}
	p.that(t, "the process that served has ended", state, !runs(pid))
}

// runs reports whether a process has not ended. One whose status nobody has asked for yet has.
func runs(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil
}
