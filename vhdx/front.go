package vhdx

import (
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A FrontError says that an image cannot be opened by its first bytes alone, but may be with more of them.
type FrontError struct {
	Need int64 // how many bytes at least are needed
}

func (e *FrontError) Error() string {
	return fmt.Sprintf("the first %d bytes of the image are needed", e.Need)
}

// ErrNotInOrder is what OpenFront returns for an image that needs more than one pass: one with a parent or with a log to
// replay.
var ErrNotInOrder = errors.New("the image has a parent, or a log to replay")

// OpenFront opens an image of which b holds the first bytes, as at the beginning of a stream: its headers, metadata and
// BAT are validated, and Extent tells where the blocks are going to be. They cannot be read, and whether the file is as
// long as they need, is for the reader of the stream to see. Where more bytes are needed, the error is a *FrontError.
func OpenFront(name string, b []byte) (*Image, error) {
	l := newOpener(Options{}).newLayer(&frontFile{b: b}, name)
	if err := l.load(); err != nil {
		if front, ok := errors.AsType[*FrontError](err); ok {
			return nil, front
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if l.geo.HasParent || l.replay != nil {
		return nil, ErrNotInOrder
	}
	return newImage(l), nil
}

// A frontFile is an image file of which only the first bytes are there. It is for reading, and as large as a file can be.
type frontFile struct {
	imagefile.Plain
	b []byte
}

func (f *frontFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	if off >= int64(len(f.b)) || int64(len(p)) > int64(len(f.b))-off {
		return 0, &FrontError{off + int64(len(p))}
	}
	return copy(p, f.b[off:]), nil
}

func (f *frontFile) WriteAt([]byte, int64) (int, error) { return 0, ErrReadOnly }
func (f *frontFile) Truncate(int64) error               { return ErrReadOnly }
func (f *frontFile) Sync() error                        { return nil }
func (f *frontFile) Size() (int64, error)               { return ondisk.MaxFileSize, nil }
func (f *frontFile) Close() error                       { return nil }

var _ io.ReaderAt = (*frontFile)(nil)
