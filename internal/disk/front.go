package disk

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// maxFront bounds what is kept in memory of an image that is read from a stream, in bytes: what is before its blocks. The
// BAT of 64 TiB in blocks of 32 MiB, or of 2 TiB in blocks of 1 MiB, has 16 MiB.
const maxFront = 64 << 20

// maxFrontExtents bounds how many extents are kept of it.
const maxFrontExtents = 1 << 20

// A Front is an image in a stream that can be read in one pass: all that says where the disk is, comes before the disk.
type Front struct {
	Image   *vhdx.Image
	Extents []vhdx.Extent // with data, in the order of the disk

	r   io.Reader // the stream from its begin
	pos int64     // bytes of it that were read
}

// ReadFront reads the first part of the image in r, and returns a stream of all of r. The Front is nil where more than one
// pass is needed, or where the stream ends early.
func ReadFront(name string, r io.Reader) (*Front, io.Reader, error) {
	head := make([]byte, 0, 4<<20)
	for need := int64(cap(head)); ; {
		from := len(head)
		head = append(head, make([]byte, need-int64(from))...)
		n, err := io.ReadFull(r, head[from:])
		head = head[:from+n]
		all := io.MultiReader(bytes.NewReader(head), r)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return nil, nil, err
		}
		im, err := vhdx.OpenFront(name, head)
		if err == nil {
			f := &Front{Image: im, r: all}
			if tooMany, err := f.list(); tooMany || err != nil {
				return nil, all, err
			}
			return f, all, nil
		}
		front, more := errors.AsType[*vhdx.FrontError](err)
		switch {
		case errors.Is(err, vhdx.ErrNotInOrder), more && (ended || front.Need > maxFront):
			return nil, all, nil
		case !more:
			return nil, all, err
		}
		need = max(front.Need, min(2*need, maxFront)) // not MiB by MiB, since all is validated each time
	}
}

// list lists the extents.
func (f *Front) list() (tooMany bool, err error) {
	for off := int64(0); off < f.Image.Size(); {
		e, err := f.Image.Extent(off)
		if err != nil {
			return false, err
		}
		if e.File != nil {
			if len(f.Extents) == maxFrontExtents {
				return true, nil
			}
			f.Extents = append(f.Extents, e)
		}
		off = e.End()
	}
	return false, nil
}

// Data returns how many bytes of the disk have extents.
func (f *Front) Data() (n int64) {
	for _, e := range f.Extents {
		n += e.Len
	}
	return n
}

// Each calls do for the extents, in the order of the stream, with a reader of the bytes of each, and then reads the stream to
// its end: a program that writes it would fail otherwise.
func (f *Front) Each(do func(e vhdx.Extent, r io.Reader) error) error {
	order := slices.Clone(f.Extents)
	slices.SortFunc(order, func(a, b vhdx.Extent) int { return cmp.Compare(a.FileOff, b.FileOff) })
	for _, e := range order {
		n, err := io.CopyN(io.Discard, f.r, e.FileOff-f.pos)
		if f.pos += n; err == nil {
			part := &io.LimitedReader{R: f.r, N: e.Len}
			err = do(e, part)
			f.pos += e.Len - part.N
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the stream ends at %s, before the data of byte %d of the disk; was it cut off?", sizes.Exact(f.pos), e.DiskOff)
		}
		if err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, f.r)
	return err
}
