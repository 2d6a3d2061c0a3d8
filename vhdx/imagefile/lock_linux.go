package imagefile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/processes"
)

// LockMode says how an image and its parents are locked against other programs.
type LockMode string

// ErrLocked is matched by the error for a file that another program uses in a way that does not go with ours.
var ErrLocked = errors.New("another program has the image open")

// The modes of locking. The mode "" is LockLease for writers on a file system that other hosts may share, and else LockOn; but a
// reader goes on where the file system has no locks.
const (
	LockOn  LockMode = "on"  // an image that another program uses is refused
	LockTry LockMode = "try" // such an image is used anyway
	LockOff LockMode = "off" // no lock is taken or looked for

	LockLease LockMode = "lease" // as LockOn; and a writer keeps other hosts off by what it writes into the headers
)

// The locks are QEMU's, byte for byte, so that its programs and ours keep each other out. They are open file
// description locks for reading, on single bytes: the byte at usedLocks plus a permission says "in use",
// the byte at unsharedLocks plus a permission "not shared with others".
const (
	usedLocks     = 100
	unsharedLocks = 200
)

// The permissions that matter here.
const (
	permRead   = 0 // read consistent data
	permWrite  = 1
	permResize = 3
	permRename = 4 // QEMU had it for changes of its graph, and does not use it any more
)

// A LockKind is what a program wants to do with a file, and what other programs must not do meanwhile.
type LockKind struct {
	used, unshared []int64
}

// What programs do with an image file. Any number of programs may hold Shared at once, and none beside Exclusive, since Shared
// lets no other program write.
var (
	Shared    = LockKind{used: []int64{permRead}, unshared: []int64{permWrite, permResize}}                        // to read
	Exclusive = LockKind{used: []int64{permRead, permWrite, permResize}, unshared: []int64{permWrite, permResize}} // to read and write
	Renaming  = LockKind{used: []int64{permRename}, unshared: []int64{permRename}}                                 // held beside Shared, by one program at a time
)

// Lock takes the locks of kind k until the file is closed. Two programs that try at the same moment may both
// fail, but cannot both succeed, since each takes its own locks before it looks for those of others.
func (f *hostFile) Lock(mode LockMode, k LockKind) error {
	writes := slices.Contains(k.used, permWrite)
	if writes {
		if err := f.unwritten(mode); err != nil {
			return err
		}
	}
	if mode == LockOff {
		return nil
	}
	err := f.takeLocks(k)
	if err == nil {
		err = f.findConflict(k)
	}
	if own := f.host().OwnLocks; err == nil && own != "" {
		err = f.withoutLocks(mode, writes, &ownLocksError{own})
		if err != nil {
			err = errors.Join(err, f.Unlock())
		}
		return err
	}
	if err == nil {
		return nil
	}
	// No locks at all, or another program's: ours protect nothing.
	if dropErr := f.Unlock(); dropErr != nil && errors.Is(err, ErrLocked) {
		err = errors.Join(err, dropErr)
	}
	switch {
	case noLocks(err):
		return f.withoutLocks(mode, writes, err)
	case mode == LockTry && errors.Is(err, ErrLocked):
		return nil
	}
	return err
}

// unwritten returns an error if a program writes the file that no mode lets another writer in beside.
func (f *hostFile) unwritten(mode LockMode) error {
	if Writers != nil && !f.alone() {
		c := &LockedError{Path: f.Name(), Writes: true, what: "has it open for writing"}
		if c.holders, c.Holders = f.ask(Writers); c.holders != "" {
			return c
		}
	}
	if mode != LockOff {
		return nil
	}
	// A second writer destroys the image. But a lock may also be what a dead client of a server has left.
	held, err := f.lockHeld(usedLocks + permWrite)
	if err != nil || !held {
		return nil
	}
	if c := f.conflict("has it open for writing"); len(c.Holders) > 0 {
		return c
	}
	return nil
}

