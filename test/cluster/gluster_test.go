package cluster

import (
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
	*cluster
	servers [3]int // process numbers of the glusterds
}

// upGluster sets the volume up. The end of the test takes it down.
func upGluster(t *testing.T) *gluster {
	t.Helper()
	if *storage != "gluster" {
		t.Skip("this is a test of GlusterFS")
	}
	g := &gluster{cluster: newCluster(t, "s1", "s2", "s3")}
	g.client = func(host string) []int { return g.pids(host, "^[^ ]*glusterfs .*"+g.view(host)+" *$") }
	g.after = append(g.after, g.forgetBricks)
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
	create = append(create, "force")
	// The first server may still take one that is connected for none of its own.
	eventually(t, "the volume is created", func() bool { _, err := g.try(create...); return err == nil })
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

// directory is a path below the directory of server i.
func (g *gluster) directory(i int, name string) string {
	return filepath.Join(work, fmt.Sprintf("s%d", i+1), name)
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
		eventually(g.t, client+" reaches all replicas", func() bool { return g.reached(client) == len(g.servers) })
	}
	eventually(g.t, "the replicas are healed", func() bool {
		out, err := g.try("volume", "heal", "v", "info", "summary")
		return err == nil && strings.Count(out, "Total Number of entries: 0") == len(g.servers)
	})
}

// reached returns how many replicas a client reaches.
func (g *gluster) reached(client string) int {
	state, _ := os.ReadFile(filepath.Join(g.view(client), ".meta/graphs/active/v-replicate-0/private"))
	return len(regexp.MustCompile(`(?m)^child_up\[\d\] = 1$`).FindAll(state, -1))
}

// forgetBricks unmounts and removes the bricks.
func (g *gluster) forgetBricks() {
	for i := range g.servers {
		eventually(g.t, "the bricks are unused", func() bool {
			_, err := os.Stat(g.directory(i, "brick/v"))
			return err != nil || exec.Command("umount", g.directory(i, "brick")).Run() == nil
		})
		_ = os.RemoveAll(g.directory(i, ""))
	}
}
