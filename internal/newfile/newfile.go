// Package newfile makes files that appear under their name only when they are complete. Until then they have none, and
// go when the program ends, however it does. Where the file system knows no files without a name, they have another one
// in the same directory, which begins with a dot and ends in ".part".
package newfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// maxBase is how much of the final name the temporary one has, in bytes: names have at most 255.
const maxBase = 200

// Unnamed makes a file without a name; a variable so that tests can do without.
var Unnamed = (*safefile.Dir).OpenUnnamed

// A File is open for reading and writing. Its errors speak of it by its final name. All that is done to it and to its
// names goes by its descriptor and by that of its directory, which others may be able to write.
type File struct {
	*os.File
	dir     *safefile.Dir
	name    string // the final one, in dir
	path    string // likewise, with dir
	temp    string // the name that it has until then, in dir; "" if it has none
	replace bool
	old     io.Closer // holds the locks of the file that is replaced; nil if there is none

	mu   sync.Mutex // guards done; held while the file gets or loses its name
	done bool
}

// Options says what a new file may replace, and which users may use it.
type Options struct {
	Replace bool // a regular file that is there stays untouched until Commit puts the new one in its place

	// Inputs are those of the files whose content the new one is made of. It is never more open than any of them, and
	// replaces none of them.
	Inputs []safefile.Access
}

// Create makes an empty file that Commit is going to give the name path. Where path exists, it fails, unless
// Options.Replace is set and a regular file is there: the new one gets its owner, group, permissions and ACL. A file that
// another program uses, as far as locks and loop devices tell, is not replaced; the error of a lock matches
// imagefile.ErrLocked.
func Create(path string, o Options) (_ *File, err error) {
	if err := RefuseDevice(path); err != nil {
		return nil, err
	}
	f := &File{path: path, replace: o.Replace}
	var old *safefile.Access
	if o.Replace {
		// What a symbolic link leads to is replaced, not the link.
		f.dir, f.name, old, err = safefile.Find(path)
	}
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case old != nil:
		f.path = f.dir.Join(f.name)
	default:
		f.dir.Close()
		if f.dir, f.name, err = safefile.ReachName(path); err != nil {
			if errors.Is(err, safefile.ErrForeign) {
				return nil, err
			}
			return nil, &fs.PathError{Op: "create", Path: path, Err: errors.Unwrap(err)}
		}
	}
	defer func() {
		if err != nil {
			f.dir.Close()
		}
	}()
	if old != nil {
		if slices.ContainsFunc(o.Inputs, old.SameFile) {
			return nil, existsError{path, "is also an input"}
		}
		if f.old, err = reserve(f.path); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				f.old.Close()
			}
		}()
	}
	if old == nil {
		switch st, err := f.dir.Stat(f.name); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case o.Replace, st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFLNK:
			return nil, existsError{path, "is not a regular file; name another output"}
		default:
			return nil, existsError{path, "already exists; use --force to replace it"}
		}
	}
	mode := fs.FileMode(0o600) // until it has its owner
	if old == nil {
		mode = 0o666 & f.dir.Limit(o.Inputs)
	}
	if err := f.create(mode); err != nil {
		return nil, err
	}
	if old != nil {
		err = old.Give(f.File, o.Inputs)
	} else {
		err = safefile.Restrict(f.File, o.Inputs)
	}
	if err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return f, nil
}

// reserve locks the file at path as one that is going to be replaced. It fails where another program uses it: what that
// writes would be lost with the file.
func reserve(path string) (io.Closer, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, err
	}
	devices, err := loop.On(abs)
	if err != nil {
		return nil, err
	}
	if len(devices) > 0 {
		return nil, fmt.Errorf("%s is in use: %s is attached to it; detach that first with losetup --detach", abs, devices[0].Path)
	}
	return imagefile.LockForReplacement(path)
}

// create makes the file, without a name if that can be.
func (f *File) create(mode fs.FileMode) (err error) {
	if f.File, err = Unnamed(f.dir, f.path, mode); err == nil {
		if _, ok := safefile.Path(f.File); ok {
			return nil
		}
		_ = f.File.Close() // without /proc it could not be given a name
	}
	f.temp = TempName(f.name)
	if f.File, err = f.dir.Create(f.temp, f.path, mode); err != nil {
		return err
	}
	return nil
}

// TempName returns a name that no file has yet, in the directory of path.
func TempName(path string) string {
	dir, base := filepath.Split(path)
	if len(base) > maxBase {
		base = strings.ToValidUTF8(base[:maxBase], "") // there are file systems that take nothing else
	}
	return filepath.Join(dir, fmt.Sprintf(".%s.%s.part", base, rand.Text()[:8]))
}

// An existsError says that something is in the way. It matches fs.ErrExist.
type existsError struct{ path, what string }

func (e existsError) Error() string        { return e.path + " " + e.what }
func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// Path returns the name that the file is going to have.
func (f *File) Path() string { return f.path }

// TempPath returns a path by which this process can open the file until Commit.
func (f *File) TempPath() string {
	if path, ok := safefile.Path(f.File); ok {
		return path
	}
	return f.dir.Join(f.temp)
}

// Commit makes the file durable, gives it its name, makes that durable too, and closes it. When it fails, the
// file is gone, and what had the name before still has it; only where the name could not be made durable, the file has it.
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
	err = f.dir.Sync()
	if errors.Is(err, fs.ErrPermission) { // the user may put files into the directory, and not list them
		err = os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
	}
	return errors.Join(err, f.Close(), f.dir.Close(), f.release())
}

// release unlocks the file that was to be replaced.
func (f *File) release() error {
	if f.old == nil {
		return nil
	}
	return f.old.Close()
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

func (f *File) remove() (err error) {
	f.done = true
	if f.temp != "" {
		err = f.dir.RemoveFile(f.temp, f.File)
	}
	return errors.Join(err, f.Close(), f.dir.Close(), f.release())
}

// appear gives the file its name.
func (f *File) appear() error {
	switch {
	case f.temp == "" && !f.replace:
		return f.named(f.dir.Link(f.File, f.name))
	case f.temp == "": // there is no way to put a file without a name in the place of another one
		temp := TempName(f.name)
		if err := f.named(f.dir.Link(f.File, temp)); err != nil {
			return err
		}
		f.temp = temp
	}
	if !f.dir.Has(f.temp, f.File) {
		return f.named(errReplaced)
	}
	if f.replace {
		if err := f.dir.Rename(f.temp, f.name); err != nil {
			return f.named(err)
		}
		return f.arrived()
	}
	err := f.dir.RenameNew(f.temp, f.name)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // some file systems, such as NFS, know links alone
		if err = f.dir.Link(f.File, f.name); err == nil {
			return f.dir.RemoveFile(f.temp, f.File)
		}
	}
	if err != nil {
		return f.named(err)
	}
	return f.arrived()
}

var errReplaced = errors.New("another program has put another file in its place")

// arrived returns an error if something else was renamed.
func (f *File) arrived() error {
	if !f.dir.Has(f.name, f.File) {
		return f.named(errReplaced)
	}
	return nil
}

// named completes the error of an attempt to give the file its name.
func (f *File) named(err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return existsError{f.path, "already exists; use --force to replace it"}
	case err != nil:
		if link, ok := errors.AsType[*os.LinkError](err); ok {
			err = link.Err
		}
		return &fs.PathError{Op: "name", Path: f.path, Err: err}
	}
	return nil
}
