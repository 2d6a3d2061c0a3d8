package cluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A cluster is a storage with its servers, and two hosts, a and b, that use it. Each of them is a network namespace.
type cluster struct {
	t      *testing.T
	prefix string                  // of the names of network namespaces
	hosts  []string                // that there are
	client func(host string) []int // the processes by which a host has the storage; nil where that is the kernel
	locks  bool                    // a host sees the locks of the other one
	after  []func()                // to be done when all processes have ended
}

// The hosts by their names, and the last number of their addresses.
var addresses = map[string]int{"s1": 11, "s2": 12, "s3": 13, "a": 21, "b": 22}

func address(host string) string { return fmt.Sprintf("10.99.0.%d", addresses[host]) }

// storages are what a cluster may have, by the name of a flag.
var storages = map[string]struct {
	up       func(t *testing.T) *cluster
	fsType   string // in the mount table
	ownLocks string // the mount option by which locks stay on a host; "" where they do not
}{
	"gluster": {func(t *testing.T) *cluster { return upGluster(t).cluster }, "fuse.glusterfs", ""},
	"nfs4":    {upNFS, "nfs4", ""},
	"nfs3":    {upNFS, "nfs", "nolock"},
	"cifs":    {upSMB, "cifs", ""},
	"nobrl":   {upSMB, "cifs", "nobrl"},
}

// up sets up the storage that is asked for. The end of the test takes it down.
func up(t *testing.T) *cluster {
	t.Helper()
	s, ok := storages[*storage]
	if !ok {
		t.Fatalf("there is no storage %q", *storage)
	}
	c := s.up(t)
	c.locks = s.ownLocks == ""
	return c
}

// requireLocks skips the test where a host does not see the locks of the other one.
func (c *cluster) requireLocks() {
	c.t.Helper()
	if !c.locks {
		c.t.Skip("the hosts do not see each other's locks")
	}
}

// newCluster makes a cluster without a storage. The end of the test takes it down.
func newCluster(t *testing.T, servers ...string) *cluster {
	t.Helper()
	if !*wanted {
		t.Skip("sets up a cluster: run make test-cluster")
	}
	c := &cluster{t: t, prefix: fmt.Sprintf("vc%d", os.Getpid()), hosts: append(servers, "a", "b")}
	t.Cleanup(c.down)
	c.network()
	return c
}

func (c *cluster) netns(host string) string { return c.prefix + host }

// network makes the network namespaces, and a bridge between them.
func (c *cluster) network() {
	sw := c.netns("sw")
	ip(c.t, "netns", "add", sw)
	ip(c.t, "-n", sw, "link", "add", "sw", "type", "bridge")
	ip(c.t, "-n", sw, "link", "set", "sw", "up")
	for _, host := range c.hosts {
		ns := c.netns(host)
		ip(c.t, "netns", "add", ns)
		ip(c.t, "-n", ns, "link", "set", "lo", "up")
		ip(c.t, "-n", sw, "link", "add", "to-"+host, "type", "veth", "peer", "name", "net", "netns", ns)
		ip(c.t, "-n", sw, "link", "set", "to-"+host, "master", "sw", "up")
		ip(c.t, "-n", ns, "addr", "add", address(host)+"/24", "dev", "net")
		ip(c.t, "-n", ns, "link", "set", "net", "up")
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	must(t, "ip", args...)
}

// link cuts a host off, or brings it back.
func (c *cluster) link(host, state string) {
	c.t.Helper()
	// Not ip -n, which makes a mount namespace: that waits where the server of a mount is stopped.
	if out, err := c.onHost("sw", "ip", "link", "set", "to-"+host, state).CombinedOutput(); err != nil {
		c.t.Fatalf("ip link set %s: %v\n%s", state, err, out)
	}
}

// onHost is a command in the network of a host.
func (c *cluster) onHost(host string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + c.netns(host)}, args...)...)
}

// view is the directory in which a client sees the volume.
func (c *cluster) view(client string) string { return filepath.Join(work, "view-"+client) }

// pids returns the processes of a host whose command lines match.
func (c *cluster) pids(host, pattern string) (pids []int) {
	out, _ := exec.Command("ip", "netns", "pids", c.netns(host)).Output()
	for _, word := range strings.Fields(string(out)) {
		line, err := os.ReadFile("/proc/" + word + "/cmdline")
		line = bytes.ReplaceAll(line, []byte{0}, []byte{' '})
		if n, nerr := strconv.Atoi(word); err == nil && nerr == nil && regexp.MustCompile(pattern).Match(line) {
			pids = append(pids, n)
		}
	}
	return pids
}

// down takes everything down.
func (c *cluster) down() {
	for _, host := range []string{"a", "b"} {
		_ = exec.Command("umount", "-l", c.view(host)).Run()
	}
	for _, host := range c.hosts {
		for _, pid := range c.pids(host, "") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, do := range c.after {
		do()
	}
	for _, host := range append(c.hosts, "sw") {
		_ = exec.Command("ip", "netns", "del", c.netns(host)).Run()
	}
}

// patience bounds what must come.
const patience = 120 * time.Second

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
