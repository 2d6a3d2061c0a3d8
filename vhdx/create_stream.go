package vhdx

import (
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A StreamWriter writes a new image from its first byte to its last, as a pipe needs it: headers, an empty log, metadata,
// the whole BAT, and then the payload blocks in the order of the disk. So it has to be told which blocks hold data before
// it is given any.
//
//	NewStreamWriter → Hold, for each block with data → WriteAt, in the order of the disk → Finish
//
// A reader of the stream knows every place from its first part; see OpenFront. One goroutine may use a StreamWriter.
type StreamWriter struct {
	w io.Writer
	o CreateOptions
	l layout

	held  []uint64 // a bit for each payload block that is going to be present
	delta *delta   // nil in an image without a parent
	begun bool
	pos   int64 // bytes of the file that were written

	// The block that is being written, and where it begins in the file. Those before it are complete.
	block, blockOff int64
}

// NewStreamWriter begins an image without a parent, whose size is known. Nothing is written yet. An error that matches
// ErrOptions says that there can be no such image.
func NewStreamWriter(w io.Writer, o CreateOptions) (*StreamWriter, error) {
	o, err := o.withDefaults()
	switch {
	case err != nil:
	case o.Type == Differencing:
		err = errors.New("a differencing image cannot be written to a stream")
	case o.SizeLater:
		err = errors.New("the size of the disk is unknown")
	}
	if err != nil {
		return nil, optionsError{err}
	}
	return newStreamWriter(w, o), nil
}

func newStreamWriter(w io.Writer, o CreateOptions) *StreamWriter {
	s := &StreamWriter{w: w, o: o, l: o.layout(o.Size), block: -1}
	s.held = make([]uint64, (s.l.geo.PayloadBlocks()+63)/64)
	return s
}

// Hold says that the block with byte off of the disk is going to be present. It returns the byte of the disk behind it.
func (s *StreamWriter) Hold(off int64) (next int64) {
	n := off >> s.l.geo.BlockShift
	s.held[n/64] |= 1 << (n % 64)
	return (n + 1) << s.l.geo.BlockShift
}

// holds reports whether a payload block is going to be present. A fixed image has all of them.
func (s *StreamWriter) holds(n int64) bool {
	return s.o.Type == Fixed || s.held[n/64]&(1<<(n%64)) != 0
}

// ErrNotHeld is matched by the error for data in a block of which nothing was said before the BAT was written.
var ErrNotHeld = errors.New("a block has data that had none before")

// WriteAt writes p at byte off of the disk, which is not before the end of what was written last. What is left out reads
// as zero.
func (s *StreamWriter) WriteAt(p []byte, off int64) (int, error) {
	if n := int64(len(p)); off < 0 || n > s.o.Size-off {
		return 0, fmt.Errorf("%d bytes at %d are not inside a disk of %d", n, off, s.o.Size)
	}
	if err := s.begin(); err != nil {
		return 0, err
	}
	written := 0
	for len(p) > 0 {
		in := s.l.geo.InBlock(off)
		n := min(int64(len(p)), s.o.BlockSize-in)
		if err := s.enter(off >> s.l.geo.BlockShift); err != nil {
			return written, err
		}
		if err := s.zerosTo(s.blockOff + in); err != nil {
			return written, err
		}
		if err := s.write(p[:n]); err != nil {
			return written, err
		}
		written, off, p = written+int(n), off+n, p[n:]
	}
	return written, nil
}

// Finish writes what is left of the image.
func (s *StreamWriter) Finish() error {
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.enter(s.l.geo.PayloadBlocks()); !errors.Is(err, errLastBlock) {
		return err
	}
	return nil
}

var errLastBlock = errors.New("the last block was reached")

// enter completes the blocks before block n, and goes there.
func (s *StreamWriter) enter(n int64) error {
	for s.block < n {
		if s.block >= 0 && s.holds(s.block) {
			s.blockOff += s.o.BlockSize
			if err := s.zerosTo(s.blockOff); err != nil {
				return err
			}
		}
		if s.block++; s.block == s.l.geo.PayloadBlocks() {
			return errLastBlock
		}
		if err := s.enterChunk(); err != nil {
			return err
		}
	}
	if s.block != n || !s.holds(n) {
		return fmt.Errorf("block %d: %w", n, ErrNotHeld)
	}
	return nil
}

// begin writes everything before the payload blocks.
func (s *StreamWriter) begin() error {
	if s.begun {
		return nil
	}
	s.begun = true
	s.settle()
	var header sectionWriter
	_, err := header.WriteAt(s.o.identifier(), 0)
	err = errors.Join(err, s.o.writeHeaders(&header, s.l))
	if err == nil {
		err = s.write(header.b)
	}
	if err == nil {
		err = s.zerosTo(s.l.metadataOff) // an empty log
	}
	if err != nil {
		return err
	}
	items := sectionWriter{off: s.l.metadataOff}
	if err := s.o.writeMetadata(&items, s.l); err != nil {
		return err
	}
	if err := s.write(items.b); err != nil {
		return err
	}
	if err := s.zerosTo(s.l.batOff); err != nil {
		return err
	}
	return s.writeBAT()
}

// writeBAT writes the BAT region.
func (s *StreamWriter) writeBAT() error {
	b := make([]byte, 0, ondisk.MiB)
	at, bitmapAt := s.l.dataOff, int64(0)
	for i := int64(0); i < s.l.geo.BATEntries(); i++ {
		var e ondisk.BATEntry // not present
		n, bitmap := s.l.geo.Entry(i)
		if !bitmap && s.beginsChunk(n) && s.delta.hasBitmap(n>>s.l.geo.ChunkShift) {
			bitmapAt, at = at, at+ondisk.BitmapBlockSize
		}
		switch {
		case bitmap:
			if bitmapAt != 0 {
				e = ondisk.NewBATEntry(ondisk.BitmapPresent, bitmapAt)
			}
			bitmapAt = 0
		case n >= s.l.geo.PayloadBlocks(): // only the entry of the sector bitmap block is behind
		case s.holds(n):
			if at+s.o.BlockSize > ondisk.MaxFileSize {
				return errors.New("the file would be larger than 256 TiB")
			}
			e = ondisk.NewBATEntry(s.delta.state(n), at)
			at += s.o.BlockSize
		case s.o.ZeroBlocks || s.delta.isZero(n):
			e = ondisk.NewBATEntry(ondisk.Zero, 0)
		}
		if b = ondisk.LE.AppendUint64(b, uint64(e)); len(b) == cap(b) {
			if err := s.write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	if err := s.write(b); err != nil {
		return err
	}
	s.blockOff = s.l.dataOff
	return s.zerosTo(s.l.dataOff)
}

func (s *StreamWriter) write(p []byte) error {
	n, err := s.w.Write(p)
	s.pos += int64(n)
	return err
}

// zerosTo writes zeros up to a file offset.
func (s *StreamWriter) zerosTo(off int64) error {
	if off < s.pos {
		return errors.New("the disk is not written in its order")
	}
	for s.pos < off {
		if err := s.write(zerosAt(0, off-s.pos)); err != nil {
			return err
		}
	}
	return nil
}

// A sectionWriter collects what is written to a small part of a file, which begins at off.
type sectionWriter struct {
	off int64
	b   []byte
}

func (s *sectionWriter) WriteAt(p []byte, off int64) (int, error) {
	off -= s.off
	if end := off + int64(len(p)); end > int64(len(s.b)) {
		s.b = append(s.b, make([]byte, end-int64(len(s.b)))...)
	}
	return copy(s.b[off:], p), nil
}
