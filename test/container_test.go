package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A podman runs containers with storage of its own, so that nothing of them stays on the machine.
type podman struct{ flags []string }

var (
	podmanOnce sync.Once
	podmanRuns podman
	podmanErr  string
	podmanUsed bool // before these tests
)

// containers skips the test where podman cannot run a container. The image it makes is that of the Dockerfile's last
// stage: the static binary alone, for which no network is needed.
func containers(t *testing.T) podman {
	t.Helper()
	requireTools(t, "podman")
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, for containers that mount on the host")
	}
	podmanOnce.Do(func() {
		groups, _ := filepath.Glob(podmanGroups[1])
		podmanUsed = len(groups) > 0
		image, err := containerImage()
		if err != nil {
			podmanErr = err.Error()
			return
		}
		storage := filepath.Join(root, "containers")
		base := []string{"--root", storage, "--runroot", storage + "-run", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"}
		// The default one, which may not like this machine's control groups, or the other one.
		for _, runtime := range [][]string{nil, {"--runtime", "crun"}, {"--runtime", "runc"}} {
			p := podman{append(base[:len(base):len(base)], runtime...)}
			var out string
			if out, err = p.command("build", "--quiet", "--isolation", "chroot", "--tag", "vhdxfs", image); err == nil {
				if out, err = p.command(p.run("--rm", "vhdxfs", "--version")...); err == nil {
					podmanRuns = p
					return
				}
			}
			podmanErr += fmt.Sprintf("%s: %v\n", strings.TrimSpace(out), err)
		}
	})
	if podmanRuns.flags == nil {
		t.Skipf("needs podman to run containers, which it does not here:\n%s", podmanErr)
	}
	return podmanRuns
}

// podmanGroups are control groups of version 1 that podman leaves behind, the inner ones first.
var podmanGroups = []string{"/sys/fs/cgroup/*/libpod_parent/conmon", "/sys/fs/cgroup/*/libpod_parent"}

// removeControlGroups removes the groups that podman has left, when the last process has gone from them.
func removeControlGroups(t *testing.T) {
	if podmanUsed {
		return // by others than these tests
	}
	eventually(t, "podman's control groups to be removed", func() bool {
		for _, pattern := range podmanGroups {
			groups, _ := filepath.Glob(pattern)
			for _, g := range groups {
				os.Remove(g)
			}
		}
		left, _ := filepath.Glob(podmanGroups[1])
		return len(left) == 0
	})
}

// containerImage returns a directory from which the image is built.
func containerImage() (string, error) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "container-image")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	last := string(text[strings.LastIndex(string(text), "\nFROM "):])
	last = strings.Replace(last, "COPY --from=build /vhdxfs", "COPY vhdxfs", 1)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(last), 0o644); err != nil {
		return "", err
	}
	if out, err := command("env", "CGO_ENABLED=0", "go", "build", "-o", filepath.Join(dir, "vhdxfs"), ".."); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
}

func (p podman) command(args ...string) (string, error) {
	return command("podman", append(p.flags[:len(p.flags):len(p.flags)], args...)...)
}

