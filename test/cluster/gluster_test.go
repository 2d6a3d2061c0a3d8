package cluster

import (
	"bytes"
	"context"
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

// A gluster is a volume with three replicas: servers s1 to s3, and clients a and b, which mount it.
type gluster struct {
	t       *testing.T
	prefix  string // of the names of network namespaces
	servers [3]int // process numbers of the glusterds
}

// The hosts by their names, and the last number of their addresses.
var addresses = map[string]int{"s1": 11, "s2": 12, "s3": 13, "a": 21, "b": 22}

func address(host string) string { return fmt.Sprintf("10.99.0.%d", addresses[host]) }

// up sets the volume up. The end of the test takes it down.
func up(t *testing.T) *gluster {
	t.Helper()
	if !*wanted {
		t.Skip("needs a GlusterFS: run make test-cluster")
	}
	g := &gluster{t: t, prefix: fmt.Sprintf("vc%d", os.Getpid())}
	t.Cleanup(g.down)
	g.network()
	for i := range g.servers {
		g.serve(i)
	}
	eventually(t, "the servers answer", func() bool { _, err := g.try("pool", "list"); return err == nil })
	for _, s := range []string{"s2", "s3"} {
		eventually(t, "the servers know each other", func() bool { _, err := g.try("peer", "probe", address(s)); return err == nil })
	}
	eventually(t, "the servers are connected", func() bool {
		out, _ := g.try("pool", "list")
		return strings.Count(out, "Connected") == len(g.servers)
	})
	create := []string{"volume", "create", "v", "replica", "3"}
	for i, s := range []string{"s1", "s2", "s3"} {
		create = append(create, address(s)+":"+g.directory(i, "brick/v"))
	}
	g.must(append(create, "force")...)
	// What takes 42 s by default: that a client that cannot be reached has lost its locks.
	for _, option := range []string{"network.ping-timeout 10", "server.tcp-user-timeout 10", "client.tcp-user-timeout 10"} {
		g.must(append([]string{"volume", "set", "v"}, strings.Fields(option)...)...)
	}
	g.must("volume", "start", "v")
	for _, c := range []string{"a", "b"} {
		g.mountClient(c)
	}
	return g
}

func (g *gluster) netns(host string) string { return g.prefix + host }

// directory is a path below the directory of server i.
func (g *gluster) directory(i int, name string) string {
	return filepath.Join(work, fmt.Sprintf("s%d", i+1), name)
}

// network makes the network namespaces, and a bridge between them.
func (g *gluster) network() {
	sw := g.netns("sw")
	ip(g.t, "netns", "add", sw)
	ip(g.t, "-n", sw, "link", "add", "sw", "type", "bridge")
	ip(g.t, "-n", sw, "link", "set", "sw", "up")
	for host := range addresses {
		ns := g.netns(host)
		ip(g.t, "netns", "add", ns)
		ip(g.t, "-n", ns, "link", "set", "lo", "up")
		ip(g.t, "-n", sw, "link", "add", "to-"+host, "type", "veth", "peer", "name", "net", "netns", ns)
		ip(g.t, "-n", sw, "link", "set", "to-"+host, "master", "sw", "up")
		ip(g.t, "-n", ns, "addr", "add", address(host)+"/24", "dev", "net")
		ip(g.t, "-n", ns, "link", "set", "net", "up")
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	must(t, "ip", args...)
}

// link cuts a host off, or brings it back.
func (g *gluster) link(host, state string) {
	g.t.Helper()
	// Not ip -n, which makes a mount namespace: that waits where the server of a mount is stopped.
	if out, err := g.onHost("sw", "ip", "link", "set", "to-"+host, state).CombinedOutput(); err != nil {
		g.t.Fatalf("ip link set %s: %v\n%s", state, err, out)
	}
}

// onHost is a command in the network of a host.
func (g *gluster) onHost(host string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + g.netns(host)}, args...)...)
}

// serverScript starts a server with directories of its own where the program has fixed ones.
const serverScript = `set -e
mkdir -p /var/lib/glusterd /var/log/glusterfs
mount --bind "$1/lib" /var/lib/glusterd
mount --bind "$1/log" /var/log/glusterfs
mount -t tmpfs tmpfs /run
mkdir -p /run/gluster
exec glusterd --no-daemon --pid-file=/run/glusterd.pid`

