package vhdx

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A sharing lets an image share the space of the file of another one, instead of copying bytes.
type sharing struct {
	to    *Image
	can   bool
	unit  int64 // what the host can share multiples of, in bytes
	least int64 // bytes; less is copied
}

// newSharing returns what shares the bytes of child with parent, as the options want it.
func (m *merge) newSharing(child, parent *Image) (*sharing, error) {
	s := &sharing{to: parent, unit: imagefile.ShareUnit(parent.writer.file), least: imagefile.MinShare}
	var err error
	switch m.Reflink {
	case imagefile.ReflinkNever:
		return s, nil
	case imagefile.ReflinkAlways:
		s.least = s.unit
		err = imagefile.CanClone(parent.writer.file, child.writer.file)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", imagefile.ErrReflink, err)
		}
	default:
		if parent.current().keepsBlocks() { // in space of their own
			return s, nil
		}
		err = imagefile.CanClone(parent.writer.file, child.writer.file)
	}
	s.can = err == nil
	return s, nil
}

// part returns the part of an extent that can be shared, in bytes of the disk. It is empty, at the end of the extent's bytes that
// are copied, where nothing can. Of a hole it is empty, too: what writes zeros finds that the block needs no space.
func (s *sharing) part(e Extent) (from, to int64, err error) {
	none := e.End()
	if !s.can {
		return none, none, nil
	}
	from, to = ondisk.RoundUp(e.DiskOff, s.unit), e.End()/s.unit*s.unit
	if to-from < s.least || (e.FileOff-e.DiskOff)%s.unit != 0 {
		return none, none, nil
	}
	switch data, err := e.File.NextData(e.FileOff); {
	case errors.Is(err, io.EOF):
		return none, none, nil
	case err != nil:
		return 0, 0, err
	case data >= e.FileOff+e.Len:
		return none, none, nil
	}
	return from, to, nil
}

// do shares the bytes of the disk between from and to, which lie in e. It returns where those end that are shared: before to
// where the host shares no more.
func (s *sharing) do(e Extent, from, to int64) (done int64, err error) {
	w := s.to.writer
	defer w.catch(&err)
	w.gate.RLock()
	defer w.gate.RUnlock()
	for from < to {
		b := from >> w.current().geo.BlockShift
		n := min(to, w.current().geo.BlockEnd(b)) - from
		part := source{from: e.File, fromOff: e.FileOff + from - e.DiskOff, n: n}
		err := w.withSpace(func() error {
			lock := w.blocks.of(b)
			lock.Lock()
			defer lock.Unlock()
			return w.writeAlone(b, from, part)
		})
		if imagefile.IsUnsupported(err) || errors.Is(err, unix.EXDEV) {
			s.can = false
			return from, nil
		}
		if err != nil {
			return from, fmt.Errorf("share %d bytes of the disk at %#x: %w", n, from, err)
		}
		from += n
	}
	return from, nil
}
