package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A build is the program, built once, when a test first asks for it.
type build struct {
	name   string
	flags  []string
	static bool // without cgo, as a release is
	once   sync.Once
	err    error
}

var (
	program = build{name: "program", flags: raceFlags, static: len(raceFlags) == 0} // what nearly all tests run
	raced   = build{name: "raced", flags: []string{"-race"}}                        // what it is for a test that calls detectRaces
	release = build{name: "release", static: true}                                  // never with the race detector, which takes memory
)

// racing holds the names of the tests that called detectRaces.
var racing sync.Map

// detectRaces has the test, and all its parts, run a program with the race detector. It is for tests in which the program
// does several things at once; the detector makes it several times slower. Without a C compiler, which it needs, and with
// -short the test runs without it.
func detectRaces(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Log("without the race detector, which needs gcc")
	} else if !testing.Short() {
		racing.Store(t.Name(), true)
	}
}

// path builds the program if need be and returns where it is.
func (b *build) path(t *testing.T) string {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	if _, ok := racing.Load(test); ok && b == &program && program.static {
		b = &raced
	} else if b == &release && program.static {
		b = &program // the same
	}
	path := filepath.Join(root, b.name, "vhdxfs")
	b.once.Do(func() {
		if b.err = os.MkdirAll(filepath.Dir(path), 0o755); b.err != nil {
			return
		}
		args := slices.Concat([]string{"go", "build", "-o", path}, b.flags, []string{".."})
		if b.static {
			args = append([]string{"CGO_ENABLED=0"}, args...)
		} else if slices.Contains(b.flags, "-race") {
			args = append([]string{"CGO_ENABLED=1"}, args...)
		}
		if out, err := command("env", args...); err != nil {
			b.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatalf("go build: %v", b.err)
	}
	return path
}

// A result is how a run of the program ended.
type result struct {
	stdout, stderr string
	status         int
}

// vhdxfs runs the program to its end. It fails the test on a panic and on what the race detector finds; the
// status is for the caller to judge.
func vhdxfs(t *testing.T, args ...string) result {
	t.Helper()
	return vhdxfsIn(t, "", args...)
}

// vhdxfsIn is vhdxfs in the directory dir.
func vhdxfsIn(t *testing.T, dir string, args ...string) result {
	t.Helper()
	path := program.path(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	// One that has mounted what it should have refused is told to unmount.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A daemon that goes to the background must not keep this test waiting by holding its standard error.
	cmd.WaitDelay = patience
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("vhdxfs %s: %v", strings.Join(args, " "), err)
	}
	checkLog(t, stderr.String())
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// mustVhdxfs runs the program, which has to succeed, and returns its standard output.
func mustVhdxfs(t *testing.T, args ...string) string {
	t.Helper()
	r := vhdxfs(t, args...)
	if r.status != 0 {
		t.Fatalf("vhdxfs %s: exit status %d\n%s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// checkLog fails the test if what the program wrote shows that it broke.
func checkLog(t *testing.T, log string) {
	t.Helper()
	for _, sign := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(log, sign) {
			t.Errorf("the program broke:\n%s", log)
			return
		}
	}
}

// A logBuffer gathers what a process writes while others read it.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newDir makes an empty directory for the test, as a mount point say.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// letPass opens the directories of the test on the way to path to other users: what T.TempDir makes is closed to them.
func letPass(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); len(dir) >= len(root) && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
