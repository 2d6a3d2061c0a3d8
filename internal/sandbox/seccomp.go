package sandbox

import (
	"math"
	"os"
	"slices"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// The system calls that a confined process can make. There is none among them that begins a program, makes a socket or
// a connection, mounts, looks into another process, or changes a file by its path that Landlock does not see: owner,
// mode, times and attributes are those of open files.
var allowedCalls = []string{
	// Files that are open.
	"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2",
	"splice", "tee", "vmsplice", "sendfile", "copy_file_range", "lseek", "dup", "flock",
	"fsync", "fdatasync", "sync_file_range", "syncfs", "fallocate", "ftruncate", "fadvise64", "readahead", "fstat", "fstatfs", "getdents64",
	"fchown", "fgetxattr", "flistxattr", "fsetxattr", "fremovexattr", "pipe", "pipe2",

	// Files by their paths, which Landlock sees, or which only tell what there is.
	"unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat",
	"stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "statfs",
	"getxattr", "lgetxattr", "listxattr", "llistxattr", "getcwd", "chdir", "fchdir", "umask",

	// Memory.
	"munmap", "mremap", "madvise", "mincore", "brk", "msync",

	// Threads and signals of the process itself.
	"futex", "sched_yield", "sched_getaffinity", "getcpu", "set_robust_list", "rseq", "set_tid_address", "membarrier", "arch_prctl",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "gettid", "getpid", "getppid",
	"getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "getpgid", "getpgrp", "getsid", "setsid",
	"capget", "capset", "exit", "exit_group", "wait4", "waitid",

	// Time, and waiting.
	"nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time", "times", "getrusage",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "poll", "ppoll", "select", "pselect6",

	// Sockets that there are.
	"listen", "accept4", "recvmsg", "recvfrom", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",

	"getrandom", "uname", "sysinfo",
}

// The arguments by which some calls are told apart.
const (
	onlyThreads = unix.CLONE_THREAD
	execute     = unix.PROT_EXEC
	nameMemory  = 0x53564d41 // PR_SET_VMA

	// Bits of a mode by which a program runs with the rights of its owner. In the directory of an image any user may be waiting
	// for such a file of root.
	runAsOwner = unix.S_ISUID | unix.S_ISGID
)

// fileCommands are those of fcntl that have no effect on other processes: no signal to one is among them.
var fileCommands = []uint64{
	unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL,
	unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ,
}

// conditionalCalls returns the calls that are allowed with some arguments only.
//
// A message with an address can go to any datagram socket of the system, and the address cannot be seen here. So messages with
// descriptors go by the one socket that ignores addresses, and that socket keeps its number.
func conditionalCalls(socket int) []seccomp.NameWithConditions {
	equal := func(name string, argument uint32, value uint64) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{
			{Argument: argument, Operation: seccomp.Equal, Value: value},
		}}
	}
	bits := func(name string, argument uint32, op seccomp.Operation, value uint64) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{
			{Argument: argument, Operation: op, Value: value},
		}}
	}
	differ := func(name string, argument uint32) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{
			{Argument: argument, Operation: seccomp.NotEqual, Value: uint64(uint32(socket))}, // #nosec G115 -- a descriptor, or -1
			{Argument: argument, Operation: seccomp.LessOrEqual, Value: math.MaxUint32},      // the kernel looks at half of it
		}}
	}
	calls := []seccomp.NameWithConditions{
		bits("clone", 0, seccomp.BitsSet, onlyThreads),
		bits("mmap", 2, seccomp.BitsNotSet, execute),
		bits("mprotect", 2, seccomp.BitsNotSet, execute),
		bits("open", 2, seccomp.BitsNotSet, runAsOwner),
		bits("openat", 3, seccomp.BitsNotSet, runAsOwner),
		bits("fchmod", 1, seccomp.BitsNotSet, runAsOwner),
		differ("close", 0), differ("dup2", 1), differ("dup3", 1),
		equal("tgkill", 0, uint64(os.Getpid())),
		equal("prctl", 0, nameMemory),
		equal("prctl", 0, unix.PR_GET_IO_FLUSHER),
		equal("prlimit64", 0, 0), // its own limits
		equal("sendto", 4, 0),    // to whom the socket is connected
		equal("utimensat", 1, 0), // of an open file
		equal("ioctl", 1, unix.TCGETS),
		equal("ioctl", 1, unix.FICLONERANGE), // of two open files
		equal("ioctl", 1, unix.TIOCGWINSZ),
		equal("ioctl", 1, unix.TIOCINQ),
	}
	if socket >= 0 {
		calls = append(calls, equal("sendmsg", 0, uint64(socket)))
	}
	for _, command := range fileCommands {
		calls = append(calls, equal("fcntl", 1, command))
	}
	return calls
}

// filterCalls lets all threads make the calls above only. Others fail with EPERM; those fail with ENOSYS for which
// libraries have another way.
func filterCalls(makesDirs bool, socket int) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	known := func(name string) bool { // not every processor has all
		_, ok := info.SyscallNames[name]
		return ok
	}
	allowed := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	names := allowedCalls
	if makesDirs {
		names = append(slices.Clone(names), "mkdirat", "symlinkat")
	}
	for _, name := range names {
		if known(name) {
			allowed.Names = append(allowed.Names, name)
		}
	}
	for _, c := range conditionalCalls(socket) {
		if known(c.Name) {
			allowed.NamesWithCondtions = append(allowed.NamesWithCondtions, c)
		}
	}
	return seccomp.LoadFilter(seccomp.Filter{
		Flag: seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3", "openat2"}}, // whose arguments cannot be seen
				allowed,
			},
		},
	})
}