// alone reports whether no program of this host has the file open but this one, by this descriptor: only then the kernel gives a
// lease for writing. It has it for a moment, in which another program that opens the file waits. Where there are no leases, as on
// some network file systems, on devices, and for a file of another user, it reports false.
func (f *hostFile) alone() bool {
	err := f.control("lease", func(fd int) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			return err
		}
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	})
	return err == nil
}

// Unshare turns the locks of a file that is read into exclusive ones. At no moment others could write to the file. The mode LockTry
// was asked for to use an image, and not to change under others what they read of it, so Unshare fails beside them.
func (f *hostFile) Unshare(mode LockMode) error {
	if err := f.unwritten(mode); err != nil || mode == LockOff {
		return err
	}
	err := f.takeLocks(Exclusive)
	if err == nil {
		err = f.findConflict(Exclusive)
	}
	switch {
	case err == nil:
		return nil
	case noLocks(err):
		return f.withoutLocks(mode, true, err)
	}
	return errors.Join(err, f.Share())
}

// withoutLocks returns the error for a file system that knows no locks, and nil where they are not needed: a reader that was not
// told to lock destroys nothing, and a writer with a lease is kept from others by that.
func (f *hostFile) withoutLocks(mode LockMode, writes bool, err error) error {
	leased := mode == LockLease || mode == "" && f.host().Shared
	if mode == LockTry || mode == "" && !writes || leased {
		return nil
	}
	return &NoLocksError{Path: f.Name(), Type: f.host().Type, Err: err}
}

// ErrNoLocks is matched by the error for a file on a file system that knows no locks.
var ErrNoLocks = errors.New("the file system has no locks")

// A NoLocksError says that a file cannot be locked at all. It matches ErrNoLocks.
type NoLocksError struct {
	Path string
	Type string // of the file system; "" where unknown
	Err  error  // of the system
}

func (e *NoLocksError) Error() string {
	name := "the file system"
	if e.Type != "" {
		name += " (" + e.Type + ")"
	}
	why := e.Err
	if p, ok := errors.AsType[*os.PathError](why); ok {
		why = p.Err
	}
	if own, ok := errors.AsType[*ownLocksError](why); ok {
		return fmt.Sprintf("%s: %s has no locks that other hosts see (%v), so they cannot be kept out", e.Path, name, own)
	}
	return fmt.Sprintf("%s: %s has no locks (%v), so other programs and hosts cannot be kept out", e.Path, name, why)
}

func (e *NoLocksError) Unwrap() []error { return []error{ErrNoLocks, e.Err} }

// An ownLocksError says that locks do not leave this host.
type ownLocksError struct{ option string }

func (e *ownLocksError) Error() string { return "it is mounted with " + e.option }

// Relock takes the locks of kind k again. That they were lost shows to a second descriptor of the file, to which they are
// another's.
func (f *hostFile) Relock(k LockKind) (lost bool, err error) {
	if direct := f.direct(); direct != nil && len(k.unshared) > 0 {
		other := &hostFile{File: direct}
		if held, err := other.lockHeld(unsharedLocks + k.unshared[0]); err == nil {
			lost = !held
		}
	}
	if err := f.takeLocks(k); err != nil {
		if noLocks(err) {
			return false, nil
		}
		return lost, err
	}
	return lost, f.findConflict(k)
}

// Unlock gives all locks up.
func (f *hostFile) Unlock() error {
	err := f.setLock(unix.F_UNLCK, 0, unsharedLocks+permRename+1)
	if noLocks(err) {
		return nil
	}
	return err
}

// Share turns exclusive locks into those of a file that is read. Others cannot write to the file in between.
func (f *hostFile) Share() error {
	for _, p := range Exclusive.used {
		if slices.Contains(Shared.used, p) {
			continue
		}
		// Where there are no locks, there is none to drop.
		if err := f.setLock(unix.F_UNLCK, usedLocks+p, 1); err != nil && !noLocks(err) {
			return err
		}
	}
	return nil
}

