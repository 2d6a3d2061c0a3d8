package vhdx

import (
	"errors"
	"io/fs"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// An ImageFile is the open file of an image, which keeps its identity even if its name changes or goes.
type ImageFile struct {
	Path string      // by which it was opened
	Now  string      // by which the kernel knows it now; "" where that cannot be told
	Info fs.FileInfo // of the open file
}

// File returns the open file of the image as it is now, with level 0, or of the parent of that level. A snapshot of an
// image in use, which makes the child the image, changes it.
func (im *Image) File(level int) (*ImageFile, error) {
	defer im.EndRead(im.BeginRead()) // so that no snapshot closes the file meanwhile
	l := im.layer(level)
	if l == nil {
		return nil, errors.New("no such parent")
	}
	f := &ImageFile{Path: l.path}
	var err error
	if f.Info, err = l.file.Identity(); err != nil {
		return nil, err
	}
	f.Now = l.file.PathNow()
	return f, nil
}

// Way returns the way from the root of the file system to the file that File returns.
func (im *Image) Way(level int) (safefile.Way, error) {
	defer im.EndRead(im.BeginRead())
	l := im.layer(level)
	if l == nil {
		return nil, errors.New("no such parent")
	}
	f, ok := descriptorOf(l.file, l.path)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return safefile.WayTo(f)
}

// layer returns the layer of a level, which is nil if there is none. The caller has called BeginRead.
func (im *Image) layer(level int) *layer {
	l := im.current()
	for ; level > 0 && l != nil; level-- {
		l = l.parent()
	}
	return l
}
