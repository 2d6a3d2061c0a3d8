package safefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Dir is an open directory. Names in it have no slash, but for those of Open. It stays the same directory if the
// path that it was opened by leads elsewhere later; that serves only to name it.
type Dir struct {
	fd   int // of O_PATH
	path string
}

// OpenDir opens the directory at path, and follows symbolic links as open(2) does.
func OpenDir(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return newDir(fd, path), nil
}

// Split opens the directory of the file at path, and returns the name of the file in it.
func Split(path string) (*Dir, string, error) {
	dir, name := ".", strings.TrimRight(path, "/")
	switch i := strings.LastIndexByte(name, '/'); {
	case name == "" && path != "":
		dir, name = "/", "."
	case i == 0:
		dir, name = "/", name[1:]
	case i > 0: // not cleaned: ".." behind a symbolic link leads elsewhere
		dir, name = name[:i], name[i+1:]
	}
	d, err := OpenDir(dir)
	return d, name, err
}

// Find finds the regular file at path, as Reach does: the directory in which it has a name, that name, and who may use the
// file, which is not opened. Without an error the access is nil where something else is there.
func Find(path string) (_ *Dir, name string, _ *Access, err error) {
	d, name, err := Reach(path)
	if err != nil {
		return nil, "", nil, err
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	how := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if onProc(d.fd) {
		how &^= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat(d.fd, name, how, 0)
	if err != nil {
		return nil, "", nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if !isKind(fd, unix.S_IFREG) {
		return d, name, nil, nil
	}
	a, err := accessOf(fd)
	if err != nil {
		return nil, "", nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if !d.has(name, fd) { // it is a symbolic link of /proc
		real, base, err := realDir(fd)
		if err != nil {
			return nil, "", nil, fmt.Errorf("%s is a symbolic link; name the file that it leads to: %w", path, err)
		}
		d.Close()
		d, name = real, base
	}
	return d, name, &a, nil
}

// DirOf opens the directory in which f has a name, by any path that it was opened by, and returns that name. It fails where
// f was removed, or was made without a name.
func DirOf(f Descriptor) (*Dir, string, error) {
	d, name, err := realDir(int(f.Fd()))
	runtime.KeepAlive(f)
	return d, name, err
}

func newDir(fd int, path string) *Dir { return &Dir{fd: fd, path: path} }

// Path returns the path by which the directory was opened.
func (d *Dir) Path() string { return d.path }

// Join returns the path of a name in the directory, for messages.
func (d *Dir) Join(name string) string { return filepath.Join(d.path, name) }

// Close releases the descriptor. A nil Dir is closed already.
func (d *Dir) Close() error {
	if d == nil || d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	return unix.Close(fd)
}

// Same reports whether both are one directory.
func (d *Dir) Same(o *Dir) bool {
	var a, b unix.Stat_t
	return unix.Fstat(d.fd, &a) == nil && unix.Fstat(o.fd, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// Stat returns what a name in the directory stands for, a symbolic link for itself.
func (d *Dir) Stat(name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: d.Join(name), Err: err}
	}
	return &st, nil
}

// Statx is statx(2) of the directory itself.
func (d *Dir) Statx(mask int, st *unix.Statx_t) error {
	if err := unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, mask, st); err != nil {
		return &fs.PathError{Op: "statx", Path: d.path, Err: err}
	}
	return nil
}

// Has reports whether name is a name of f, and not of a symbolic link to it.
func (d *Dir) Has(name string, f Descriptor) bool {
	defer runtime.KeepAlive(f)
	return d.has(name, int(f.Fd()))
}

func (d *Dir) has(name string, fd int) bool {
	var st unix.Stat_t
	there, err := d.Stat(name)
	return err == nil && unix.Fstat(fd, &st) == nil && there.Dev == st.Dev && there.Ino == st.Ino
}

// Names returns the names in the directory, in the order of the file system, and an error for more than limit, if that is
// above 0.
func (d *Dir) Names(limit int) ([]string, error) {
	f, err := d.readable()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if limit <= 0 {
		return f.Readdirnames(0)
	}
	names, err := f.Readdirnames(limit + 1)
	switch {
	case len(names) > limit:
		return nil, fmt.Errorf("%s holds more than %d files", d.path, limit)
	case errors.Is(err, io.EOF):
		return nil, nil
	}
	return names, err
}

func (d *Dir) readable() (*os.File, error) {
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.path, Err: err}
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Sync makes the names in the directory durable, where its file system lets it.
func (d *Dir) Sync() error {
	f, err := d.readable()
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// OpenUnnamed makes a file without a name in the directory, open for reading and writing.
func (d *Dir) OpenUnnamed(path string, mode fs.FileMode) (*os.File, error) {
	return d.create(".", path, unix.O_TMPFILE, mode)
}

// Create makes a new file, open for reading and writing, whose errors name it path. It fails with fs.ErrExist where name
// is taken, by whatever.
func (d *Dir) Create(name, path string, mode fs.FileMode) (*os.File, error) {
	return d.create(name, path, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
}

// Limit is the function of that name for a file that is going to be made in the directory.
func (d *Dir) Limit(inputs []Access) fs.FileMode {
	var st unix.Stat_t
	gid := uint32(os.Getegid())
	if err := unix.Fstat(d.fd, &st); err == nil && st.Mode&unix.S_ISGID != 0 {
		gid = st.Gid
	}
	return Limit(gid, inputs)
}

func (d *Dir) create(name, path string, flags int, mode fs.FileMode) (*os.File, error) {
	fd, err := unix.Openat(d.fd, name, flags|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Link gives f, which may have no name, one in the directory. It fails with fs.ErrExist where name is taken.
func (d *Dir) Link(f Descriptor, name string) error {
	defer runtime.KeepAlive(f)
	fd := int(f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, descriptorPath(fd), d.fd, name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) { // without /proc, or of a file that was removed
		if eerr := unix.Linkat(fd, "", d.fd, name, unix.AT_EMPTY_PATH); eerr != unix.ENOENT {
			err = eerr
		}
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: f.Name(), New: d.Join(name), Err: err}
	}
	return nil
}

// Rename gives the name from to what has it, in the place of what is called to.
func (d *Dir) Rename(from, to string) error { return d.rename(from, to, 0) }

// RenameNew is Rename that fails with fs.ErrExist where to is taken. Some file systems do not have it.
func (d *Dir) RenameNew(from, to string) error { return d.rename(from, to, unix.RENAME_NOREPLACE) }

func (d *Dir) rename(from, to string, flags uint) (err error) {
	if flags == 0 {
		err = unix.Renameat(d.fd, from, d.fd, to)
	} else {
		err = unix.Renameat2(d.fd, from, d.fd, to, flags)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: d.Join(from), New: d.Join(to), Err: err}
	}
	return nil
}

// Remove removes a name of a file, not of a directory.
func (d *Dir) Remove(name string) error {
	if err := unix.Unlinkat(d.fd, name, 0); err != nil {
		return &fs.PathError{Op: "remove", Path: d.Join(name), Err: err}
	}
	return nil
}

// RemoveFile removes name if it is one of f, and does nothing if it is not.
func (d *Dir) RemoveFile(name string, f Descriptor) error {
	if !d.Has(name, f) {
		return nil
	}
	return d.Remove(name)
}

// RemoveSame removes name if it is one of the file that info tells of, and fails if it is not.
func (d *Dir) RemoveSame(name string, info fs.FileInfo) error {
	there, err := d.Stat(name)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || uint64(st.Dev) != uint64(there.Dev) || st.Ino != there.Ino {
		return &fs.PathError{Op: "remove", Path: d.Join(name), Err: errors.New("another file took its place")}
	}
	return d.Remove(name)
}

// MakeDir makes a directory in the directory, with exactly this mode, and opens it. It fails with fs.ErrExist where name is
// taken.
func (d *Dir) MakeDir(name string, mode fs.FileMode) (*Dir, error) {
	if err := unix.Mkdirat(d.fd, name, 0o700); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: d.Join(name), Err: err}
	}
	made, err := d.OpenChild(name)
	if err == nil {
		err = made.Chmod(mode)
	}
	if err != nil {
		return nil, errors.Join(err, made.Close(), d.RemoveDir(name))
	}
	return made, nil
}

// OpenChild opens the directory name in the directory, which is no symbolic link.
func (d *Dir) OpenChild(name string) (*Dir, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
	}
	return newDir(fd, d.Join(name)), nil
}

// RemoveDir removes an empty directory.
func (d *Dir) RemoveDir(name string) error {
	if err := unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "rmdir", Path: d.Join(name), Err: err}
	}
	return nil
}