// serve starts server i, with a file system of its own for its brick: only so it runs full by itself.
func (g *gluster) serve(i int) {
	g.t.Helper()
	for _, name := range []string{"lib", "log", "brick"} {
		if err := os.MkdirAll(g.directory(i, name), 0o755); err != nil {
			g.t.Fatal(err)
		}
	}
	disk := g.directory(i, "disk")
	must(g.t, "truncate", "--size=2G", disk)
	must(g.t, "mkfs.xfs", "-q", disk)
	must(g.t, "mount", "-o", "loop", disk, g.directory(i, "brick"))
	must(g.t, "cp", "--archive", "/var/lib/glusterd/.", g.directory(i, "lib"))
	_ = os.Remove(g.directory(i, "lib/glusterd.info")) // its identity
	cmd := g.onHost(fmt.Sprintf("s%d", i+1), "unshare", "--mount", "--propagation", "private", "sh", "-c", serverScript, "sh", g.directory(i, ""))
	out, err := os.Create(g.directory(i, "out"))
	if err != nil {
		g.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.servers[i] = cmd.Process.Pid // all of them exec the next
	go cmd.Wait()
	out.Close()
}

// try has the first server do something.
func (g *gluster) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(g.servers[0]), "-m", "-n", "gluster", "--mode=script"}, args...)...).CombinedOutput()
	return string(out), err
}

func (g *gluster) must(args ...string) string {
	g.t.Helper()
	out, err := g.try(args...)
	if err != nil {
		g.t.Fatalf("gluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// view is the directory in which a client sees the volume.
func (g *gluster) view(client string) string { return filepath.Join(work, "view-"+client) }

func (g *gluster) mountClient(client string) {
	g.t.Helper()
	dir := g.view(client)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		g.t.Fatal(err)
	}
	out, err := g.onHost(client, "mount", "-t", "glusterfs", "-o", "log-level=WARNING,log-file="+dir+".log", address("s1")+":/v", dir).CombinedOutput()
	if err != nil {
		g.t.Fatalf("mount the volume: %v\n%s", err, out)
	}
}

// pids returns the processes of a host whose command lines match.
func (g *gluster) pids(host, pattern string) (pids []int) {
	out, _ := exec.Command("ip", "netns", "pids", g.netns(host)).Output()
	for _, word := range strings.Fields(string(out)) {
		line, err := os.ReadFile("/proc/" + word + "/cmdline")
		line = bytes.ReplaceAll(line, []byte{0}, []byte{' '})
		if n, nerr := strconv.Atoi(word); err == nil && nerr == nil && regexp.MustCompile(pattern).Match(line) {
			pids = append(pids, n)
		}
	}
	return pids
}

// killBrick kills the server process of brick i.
func (g *gluster) killBrick(i int) {
	g.t.Helper()
	pids := g.pids(fmt.Sprintf("s%d", i+1), `^[^ ]*glusterfsd `)
	if len(pids) == 0 {
		g.t.Fatalf("brick %d has no process", i+1)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// startBricks starts what was killed, and waits until both clients reach all replicas, and these have everything. The servers
// know each other sooner than the clients know them: without the first wait, the next brick that is killed may be the second
// that a client has not, and the client has no quorum.
func (g *gluster) startBricks() {
	g.t.Helper()
	g.must("volume", "start", "v", "force")
	for _, client := range []string{"a", "b"} {
		eventually(g.t, client+" reaches all replicas", func() bool {
			state, err := os.ReadFile(filepath.Join(g.view(client), ".meta/graphs/active/v-replicate-0/private"))
			up := regexp.MustCompile(`(?m)^child_up\[\d\] = 1$`).FindAll(state, -1)
			return err == nil && len(up) == len(g.servers)
		})
	}
	eventually(g.t, "the replicas are healed", func() bool {
		out, err := g.try("volume", "heal", "v", "info", "summary")
		return err == nil && strings.Count(out, "Total Number of entries: 0") == len(g.servers)
	})
}

// down takes everything down.
func (g *gluster) down() {
	for _, c := range []string{"a", "b"} {
		_ = exec.Command("umount", "-l", g.view(c)).Run()
	}
	for host := range addresses {
		for _, pid := range g.pids(host, "") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for i := range g.servers {
		eventually(g.t, "the bricks are unused", func() bool {
			_, err := os.Stat(g.directory(i, "brick/v"))
			return err != nil || exec.Command("umount", g.directory(i, "brick")).Run() == nil
		})
	}
	for _, host := range []string{"s1", "s2", "s3", "a", "b", "sw"} {
		_ = exec.Command("ip", "netns", "del", g.netns(host)).Run()
	}
	for i := range g.servers {
		_ = os.RemoveAll(g.directory(i, ""))
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
