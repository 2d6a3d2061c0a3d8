package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "vhdxfs/fs"
)

// Mount points that attach makes, and what becomes of them. Whoever needs one has it locked, shared: attach while it
// works, and the program that serves the mount as long as that lives. The kernel takes the lock from who was killed. A
// mount point that nobody has locked was left behind, and is removed by the next attach, or when a mount ends.

// rootRunDir is where root's attach makes mount points.
const rootRunDir = "/run/vhdxfs"

// runDirMode is the mode of a mount point that attach has made: nobody else can put anything into it. The sticky bit says
// that it may be removed; a folder that somebody has made by hand does not have it.
const runDirMode = os.ModeSticky | 0o700

// runDir returns the folder for mount points that this user can make.
func runDir() (string, error) {
	if unix.Geteuid() == 0 {
		return rootRunDir, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vhdxfs"), nil
	}
	return "", usageError("there is no place to make a mount point: name one, or set XDG_RUNTIME_DIR")
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
	sweepRunDir(parent)
	name := strings.TrimSuffix(filepath.Base(image), filepath.Ext(image))
	if name == "" || name == "." || name == ".." {
		name = "disk"
	}
	const maxTries = 10000
	dir = filepath.Join(parent, name)
	for i := 2; ; i++ {
		if !keepStale {
			clearRunDir(dir)
		}
		if err = os.Mkdir(dir, runDirMode); err == nil {
			lock, err = lockRunDir(dir, unix.LOCK_SH) // which fails where another sweep was faster
		}
		if err == nil || !errors.Is(err, fs.ErrExist) && !errors.Is(err, errSwept) || i > maxTries {
			return dir, lock, err
		}
		dir = filepath.Join(parent, fmt.Sprintf("%s-%d", name, i))
	}
}

// clearRunDir takes a dead mount away from a mount point, with its loop devices, and removes the mount point. Where
// somebody uses a device, all stays as it is, for detach to find.
func clearRunDir(dir string) {
	// Another attach that does the same may have mounted there anew by the time that this one unmounts.
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return
	}
	defer parent.Close()
	if unix.Flock(int(parent.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	d, err := detachDead(dir)
	if d == nil {
		return
	}
	log := logrus.StandardLogger()
	if err != nil {
		log.Warnf("on %s there is the mount of %s, whose program has died; it stays, since %v", dir, d.Image, err)
		return
	}
	left := mount.Options{MountPoint: dir, NonEmpty: true, Log: log}
	if left.CheckMountPoint() == nil { // which takes it away, and says so
		sweepRunDir(parent.Name())
	}
}

// detachDead detaches the loop devices of a dead mount, and returns that, or nil where there is none at dir. Where
// somebody uses a device, that is the error, and all stay.
func detachDead(dir string) (*activeMount, error) {
	m, err := imageMountAt(dir)
	if err != nil || m == nil {
		return nil, err
	}
	d, err := describeMount(m)
	if err != nil || d.State != stateDead {
		return nil, err
	}
	if err := waitUnused(d.Devices); err != nil {
		return d, err
	}
	return d, detachAll(d.disk())
}

// errSwept is why a mount point cannot be locked.
var errSwept = errors.New("another program uses the mount point, or has removed it")

// lockRunDir locks a mount point as flock(2) does, without waiting, if nothing is mounted there: a mount may hang who
// touches it.
func lockRunDir(dir string, how int) (*os.File, error) {
	if m, err := mount.MountAt(dir); err != nil || m != nil {
		return nil, fmt.Errorf("%w: %s", errSwept, dir)
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSwept, err)
	}
	if err = unix.Flock(int(d.Fd()), how|unix.LOCK_NB); err == nil {
		var locked, there os.FileInfo
		if locked, err = d.Stat(); err == nil {
			if there, err = os.Lstat(dir); err == nil && os.SameFile(locked, there) {
				return d, nil
			}
		}
	}
	d.Close()
	return nil, fmt.Errorf("%w: %s", errSwept, dir)
}

// keepRunDir locks the mount point of a mount that is to be served, if attach has made it. When the mount has ended, end
// is to be called, which removes it.
//
// Without the lock, an attach in another mount namespace could take the mount away: it sees an empty directory.
func keepRunDir(mountPoint string) (end func()) {
	parent, err := runDir()
	if err != nil || filepath.Dir(mountPoint) != parent {
		return func() {}
	}
	lock, err := lockRunDir(mountPoint, unix.LOCK_SH)
	if err != nil {
		return func() {} // there is no such directory, say, which the mount will tell
	}
	return func() {
		lock.Close()
		sweepRunDir(parent)
	}
}

// removeRunDir removes a mount point, unless a sweep was faster.
func removeRunDir(dir string) error {
	if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweepRunDir removes the mount points below parent that nobody uses any more. What cannot be removed stays.
func sweepRunDir(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		dir := filepath.Join(parent, e.Name())
		lock, err := lockRunDir(dir, unix.LOCK_EX)
		if err != nil {
			continue
		}
		if st, err := lock.Stat(); err == nil && st.Mode() == os.ModeDir|runDirMode {
			_ = unix.Rmdir(dir)
		}
		lock.Close()
	}
}
