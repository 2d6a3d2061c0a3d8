package safefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrForeign is matched by the error for a name that another user has made, or could have made, to lead a program to a
// file that the user may not change.
var ErrForeign = errors.New("another user could have put it there")

// Reach opens the directory of a file that the caller names, to make, change or remove the file, and returns the file's name
// in the directory. The name is no symbolic link, except for those of /proc. On the way, only symbolic links of root and of
// the caller are followed: another user could lead by one to any file of the caller. The error for one matches ErrForeign.
func Reach(path string) (*Dir, string, error) { return reach(path, true) }

// ReachName is Reach for a name that stands for itself, also where it is a symbolic link.
func ReachName(path string) (*Dir, string, error) { return reach(path, false) }

func reach(path string, follow bool) (_ *Dir, name string, err error) {
	start := "."
	if filepath.IsAbs(path) {
		start = "/"
	}
	here, err := unix.Open(start, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	d := newDir(here, path)
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	at := start // the path of d without symbolic links
	move := func(fd int, to string) {
		unix.Close(d.fd)
		d.fd, at = fd, to
	}
	rest := strings.Split(path, "/")
	links := 0
	arrive := func() *Dir {
		if d.path = filepath.Dir(path); links > 0 {
			d.path = at
		}
		return d
	}
	for len(rest) > 0 {
		element, last := rest[0], len(rest) == 1
		rest = rest[1:]
		switch {
		case last && (element == "" || element == "." || element == ".."):
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
		case element == "" || element == ".":
			continue
		}
		fd, err := unix.Openat(d.fd, element, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if last && errors.Is(err, unix.ENOENT) {
			return arrive(), element, nil
		}
		var st unix.Stat_t
		if err == nil {
			if err = unix.Fstat(fd, &st); err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: err}
		}
		isLink, magic := st.Mode&unix.S_IFMT == unix.S_IFLNK, onProc(fd)
		if last && (!isLink || magic || !follow) {
			unix.Close(fd)
			return arrive(), element, nil
		}
		if !isLink {
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				unix.Close(fd)
				return nil, "", &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
			}
			move(fd, filepath.Join(at, element))
			continue
		}
		to, err := readLink(fd)
		unix.Close(fd)
		if err == nil && !trusted(st.Uid) {
			err = fmt.Errorf("%q on the way is a symbolic link of user %d: %w; name the path that it leads to", element, st.Uid, ErrForeign)
		}
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		next, start := -1, at
		switch {
		case err != nil:
		case magic: // its text need not be where it leads
			start = filepath.Join(at, element)
			next, err = unix.Openat(d.fd, element, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		case filepath.IsAbs(to):
			start = "/"
			next, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: err}
		}
		if next >= 0 {
			move(next, start)
		}
		if !magic {
			rest = append(strings.Split(to, "/"), rest...)
		}
	}
	return nil, "", &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
}

// trusted reports whether what a user has put somewhere leads the caller nowhere that the caller would not go.
func trusted(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

// Shared reports whether other users than root can put files into the directory, and whether they can also remove or rename
// what the caller has put there.
func (d *Dir) Shared() (put, remove bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return false, false, &fs.PathError{Op: "stat", Path: d.path, Err: err}
	}
	foreign, open := !trusted(st.Uid), st.Mode&0o022 != 0
	return foreign || open, foreign || open && st.Mode&unix.S_ISVTX == 0, nil
}

// OpenToWrite opens a file in the directory for writing, with flags such as unix.O_APPEND, and makes it where there is none.
// Errors name it path. In a directory where others can make files, it refuses what may be another one's file by a hard link,
// and a FIFO of another user, with an error that matches ErrForeign. It opens no block device.
func (d *Dir) OpenToWrite(name, path string, flags int, perm fs.FileMode) (fd int, err error) {
	flags |= unix.O_WRONLY | unix.O_NOCTTY | unix.O_CLOEXEC
	for range maxRetries { // another program may make and remove the name meanwhile
		if fd, err = d.openOld(name, path, flags); !errors.Is(err, fs.ErrNotExist) {
			return fd, err
		}
		fd, err = unix.Openat(d.fd, name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint32(perm.Perm()))
		if err == nil {
			return fd, nil
		}
		if err = (&fs.PathError{Op: "create", Path: path, Err: err}); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return -1, err
}

// openOld is OpenToWrite for a file that is there.
func (d *Dir) openOld(name, path string, flags int) (int, error) {
	how := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if onProc(d.fd) {
		how &^= unix.O_NOFOLLOW // /dev/stderr leads there
	}
	fd, err := unix.Openat(d.fd, name, how, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		var shared bool
		if shared, _, err = d.Shared(); err == nil {
			err = refuseForeign(&st, shared)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return openAgain(fd, &st, d.fd, name, path, flags, how&unix.O_NOFOLLOW)
}

// refuseForeign returns an error if a file in a directory, which others may share, is not to be written to.
func refuseForeign(st *unix.Stat_t, shared bool) error {
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFLNK:
		return unix.ELOOP // it was no link a moment ago
	case kind == unix.S_IFBLK, kind == unix.S_IFSOCK:
		return fmt.Errorf("it is a block device or a socket: %w", unix.ENOTSUP)
	case shared && kind == unix.S_IFREG && st.Nlink > 1:
		return fmt.Errorf("it has another name, a hard link: %w", ErrForeign)
	case shared && kind == unix.S_IFIFO && !trusted(st.Uid):
		return fmt.Errorf("it is a FIFO of user %d: %w", st.Uid, ErrForeign)
	}
	return nil
}

// At returns a path by which this process reaches a name in the directory, also if the directory has another path by now.
func (d *Dir) At(name string) string {
	if path := descriptorPath(d.fd); isDirectory(path) {
		return filepath.Join(path, name)
	}
	return d.Join(name) // there is no /proc
}

func isDirectory(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}
