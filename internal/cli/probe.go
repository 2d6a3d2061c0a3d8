//go:build probe

package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"unsafe"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/erofs"
)

// A build with the tag probe tries, in the process that serves a mount, what a program would try that has taken it over,
// and logs what became of it: "probe NAME: ERROR", or "probe NAME: done". No release has it; package test does.
func init() { served = probe }

// The trials, by name. The directory is that of the image.
var probes = []struct {
	name string
	try  func(directory string) error
}{
	{"read /etc/shadow", func(string) error { _, err := os.ReadFile("/etc/shadow"); return err }},
	{"list /", func(string) error { _, err := os.ReadDir("/"); return err }},
	{"write to /etc", func(string) error { return os.WriteFile("/etc/vhdxfs-probe", nil, 0o600) }},
	{"write beside the directory", func(f string) error { return os.WriteFile(f+"-probe", nil, 0o600) }},
	{"remove beside the directory", func(f string) error { return os.Remove(filepath.Join(filepath.Dir(f), "bystander")) }},
	{"truncate beside the directory", func(f string) error { return unix.Truncate(filepath.Join(filepath.Dir(f), "bystander"), 0) }},
	{"make a directory", func(f string) error { return os.Mkdir(filepath.Join(f, "probe"), 0o700) }},
	{"make a device", func(f string) error { return unix.Mknod(filepath.Join(f, "probe"), unix.S_IFCHR|0o600, 0x103) }},
	{"make a symbolic link", func(f string) error { return os.Symlink("/etc/shadow", filepath.Join(f, "probe")) }},
	{"open a device", func(string) error { _, err := os.Open("/dev/zero"); return err }},
	{"open by handle", func(string) error {
		_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
		return err
	}},
	{"chmod /etc", func(string) error { return unix.Chmod("/etc", 0o755) }},
	{"chown /etc", func(string) error { return unix.Chown("/etc", 0, 0) }},
	{"set an attribute of /etc", func(string) error { return unix.Setxattr("/etc", "user.probe", nil, 0) }},
	{"exec", func(string) error { return exec.Command("/proc/self/exe", "--version").Run() }},
	{"fork", func(string) error {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if pid == 0 && errno == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return errnoError(errno)
	}},
	{"memory to run", func(string) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		return err
	}},
	{"mount", func(f string) error { return unix.Mount("none", f, "tmpfs", 0, "") }},
	{"unmount", func(string) error { return unix.Unmount("/proc", unix.MNT_DETACH) }},
	{"a mount namespace", func(string) error { return unix.Unshare(unix.CLONE_NEWNS) }},
	{"a user namespace", func(string) error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"chroot", func(f string) error { return unix.Chroot(f) }},
	{"ptrace", func(string) error { return unix.PtraceAttach(os.Getppid()) }},
	{"memory of another process", func(string) error {
		b := make([]byte, 1)
		_, err := unix.ProcessVMReadv(os.Getppid(), []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
		return err
	}},
	{"descriptors of another process", func(string) error { _, err := unix.PidfdOpen(1, 0); return err }},
	{"kill", func(string) error { return unix.Kill(1, 0) }},
	{"a TCP socket", func(string) error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err }},
	{"a UDP socket", func(string) error { _, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0); return err }},
	{"a Unix socket", func(string) error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0); return err }},
	{"bpf", func(string) error { return call(unix.SYS_BPF) }},
	{"io_uring", func(string) error { return call(unix.SYS_IO_URING_SETUP) }},
	{"perf events", func(string) error { return call(unix.SYS_PERF_EVENT_OPEN) }},
	{"userfaultfd", func(string) error { return call(unix.SYS_USERFAULTFD) }},
	{"the keyring", func(string) error { return call(unix.SYS_KEYCTL) }},
	{"a kernel module", func(string) error { return call(unix.SYS_INIT_MODULE) }},
	{"reboot", func(string) error { return call(unix.SYS_REBOOT) }},
	{"setuid", func(string) error { return call(unix.SYS_SETUID) }},
	{"more capabilities", func(string) error {
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		all := [2]unix.CapUserData{{Permitted: 1 << unix.CAP_SYS_ADMIN, Effective: 1 << unix.CAP_SYS_ADMIN}}
		_, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&all[0])), 0)
		return errnoError(errno)
	}},
}

func call(number uintptr) error {
	_, _, errno := unix.RawSyscall6(number, 0, 0, 0, 0, 0, 0)
	return errnoError(errno)
}

func errnoError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// mapOutside has the monitor show a file that this process can only name.
func mapOutside(m mount.Mounter) error {
	outside, err := unix.Open("/etc/shadow", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	k := mount.KernelFile{Geometry: erofs.Geometry{Size: 512, BlockBits: 9, ChunkBits: 9}, Devices: []int{outside}}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if _, err := w.Write(erofs.Run{Chunks: 1, Device: 1}.Append(nil)); err != nil {
		return err
	}
	w.Close()
	k.Runs = int(r.Fd())
	var st unix.Stat_t
	for k.Device = 0; unix.Fstat(k.Device, &st) != nil || st.Rdev != unix.Mkdev(10, 229); k.Device++ { // the connection
	}
	_, err = m.PassThrough(k)
	return err
}

// probe makes the trials, each in a thread of its own.
func probe(j *mountJob, log *logrus.Logger) {
	directory := filepath.Dir(j.Mount.Image)
	all := append(probes, struct {
		name string
		try  func(string) error
	}{"show a file of others", func(string) error { return mapOutside(j.Mount.Mounter) }})
	for _, p := range all {
		var wg sync.WaitGroup
		wg.Go(func() {
			runtime.LockOSThread() // and the thread ends with the goroutine
			if err := p.try(directory); err != nil {
				log.Errorf("probe %s: %v", p.name, err)
				return
			}
			log.Errorf("probe %s: done", p.name)
		})
		wg.Wait()
	}
	log.Error("probe end: all was tried")
}
