package safefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrKind is matched by the error for a file that is neither a regular file nor a block device. Such a file is not
// opened: a FIFO would wait, and a device may act.
var ErrKind = errors.New("neither a regular file nor a block device")

// A Descriptor is an open file, such as an *os.File.
type Descriptor interface {
	Fd() uintptr
	Name() string // for messages
}

// Open opens the regular file or block device at path, with flags such as os.O_RDWR, and follows symbolic links as
// open(2) does. It waits only for an NFS or SMB server to take the file back from a client, which the kernel allows
// 45 seconds.
func Open(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return reopen(fd, unix.AT_FDCWD, path, path, flags, 0)
}

// reopen opens for use what fd, of O_PATH, stands for, and closes fd. Name, in the directory dir, is where it was a moment
// ago, which serves where /proc is not mounted; noFollow is unix.O_NOFOLLOW if name was not followed. Errors and the
// file itself name it path.
func reopen(fd, dir int, name, path string, flags, noFollow int) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err != nil {
		err = &fs.PathError{Op: "stat", Path: path, Err: err}
	} else {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFBLK:
		case unix.S_IFDIR:
			err = &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
		default:
			err = fmt.Errorf("%s is %w", path, ErrKind)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	new, err := openAgain(fd, &st, dir, name, path, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, noFollow)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(new), path), nil
}

// openAgain opens what fd stands for with the flags, and closes fd. Its status was st. The rest is as in reopen.
func openAgain(fd int, st *unix.Stat_t, dir int, name, path string, flags, noFollow int) (int, error) {
	defer unix.Close(fd)
	open := func(flags int) (int, error) {
		for {
			new, err := unix.Open(descriptorPath(fd), flags, 0)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) { // there is no /proc
				new, err = unix.Openat(dir, name, flags|noFollow, 0)
			}
			if err != unix.EINTR {
				return new, err
			}
		}
	}
	new, err := open(flags)
	if errors.Is(err, unix.EWOULDBLOCK) && st.Mode&unix.S_IFMT == unix.S_IFREG { // a lease is on the file
		new, err = open(flags &^ unix.O_NONBLOCK)
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var now unix.Stat_t
	if err = unix.Fstat(new, &now); err == nil && (now.Dev != st.Dev || now.Ino != st.Ino) {
		err = errors.New("another file took its place")
	}
	if err != nil {
		unix.Close(new)
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return new, nil
}

// descriptorPath is the path by which this process opens anew what a descriptor stands for.
func descriptorPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Path returns a path by which this process can open f anew, and false where /proc is not mounted.
func Path(f Descriptor) (string, bool) {
	path := descriptorPath(int(f.Fd()))
	var a, b unix.Stat_t
	ok := unix.Fstat(int(f.Fd()), &a) == nil && unix.Stat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
	return path, ok
}

// realDir returns the directory in which the open file has a name, and that name, without symbolic links. It fails where
// the file has none, or that cannot be known.
func realDir(fd int) (*Dir, string, error) {
	path, err := os.Readlink(descriptorPath(fd))
	if err != nil {
		return nil, "", err
	}
	d, err := OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, "", err
	}
	name := filepath.Base(path)
	if !d.has(name, fd) {
		d.Close()
		return nil, "", fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return d, name, nil
}
