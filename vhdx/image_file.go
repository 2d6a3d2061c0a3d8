package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// An ImageFile is the open file of an image, which keeps its identity whatever becomes of its name.
type ImageFile struct {
	Path string      // by which it was opened
	Now  string      // by which the kernel knows it now; "" where that cannot be told
	Info fs.FileInfo // of the open file
}

// File returns the open file of the image as it is now, with level 0, or of the parent of that level. A snapshot of an
// image in use, which makes the child the image, changes it.
func (im *Image) File(level int) (*ImageFile, error) {
	defer im.EndRead(im.BeginRead()) // so that no snapshot closes the file meanwhile
	l := im.current()
	for ; level > 0 && l != nil; level-- {
		l = l.parent
	}
	if l == nil {
		return nil, errors.New("there is no such parent")
	}
	f := &ImageFile{Path: l.path}
	var err error
	if f.Info, err = l.file.Identity(); err != nil {
		return nil, err
	}
	if fd, ok := l.file.Fd(); ok {
		f.Now, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	return f, nil
}
