package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// Mount points that attach makes, and what becomes of them. A name below the directory belongs to the holders of the lock of
// its directory, and only they may mount there, unmount what is dead there or remove it. Attach holds the lock shared
// while it works, and the process that serves the mount holds it shared as long as it lives; the kernel takes it from a
// process that was killed. A mount point that has no holder was left behind. It is removed, with the lock held alone, by
// the next attach or when a mount ends.

// rootRunDir is where root's attach makes mount points.
const rootRunDir = "/run/vhdxfs"

// runDirMode is the mode of a mount point that attach has made: no other user can put anything into it. The sticky bit says
// that it may be removed; a directory made by hand does not have it.
const runDirMode = os.ModeSticky | 0o700

// runDir returns the directory for mount points that this user can make.
func runDir() (string, error) {
	if unix.Geteuid() == 0 {
		return rootRunDir, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vhdxfs"), nil
	}
	return "", usageError("no default mount point: give one, or set XDG_RUNTIME_DIR")
}

// makeRunDir makes a mount point for an image, and locks it. The dead mount of a program that was
// killed is taken away from the name that it is going to have, unless keepStale is set.
func makeRunDir(image string, keepStale bool) (dir string, lock *os.File, err error) {
	parent, err := runDir()
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", nil, fmt.Errorf("%w; name a mount point", err)
	}
	if err := refuseShared(parent); err != nil {
		return "", nil, err
	}
	sweepRunDir(parent)
	name := strings.TrimSuffix(filepath.Base(image), filepath.Ext(image))
	if name == "" || name == "." || name == ".." {
		name = "disk"
	}
	fresh, lock, err := newRunDir(parent)
	if err != nil {
		return "", nil, err
	}
	const maxTries = 10000
	dir = filepath.Join(parent, name)
	for i := 2; ; i++ {
		if !keepStale {
			clearRunDir(dir)
		}
		err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
		if err == nil {
			return dir, lock, nil
		}
		if !errors.Is(err, fs.ErrExist) || i > maxTries {
			lock.Close()
			return "", nil, errors.Join(&os.LinkError{Op: "rename", Old: fresh, New: dir, Err: err}, removeRunDir(fresh))
		}
		dir = filepath.Join(parent, fmt.Sprintf("%s-%d", name, i))
	}
}

// refuseShared returns an error if others can exchange what is in the directory for mount points, whose names are used again
// and again.
func refuseShared(parent string) error {
	d, err := safefile.OpenDir(parent)
	if err != nil {
		return err
	}
	defer d.Close()
	_, shared, err := d.Shared()
	if err == nil && shared {
		err = fmt.Errorf("%s: other users can rename files in it; deny them write access, or name a mount point", parent)
	}
	return err
}

// newRunDir makes a directory below parent under a name that no other program chooses, and locks it. It gets the name of
// a mount point only when it is locked: else a sweep could remove it before, and another attach make it anew.
func newRunDir(parent string) (dir string, lock *os.File, err error) {
	const tries = 100 // a sweep may remove each of them before it is locked, but hardly all
	for range tries {
		dir = filepath.Join(parent, fmt.Sprintf(".new-%016x", rand.Uint64()))
		if err = os.Mkdir(dir, runDirMode); err != nil {
			return "", nil, err
		}
		if lock, err = lockRunDir(dir, unix.LOCK_SH); err == nil {
			return dir, lock, nil
		}
	}
	return "", nil, err
}

// clearRunDir takes a dead mount away from a mount point, with its loop devices, and removes the mount point. Where
// a device is in use, all stays as it is, for detach to find.
func clearRunDir(dir string) {
	// Alone, so that no attach mounts there anew meanwhile. Where the server lives, it has the lock.
	lock, err := lockBelowMount(dir)
	if err != nil {
		return
	}
	defer lock.Close()
	d, err := detachDead(dir)
	if d == nil {
		return
	}
	log := logrus.StandardLogger()
	if err != nil {
		log.Warnf("%[2]s is mounted on %[1]s but its server has died; not cleared: %[3]v", dir, d.Image, err)
		return
	}
	left := mount.Options{MountPoint: dir, NonEmpty: true, Log: log}
	if left.CheckMountPoint() == nil { // which takes it away, and says so
		removeLocked(lock, dir)
	}
}