// noLocks reports whether an error says that the file system knows no locks.
func noLocks(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

func (f *hostFile) takeLocks(k LockKind) error {
	for _, p := range k.used {
		if err := f.setLock(unix.F_RDLCK, usedLocks+p, 1); err != nil {
			return err
		}
	}
	for _, p := range k.unshared {
		if err := f.setLock(unix.F_RDLCK, unsharedLocks+p, 1); err != nil {
			return err
		}
	}
	return nil
}

// findConflict looks for a program that uses what we do not share, or does not share what we use.
func (f *hostFile) findConflict(k LockKind) error {
	for _, p := range k.used {
		if held, err := f.lockHeld(unsharedLocks + p); err != nil || held {
			return f.conflictOr(err, "has it open and does not share it for "+permNoun(p))
		}
	}
	for _, p := range k.unshared {
		if held, err := f.lockHeld(usedLocks + p); err != nil || held {
			return f.conflictOr(err, "has it open for "+permNoun(p))
		}
	}
	return nil
}

func permNoun(p int64) string {
	switch p {
	case permWrite:
		return "writing"
	case permResize:
		return "resizing"
	case permRename:
		return "renaming"
	}
	return "reading"
}

// A LockedError says which program keeps a file from being opened. It matches ErrLocked.
type LockedError struct {
	Path    string
	Holders []int // the processes that hold locks on it, as far as they can be found
	Writes  bool  // one of Writers: no mode lets another in
	holders string
	what    string // they do with it

	elsewhere bool // they may be on another host
}

func (e *LockedError) Error() string {
	who := e.holders
	if len(e.Holders) == 0 && e.elsewhere {
		who = "a program on this or another host"
	}
	return fmt.Sprintf("%s: %v: %s %s; stop it first", e.Path, ErrLocked, who, e.what)
}

func (e *LockedError) Unwrap() error { return ErrLocked }

// conflict returns the error for a file that another program uses.
func (f *hostFile) conflict(what string) *LockedError {
	e := &LockedError{Path: f.Name(), what: what, elsewhere: f.host().Shared}
	e.holders, e.Holders = f.lockHolder()
	return e
}

func (f *hostFile) conflictOr(err error, what string) error {
	if err != nil {
		return err
	}
	return f.conflict(what)
}

func (f *hostFile) setLock(kind int16, off, n int64) error {
	return f.control("lock", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: off, Len: n})
	})
}

// lockHeld reports whether another open file holds a lock on byte off.
func (f *hostFile) lockHeld(off int64) (held bool, err error) {
	err = f.control("look for locks of", func(fd int) error {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: off, Len: 1}
		err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l)
		held = l.Type != unix.F_UNLCK
		return err
	})
	return held, err
}

// LockHolders names the programs that hold locks on a file. A process that may not look into others can put a function
// in its place that asks one that may, before any file is opened.
var LockHolders = FindLockHolders

// Writers names the programs that write a file and need not hold a lock on it, and returns "" where there are none. It is
// called before a file is locked to be written, if it is not nil. It has to be set before any file is opened.
var Writers func(FileID) (names string, pids []int)

// lockHolder names the programs that hold locks on the file, as far as they can be found.
func (f *hostFile) lockHolder() (names string, pids []int) {
	if names, pids = f.ask(LockHolders); names == "" {
		names = "another program"
	}
	return names, pids
}

// ask calls one of the functions that find out which processes use a file.
func (f *hostFile) ask(who func(FileID) (names string, pids []int)) (names string, pids []int) {
	var own FileID
	err := f.control("look at", func(fd int) (err error) {
		own, err = CachedFileID(fmt.Sprintf("/proc/self/fd/%d", fd))
		own.Descriptor = fd
		return err
	})
	if err == nil {
		own.PID = os.Getpid()
		names, pids = who(own)
	}
	return names, pids
}

