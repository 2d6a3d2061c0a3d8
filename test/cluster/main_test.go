package cluster

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

var (
	wanted  = flag.Bool("cluster", false, "set up a storage and run the tests on it")
	storage = flag.String("storage", "gluster", "which `one`: gluster, nfs4, nfs3 (without locks), cifs or nobrl (without locks)")
	built   = flag.String("program", "", "the `file` of the program; built if it is not given")
	races   = flag.Int("races", 100, "how often two hosts race for one image")
)

const (
	ownNamespace = "VHDXFS_CLUSTER_NAMESPACE" // says that the process has a mount namespace of its own already
	loaderDisk   = "VHDXFS_CLUSTER_LOADER"    // says that it is that of a loader, and names its disk
)

// work is the directory of all that the tests make, and program the built program.
var work, program string

func TestMain(m *testing.M) {
	if disk := os.Getenv(loaderDisk); disk != "" {
		obeyOrders(disk)
		return
	}
	flag.Parse()
	if !*wanted {
		os.Exit(m.Run())
	}
	if os.Getenv(ownNamespace) == "" {
		os.Exit(again())
	}
	os.Exit(run(m))
}

// again runs the tests in a mount namespace of their own, so that nothing that they mount stays.
func again() int {
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), ownNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(m *testing.M) int {
	var err error
	if work, err = os.MkdirTemp("/var/tmp", "vhdxfs-cluster-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(work)
	_ = os.MkdirAll("/run/vhdxfs", 0o755)
	if err := syscall.Mount("tmpfs", "/run/vhdxfs", "tmpfs", 0, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if program = *built; program != "" {
		return m.Run()
	}
	program = filepath.Join(work, "vhdxfs")
	build := exec.Command("go", "build", "-o", program, "../..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}
