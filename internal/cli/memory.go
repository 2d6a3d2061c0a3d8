package cli

import (
	"os"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
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

// becomeIOFlusher makes all threads of the process I/O flushers, from which later threads inherit that, as far as it may: it needs
// CAP_SYS_RESOURCE.
func becomeIOFlusher() { _, _, _ = psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0) }

// isOwnProcess reports whether args are the arguments of the process, which they are not in a test.
func isOwnProcess(args []string) bool { return slices.Equal(args, os.Args[1:]) }

// isIOFlusher reports whether the calling thread is an I/O flusher.
func isIOFlusher() bool {
	is, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && is == 1
}

// prepareForShortMemory does what has to be done in the process that serves the mount.
func (j *mountJob) prepareForShortMemory(log *logrus.Logger) {
	if j.ownProcess {
		becomeIOFlusher()
	}
	if !isIOFlusher() {
		log.Debug("not an I/O flusher, which needs CAP_SYS_RESOURCE: do not swap to this disk, and do not limit the " +
			"memory of this process together with that of the disk's users")
	}
	if j.OOMScore != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", strconv.AppendInt(nil, int64(*j.OOMScore), 10), 0); err != nil {
			log.WithError(err).Debug("oom_score_adj left as it is")
		}
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapLimit)
	}
}
