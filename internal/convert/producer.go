package convert

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vhdxfs/internal/disk"
)

// closed returns a channel that nobody has to wait for.
func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// A producer cuts the input into jobs.
type producer struct {
	ctx     context.Context
	jobs    chan<- job
	buffers <-chan []byte
	turn    chan struct{} // closed when the job before has taken its room
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

// disk sends the pieces of a disk that hold data.
func (p *producer) disk(d *disk.Disk, c *copier) error {
	c.result.InputSize = d.Size()
	end := int64(0)
	skip := c.skip
	if !c.o.SkipErrors {
		skip = nil
	}
	err := eachPiece(d, skip, func(off, n int64) error {
		if off > end {
			if err := c.target.Zero(end, off-end); err != nil {
				return err
			}
		}
		end = off + n
		b, err := p.buffer()
		if err != nil {
			return err
		}
		return p.send(job{off: off, p: b[:n]})
	})
	if err == nil && end < d.Size() {
		err = c.target.Zero(end, d.Size()-end)
	}
	return err
}

// eachPiece calls do for every piece that holds data, in order. With skip, a piece of which nobody can tell counts
// as one, unless nobody can tell anything of it: then skip is called for it, since there may be millions.
func eachPiece(d *disk.Disk, skip func(off, n int64, err error), do func(off, n int64) error) error {
	for off := int64(0); ; {
		from, to, err := d.Data(off)
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
			from, to = off, min(off+pieceSize, d.Size())
		case err != nil:
			return err
		}
		for at := max(from/pieceSize*pieceSize, off); at < to; at += pieceSize {
			if err := do(at, min(pieceSize, d.Size()-at)); err != nil {
				return err
			}
			off = at + pieceSize
		}
	}
}

// stream sends the pieces of a stream, and then says how large the disk is.
func (p *producer) stream(r io.Reader, c *copier) error {
	for off := int64(0); ; {
		b, err := p.buffer()
		if err != nil {
			return err
		}
		n, err := io.ReadFull(r, b)
		if n > 0 {
			if err := p.send(job{off: off, p: b[:n], read: true}); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			c.mu.Lock()
			c.result.InputSize = off
			c.mu.Unlock()
			return nil
		case err != nil:
			return fmt.Errorf("read the input at %d: %w", off, err)
		}
	}
}
