package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what must come. It bounds hangs and asserts no speed.
const patience = 60 * time.Second

// eventually waits until done returns true, and fails the test if it never does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// notShort skips a test that takes long where -short is given.
func notShort(t *testing.T, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: " + why)
	}
}

// some returns the cases of a test, and with -short every fourth of them.
func some[T any](cases []T) []T {
	if !testing.Short() {
		return cases
	}
	var few []T
	for i := 0; i < len(cases); i += 4 {
		few = append(few, cases[i])
	}
	return few
}

// requireTools skips the test unless all the programs are installed.
func requireTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s, which is not installed", name)
		}
	}
}

// requireFUSE skips the test where this user cannot mount a FUSE file system.
func requireFUSE(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short, since it mounts")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	f.Close()
	requireTools(t, "fusermount3")
}

// requireLoop skips the test where this user cannot attach a loop device and mount it.
func requireLoop(t *testing.T) {
	t.Helper()
	requireFUSE(t)
	requireTools(t, "losetup", "mount", "umount")
	if os.Geteuid() != 0 {
		t.Skip("needs root, for loop devices")
	}
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	f.Close()
}

// command runs a program to its end and returns what it wrote, standard output and error together.
func command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must runs a program that has to succeed and returns what it wrote.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// A mountEntry is one line of /proc/self/mountinfo.
type mountEntry struct {
	point, fstype, source string
	options               string // of the mount itself
	readOnly              bool
}

// mounts lists the mounts of this process's namespace.
func mounts() []mountEntry { return mountsOf(os.Getpid()) }

// mountsOf lists the mounts of the namespace that a process is in.
func mountsOf(pid int) []mountEntry {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	var list []mountEntry
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(text)) {
		own, super, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(own), strings.Fields(super)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		list = append(list, mountEntry{
			point:    unescape.Replace(f[4]),
			fstype:   g[0],
			source:   unescape.Replace(g[1]),
			options:  f[5],
			readOnly: strings.HasPrefix(f[5], "ro"),
		})
	}
	return list
}

// mountAt returns the mount at dir.
func mountAt(dir string) (mountEntry, bool) {
	for _, m := range mounts() {
		if m.point == dir {
			return m, true
		}
	}
	return mountEntry{}, false
}

// processes lists the command lines of all processes that have one.
func processes() map[int][]string {
	list := map[int][]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && perr == nil && len(b) > 0 {
			list[pid] = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		}
	}
	return list
}
