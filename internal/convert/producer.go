package convert

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// closed returns a closed channel: a receive from it never waits.
func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// A producer cuts the input into jobs.
type producer struct {
	ctx     context.Context
	c       *copier
	jobs    chan<- job
	buffers <-chan []byte
	turn    chan struct{} // closed when the job before has taken its room

	// The end of the part of a disk that was sent, shared, or is known to be zero.
	end    int64
	counts counter
}

// buffer waits for a free buffer.
func (p *producer) buffer() ([]byte, error) {
	select {
	case b := <-p.buffers:
		return b, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

func (p *producer) send(j job) error {
	j.before, j.after = p.turn, make(chan struct{})
	select {
	case p.jobs <- j:
		p.turn = j.after
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// disk shares with the output what it can, and sends the other pieces of a disk that hold data.
func (p *producer) disk(d *disk.Disk) error {
	p.c.result.InputSize = d.Size()
	p.counts.size = d.Size()
	skip := p.c.skip
	if !p.c.o.SkipErrors {
		skip = nil
	}
	err := eachRun(d, skip, func(r disk.Run) (int64, error) {
		shared, err := p.c.sharer.shares(r.File)
		switch {
		case err != nil:
		case shared:
			err = p.share(r)
		default:
			err = p.pieces(r.From, r.To)
		}
		return max(r.To, p.end), err // a hole at the end of the run is dealt with later
	})
	if err != nil {
		return err
	}
	return p.gap(d.Size())
}

// eachRun calls do for every run that holds data, in order. It returns where to go on, which may be behind the run. With
// skip, a piece that is unknown in part counts as a run. For one that is unknown as a whole skip is called,
// since there may be millions.
func eachRun(d *disk.Disk, skip func(off, n int64, err error), do func(disk.Run) (int64, error)) error {
	for off := int64(0); ; {
		r, err := d.Data(off)
		switch {
		case err == io.EOF:
			return nil
		case err != nil && skip != nil:
			if n := d.Damaged(off); off%pieceSize == 0 && (n >= pieceSize || n == d.Size()-off) {
				if off+n < d.Size() {
					n = n / pieceSize * pieceSize
				}
				skip(off, n, err)
				off += n
				continue
			}
			r = disk.Run{From: off, To: min(off+pieceSize, d.Size())}
		case err != nil:
			return err
		}
		if off, err = do(r); err != nil {
			return err
		}
	}
}

// pieces sends whole pieces that hold the bytes between from and to, but what was dealt with before.
func (p *producer) pieces(from, to int64) error {
	return p.copy(from/pieceSize*pieceSize, min(padded(to, pieceSize), p.counts.size), false)
}

// copy sends the bytes between from and to, but what was dealt with before. What is shared already is only added to the sum.
func (p *producer) copy(from, to int64, shared bool) error {
	if !shared {
		from = max(from, p.end)
		if err := p.gap(from); err != nil {
			return err
		}
	}
	for from < to {
		n := min(to, (from/pieceSize+1)*pieceSize) - from
		b, err := p.buffer()
		if err != nil {
			return err
		}
		if err := p.send(job{off: from, p: b[:n], shared: shared, counts: p.counts.add(from, from+n)}); err != nil {
			return err
		}
		from += n
		p.end = from
	}
	return nil
}

// gap makes the disk read as zero from where something was last dealt with up to the given byte.
func (p *producer) gap(to int64) error {
	from := p.end
	if to <= from {
		return nil
	}
	p.end = to
	return p.c.target.Zero(from, to-from)
}

// A counter counts the bytes of those pieces that were come upon, in the order of the disk, each piece once.
type counter struct{ size, end int64 }

// add returns by how many bytes the pieces with those between from and to make the count larger.
func (c *counter) add(from, to int64) int64 {
	from, to = max(from/pieceSize*pieceSize, c.end), min(padded(to, pieceSize), c.size)
	if to <= from {
		return 0
	}
	c.end = to
	return to - from
}

// stream sends the pieces of a stream, and then says how large the disk is.
func (p *producer) stream(r io.Reader) error {
	for off := int64(0); ; {
		b, err := p.buffer()
		if err != nil {
			return err
		}
		n, err := io.ReadFull(r, b)
		if n > 0 {
			if err := p.send(job{off: off, p: b[:n], read: true, counts: int64(n)}); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			p.c.mu.Lock()
			p.c.result.InputSize = off
			p.c.mu.Unlock()
			return nil
		case err != nil:
			return fmt.Errorf("read the input at %d: %w", off, err)
		}
	}
}

// front sends the pieces of an image that comes through a stream, in the order of the stream. What the image does not
// hold is made zero before.
func (p *producer) front(f *disk.Front) error {
	p.c.mu.Lock()
	p.c.result.InputSize = f.Image.Size()
	p.c.mu.Unlock()
	for _, e := range f.Extents {
		if err := p.gap(e.DiskOff); err != nil {
			return err
		}
		p.end = e.End()
	}
	if err := p.gap(f.Image.Size()); err != nil {
		return err
	}
	return f.Each(func(e vhdx.Extent, r io.Reader) error {
		for off := e.DiskOff; off < e.End(); {
			b, err := p.buffer()
			if err != nil {
				return err
			}
			b = b[:min(e.End(), (off/pieceSize+1)*pieceSize)-off]
			if _, err := io.ReadFull(r, b); err != nil {
				return err
			}
			if err := p.send(job{off: off, p: b, read: true, counts: int64(len(b))}); err != nil {
				return err
			}
			off += int64(len(b))
		}
		return nil
	})
}
