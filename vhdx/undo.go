package vhdx

import (
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/undofile"
)

// An undoReader is an undo file with which an image is compared and restored.
type undoReader struct {
	*undofile.Reader

	phase    func(name string, total int64) // as in UndoOptions, but never nil
	progress func(n int64)
}

func newUndoReader(r io.ReaderAt, size int64) (*undoReader, error) {
	f, err := undofile.NewReader(r, size)
	if err != nil {
		return nil, err
	}
	u := &undoReader{Reader: f}
	withoutNil(&u.phase, &u.progress)
	return u, nil
}
