package test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ended runs the program with a shell command before it, and returns its status and what it says. A stack trace is more
// than one line.
func ended(t *testing.T, before string, args ...string) (status int, said string) {
	t.Helper()
	out, err := command("sh", append([]string{"-c", before + ` exec "$@"`, "sh", program.path(t)}, args...)...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		status = exit.ExitCode()
	}
	return status, out
}

// A process that may open hardly any file does what it can, or says in one sentence that it cannot. It blames no image.
func TestHardlyAnyDescriptors(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.avhdx")
	mustVhdxfs(t, "create", "--size", "64M", base)
	mustVhdxfs(t, "create", "--parent", base, child)
	for _, args := range [][]string{{"version"}, {"check", child}, {"mount", child, dir}} {
		var statuses []int
		for n := 3; n <= 14; n++ {
			status, said := ended(t, fmt.Sprintf("ulimit -n %d;", n), args...)
			statuses = append(statuses, status)
			if status != 0 && (status != 2 && status != 32 || strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "vhdxfs: ")) {
				t.Errorf("%d descriptors, %v: status %d\n%s", n, args, status, said)
			}
		}
		t.Logf("%v: %v", args[0], statuses)
		if statuses[0] != 2 || args[0] != "mount" && statuses[len(statuses)-1] != 0 {
			t.Errorf("%v: statuses %v", args, statuses)
		}
	}
}

// Without the memory or the threads that the Go runtime needs to start, no code of the program runs. The runtime says what it
// lacks, in its own words, with the status of a failure of the system.
func TestHardlyAnyMemoryOrThreads(t *testing.T) {
	for _, limit := range []string{"ulimit -v 100000;", "ulimit -v 300000;"} {
		if status, said := ended(t, limit, "version"); status != 2 || !strings.Contains(said, "memory") {
			t.Errorf("%s status %d\n%s", limit, status, said)
		}
	}
	if status, said := ended(t, "ulimit -v 1000000;", "version"); status != 0 {
		t.Errorf("with what the README says is enough: status %d\n%s", status, said)
	}
	requireTools(t, "setpriv", "prlimit")
	path := program.path(t)
	letPass(t, path)
	out, err := command("setpriv", "--reuid", "54329", "--clear-groups", "prlimit", "--nproc=1", path, "version")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 || !strings.Contains(out, "ulimit -u") {
		t.Errorf("one process: %v\n%s", err, out)
	}
}

// Without /proc, the mount table among it, each command that needs it fails in the same way.
func TestWithoutProc(t *testing.T) {
	requireTools(t, "unshare")
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.avhdx")
	mustVhdxfs(t, "create", "--size", "64M", base)
	mustVhdxfs(t, "create", "--parent", base, child)
	const alone = `exec unshare --mount sh -c 'mount -t tmpfs none /proc && exec "$@"' sh "$@";`
	for _, tc := range []struct {
		status int
		args   []string
	}{
		{2, []string{"list"}}, {2, []string{"stats", child}}, {2, []string{"umount", child}}, {2, []string{"detach", child}},
		{2, []string{"close", child}}, {2, []string{"merge", child}}, {2, []string{"mount", child, dir}},
		{2, []string{"mount", "-f", child, dir}}, {2, []string{"attach", child}}, {2, []string{"open", child}},
		{1, []string{"list", "x"}}, {0, []string{"check", child}}, // which need nothing of it
	} {
		status, said := ended(t, alone, tc.args...)
		if status != tc.status || status == 2 && !(strings.Contains(said, "/proc/self/") && strings.HasSuffix(said, "; mount /proc\n")) {
			t.Errorf("%v: status %d, want %d\n%s", tc.args, status, tc.status, said)
		}
	}
}
