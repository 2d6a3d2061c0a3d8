// Package processes looks at the processes of this machine, in /proc, without waiting for any of them forever.
//
// Much of /proc/PID is behind locks of that process, which it holds while it executes a program. Closing files is part of
// that, so a user whose own FUSE server does not answer can keep them for as long as it pleases: readlink(2) of anything in
// /proc/PID/fd then waits, too.
package processes

import (
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

const (
	patience = time.Second           // for the first process that does not let itself be looked at; half of it for the next
	least    = 20 * time.Millisecond // for each of the others
	maxHung  = 64                    // so many are tried, before nothing more is looked at
)

// Find yields what look returns for each process there is, with the numbers rising, where look reports true. A process that
// does not let itself be looked at in time is left out. Look runs in another goroutine, and may still run after Find is
// done: it must change nothing that others use.
func Find[T any](look func(pid int) (T, bool)) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		hung := 0
		for _, pid := range all() {
			value, ok, answered := within(max(patience>>hung, least), func() (T, bool) { return look(pid) })
			if ok && !yield(pid, value) {
				return
			}
			if !answered {
				if hung++; hung == maxHung {
					return
				}
			}
		}
	}
}

// Look is Find for what belongs to one process.
func Look[T any](look func() (T, bool)) (value T, ok bool) {
	value, ok, _ = within(patience, look)
	return value, ok
}

// all returns the numbers of the processes.
func all() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// within returns what look returns, and whether it did so in time. Otherwise its goroutine waits on, until the process that
// it looks at goes on, or this one ends: the kernel lets it be killed.
func within[T any](patience time.Duration, look func() (T, bool)) (value T, ok, answered bool) {
	type answer struct {
		value T
		ok    bool
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		defer fault.Then(func(err error) { answers <- answer{err: err} })
		var a answer
		a.value, a.ok = look()
		answers <- a
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case a := <-answers:
		if a.err != nil {
			panic(a.err) // where it is caught as a fault of the caller
		}
		return a.value, a.ok, true
	case <-late.C:
		return value, false, false
	}
}

// Path returns the path of a file that tells of a process.
func Path(pid int, names ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, names...)...)
}

// OpenFiles returns the paths in /proc of what a process has open. A process that is not there, or does not let this one
// look, has none.
func OpenFiles(pid int) (paths []string) {
	entries, _ := os.ReadDir(Path(pid, "fd"))
	for _, e := range entries {
		paths = append(paths, Path(pid, "fd", e.Name()))
	}
	return paths
}
