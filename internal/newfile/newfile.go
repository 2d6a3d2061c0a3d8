// Package newfile makes files that appear under their name only when they are complete. Until then they have none, and
// go when the program ends, however it does. Where the file system knows no files without a name, they have another one
// in the same folder, which begins with a dot and ends in ".part".
package newfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxBase is how much of the final name the temporary one has, in bytes: names have at most 255.
const maxBase = 200

// tmpFile has open(2) make a file without a name; a variable so that tests can do without.
var tmpFile = unix.O_TMPFILE

// A File is open for reading and writing. Its errors speak of it by its final name.
type File struct {
	*os.File
	path    string // the final one
	temp    string // the name that it has until then; "" if it has none
	replace bool

	mu   sync.Mutex
	done bool
}

// Create makes an empty file that Commit is going to give the name path. Where path exists, it fails, unless
// replace is set and a regular file is there: then that stays untouched until Commit puts the new one in its place.
func Create(path string, replace bool) (*File, error) {
	if err := RefuseDevice(path); err != nil {
		return nil, err
	}
	if replace {
		// What a symbolic link leads to is replaced, not the link.
		if to, err := filepath.EvalSymlinks(path); err == nil {
			path = to
		}
	}
	mode, there := fs.FileMode(0o666), false
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case !replace:
		return nil, existsError{path, "exists"}
	case !st.Mode().IsRegular():
		return nil, existsError{path, "is no regular file"}
	default:
		mode, there = st.Mode().Perm(), true
	}
	f := &File{path: path, replace: replace}
	if err := f.create(mode); err != nil {
		return nil, err
	}
	if there {
		if err := f.Chmod(mode); err != nil { // whatever the umask is now
			return nil, errors.Join(err, f.Discard())
		}
	}
	return f, nil
}

// create makes the file, without a name if that can be.
func (f *File) create(mode fs.FileMode) error {
	fd, err := unix.Open(filepath.Dir(f.path), tmpFile|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode))
	if err == nil {
		f.File = os.NewFile(uintptr(fd), f.path)
		if _, err := os.Stat(f.TempPath()); err == nil {
			return nil
		}
		_ = f.Close() // without /proc it could not be given a name
	}
	f.temp = TempName(f.path)
	fd, err = unix.Open(f.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, uint32(mode))
	if err != nil {
		return &fs.PathError{Op: "create", Path: f.path, Err: err}
	}
	f.File = os.NewFile(uintptr(fd), f.path)
	return nil
}

// TempName returns a name that no file has yet, in the folder of path.
func TempName(path string) string {
	dir, base := filepath.Split(path)
	if len(base) > maxBase {
		base = strings.ToValidUTF8(base[:maxBase], "") // there are file systems that take nothing else
	}
	return filepath.Join(dir, fmt.Sprintf(".%s.%s.part", base, rand.Text()[:8]))
}

// An existsError says that something is in the way. It matches fs.ErrExist.
type existsError struct{ path, what string }

func (e existsError) Error() string        { return e.path + " " + e.what + "; it is left as it is" }
func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// Path returns the name that the file is going to have.
func (f *File) Path() string { return f.path }

// TempPath returns a path by which this process can open the file until Commit.
func (f *File) TempPath() string {
	if f.temp != "" {
		return f.temp
	}
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

// Commit makes the file durable, gives it its name, makes that durable too, and closes it. When it fails, the
// file is gone, and what had the name before still has it.
func (f *File) Commit() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return fs.ErrClosed
	}
	err := f.Sync()
	if err == nil {
		err = f.appear()
	}
	if err != nil {
		return errors.Join(err, f.remove())
	}
	f.done = true
	return errors.Join(f.Close(), SyncDir(filepath.Dir(f.path)))
}

// Discard closes and removes the file. After Commit it does nothing.
func (f *File) Discard() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return nil
	}
	return f.remove()
}

func (f *File) remove() error {
	f.done = true
	err := f.Close()
	if f.temp != "" {
		err = errors.Join(err, os.Remove(f.temp))
	}
	return err
}

// appear gives the file its name.
func (f *File) appear() error {
	switch {
	case f.temp == "" && !f.replace:
		return f.link(f.path)
	case f.temp == "": // there is no way to put a file without a name in the place of another one
		temp := TempName(f.path)
		if err := f.link(temp); err != nil {
			return err
		}
		f.temp = temp
	}
	if f.replace {
		return os.Rename(f.temp, f.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, f.temp, unix.AT_FDCWD, f.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // some file systems, such as NFS, know links alone
		if err = unix.Link(f.temp, f.path); err == nil {
			return os.Remove(f.temp)
		}
	}
	return f.named(err)
}

// link gives a file without a name one that no other has.
func (f *File) link(name string) error {
	return f.named(unix.Linkat(unix.AT_FDCWD, f.TempPath(), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW))
}

// named completes the error of an attempt to give the file its name.
func (f *File) named(err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return existsError{f.path, "exists"}
	case err != nil:
		return &fs.PathError{Op: "name", Path: f.path, Err: err}
	}
	return nil
}

// SyncDir makes the names in a folder durable, where its file system lets it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
