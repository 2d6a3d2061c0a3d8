package test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var repeat = flag.Int("repeat", 1, "how often each case on shared storage runs in the virtual machine")

// sharedCases are the tests of package cluster that run on the storages of the kernel.
var sharedCases = []struct {
	storage string
	tests   []string
}{
	{"nfs4", []string{"TestProbe", "TestRefused", "TestReaders", "TestReplay", "TestIdle", "TestSuspend", "TestRace"}},
	{"cifs", []string{"TestProbe", "TestRefused", "TestReaders", "TestReplay", "TestIdle", "TestSuspend", "TestRace"}},
	{"nfs3", []string{"TestOwnLocks"}},
	{"nobrl", []string{"TestOwnLocks"}},
}

// Two hosts use images on NFS and on SMB, in a machine whose kernel has them.
func TestSharedStorage(t *testing.T) {
	directory := requireVM(t, "shared", "nfs-kernel-server", "rpcbind", "samba", "cifs-utils", "iproute2")
	m := newMachine(t, directory, newDir(t))
	tests := filepath.Join(newDir(t), "cluster.test")
	build := exec.Command("go", "test", "-c", "-o", tests, "./cluster")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m.edit(t, m.root, func(root string) {
		must(t, "install", tests, filepath.Join(root, "usr/local/bin"))
		// The tests start servers of their own.
		must(t, "systemctl", "--quiet", "--root="+root, "mask", "nfs-server.service", "nfs-client.target", "nfs-blkmap.service", "rpc-statd-notify.service",
			"rpcbind.socket", "rpcbind.service", "smbd.service", "nmbd.service", "samba-ad-dc.service")
	})
	b := m.boot(t, "")
	for range *repeat {
		for _, s := range sharedCases {
			for _, name := range s.tests {
				t.Run(s.storage+" "+name, func(t *testing.T) {
					// One that hangs ends before the wait for it does, and says where.
					out, err := b.run(t, "cluster.test -test.v -test.timeout 7m -cluster -program /usr/local/bin/vhdxfs -races 5 -storage "+s.storage+" -test.run '^"+name+"$'")
					t.Log(out)
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}
