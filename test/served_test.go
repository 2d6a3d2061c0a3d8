package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A served image is one that a process in the foreground shows at a mount point.
type served struct {
	dir  string // the mount point
	disk string // dir/disk.raw
	log  logBuffer
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	fail bool          // it may end with an error
}

// serve mounts img with the options, in the foreground, and returns when it is mounted: read/write, unless they say
// otherwise. The test's end unmounts it, and fails if the program then fails.
func serve(t *testing.T, img string, options ...string) *served {
	t.Helper()
	return program.serve(t, img, options...)
}

// readOnly serves img and changes no byte of it. The options come behind "ro".
func readOnly(t *testing.T, img string, options ...string) *served {
	t.Helper()
	return serve(t, img, "-o", strings.Join(append([]string{"ro"}, options...), ","))
}

func (b *build) serve(t *testing.T, img string, options ...string) *served {
	t.Helper()
	requireFUSE(t)
	s := start(t, b.path(t), img, options...)
	eventually(t, "the mount at "+s.dir, func() bool {
		select {
		case <-s.done:
			t.Fatalf("vhdxfs ended without a mount: %v\n%s", s.cmd.ProcessState, s.log.String())
		default:
		}
		_, ok := mountAt(s.dir)
		return ok
	})
	// The table has a mount before its server and the kernel have agreed on how to talk. One that is unmounted before that may fail.
	_, _ = os.Stat(s.disk)
	return s
}

// start starts the program in the foreground to mount img, whether that succeeds or not.
func start(t *testing.T, program, img string, options ...string) *served {
	t.Helper()
	s := launch(t, program, img, options...)
	t.Cleanup(func() { s.end(t) })
	return s
}

// launch is start without a cleanup. The process does not live longer than the deadline of a mount.
func launch(t *testing.T, program, img string, options ...string) *served {
	t.Helper()
	requireFUSE(t)
	dir := newDir(t)
	s := &served{dir: dir, disk: filepath.Join(dir, "disk.raw"), done: make(chan struct{})}
	s.cmd = exec.Command(program, append(append([]string{"-f"}, options...), img, dir)...)
	s.cmd.Stderr = &s.log
	// Should the tests be killed, the program goes with them and takes its mount along.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	overdue := deadline(t, dir, s.cmd.Process.Pid)
	go func() {
		s.cmd.Wait()
		overdue.Stop()
		close(s.done)
	}()
	return s
}

// deadline gives a test some minutes for what it does with one mount. Then the process that serves it is killed, so that
// requests without an answer fail, and with them the test, instead of waiting for ever.
func deadline(t *testing.T, dir string, pid int) *time.Timer {
	limit := 5 * time.Minute
	if *long {
		limit *= 6
	}
	return time.AfterFunc(limit, func() {
		t.Errorf("the mount at %s is still there after %v; its process, %d, is killed", dir, limit, pid)
		syscall.Kill(pid, syscall.SIGQUIT) // what it does is then in its log
		time.Sleep(time.Second)
		syscall.Kill(pid, syscall.SIGKILL)
	})
}

// end unmounts, if that is still to be done, and waits until the process has ended well.
func (s *served) end(t *testing.T) {
	t.Helper()
	if _, mounted := mountAt(s.dir); mounted {
		unmount(t, s.dir)
	}
	s.wait(t)
	if status := s.cmd.ProcessState.ExitCode(); status != 0 && !s.fail && !t.Failed() {
		t.Errorf("vhdxfs %s: %v\n%s", s.dir, s.cmd.ProcessState, s.log.String())
	}
	checkLog(t, s.log.String())
}

// wait waits for the process, and kills one that does not end, after asking what it is doing.
func (s *served) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.cmd.Process.Signal(syscall.SIGQUIT) // what it does is then in its log
		select {
		case <-s.done:
		case <-time.After(time.Second):
			s.cmd.Process.Kill()
			<-s.done
		}
		if _, mounted := mountAt(s.dir); mounted {
			unmount(t, s.dir)
		}
		t.Errorf("vhdxfs did not end after its mount was gone\n%s", s.log.String())
	}
}

// running says whether the process has not ended yet.
func (s *served) running() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// unmount unmounts what is at dir. A loop device that has just been detached may hold it for a moment longer.
func unmount(t *testing.T, dir string) {
	t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if os.Geteuid() == 0 {
			out, err = command("umount", "--no-canonicalize", dir)
		} else {
			out, err = command("fusermount3", "-u", dir)
		}
		if _, mounted := mountAt(dir); !mounted {
			return
		}
	}
	t.Errorf("unmount %s: %v\n%s", dir, err, out)
	command("umount", "--lazy", dir)
}
