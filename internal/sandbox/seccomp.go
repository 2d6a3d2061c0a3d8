package sandbox

import (
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
	"splice", "tee", "vmsplice", "sendfile", "copy_file_range", "lseek", "close", "close_range", "dup", "dup2", "dup3", "fcntl", "flock",
	"fsync", "fdatasync", "sync_file_range", "syncfs", "fallocate", "ftruncate", "fadvise64", "readahead", "fstat", "fstatfs", "getdents64",
	"fchmod", "fchown", "fgetxattr", "flistxattr", "fsetxattr", "fremovexattr", "pipe", "pipe2",

	// Files by their paths, which Landlock sees, or which only tell what there is.
	"open", "openat", "openat2", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat",
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
	"listen", "accept4", "recvmsg", "recvfrom", "sendmsg", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",

	"getrandom", "uname", "sysinfo",
}

// The arguments by which some calls are told apart.
const (
	onlyThreads = unix.CLONE_THREAD
	execute     = unix.PROT_EXEC
	nameMemory  = 0x53564d41 // PR_SET_VMA
)

// conditionalCalls returns the calls that are allowed with some arguments only.
func conditionalCalls() []seccomp.NameWithConditions {
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
	return []seccomp.NameWithConditions{
		bits("clone", 0, seccomp.BitsSet, onlyThreads),
		bits("mmap", 2, seccomp.BitsNotSet, execute),
		bits("mprotect", 2, seccomp.BitsNotSet, execute),
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
}

// filterCalls lets all threads make the calls above only. Others fail with EPERM; those fail with ENOSYS for which
// libraries have another way.
func filterCalls(makesDirs bool) error {
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
	for _, c := range conditionalCalls() {
		if known(c.Name) {
			allowed.NamesWithCondtions = append(allowed.NamesWithCondtions, c)
		}
	}
	return seccomp.LoadFilter(seccomp.Filter{
		Flag: seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
				allowed,
			},
		},
	})
}
