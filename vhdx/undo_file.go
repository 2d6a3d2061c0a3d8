package vhdx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// An undoPlace is where an undo file is going to be.
type undoPlace interface {
	create() (undoFile, error)
	open() (*undoReader, io.Closer, error)
	remove() error
	String() string
}

// An undoFile is an undo file that is being written. It is there when Commit has made it durable, and not before.
type undoFile interface {
	io.Writer
	Commit() error
	Discard() error
}

// undoPath is an undo file that goes to a path. It stays open from create to close, since a roll back reads it again, and
// others may be able to write its directory.
type undoPath struct {
	path   string
	access []safefile.Access // of the image: only users that may read that may read bytes of it in the undo file
	place  *location         // nil before create
}

func (p *undoPath) String() string { return p.path }

// remove removes the undo file that create has made.
func (p *undoPath) remove() error { return p.place.remove() }

// close ends the use of the undo file, which stays.
func (p *undoPath) close() error {
	if p.place == nil {
		return nil
	}
	return errors.Join(p.place.file.Close(), p.place.Close())
}

func (p *undoPath) create() (undoFile, error) {
	f, err := newfile.Create(p.path, newfile.Options{Inputs: p.access})
	if err != nil {
		return nil, err
	}
	kept, err := imagefile.Of(f.File).Named(p.path)
	if err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	d, name, err := safefile.Split(p.path)
	if err != nil {
		return nil, errors.Join(err, kept.Close(), f.Discard())
	}
	p.place = &location{d, name, opened{kept, p.path}}
	return f, nil
}

// open opens the undo file that create has made, or else the one at the path.
func (p *undoPath) open() (_ *undoReader, _ io.Closer, err error) {
	var f File
	if p.place != nil {
		f, err = p.place.file.Named(p.path)
	} else {
		f, err = imagefile.Open(p.path, os.O_RDONLY)
	}
	if err != nil {
		return nil, nil, err
	}
	u, err := readUndo(f, p.path)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return u, f, nil
}

// readUndo begins to read an undo file.
func readUndo(f File, path string) (*undoReader, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	u, err := newUndoReader(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return u, nil
}

// newUndoPath returns the undo file for a repair of the image at path: the one that is wanted, or the first that is free.
func newUndoPath(image File, path, want string) (*undoPath, error) {
	a, err := AccessOf(image, path)
	if err != nil {
		return nil, err
	}
	if want == "" && image.IsDevice() {
		return nil, optionsError{fmt.Errorf("%s is a device; give the place of the undo file with --undo-file", path)}
	}
	p := &undoPath{access: a}
	p.path, err = undoName(path, want)
	return p, err
}

func undoName(image, want string) (string, error) {
	free := func(name string) (bool, error) {
		_, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return false, err
	}
	if want != "" {
		ok, err := free(want)
		if err == nil && !ok {
			err = optionsError{fmt.Errorf("the undo file %s already exists; name another one", want)}
		}
		return want, err
	}
	for i := range maxUndoFiles {
		if ok, err := free(nthUndoName(image, i+1)); ok || err != nil {
			return nthUndoName(image, i+1), err
		}
	}
	return "", manyUndoFiles(image)
}

// maxUndoFiles is how many names are tried. Of a file system that another user serves, every name can exist.
const maxUndoFiles = 1000

func manyUndoFiles(image string) error {
	return optionsError{fmt.Errorf("%s has %d undo files; remove those that you do not need", image, maxUndoFiles)}
}

// nthUndoName returns the name of the nth undo file of an image, counted from 1.
func nthUndoName(image string, n int) string {
	if n == 1 {
		return image + ".undo"
	}
	return image + ".undo" + strconv.Itoa(n)
}

// UndoCommand returns the command that restores what is in an undo file, as a shell takes it: names of virtual machines
// have spaces. It names the image where that is not beside the undo file.
func UndoCommand(undoFile, image string) string {
	args := []string{"vhdxfs check --undo", terminal.Shell(undoFile)}
	if dirPath(undoFile) != dirPath(image) {
		args = append(args, terminal.Shell(image))
	}
	return strings.Join(args, " ")
}

func dirPath(path string) string { return filepath.Dir(absolute(path)) }

// unfinished returns an error if an undo file beside the image is that of a repair, or of an undo, that was interrupted:
// only one of the headers tells of it, and the undo file knows all that is there. Such an image is not repaired, since
// what was wrong with it may not show any more.
func (r *repairer) unfinished() error {
	for i := range maxUndoFiles {
		name := nthUndoName(r.top.path, i+1)
		if _, err := os.Lstat(name); err != nil { // most of all that there is none
			return nil
		}
		u, c, err := (&undoPath{path: name}).open()
		if err != nil {
			continue // it is something else
		}
		interrupted := r.interrupted(u)
		if err := c.Close(); err != nil {
			return err
		}
		if interrupted {
			return optionsError{fmt.Errorf("an earlier repair or undo was interrupted; run %s first, then repair again", UndoCommand(name, r.top.path))}
		}
	}
	return manyUndoFiles(r.top.path)
}

// interrupted reports whether the image is between what it was before the repair of the undo file and what it was after.
func (r *repairer) interrupted(u *undoReader) bool {
	if u.gave(r.copies[0]) == u.gave(r.copies[1]) {
		return false
	}
	// A header that was damaged after the repair looks the same until here. The undo would refuse such an image.
	c, err := u.compare(r.top.file, r.d.old)
	return err == nil && c.foreign == nil
}
