// Package otheruser lets a test of root's work beside another user, who exchanges files meanwhile. That user is a process
// of its own: the test's program, started once more. Only tests import the package.
package otheruser

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// UID is the number of the other user and of its group.
const UID = 65534

const (
	variable = "VHDXFS_TEST_OTHER_USER" // what the process is to do
	longest  = 2 * time.Minute          // it ends by itself, should the test not end it
)

// init makes the process the other user's, if it is that.
func init() {
	if words := os.Getenv(variable); words != "" {
		act(strings.Split(words, "\n"))
		os.Exit(0)
	}
}

// Dir makes a directory of the other user, and skips the test unless it is root's.
func Dir(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to work beside another user")
	}
	dir, err := os.MkdirTemp("", "other-user-") // all may pass the directory that it is in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if dir, err = filepath.EvalSymlinks(dir); err == nil {
		if err = os.Chmod(dir, 0o755); err == nil {
			err = os.Chown(dir, UID, UID)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Exchange has the other user exchange what two names stand for, again and again, until the test ends.
func Exchange(t testing.TB, a, b string) { start(t, "exchange", a, b) }

// Replace has the other user put a symbolic link to a path in the place of each unfinished file in a directory.
func Replace(t testing.TB, dir, to string) { start(t, "replace", dir, to) }

// Peek has the other user try to read each file of root in a directory. The function that it returns ends that, and returns
// the names of those that could be read.
func Peek(t testing.TB, dir string) func() string { return start(t, "peek", dir) }

func start(t testing.TB, words ...string) (end func() string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // which the other user need not be able to reach
	cmd.Dir = "/"
	cmd.Env = []string{variable + "=" + strings.Join(words, "\n")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UID, Gid: UID}, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe() // it ends when this is closed
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() string {
		once.Do(func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("the other user: %v, %s", err, &out)
			}
		})
		return out.String()
	}
	t.Cleanup(func() { end() })
	return end
}

// act does what the words say until standard input ends.
func act(words []string) {
	ended := make(chan struct{})
	go func() {
		os.Stdin.Read(make([]byte, 1))
		close(ended)
	}()
	step := map[string]func(args []string) error{"exchange": exchange, "replace": replace, "peek": peek}[words[0]]
	late := time.After(longest)
	for {
		select {
		case <-ended:
			return
		case <-late:
			return
		default:
		}
		if err := step(words[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func exchange(args []string) error {
	return unix.Renameat2(unix.AT_FDCWD, args[0], unix.AT_FDCWD, args[1], unix.RENAME_EXCHANGE)
}

func replace(args []string) error {
	entries, err := os.ReadDir(args[0])
	for _, e := range entries {
		if name := filepath.Join(args[0], e.Name()); strings.HasSuffix(name, ".part") && e.Type().IsRegular() {
			_ = os.Remove(name) // it may have gone
			_ = os.Symlink(args[1], name)
		}
	}
	return err
}

func peek(args []string) error {
	entries, err := os.ReadDir(args[0])
	for _, e := range entries {
		f, err := os.Open(filepath.Join(args[0], e.Name()))
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && st.Sys().(*syscall.Stat_t).Uid == 0 {
			fmt.Println(e.Name())
		}
		f.Close()
	}
	return err
}