// Fd returns the descriptor of the directory, which is one of O_PATH and belongs to it.
func (d *Dir) Fd() uintptr { return uintptr(d.fd) }

// Chmod changes the mode of the directory itself, which this user must be able to read.
func (d *Dir) Chmod(mode fs.FileMode) error {
	f, err := d.readable()
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(mode), f.Close())
}

// SetTime changes the modification time of the directory itself, which this user must be able to read.
func (d *Dir) SetTime(t time.Time) error {
	f, err := d.readable()
	if err != nil {
		return err
	}
	return errors.Join(SetTime(f, t), f.Close())
}

// SetTime changes the modification time of an open file.
func SetTime(f Descriptor, t time.Time) error {
	defer runtime.KeepAlive(f)
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}
	// By the descriptor alone, which unix.UtimesNanoAt does not offer.
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return &fs.PathError{Op: "utimensat", Path: f.Name(), Err: errno}
	}
	return nil
}

// Symlink makes a symbolic link.
func (d *Dir) Symlink(to, name string) error {
	if err := unix.Symlinkat(to, d.fd, name); err != nil {
		return &os.LinkError{Op: "symlink", Old: to, New: d.Join(name), Err: err}
	}
	return nil
}

// Move gives what is called from in the directory the name to in another one. Unless it may replace what has that name, it
// fails with fs.ErrExist where there is something.
func (d *Dir) Move(from string, other *Dir, to string, replace bool) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if replace {
		flags = 0
	}
	if err := unix.Renameat2(d.fd, from, other.fd, to, flags); err != nil {
		return &os.LinkError{Op: "rename", Old: d.Join(from), New: other.Join(to), Err: err}
	}
	return nil
}

// RemoveAll removes what is called name, and if that is a directory all that is in it. It follows no symbolic link.
func (d *Dir) RemoveAll(name string) error {
	root, err := os.OpenRoot(descriptorPath(d.fd))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}

// Syncfs makes all files of the file system durable that holds the directory.
func (d *Dir) Syncfs() error {
	f, err := d.readable()
	if err != nil {
		return err
	}
	err = os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
	return errors.Join(err, f.Close())
}
