//go:build probe

package cli

import (
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
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
	{"a program of root, by its mode", func(f string) error {
		return with(filepath.Join(f, "probe"), unix.O_CREAT|unix.O_RDWR, func(fd int) error {
			defer unix.Unlink(filepath.Join(f, "probe"))
			return unix.Fchmod(fd, 0o4755)
		})
	}},
	{"a new program of root", func(f string) error {
		fd, err := unix.Open(filepath.Join(f, "probe"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o4755)
		return removed(fd, err, f)
	}},
	{"a new program of root, by openat2", func(f string) error {
		how := unix.OpenHow{Flags: unix.O_CREAT | unix.O_RDWR | unix.O_CLOEXEC, Mode: 0o4755}
		fd, err := unix.Openat2(unix.AT_FDCWD, filepath.Join(f, "probe"), &how)
		return removed(fd, err, f)
	}},
	{"link a file of others", func(f string) error { return unix.Link("/etc/shadow", filepath.Join(f, "probe")) }},
	{"link a descriptor of others", func(f string) error {
		return with("/etc/shadow", unix.O_PATH, func(fd int) error {
			return unix.Linkat(fd, "", unix.AT_FDCWD, filepath.Join(f, "probe"), unix.AT_EMPTY_PATH)
		})
	}},
	{"open a descriptor of others", func(string) error {
		return with("/etc/shadow", unix.O_PATH, func(fd int) error {
			_, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(fd))
			return err
		})
	}},
	{"memory of the process itself, by /proc", func(string) error { _, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0); return err }},
	{"take a file of others into the directory", func(f string) error {
		return os.Rename(filepath.Join(filepath.Dir(f), "bystander"), filepath.Join(f, "probe"))
	}},
	{"the signals of a file", func(string) error {
		return withPipe(func(fd uintptr) error { _, err := unix.FcntlInt(fd, unix.F_SETOWN, os.Getppid()); return err })
	}},
	{"a kind of signal of a file", func(string) error {
		return withPipe(func(fd uintptr) error { _, err := unix.FcntlInt(fd, unix.F_SETSIG, int(unix.SIGKILL)); return err })
	}},
	{"a lease of a file", func(string) error {
		return withPipe(func(fd uintptr) error { _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); return err })
	}},
	{"a message to another socket", func(f string) error {
		to := &unix.SockaddrUnix{Name: filepath.Join(filepath.Dir(f), "other.sock")}
		for fd := range sockets(unix.SOCK_DGRAM) {
			return unix.Sendmsg(fd, []byte("probe"), nil, to, 0)
		}
		return unix.EPERM // it has none by which it could
	}},
	{"the socket of the monitor", func(string) error {
		for fd := range sockets(unix.SOCK_SEQPACKET) {
			if err := unix.Dup2(0, fd); err == nil {
				return nil
			}
			_, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd)|1<<32, 0, 0)
			return errnoError(errno)
		}
		return nil // not what is tried
	}},
	{"a terminal", func(string) error { return unix.IoctlSetInt(0, unix.TIOCSTI, 0) }},
	{"memory that is a file", func(string) error { _, err := unix.MemfdCreate("probe", 0); return err }},
	{"keys", func(string) error { return call(unix.SYS_ADD_KEY) }},
	{"a handle", func(string) error { _, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0); return err }},
	{"a new file system", func(string) error { _, err := unix.Fsopen("tmpfs", 0); return err }},
	{"a mount to move", func(string) error { _, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE); return err }},
	{"the attributes of a mount", func(string) error {
		return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}},
	{"another root", func(f string) error { return unix.PivotRoot(f, f) }},
	{"another namespace", func(string) error { return unix.Setns(0, 0) }},
	{"a namespace for a thread", func(string) error {
		// A thread of its own would run in the memory of this one; the kernel refuses the flags before it begins.
		_, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWNS|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		return errnoError(errno)
	}},
	{"a descriptor of another process", func(string) error { return call(unix.SYS_PIDFD_GETFD) }},
	{"a signal by a descriptor", func(string) error { return call(unix.SYS_PIDFD_SEND_SIGNAL) }},
	{"a signal to a thread of others", func(string) error { return unix.Tgkill(1, 1, 0) }},
	{"a signal with a value", func(string) error { return call(unix.SYS_RT_SIGQUEUEINFO) }},
	{"writing into another process", func(string) error { return call(unix.SYS_PROCESS_VM_WRITEV) }},
	{"advice for another process", func(string) error { return call(unix.SYS_PROCESS_MADVISE) }},
	{"comparing processes", func(string) error { return call(unix.SYS_KCMP) }},
	{"limits of another process", func(string) error { return unix.Prlimit(os.Getppid(), unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }},
	{"priority of another process", func(string) error { return unix.Setpriority(unix.PRIO_PROCESS, os.Getppid(), 19) }},
	{"processors of another process", func(string) error { return call(unix.SYS_SCHED_SETAFFINITY) }},
	{"a tracer", func(string) error { return unix.Prctl(unix.PR_SET_PTRACER, 1, 0, 0, 0) }},
	{"being dumped", func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
	{"another personality", func(string) error { return call(unix.SYS_PERSONALITY) }},
	{"watching files", func(string) error { _, err := unix.InotifyInit1(0); return err }},
	{"watching all files", func(string) error { _, err := unix.FanotifyInit(0, 0); return err }},
	{"shared memory", func(string) error { return call(unix.SYS_SHMGET) }},
	{"a queue of messages", func(string) error { return call(unix.SYS_MSGGET) }},
	{"semaphores", func(string) error { return call(unix.SYS_SEMGET) }},
	{"a named queue", func(string) error { return call(unix.SYS_MQ_OPEN) }},
	{"a timer that signals", func(string) error { return call(unix.SYS_TIMER_CREATE) }},
	{"the log of the kernel", func(string) error { return call(unix.SYS_SYSLOG) }},
	{"swap", func(string) error { return call(unix.SYS_SWAPON) }},
	{"accounting", func(string) error { return call(unix.SYS_ACCT) }},
	{"quotas", func(string) error { return call(unix.SYS_QUOTACTL) }},
	{"the clock", func(string) error { return call(unix.SYS_SETTIMEOFDAY) }},
	{"the name of the host", func(string) error { return unix.Sethostname([]byte("probe")) }},
	{"a pair of sockets", func(string) error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0); return err }},
	{"a connection", func(string) error { return call(unix.SYS_CONNECT) }},
	{"a name for a socket", func(string) error { return call(unix.SYS_BIND) }},
	{"times of others", func(string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, "/etc", nil, 0) }},
	{"calls of 32 bits", func(string) error { return call32() }},
	{"calls of the x32 ABI", func(string) error { return call(0x40000000 | unix.SYS_SOCKET) }},
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

// removed removes the file of a trial that should not have made it.
func removed(fd int, err error, directory string) error {
	if err == nil {
		unix.Close(fd)
		unix.Unlink(filepath.Join(directory, "probe"))
	}
	return err
}

// with calls do with a descriptor of a file.
func with(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

// sockets are the descriptors of this process that are sockets of a kind.
func sockets(kind int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for fd := range 256 {
			if k, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && k == kind && !yield(fd) {
				return
			}
		}
	}
}

// withPipe calls do with a descriptor that this process has made.
func withPipe(do func(fd uintptr) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return nil // not what is tried
	}
	defer r.Close()
	defer w.Close()
	return do(r.Fd())
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
