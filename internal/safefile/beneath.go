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

// ErrOutside is matched by the error for a path that leads out of its directory, by itself or by a symbolic link.
var ErrOutside = errors.New("it leads out of the directory")

const (
	maxLinks   = 40 // symbolic links on the way, as the kernel has it
	maxRetries = 8  // of a walk that a rename has disturbed
)

// Open opens the regular file or block device at the relative path name, which may have several elements. Symbolic links
// are followed as long as they stay below the directory, and none of those that /proc makes.
func (d *Dir) Open(name string, flags int) (*os.File, error) {
	fd, err := d.walk(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
	}
	return reopen(fd, d.fd, name, d.Join(name), flags, 0)
}

// Follow opens the regular file or block device that name in the directory leads to, wherever that is: for a name that the
// user of the program has chosen. Errors and the file name it path.
func (d *Dir) Follow(name, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return reopen(fd, d.fd, name, path, flags, 0)
}

// OpenDir opens the directory at the relative path name, as Open does.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	fd, err := d.walk(name)
	if err == nil && !isKind(fd, unix.S_IFDIR) {
		unix.Close(fd)
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
	}
	return newDir(fd, d.Join(name)), nil
}

// walk returns a descriptor of O_PATH of what is at the relative path.
func (d *Dir) walk(name string) (int, error) {
	fd, err := -1, error(unix.ENOSYS)
	if !noOpenat2 {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
		for range maxRetries {
			if fd, err = unix.Openat2(d.fd, name, &how); err != unix.EAGAIN && err != unix.EINTR {
				break
			}
		}
	}
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // before Linux 5.6, or forbidden by a seccomp filter
		return walkByHand(d.fd, name)
	case errors.Is(err, unix.EXDEV):
		return -1, ErrOutside
	}
	return fd, err
}

// noOpenat2 makes walk do without the system call; for tests.
var noOpenat2 bool

// walkByHand does what openat2 does, one element at a time. ".." goes back to a directory that was passed on the way,
// never up in the file system, so that a directory that is moved meanwhile leads nowhere else.
func walkByHand(root int, name string) (_ int, err error) {
	if filepath.IsAbs(name) {
		return -1, ErrOutside
	}
	var way []int // descriptors of the directories below root that lead here; the last one may be a file
	defer func() {
		for _, fd := range way {
			unix.Close(fd)
		}
	}()
	here := func() int {
		if len(way) == 0 {
			return root
		}
		return way[len(way)-1]
	}
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		element := rest[0]
		rest = rest[1:]
		switch element {
		case "", ".":
			if !isKind(here(), unix.S_IFDIR) {
				return -1, unix.ENOTDIR
			}
			continue
		case "..":
			if len(way) == 0 {
				return -1, ErrOutside
			}
			if !isKind(here(), unix.S_IFDIR) {
				return -1, unix.ENOTDIR
			}
			unix.Close(here())
			way = way[:len(way)-1]
			continue
		}
		fd, err := unix.Openat(here(), element, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		if !isKind(fd, unix.S_IFLNK) {
			way = append(way, fd)
			continue
		}
		to, err := readLink(fd)
		magic := onProc(fd)
		unix.Close(fd)
		switch links++; {
		case err != nil:
			return -1, err
		case links > maxLinks, magic:
			return -1, unix.ELOOP
		case filepath.IsAbs(to):
			return -1, ErrOutside
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	if len(way) == 0 {
		return unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	}
	fd := here()
	way = way[:len(way)-1]
	return fd, nil
}

func isKind(fd int, kind uint32) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == kind
}

// onProc reports whether fd is on a file system whose symbolic links may lead where their text does not.
func onProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err == nil && n == len(buf) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", fmt.Errorf("read a symbolic link: %w", err)
	}
	return string(buf[:n]), nil
}
