package convert

import (
	"context"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A Reflink says whether the output shares space with the files of the input.
type Reflink = imagefile.Reflink

// The ways to share; ReflinkAuto shares no space with a fixed image, which has its own.
const (
	ReflinkAuto   = imagefile.ReflinkAuto
	ReflinkAlways = imagefile.ReflinkAlways
	ReflinkNever  = imagefile.ReflinkNever
)

// ErrReflink is matched by the error for an output that cannot share space with the input though it has to.
var ErrReflink = imagefile.ErrReflink

const (
	minShare = imagefile.MinShare
	maxShare = 256 << 20 // at once, so that an interruption does not wait for long
)

// A sharer makes ranges of the output share space with files of the input. Only the producer uses it.
type sharer struct {
	mode Reflink
	to   imagefile.File // of the output; nil where nothing is shared
	unit int64          // what the host can share multiples of, in bytes
	step int64          // to share at once: little at first, since what fails has taken room in the output
	can  map[imagefile.File]way
}

// A way is how the output gets what a file of the input holds.
type way int8

const (
	byReading way = iota // and writing: always possible
	bySharing
	byServer // which copies it by itself
)

// A test can put other functions in the place of these.
var (
	copiesByServer = imagefile.CopiesByServer
	copyByServer   = imagefile.CopyByServer
)

// newSharer returns the sharer for a copy, which shares nothing where the input has to be read.
func newSharer(in Input, t Target, o Options) (*sharer, error) {
	s := &sharer{mode: o.Reflink, step: pieceSize, can: make(map[imagefile.File]way)}
	if in.Disk != nil && !o.SkipErrors && o.Reflink != ReflinkNever {
		s.to = t.Shares(o.Reflink)
	}
	switch {
	case s.to != nil:
		s.unit = imagefile.ShareUnit(s.to)
	case s.mode == ReflinkAlways:
		return nil, ErrReflink
	}
	return s, nil
}

// shares reports whether the output can share space with a file, or a server copies from that. With ReflinkAlways it must share.
func (s *sharer) shares(f imagefile.File) (bool, error) {
	if s.to == nil || f == nil {
		return false, nil
	}
	can, known := s.can[f]
	if known {
		return can != byReading, nil
	}
	err := imagefile.CanClone(s.to, f)
	switch {
	case err == nil:
		s.can[f] = bySharing
	case s.mode != ReflinkAlways && copiesByServer(s.to, f):
		s.can[f] = byServer
	default:
		s.can[f] = byReading
	}
	return s.can[f] != byReading, s.refuse(err)
}

// do gives n bytes of the output at file offset at those of f from off on, without a copy through this program.
func (s *sharer) do(at int64, f imagefile.File, off, n int64) error {
	if s.can[f] == bySharing {
		return s.to.Clone(at, f, off, n)
	}
	alone, err := copyByServer(s.to, at, f, off, n)
	if err == nil && !alone {
		s.can[f] = byReading // what was copied is good, but the kernel takes longer for it than this program
	}
	return err
}

// refuse returns the error for what cannot be shared if it must be.
func (s *sharer) refuse(err error) error {
	if err == nil || s.mode != ReflinkAlways {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrReflink, err)
}

// share deals with a run of a file with which the output can share space, or from which a server copies: whole blocks of the host
// are shared, and the rest is copied.
func (p *producer) share(r disk.Run) error {
	s, end := p.c.sharer, r.FileOff+r.To-r.From
	least, round := int64(minShare), int64(pieceSize)
	if s.mode == ReflinkAlways {
		least, round = s.unit, s.unit
	}
	for from := max(r.From, p.end); from < r.To; from = max(from, p.end) {
		if s.can[r.File] == byReading { // no more
			return p.pieces(from, r.To)
		}
		toDisk := r.From - r.FileOff // added to an offset in the file
		data, err := r.File.NextData(from - toDisk)
		switch {
		case err == io.EOF: // or the file was cut short, which reading tells
			return p.pieces(from, r.To)
		case err != nil:
			return err
		case data > from-toDisk: // a hole
			from = min(data, end) + toDisk
			p.c.o.Progress(p.counts.add(p.end, from))
			// Behind the last sector of a child may be sectors of its parent: what they share a unit with is copied with them.
			if err := p.gap(from / s.unit * s.unit); err != nil {
				return err
			}
			continue
		}
		hole, err := r.File.NextHole(data)
		if err != nil {
			return err
		}
		to := min(max(hole, data+1), end) + toDisk
		lo, hi := padded(from, s.unit), to/s.unit*s.unit
		if hi-lo < least || toDisk%s.unit != 0 {
			if hi > lo && toDisk%s.unit != 0 {
				if err := s.refuse(fmt.Errorf("%d bytes at %d of the disk lie across the blocks of the file system", to-from, from)); err != nil {
					return err
				}
			}
			if err := p.copy(from/round*round, min(padded(to, round), p.counts.size), false); err != nil {
				return err
			}
			continue
		}
		if from < lo {
			if err := p.copy(from/s.unit*s.unit, lo, false); err != nil {
				return err
			}
		}
		if lo, err = p.clone(r.File, toDisk, lo, hi); err != nil {
			return err
		}
		if lo < hi {
			if err := p.pieces(lo, hi); err != nil {
				return err
			}
		}
		if hi < to {
			if err := p.copy(hi, min(padded(to, s.unit), p.counts.size), false); err != nil {
				return err
			}
		}
	}
	return nil
}

// clone shares the bytes of the disk between from and to, which are less by toDisk in the file f, or has a server copy them. It
// returns where those end of which that is true: before to where the host does so no more.
func (p *producer) clone(f imagefile.File, toDisk, from, to int64) (int64, error) {
	s := p.c.sharer
	if err := p.gap(from); err != nil {
		return from, err
	}
	select {
	case <-p.turn: // room is taken in the order of the disk
	case <-p.ctx.Done():
	}
	for from < to {
		if err := context.Cause(p.ctx); err != nil {
			return from, err
		}
		n := min(s.step, to-from)
		if err := p.c.target.Reserve(from, n); err != nil {
			return from, err
		}
		at, n, err := p.c.target.Place(from, n)
		if err != nil {
			return from, err
		}
		shared := s.can[f] == bySharing
		if err := s.do(at, f, from-toDisk, n); err != nil {
			s.can[f] = byReading
			return from, s.refuse(err)
		}
		s.step = min(2*s.step, maxShare)
		p.c.held(n, shared)
		if p.c.sum != nil {
			err = p.copy(from, from+n, true)
		} else {
			p.c.o.Progress(p.counts.add(from, from+n))
		}
		if err != nil {
			return from, err
		}
		from += n
		p.end = from
		if s.can[f] == byReading {
			break
		}
	}
	return from, nil
}