func (p podman) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.command(args...)
	if err != nil {
		t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// run is podman run without network, and with limits that a process without CAP_SYS_RESOURCE can have.
func (p podman) run(args ...string) []string {
	return append([]string{"run", "--network", "none", "--log-driver", "k8s-file",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, args...)
}

// A container serves an image from within.
type container struct {
	podman
	id        string
	img       string
	dir, disk string // on the host, where the mount of the container is to be seen
}

// privileges are what a container needs in order to mount.
var privileges = []string{"--device", "/dev/fuse", "--cap-add", "SYS_ADMIN"}

// contain starts a container that mounts a new image. The test's end removes it.
func contain(t *testing.T, propagation string, flags ...string) *container {
	t.Helper()
	c := &container{podman: containers(t), dir: newDir(t), img: filepath.Join(t.TempDir(), "data.vhdx")}
	c.disk = filepath.Join(c.dir, "disk.raw")
	mustVhdxfs(t, "create", "--size", "64M", c.img)
	// What is mounted on a private mount is not seen through another.
	must(t, "mount", "--bind", c.dir, c.dir)
	t.Cleanup(func() { unmount(t, c.dir) })
	must(t, "mount", "--make-shared", c.dir)

	args := append([]string{"--detach", "--volume", filepath.Dir(c.img) + ":/images",
		"--volume", c.dir + ":/mnt:" + propagation}, flags...)
	c.id = c.must(t, c.run(append(args, "vhdxfs", "/images/data.vhdx", "/mnt")...)...)
	t.Cleanup(func() {
		if out, err := c.command("rm", "--force", "--time", "0", c.id); err != nil {
			t.Errorf("podman rm: %v\n%s", err, out)
		}
		removeControlGroups(t)
	})
	return c
}

func (c *container) logs(t *testing.T) string {
	t.Helper()
	return c.must(t, "logs", c.id)
}

// ended waits until the container has ended by itself, and returns its exit status.
func (c *container) ended(t *testing.T) string {
	t.Helper()
	eventually(t, "the end of the container", func() bool {
		return c.must(t, "inspect", "--format", "{{.State.Status}}", c.id) == "exited"
	})
	return c.must(t, "inspect", "--format", "{{.State.ExitCode}}", c.id)
}

// onHost reports whether the host sees the mount.
func (c *container) onHost() bool {
	_, err := os.Stat(c.disk)
	return err == nil
}

// A mount that is made in a container is seen on the host, can be written there, and is gone without a trace when the
// container is stopped.
func TestContainerServesTheHost(t *testing.T) {
	c := contain(t, "rshared", privileges...)
	eventually(t, "disk.raw on the host", c.onHost)

	data := make([]byte, 3*mib)
	for i := range data {
		data[i] = byte(i % 251)
	}
	writeThrough(t, c.disk, data)

	pid := c.must(t, "inspect", "--format", "{{.State.Pid}}", c.id)
	tasks, err := filepath.Glob("/proc/" + pid + "/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Errorf("threads of process %s: %v, %v", pid, tasks, err)
	}
	children := 0
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(b)) {
			children++
			if line, err := os.ReadFile("/proc/" + child + "/cmdline"); err == nil && !bytes.Contains(line, []byte("\x00internal-monitor\x00")) {
				t.Errorf("process 1 of the container has the child %s: %q", child, line)
			}
		}
	}
	if children > 1 {
		t.Errorf("process 1 of the container has %d children, want its monitor alone", children)
	}

	c.must(t, "stop", "--time", "60", c.id)
	if status := c.ended(t); status != "0" {
		t.Errorf("exit status %s\n%s", status, c.logs(t))
	}
	if c.onHost() {
		t.Error("the host still sees the mount")
	}
	mustVhdxfs(t, "check", c.img)
	s := serve(t, c.img, "-o", "ro")
	got := make([]byte, len(data))
	f := open(t, s.disk)
	defer f.Close()
	if _, err := f.ReadAt(got, 0); err != nil || difference(got, data) >= 0 {
		t.Errorf("what was written is not there: %v", err)
	}
}

// A container that is stopped while the host has a loop device on disk.raw serves it until it is detached.
func TestContainerWaitsForTheLoopDevice(t *testing.T) {
	requireLoop(t)
	c := contain(t, "rshared", privileges...)
	eventually(t, "disk.raw on the host", c.onHost)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", c.disk))
	detached := false
	detach := func() {
		if !detached {
			detached = true
			must(t, "losetup", "--detach", dev)
		}
	}
	t.Cleanup(detach)

	c.must(t, "kill", "--signal", "TERM", c.id)
	eventually(t, "the mount to be gone from the host", func() bool { return !c.onHost() })
	writeThrough(t, dev, make([]byte, 8*mib))
	if state := c.must(t, "inspect", "--format", "{{.State.Status}}", c.id); state != "running" {
		t.Errorf("the container is %s", state)
	}
	detach()
	if status := c.ended(t); status != "0" {
		t.Errorf("exit status %s\n%s", status, c.logs(t))
	}
	mustVhdxfs(t, "check", c.img)
}

// What a container lacks is said with what to do.
func TestContainerSaysWhatItLacks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		flags  []string
		status string
		want   string
	}{
		{"the device", []string{"--cap-add", "SYS_ADMIN"}, "2", "--device /dev/fuse"},
		{"the privilege", []string{"--device", "/dev/fuse"}, "1", "--cap-add SYS_ADMIN"},
		{"the right to write", append(privileges[:len(privileges):len(privileges)], "--cap-drop", "DAC_OVERRIDE", "--user", "1000"), "1", "permission denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := contain(t, "rshared", tc.flags...)
			status := c.ended(t)
			if log := c.logs(t); status != tc.status || !strings.Contains(log, tc.want) {
				t.Errorf("status %s, want %s; it should name %s:\n%s", status, tc.status, tc.want, log)
			}
		})
	}
	t.Run("propagation", func(t *testing.T) {
		c := contain(t, "rprivate", privileges...)
		eventually(t, "a word about rshared", func() bool { return strings.Contains(c.logs(t), "rshared") })
		if c.onHost() {
			t.Error("the host sees a private mount")
		}
		c.must(t, "stop", "--time", "60", c.id)
		if status := c.ended(t); status != "0" {
			t.Errorf("exit status %s\n%s", status, c.logs(t))
		}
	})
}

// writeThrough writes data at the beginning of a disk and syncs it.
func writeThrough(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
