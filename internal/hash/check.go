package hash

import (
	"context"
	"errors"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/disk"
)

// Check compares the disk with the list and calls report for each run of blocks that are others, in order. With a list that has
// no blocks, that is the whole disk. A disk of another size has other bytes where only one of the two has any. The
// digest of the whole disk is computed only for a list without blocks.
func Check(ctx context.Context, d *disk.Disk, l *ListReader, o Options, report func(off, n int64) error) (*Result, error) {
	if !l.Blocks() {
		o.Whole = true
		r, err := Disk(ctx, d, o)
		if err == nil && *r.Whole != *l.Whole {
			err = report(0, d.Size())
		}
		return r, err
	}
	both, size := min(d.Size(), l.Size), max(d.Size(), l.Size)
	c := &checker{l: l, report: report, both: both, size: size}
	if err := c.advance(); err != nil {
		return nil, err
	}
	o.Whole, o.Block = false, c.block
	r, err := Disk(ctx, d, o)
	if err == nil {
		err = c.missing(both)
	}
	for err == nil && !c.end { // the list has to be complete
		err = c.advance()
	}
	if err == nil && both < size {
		err = c.differ(both, size)
	}
	return r, errors.Join(err, c.flush(err))
}

// A checker walks through the list beside the disk.
type checker struct {
	l      *ListReader
	report func(off, n int64) error
	both   int64 // bytes that the disk and the listed one have; all behind them is other
	size   int64 // of the larger one

	off      int64 // of the next block of the list
	digest   Digest
	end      bool  // there is none
	from, to int64 // the run of other blocks that was not reported yet
}

// advance goes to the next block of the list.
func (c *checker) advance() (err error) {
	c.off, c.digest, err = c.l.Next()
	if errors.Is(err, io.EOF) {
		c.end, err = true, nil
	}
	return err
}

// missing notes the blocks of the list before off, which are zero on the disk.
func (c *checker) missing(off int64) error {
	for !c.end && c.off < off {
		if err := c.differ(c.off, min(c.off+BlockSize, c.size)); err != nil {
			return err
		}
		if err := c.advance(); err != nil {
			return err
		}
	}
	return nil
}

// block compares a block of the disk.
func (c *checker) block(off int64, d Digest) error {
	if err := c.missing(off); err != nil {
		return err
	}
	if off >= c.both {
		return nil
	}
	listed := !c.end && c.off == off
	if !listed || c.digest != d {
		if err := c.differ(off, min(off+BlockSize, c.size)); err != nil {
			return err
		}
	}
	if listed {
		return c.advance()
	}
	return nil
}

// differ notes a range that is another.
func (c *checker) differ(from, to int64) error {
	if from <= c.to && c.from < c.to {
		c.to = max(c.to, to)
		return nil
	}
	err := c.flush(nil)
	c.from, c.to = from, to
	return err
}

func (c *checker) flush(failed error) error {
	if failed != nil || c.from == c.to {
		return nil
	}
	from, n := c.from, c.to-c.from
	c.from, c.to = 0, 0
	return c.report(from, n)
}
