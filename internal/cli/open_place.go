package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// The directories in which open mounts file systems. One that open has made has a mode that no directory made by hand has, by
// which close knows that it may remove it. None has the mode of a mount point of attach, which removes those of others.
const (
	ownPlace   = os.ModeSticky | 0o750 // in the directory of attach
	namedPlace = os.ModeSticky | 0o755 // that the user named
	partPlace  = os.ModeSticky | 0o711 // of one of several file systems, in one of the other two
)

// A place is an open directory in which a file system is going to be mounted.
type place struct {
	*safefile.Dir
	path string // as the mount table has it
}

// openPlace opens the empty directory for the file systems of an image, and makes it where it is not there. Without a name it
// is a new one beside the mount points of attach.
func openPlace(image, named string, undo *undoList) (*place, error) {
	if named != "" {
		path, err := absPath(named)
		if err != nil {
			return nil, err
		}
		return makePlace(path, namedPlace, true, undo)
	}
	parent, err := runDir()
	if err == nil {
		err = os.MkdirAll(parent, 0o755)
	}
	if err == nil {
		err = refuseShared(parent)
	}
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(filepath.Base(image), filepath.Ext(image))
	for i := 1; ; i++ {
		const maxTries = 10000
		path := filepath.Join(parent, name+".files")
		if i > 1 {
			path = filepath.Join(parent, fmt.Sprintf("%s-%d.files", name, i))
		}
		p, err := makePlace(path, ownPlace, false, undo)
		if !errors.Is(err, fs.ErrExist) || i > maxTries {
			return p, err
		}
	}
}

// makePlace makes the directory at path. Where it exists, it is an error, or with reuse the directory is used if it is empty.
func makePlace(path string, mode fs.FileMode, reuse bool, undo *undoList) (*place, error) {
	parent, name, err := safefile.Reach(path)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	directory, err := parent.MakeDir(name, mode)
	switch {
	case err == nil:
		undo.add(func() error { return removePlace(path, mode) })
	case errors.Is(err, fs.ErrExist) && reuse:
		if directory, err = parent.OpenChild(name); err != nil {
			return nil, err
		}
		var names []string
		if names, err = directory.Names(0); err != nil || len(names) > 0 {
			directory.Close()
			return nil, errors.Join(err, fmt.Errorf("%s is not empty; name a new or an empty directory", path))
		}
	default:
		return nil, err
	}
	real, err := mounts.Resolve(path)
	if err == nil {
		if at, aerr := mounts.At(real); aerr == nil && at != nil {
			err = fmt.Errorf("%s is already the mount point of %s; name another directory", path, printable(at.Source))
		}
	}
	if err != nil {
		directory.Close()
		return nil, err
	}
	return &place{directory, real}, nil
}

// removePlace removes a directory that open has made, if it is empty and nothing is mounted there. Others stay.
func removePlace(path string, mode fs.FileMode) error {
	parent, name, err := safefile.Reach(path)
	if err != nil {
		return nil // it is away
	}
	defer parent.Close()
	st, err := parent.Stat(name)
	if err != nil || st.Uid != uint32(os.Geteuid()) || st.Mode != unix.S_IFDIR|unix.S_ISVTX|uint32(mode.Perm()) {
		return nil
	}
	err = parent.RemoveDir(name)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removePlaces removes the directory in which open had mounted a file system, and the one for all of an image, if open made
// them.
func removePlaces(path string) error {
	if isMade(path, partPlace) {
		err := removePlace(path, partPlace)
		dir := filepath.Dir(path)
		return errors.Join(err, removePlace(dir, ownPlace), removePlace(dir, namedPlace))
	}
	return errors.Join(removePlace(path, ownPlace), removePlace(path, namedPlace))
}

// isMade reports whether the directory at path has the mode.
func isMade(path string, mode fs.FileMode) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode() == os.ModeDir|mode
}
