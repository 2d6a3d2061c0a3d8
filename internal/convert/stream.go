package convert

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A stream is a target that is written from its first byte to its last, such as a pipe. Its WriteAt is called in the order of
// the disk. There is nothing to commit, and nothing to discard: its reader sees that it is cut short, if the format tells.
type stream struct {
	w interface {
		io.WriterAt
		Finish() error
	}
	out  Output
	size int64 // of the disk, bytes
}

// An Output is what a stream is written to.
type Output interface {
	io.Writer
	Sync() error // makes it durable, as far as it can be
}

func (t *stream) Reserve(int64, int64) error               { return nil }
func (t *stream) Zero(int64, int64) error                  { return nil } // what is left out is zero
func (t *stream) WriteAt(p []byte, off int64) (int, error) { return t.w.WriteAt(p, off) }
func (t *stream) Shares(Reflink) imagefile.File            { return nil }
func (t *stream) Place(int64, int64) (off, together int64, _ error) {
	return 0, 0, errors.ErrUnsupported
}
func (t *stream) SetSize(int64) (int64, error) { return t.size, nil }
func (t *stream) Open() (*disk.Disk, error)    { return nil, errors.ErrUnsupported }
func (t *stream) Commit() error                { return nil }
func (t *stream) Discard() error               { return nil }

func (t *stream) Finish() error {
	if err := t.w.Finish(); err != nil {
		return err
	}
	return t.out.Sync()
}

// NewRawStream makes a target that writes the bytes of a disk to w, which has size bytes.
func NewRawStream(w Output, size int64) Target {
	return &stream{&rawStream{w: w, size: size}, w, size}
}

// A rawStream writes zeros for what is left out.
type rawStream struct {
	w         io.Writer
	size, pos int64  // bytes
	behind    []byte // follows the disk
}

func (s *rawStream) WriteAt(p []byte, off int64) (int, error) {
	if err := s.zerosTo(off); err != nil {
		return 0, err
	}
	n, err := s.w.Write(p)
	s.pos += int64(n)
	return n, err
}

func (s *rawStream) Finish() error {
	if err := s.zerosTo(s.size); err != nil || len(s.behind) == 0 {
		return err
	}
	_, err := s.w.Write(s.behind)
	return err
}

func (s *rawStream) zerosTo(off int64) error {
	if off < s.pos {
		return fmt.Errorf("byte %d is written behind byte %d", off, s.pos)
	}
	for s.pos < off {
		n, err := s.w.Write(zeros[:min(off-s.pos, pieceSize)])
		s.pos += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// NewImageStream makes a target that writes an image of the disk d to w. It first finds the blocks that hold data: of each, it
// reads no more than up to the first byte that is not zero. A block that only becomes zero later is stored all the same,
// and one that gets data is an error.
func NewImageStream(ctx context.Context, w Output, d *disk.Disk, o vhdx.CreateOptions, opts Options) (Target, error) {
	o.LogicalSectorSize = max(o.LogicalSectorSize, 512)
	o.Size = padded(o.Size, o.LogicalSectorSize)
	s, err := vhdx.NewStreamWriter(w, o)
	if err != nil {
		return nil, err
	}
	if o.Type != vhdx.Fixed {
		err = hold(ctx, s, d, opts)
	}
	return &stream{s, w, o.Size}, err
}

// hold tells s which blocks hold data.
func hold(ctx context.Context, s *vhdx.StreamWriter, d *disk.Disk, o Options) error {
	if o.Phase != nil {
		o.Phase("find data", d.Size())
	}
	skip := func(int64, int64, error) {} // it is told when it is copied
	if !o.SkipErrors {
		skip = nil
	}
	b, told := make([]byte, pieceSize), int64(0)
	tell := func(off int64) {
		if off = min(off, d.Size()); o.Progress != nil && off > told {
			o.Progress(off - told)
		}
		told = max(told, off)
	}
	next := int64(0) // behind what is held
	return eachRun(d, skip, func(r disk.Run) (int64, error) {
		step := int64(4 << 10) // most blocks with data have some of it near their begin
		for off := max(r.From, next); off < r.To; {
			if err := context.Cause(ctx); err != nil {
				return off, err
			}
			p := b[:min(step, r.To-off, (off/pieceSize+1)*pieceSize-off)] // no more than of one block
			if n, _ := d.ReadAt(p, off); n == len(p) && zero(p) {
				off, step = off+int64(len(p)), pieceSize
			} else { // what cannot be read is left to the copy
				next, step = s.Hold(off), 4<<10
				off = next
			}
			tell(off)
		}
		return max(r.To, next), nil
	})
}