// FindLockHolders names the programs that hold locks on a file, and returns "" where there are none that can be found:
// the kernel does not say which process holds such a lock, but each process's open files tell which of them are locked.
//
// Only files that are locked are looked at, and only on file systems that answer by themselves: the
// program or server behind another one may hang, and the question would hang with it.
func FindLockHolders(file FileID) (names string, pids []int) {
	var holders []string
	for pid := range processes.Find(func(pid int) (struct{}, bool) { return struct{}{}, holdsLock(pid, file) }) {
		holders, pids = append(holders, ProcessName(pid)), append(pids, pid)
	}
	return strings.Join(holders, ", "), pids
}

// holdsLock reports whether a process holds a lock on the file.
func holdsLock(pid int, file FileID) bool {
	self := processes.Path(file.PID, "fd", strconv.Itoa(file.Descriptor)) // it may hold locks itself at this moment
	for _, fd := range processes.OpenFiles(pid) {
		// Processes come and go meanwhile, and not all of them let us look.
		if fd == self || !fdHasLock(processes.Path(pid, "fdinfo", filepath.Base(fd))) {
			continue
		}
		if id, err := CachedFileID(fd); err == nil && id.is(file) {
			return true
		}
	}
	return false
}

// ProcessName names a process for people.
func ProcessName(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pid)
}

// WrittenBy reports whether a process has a file open for writing. The error says that it does not let this process look.
func WrittenBy(pid int, file FileID) (bool, error) {
	type answer struct {
		writes bool
		err    error
	}
	a, ok := processes.Look(func() (answer, bool) {
		writes, err := writtenBy(pid, file)
		return answer{writes, err}, true
	})
	if !ok {
		return false, fmt.Errorf("process %d does not let itself be looked at", pid)
	}
	return a.writes, a.err
}

func writtenBy(pid int, file FileID) (bool, error) {
	if _, err := os.ReadDir(processes.Path(pid, "fd")); err != nil {
		return false, err
	}
	for _, fd := range processes.OpenFiles(pid) {
		// The permissions of the link say how the file is open; of O_PATH it has none.
		if st, err := os.Lstat(fd); err != nil || st.Mode().Perm()&0o200 == 0 {
			continue
		}
		if id, err := CachedFileID(fd); err == nil && id.is(file) {
			return true, nil
		}
	}
	return false, nil
}

// A FileID says which file is meant, and by which descriptor of which process it is open. Of a block device Major and Minor
// are its own numbers, under any name, and Inode is 0.
type FileID struct {
	Major, Minor    uint32
	Inode           uint64
	PID, Descriptor int
}

// is reports whether f and g are of the same file.
func (f FileID) is(g FileID) bool {
	return f.Major == g.Major && f.Minor == g.Minor && f.Inode == g.Inode
}

// CachedFileID tells which file or device the path leads to, as far as that is known on this machine.
func CachedFileID(path string) (FileID, error) {
	id, _, err := cachedFileID(path)
	return id, err
}

// CachedImageID is CachedFileID for what can be an image: a regular file or a block device. Anything else is an error. Every
// server has /dev/null open, for example.
func CachedImageID(path string) (FileID, error) {
	id, kind, err := cachedFileID(path)
	if err == nil && kind != unix.S_IFREG && kind != unix.S_IFBLK {
		err = fmt.Errorf("%s is neither a regular file nor a block device", path)
	}
	return id, err
}

func cachedFileID(path string) (id FileID, kind uint16, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO|unix.STATX_TYPE, &st); err != nil {
		return FileID{}, 0, err
	}
	if kind = st.Mode & unix.S_IFMT; kind == unix.S_IFBLK {
		return FileID{Major: st.Rdev_major, Minor: st.Rdev_minor}, kind, nil
	}
	return FileID{Major: st.Dev_major, Minor: st.Dev_minor, Inode: st.Ino}, kind, nil
}

// fdHasLock reports whether the /proc file about an open file lists a lock.
func fdHasLock(path string) bool {
	info, err := os.Open(path)
	if err != nil {
		return false
	}
	defer info.Close()
	for lines := bufio.NewScanner(info); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "lock:") {
			return true
		}
	}
	return false
}
