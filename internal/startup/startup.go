// Package startup ends the program with one sentence where it may open too few files to start. Else the Go runtime, or the start of
// a package such as go-fuse, would end it with a stack trace.
//
// Packages without a dependency between them start in the order of their paths, so this one imports nothing but syscall: it then
// starts before os and all that needs it. What the Go runtime itself needs to start, memory and threads, cannot be checked
// from here.
package startup

import "syscall"

// pipes have as many descriptors as are open at one moment until all packages have started: two of the runtime's poller, and a pipe.
const pipes = 2

func init() {
	var open []int
	for range pipes {
		var ends [2]int
		err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC)
		if err == syscall.EMFILE || err == syscall.ENFILE {
			_, _ = syscall.Write(syscall.Stderr, []byte("vhdxfs: cannot start: "+err.Error()+
				"; raise the limit with ulimit -n, prlimit --nofile= or LimitNOFILE=\n"))
			syscall.Exit(2) // as any failure of the system
		}
		if err == nil {
			open = append(open, ends[:]...)
		}
	}
	for _, fd := range open {
		_ = syscall.Close(fd)
	}
}
