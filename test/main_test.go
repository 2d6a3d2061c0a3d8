// Package test holds what only shows from outside: the built program with real mounts, loop devices, the file
// systems of the kernel, images that other programs wrote, and the tools of others as oracles. It imports
// nothing of vhdxfs.
//
// A test that lacks something (root, /dev/fuse, a tool, a file system in the kernel, VHDXFS_CORPUS) skips and
// says what.
package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// root is the directory below which everything lies that the tests make: images, mount points, the program itself.
var root string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

// run runs the tests and then sees to it that they left nothing mounted, attached or running.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vhdxfs-test-")
	if err == nil {
		root, err = filepath.EvalSymlinks(dir) // as /proc shows it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// T.TempDir looks at the first of these, programs that the tests run look at the second.
	os.Setenv("GOTMPDIR", root)
	os.Setenv("TMPDIR", root)
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else each run of a program with the race detector takes a second more

	restore := letUsersMount()
	status := m.Run()
	restore()

	left := leftovers()
	for deadline := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = leftovers() {
		time.Sleep(50 * time.Millisecond) // the kernel lets go of some things a moment later
	}
	for _, what := range left {
		fmt.Fprintln(os.Stderr, "left behind:", what)
		status = 1
	}
	if len(left) == 0 {
		os.RemoveAll(root)
	}
	return status
}

// letUsersMount gives /dev/fuse the mode that it has wherever udev runs, so that tests can mount as an ordinary user. The
// function that it returns restores the mode.
func letUsersMount() (restore func()) {
	const device, usual = "/dev/fuse", 0o666
	st, err := os.Stat(device)
	if err != nil || st.Mode().Perm() == usual || os.Chmod(device, usual) != nil {
		return func() {} // the tests that need it tell what is missing
	}
	return func() { os.Chmod(device, st.Mode().Perm()) }
}

// leftovers names the mounts and loop devices that touch root, and the processes that serve something below it.
func leftovers() []string {
	var left []string
	for _, m := range mounts() {
		if m.point == root || strings.HasPrefix(m.point, root+"/") {
			left = append(left, "mount "+m.point)
		}
	}
	backings, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range backings {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), root+"/") {
			left = append(left, "loop device "+f+" on "+strings.TrimSpace(string(b)))
		}
	}
	for pid, args := range processes() {
		if pid != os.Getpid() && len(args) > 1 && strings.HasPrefix(args[len(args)-1], root+"/") {
			left = append(left, fmt.Sprintf("process %d: %s", pid, strings.Join(args, " ")))
		}
	}
	return left
}
