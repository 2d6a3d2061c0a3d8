// Package newfile makes files that appear under their name only when they are complete. Until then they have
// another name in the same folder, which begins with a dot and ends in ".part".
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

// A File is open for reading and writing under its temporary name.
type File struct {
	*os.File
	path    string // the final one
	replace bool

	mu   sync.Mutex
	done bool
}

// Create makes an empty file that Commit is going to give the name path. Where path exists, it fails, unless
// replace is set and a regular file is there: then that stays untouched until Commit puts the new one in its place.
func Create(path string, replace bool) (*File, error) {
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
		return nil, existsError(path)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file; it is left as it is", path)
	default:
		mode, there = st.Mode().Perm(), true
	}
	name := TempName(path)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	if there {
		err = f.Chmod(mode) // whatever the umask is now
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(name))
	}
	return &File{File: f, path: path, replace: replace}, nil
}

// TempName returns a name that no file has yet, in the folder of path.
func TempName(path string) string {
	dir, base := filepath.Split(path)
	if len(base) > maxBase {
		base = strings.ToValidUTF8(base[:maxBase], "") // there are file systems that take nothing else
	}
	return filepath.Join(dir, fmt.Sprintf(".%s.%s.part", base, rand.Text()[:8]))
}

// An existsError says that something is at a path already. It matches fs.ErrExist.
type existsError string

func (e existsError) Error() string        { return string(e) + " exists; it is left as it is" }
func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// Path returns the name that the file is going to have.
func (f *File) Path() string { return f.path }

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
		err = f.rename()
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
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (f *File) rename() error {
	if f.replace {
		return os.Rename(f.Name(), f.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, f.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // some file systems, such as NFS, know links alone
		if err = unix.Link(f.Name(), f.path); err == nil {
			return os.Remove(f.Name())
		}
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return existsError(f.path)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: f.Name(), New: f.path, Err: err}
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
