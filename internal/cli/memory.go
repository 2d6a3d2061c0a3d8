package cli

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// A file system on a loop device on disk.raw is written back when memory is short, and that memory is free only
// when this process has written it. So the process must get along with the memory there is: the kernel is told not
// to make its allocations wait for such a file system (PR_SET_IO_FLUSHER), the OOM killer is told to take others,
// and the memory of the Go heap has a bound.
//
// Without the first, one arrangement can hang: a version 1 control group that limits the memory of this process
// together with that of the programs that write to such a file system. When the group is full, the kernel makes
// this process wait for the writes that it has to serve.

// heapLimit is what the heap may have, in bytes: requests under way with their buffers, a map of the file's space with a bit for
// each MiB, and garbage. The cache of block tables lies outside of it.
const heapLimit = 256 << 20

// asIOFlusher calls start, which starts a process or turns this one into another, with the calling thread made an
// I/O flusher. A process inherits that from the thread that starts it, and its threads from each other; a running
// Go program has threads already, and no say in which of them starts the next. Without the privilege
// (CAP_SYS_RESOURCE) start is still called.
func asIOFlusher(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0)
	}
	return start()
}

// isOwnProcess reports whether args are the arguments of the process, which they are not in a test.
func isOwnProcess(args []string) bool { return slices.Equal(args, os.Args[1:]) }

// restart replaces this process by one with the same arguments that is an I/O flusher, unless it is one already. It
// returns where that is not possible, or where args are not the arguments of the process, as in a test.
func restart(args []string) {
	program, err := os.Executable()
	if err != nil || isIOFlusher() || !isOwnProcess(args) {
		return
	}
	_ = asIOFlusher(func() error {
		if !isIOFlusher() {
			return nil // it could not become one either
		}
		return unix.Exec(program, os.Args, os.Environ())
	})
}

// isIOFlusher reports whether the calling thread is an I/O flusher.
func isIOFlusher() bool {
	is, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && is == 1
}

// prepareForShortMemory does what has to be done in the process that serves the mount.
func prepareForShortMemory(o *mountoption.Options, log *logrus.Logger) {
	if !isIOFlusher() {
		log.Debug("not an I/O flusher, which needs CAP_SYS_RESOURCE: do not swap to this disk, and do not limit the " +
			"memory of this process together with that of the disk's users")
	}
	if o.OOMScore != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", strconv.AppendInt(nil, int64(*o.OOMScore), 10), 0); err != nil {
			log.WithError(err).Debug("oom_score_adj left as it is")
		}
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapLimit)
	}
}
