package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// A location is a name of an open file in its directory, which is open too: renaming and removing go by that, since others may
// be able to write the directory or to move it.
type location struct {
	*safefile.Dir
	name string
	file opened
}

// An opened is an open file as safefile has it.
type opened struct {
	File
	path string
}

// descriptorOf returns the open file, and false for one that is in no file system, as in tests.
func descriptorOf(f File, path string) (opened, bool) {
	f = withoutLease(f)
	_, ok := f.Fd()
	return opened{f, path}, ok
}

func (o opened) Name() string { return o.path }

func (o opened) Fd() uintptr {
	fd, _ := o.File.Fd()
	return fd
}

// locationOf returns where the open file is, which was opened by path: there, or, if that is a symbolic link, where it leads.
// The location is to be closed.
func locationOf(f File, path string) (*location, error) {
	file, ok := descriptorOf(f, path)
	if !ok {
		return nil, fmt.Errorf("%s has no place in a directory", path)
	}
	d, name, err := safefile.Split(path)
	if err != nil {
		return nil, fmt.Errorf("%s is no longer the image: %w", path, err)
	}
	if st, err := d.Stat(name); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		d.Close()
		if d, name, err = safefile.DirOf(file); err != nil {
			return nil, fmt.Errorf("%s is no longer the image: %w", path, err)
		}
	}
	l := &location{d, name, file}
	if err := l.check(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// path returns the path of the place, for messages.
func (p *location) path() string { return p.Join(p.name) }

// check returns an error unless the file still has its name.
func (p *location) check() error { return p.has(p.name) }

func (p *location) has(name string) error {
	if _, err := p.Stat(name); err != nil {
		return fmt.Errorf("%s is no longer the image: %w", p.Join(name), err)
	}
	if !p.Has(name, p.file) {
		return fmt.Errorf("%s is no longer the image: another file has this name now", p.Join(name))
	}
	return nil
}

// remove removes the name.
func (p *location) remove() error {
	if err := p.check(); err != nil {
		return err
	}
	return p.Remove(p.name)
}

// link gives the file a second name in its directory, durably, and reports false if it has that already, from an attempt that
// was cut.
func (p *location) link(name string) (linked bool, err error) {
	err = p.Link(p.file, name)
	switch {
	case err == nil:
		return true, p.Sync()
	case !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.EPERM) && !errors.Is(err, errors.ErrUnsupported):
		return false, err
	case !errors.Is(err, fs.ErrExist):
		return false, fmt.Errorf("%w; on a file system without hard links, rename the image and make its child with create --parent", err)
	}
	if two, err := p.twoNames(name); err != nil || two {
		return false, err
	}
	return false, fmt.Errorf("%s exists; use --force to replace it: %w", p.Join(name), fs.ErrExist)
}

// twoNames reports whether the file has both its name and another one, and not one name: that might be written in two ways
// where case does not matter.
func (p *location) twoNames(other string) (bool, error) {
	if _, err := p.Stat(p.name); err != nil {
		return false, err
	}
	if !p.Has(p.name, p.file) || !p.Has(other, p.file) {
		_, err := p.Stat(other)
		return false, err
	}
	names, err := p.Names(0)
	if err != nil {
		return false, err
	}
	return p.name != other && slices.Contains(names, p.name) && slices.Contains(names, other), nil
}

// mountedAlone reports whether the file is a mount by itself, so that other files in its directory are not beside it.
func (p *location) mountedAlone() (bool, error) {
	var file, directory unix.Statx_t
	err := unix.Statx(int(p.file.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &file)
	if err == nil {
		err = p.Statx(unix.STATX_MNT_ID, &directory)
	}
	if err != nil {
		return false, err
	}
	// Before Linux 5.8 both numbers of mounts are zero.
	return file.Mnt_id != directory.Mnt_id || file.Dev_major != directory.Dev_major || file.Dev_minor != directory.Dev_minor, nil
}

// beside opens the directory of path and returns an error unless that is the directory of the place.
func (p *location) beside(path string) (name string, err error) {
	d, name, err := safefile.Split(path)
	if err != nil {
		return "", err
	}
	defer d.Close()
	if !d.Same(p.Dir) {
		return "", optionsError{fmt.Errorf("%s is not in the directory of the image; neither it nor its parent would be found there", path)}
	}
	return name, nil
}

// freeName returns a name of a new file beside the image, named after it and the time.
func (p *location) freeName(keepName bool) string {
	return newName(p.name, keepName, func(name string) bool {
		_, err := p.Stat(name)
		return errors.Is(err, fs.ErrNotExist)
	})
}
