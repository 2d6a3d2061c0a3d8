package cluster

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A served is an image that a host of the cluster has mounted.
type served struct {
	t    *testing.T
	dir  string
	disk string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

func (s *served) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *served) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// image creates an image on the volume, and returns its name.
func (c *cluster) image(name string) string {
	c.t.Helper()
	must(c.t, program, "create", "--size", "1G", filepath.Join(c.view("a"), name))
	return name
}

// mount mounts an image as a host does, and returns nil if it is refused.
func (c *cluster) mount(host, image string, options ...string) *served {
	c.t.Helper()
	if s, ok := c.tryMount(host, image, options...); ok {
		return s
	}
	return nil
}

// tryMount is mount that returns a mount that was refused, too, and reports false then.
func (c *cluster) tryMount(host, image string, options ...string) (s *served, ok bool) {
	c.t.Helper()
	s = &served{t: c.t, dir: filepath.Join(work, "mount-"+host+"-"+image), done: make(chan struct{})}
	s.disk = filepath.Join(s.dir, "disk.raw")
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	s.cmd = exec.Command(program, append(append([]string{"-f"}, options...), filepath.Join(c.view(host), image), s.dir)...)
	s.cmd.Stderr = s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	c.t.Cleanup(s.remove)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.done:
			return s, false
		default:
		}
		if mounted(s.dir) {
			return s, true
		}
	}
	c.t.Fatalf("the mount neither comes nor is refused\n%s", s.text())
	return nil, false
}

// mountWhenFree mounts an image as soon as it is not refused any more.
func (c *cluster) mountWhenFree(host, image string) (s *served) {
	c.t.Helper()
	eventually(c.t, host+" mounts the image", func() bool {
		s = c.mount(host, image)
		return s != nil
	})
	return s
}

func mounted(dir string) bool {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Contains(string(table), " "+dir+" ")
}

// end unmounts, and returns whether the program has ended well.
func (s *served) end() bool {
	s.t.Helper()
	eventually(s.t, "the unmount of "+s.dir, func() bool {
		_ = exec.Command("umount", s.dir).Run()
		return !mounted(s.dir)
	})
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Errorf("the program does not end\n%s", s.text())
		s.remove()
	}
	return s.cmd.ProcessState.ExitCode() == 0
}

// remove takes away what is left.
func (s *served) remove() {
	select {
	case <-s.done:
	default:
		_ = s.cmd.Process.Signal(syscall.SIGCONT)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if mounted(s.dir) {
		_ = exec.Command("umount", "-l", s.dir).Run()
	}
}

// sound checks the image, and what is on its disk, from a host.
func (c *cluster) sound(host, image string, l *ledger) {
	c.t.Helper()
	must(c.t, program, "check", filepath.Join(c.view(host), image))
	s := c.mount(host, image, "-o", "ro")
	if s == nil {
		c.t.Fatal("the image cannot be read")
	}
	l.check(c.t, s.disk)
	s.end()
}
