package journal

import (
	"fmt"
	"io"
	"math"
)

// An Overlay is a file as it reads after the replay of its log, without a byte of it being changed
// (MS-VHDX 2.3.3 allows no other way to read it). Nothing of the log is copied: the overlay keeps
// 32 bytes for each updated page and 16 for each range of zeros. Any number of goroutines may use it; it has
// no lock, because nothing in it changes.
type Overlay struct {
	base io.ReaderAt
	size int64 // of base, bytes
	seq  *Sequence
	*outcome
}

var _ io.ReaderAt = (*Overlay)(nil)

// NewOverlay lays the updates of s over base, the file of size bytes in which s was found. It fails where
// Check does, and when the log holds more than a million zero descriptors.
func NewOverlay(base io.ReaderAt, size int64, s *Sequence) (*Overlay, error) {
	o, err := s.replayed(size)
	if err != nil {
		return nil, err
	}
	return &Overlay{base: base, size: size, seq: s, outcome: o}, nil
}

// Size returns the size in bytes that the file has after replay: room for LastFileOffset and for every
// update, and never less than the file has now.
func (v *Overlay) Size() int64 { return v.outcome.size }

// Overlaps reports whether the n bytes from off on may read otherwise than from the file itself: an update
// touches them, or they do not all lie inside the file.
func (v *Overlay) Overlaps(off, n int64) bool {
	if n <= 0 {
		return false
	}
	if off < 0 || off > v.size-n {
		return true
	}
	if p := v.pageAt(off); p != nil && p.off < off+n {
		return true
	}
	z := v.zerosAt(off)
	return z != nil && z.off < off+n
}

// ReadAt reads len(p) bytes from byte off of the file as it is after replay. Bytes between the end of the
// file and Size that no update gives read as zero. It returns io.EOF at Size.
func (v *Overlay) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("journal: read at negative offset %d", off)
	}
	if left := v.Size() - off; int64(len(p)) > left {
		p, err = p[:max(left, 0)], io.EOF
	}
	for n < len(p) {
		m, rerr := v.readPiece(p[n:], off+int64(n))
		if n += m; rerr != nil {
			return n, rerr
		}
	}
	return n, err
}

// readPiece reads a first part of p, which is not empty and lies inside the replayed file, as far as it comes
// from one source.
func (v *Overlay) readPiece(p []byte, off int64) (int, error) {
	limit := int64(math.MaxInt64) // end of the source
	if pg := v.pageAt(off); pg != nil {
		if pg.off <= off {
			from := int(off - pg.off)
			p = p[:min(len(p), SectorSize-from)]
			if err := pg.read(v.seq, p, from); err != nil {
				return 0, err
			}
			return len(p), nil
		}
		limit = pg.off
	}
	zero := off >= v.size
	if z := v.zerosAt(off); z != nil {
		if z.off <= off {
			zero, limit = true, min(limit, z.end)
		} else {
			limit = min(limit, z.off)
		}
	}
	if !zero {
		limit = min(limit, v.size)
	}
	p = p[:min(int64(len(p)), limit-off)]
	if zero {
		clear(p)
		return len(p), nil
	}
	if err := readFull(v.base, p, off); err != nil {
		return 0, fmt.Errorf("journal: read the file at %#x: %w", off, err)
	}
	return len(p), nil
}
