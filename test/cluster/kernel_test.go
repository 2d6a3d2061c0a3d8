package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The storages of which the kernel is the client. It needs to know their file systems, and for NFS it is the server, too, so make
// test-vm runs these tests in a virtual machine.

// nfsScript exports a directory, in the network of a server, with what the server knows in directories of its own. A client that
// is not heard of loses its locks after 10 s.
const nfsScript = `set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/state
rpcbind
mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
exportfs -o rw,no_root_squash,sync,no_subtree_check,fsid=1 "10.99.0.0/24:$1"
rpc.mountd
rpc.nfsd 4`

// upNFS sets up an NFS server and two clients, with NFSv4.2, or NFSv3 without locks.
func upNFS(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, "s1")
	export := c.share()
	for _, module := range []string{"nfsd", "nfsv4", "nfsv3"} {
		must(t, "modprobe", module)
	}
	c.serve(nfsScript, export)
	t.Cleanup(func() { // before all else: it is not a process
		_ = c.onHost("s1", "unshare", "--mount", "sh", "-c", "mount -t nfsd nfsd /proc/fs/nfsd && echo 0 >/proc/fs/nfsd/threads").Run()
	})
	t.Cleanup(c.leave)
	options := map[string]string{"nfs4": "vers=4.2,hard", "nfs3": "vers=3,hard,nolock"}[*storage]
	for _, host := range []string{"a", "b"} {
		c.mountView(host, "nfs", options, address("s1")+":"+export)
	}
	return c
}

// smbConfig is for a server whose directories are all below one.
const smbConfig = `[global]
	interfaces = ADDRESS/24
	bind interfaces only = yes
	server min protocol = SMB3
	server role = standalone server
	load printers = no
	disable spoolss = yes
	private dir = DIR
	lock directory = DIR
	state directory = DIR
	cache directory = DIR
	pid directory = DIR
	ncalrpc dir = DIR/ncalrpc
	passdb backend = tdbsam:DIR/passdb.tdb
	log file = DIR/log
[share]
	path = EXPORT
	read only = no
`

// upSMB sets up a Samba server and two clients, with locks or without.
func upSMB(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, "s1")
	export := c.share()
	dir := filepath.Join(work, "smb")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.after = append(c.after, func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "smb.conf")
	text := strings.NewReplacer("ADDRESS", address("s1"), "DIR", dir, "EXPORT", export).Replace(smbConfig)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "sh", "-c", `printf 'secret\nsecret\n' | smbpasswd -c "$1" -s -a root`, "-", config)
	must(t, "modprobe", "cifs")
	c.serve(`exec smbd --daemon --configfile="$1"`, config)
	t.Cleanup(c.leave)
	options := "vers=3.1.1,username=root,password=secret,cache=none,echo_interval=5"
	if *storage == "nobrl" {
		options += ",nobrl"
	}
	for _, host := range []string{"a", "b"} {
		c.mountView(host, "cifs", options, "//"+address("s1")+"/share")
	}
	return c
}

// share makes the directory that the server exports.
func (c *cluster) share() string {
	c.t.Helper()
	dir := filepath.Join(work, "share")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.after = append(c.after, func() { _ = os.RemoveAll(dir) })
	return dir
}

// serve runs a script in the network of the server, with a mount namespace of its own.
func (c *cluster) serve(script, arg string) {
	c.t.Helper()
	out, err := os.CreateTemp(work, "server-")
	if err != nil {
		c.t.Fatal(err)
	}
	defer out.Close() // what it starts may keep it
	cmd := c.onHost("s1", "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", arg)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		c.t.Fatalf("the server: %v\n%s", err, text)
	}
}

// mountView mounts the storage as a host, which has its own name, too: NFS knows a client by that.
func (c *cluster) mountView(host, kind, options, source string) {
	c.t.Helper()
	dir := c.view(host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	var out []byte
	eventually(c.t, host+" mounts the storage", func() (done bool) {
		cmd := c.onHost(host, "unshare", "--uts", "sh", "-c", `hostname "$0" && exec mount "$@"`, host, "-t", kind, "-o", options, source, dir)
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			c.t.Logf("%v: %s", err, out)
		}
		return err == nil
	})
}

// leave unmounts the storage while its server is there.
func (c *cluster) leave() {
	for _, host := range []string{"a", "b"} {
		c.link(host, "up")
		if exec.Command("umount", c.view(host)).Run() != nil {
			_ = exec.Command("umount", "-f", "-l", c.view(host)).Run()
		}
	}
}