// detachDead detaches the loop devices of a dead mount, and returns that, or nil where there is none at dir. Where
// a device is in use, it returns an error that says so, and all stay.
func detachDead(dir string) (*active.Mount, error) {
	d, err := active.At(dir)
	if err != nil || d == nil || d.State != active.Dead {
		return nil, err
	}
	if err := waitUnused(d.Devices); err != nil {
		return d, err
	}
	return d, detachAll(d.Devices)
}

// errSwept is why a mount point cannot be locked.
var errSwept = errors.New("another program uses or has removed the mount point")

// lockRunDir locks a mount point as flock(2) does, without waiting, if nothing is mounted there. It touches no mount,
// which could hang.
func lockRunDir(dir string, how int) (*os.File, error) {
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return lockIn(parent, filepath.Base(dir), how)
}

// lockBelowMount locks the directory that the mount at dir covers, alone. It takes the privilege to mount.
func lockBelowMount(dir string) (*os.File, error) {
	if m, err := mounts.At(dir); err != nil || m == nil {
		return nil, fmt.Errorf("%w: %s", errSwept, dir)
	}
	// A copy of the mount that holds the directory, without those below it.
	fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(dir), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	parent := os.NewFile(uintptr(fd), filepath.Dir(dir))
	defer parent.Close()
	return lockIn(parent, filepath.Base(dir), unix.LOCK_EX)
}

// lockIn locks the directory name in parent.
func lockIn(parent *os.File, name string, how int) (*os.File, error) {
	d, err := openIn(parent, name)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(d.Fd()), how|unix.LOCK_NB); err == nil {
		var now *os.File
		if now, err = openIn(parent, name); err == nil { // the program that had it locked before may have removed it
			locked, lerr := d.Stat()
			there, terr := now.Stat()
			now.Close()
			if err = errors.Join(lerr, terr); err == nil && os.SameFile(locked, there) {
				return d, nil
			}
		}
	}
	d.Close()
	return nil, fmt.Errorf("%w: %s", errSwept, filepath.Join(parent.Name(), name))
}

// openIn opens the directory name in parent if nothing is mounted there.
func openIn(parent *os.File, name string) (*os.File, error) {
	path, flags := filepath.Join(parent.Name(), name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_NO_XDEV})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // Linux before 5.6, and containers that do not know it
		var m *mountinfo.Info
		if m, err = mounts.At(path); err == nil && m == nil {
			fd, err = unix.Openat(int(parent.Fd()), name, flags, 0)
		} else if err == nil {
			err = unix.EXDEV
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSwept, &os.PathError{Op: "open", Path: path, Err: err})
	}
	return os.NewFile(uintptr(fd), path), nil
}

// keepRunDir locks the mount point of a mount that is to be served, if attach has made it; else the lock is nil. The
// process that serves has it locked, so that the kernel takes the lock from one that was killed.
//
// Without the lock, an attach in another mount namespace could take the mount away: it sees an empty directory.
func keepRunDir(mountPoint string) *os.File {
	if !inRunDir(mountPoint) {
		return nil
	}
	lock, err := lockRunDir(mountPoint, unix.LOCK_SH)
	if err != nil {
		return nil // there is no such directory, say, which the mount will tell
	}
	return lock
}

// inRunDir reports whether a mount point is where attach makes them.
func inRunDir(mountPoint string) bool {
	parent, err := runDir()
	return err == nil && filepath.Dir(mountPoint) == parent
}

// removeRunDir removes a mount point that attach has made, unless it is in use. Another attach may have made the name
// anew; then it is that one's.
func removeRunDir(dir string) error {
	lock, err := lockRunDir(dir, unix.LOCK_EX)
	if err != nil {
		return nil // its holder removes it
	}
	defer lock.Close()
	return removeLocked(lock, dir)
}

// removeLocked removes a mount point that this process has locked alone, if attach has made it.
func removeLocked(lock *os.File, dir string) error {
	if st, err := lock.Stat(); err != nil || st.Mode() != os.ModeDir|runDirMode {
		return err
	}
	return os.NewSyscallError("rmdir "+dir, unix.Rmdir(dir))
}

// sweepRunDir removes the mount points below parent that have no holder. What cannot be removed stays.
func sweepRunDir(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		_ = removeRunDir(filepath.Join(parent, e.Name()))
	}
}
