package convert

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
)

const (
	pieceSize = 1 << 20 // bytes; no block of an image is smaller, so no piece is in two
	runSize   = 32 << 10
	// maxSkipped bounds the list of what could not be read, as it is reported. While workers add to it, it may be longer,
	// since their ranges join when those between come.
	maxSkipped     = 1000
	maxSkippedOpen = 64 << 10
)

var zeros [pieceSize]byte

func zero(p []byte) bool { return string(p) == string(zeros[:len(p)]) }

// A copier copies the pieces of one disk.
type copier struct {
	target  Target
	ordered bool // the target is a stream: each worker writes while it is its turn
	o       Options
	sharer  *sharer
	phase   string // "" is "copy"
	sum     *sum   // of what was copied, or nil

	mu     sync.Mutex // guards result
	result *Result
}

// A job is one piece of the disk. A worker waits for before, takes room in the output, and closes after.
type job struct {
	off           int64
	p             []byte // of the piece's length
	read          bool   // p holds the bytes
	shared        bool   // the output has the bytes, which are only wanted for the sum
	counts        int64  // bytes that are done with it, for the progress
	before, after chan struct{}
}

// copy copies all pieces. It does not wait for a stream that gives nothing when ctx ends.
func (c *copier) copy(ctx context.Context, in Input) error {
	c.o.Phase(c.phaseName(), c.total(in))
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan job)
	// As many buffers as jobs at work and one more to be filled.
	buffers := make(chan []byte, c.o.Workers+1)
	for range cap(buffers) {
		buffers <- make([]byte, pieceSize)
	}
	produced := make(chan error, 1)
	go func() {
		defer close(jobs)
		defer fault.Then(func(err error) { produced <- err })
		p := producer{ctx: ctx, c: c, jobs: jobs, buffers: buffers, turn: closed()}
		switch {
		case in.Disk != nil:
			produced <- p.disk(in.Disk)
		case in.Front != nil:
			produced <- p.front(in.Front)
		default:
			produced <- p.stream(in.Stream)
		}
	}()
	for range c.o.Workers {
		group.Go(func() (err error) {
			defer fault.Catch(&err)
			for {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case j, more := <-jobs:
					if !more {
						return nil
					}
					if err := c.do(ctx, in.Disk, j); err != nil {
						return err
					}
					buffers <- j.p[:pieceSize]
				}
			}
		})
	}
	err := group.Wait()
	if err != nil && in.Disk == nil {
		return err // the producer may wait for a stream that gives nothing
	}
	return cmp.Or(err, <-produced)
}

func (c *copier) phaseName() string {
	if c.phase == "" {
		return "copy"
	}
	return c.phase
}

// total returns how many bytes the pieces with data have, and -1 for a stream that does not tell.
func (c *copier) total(in Input) int64 {
	switch {
	case in.Front != nil:
		return in.Front.Data()
	case in.Disk == nil:
		return -1
	}
	counts, total := counter{size: in.Disk.Size()}, int64(0)
	var skip func(int64, int64, error)
	if c.o.SkipErrors {
		skip = func(int64, int64, error) {}
	}
	err := eachRun(in.Disk, skip, func(r disk.Run) (int64, error) {
		total += counts.add(r.From, r.To)
		return counts.end, nil
	})
	if err != nil {
		return -1 // the copy meets the same error and returns it
	}
	return total
}

// do copies one piece.
func (c *copier) do(ctx context.Context, d *disk.Disk, j job) error {
	if !j.read {
		if err := c.read(d, j.p, j.off); err != nil {
			return err
		}
	}
	n := int64(len(j.p))
	empty := zero(j.p)
	if c.sum != nil && !empty {
		c.sum.add(j.off, j.p)
	}
	select {
	case <-j.before:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !empty && !j.shared {
		if err := c.target.Reserve(j.off, n); err != nil {
			return err
		}
	}
	if c.ordered && !j.shared {
		if err := c.write(j.p, j.off); err != nil {
			return err
		}
	}
	close(j.after)
	if !c.ordered && !j.shared {
		if err := c.write(j.p, j.off); err != nil {
			return err
		}
	}
	c.o.Progress(j.counts)
	return nil
}

// held notes that the output has n more bytes.
func (c *copier) held(n int64, shared bool) {
	c.mu.Lock()
	c.result.Data += n
	if shared {
		c.result.Shared += n
	}
	c.mu.Unlock()
	if shared {
		c.o.Shared(n)
	}
}

// write writes the parts of p that are not zero.
func (c *copier) write(p []byte, off int64) error {
	for len(p) > 0 {
		empty := zero(p[:min(runSize, len(p))])
		n := min(runSize, len(p))
		for n < len(p) && zero(p[n:min(n+runSize, len(p))]) == empty {
			n = min(n+runSize, len(p))
		}
		var err error
		if empty {
			err = c.target.Zero(off, int64(n))
		} else {
			_, err = c.target.WriteAt(p[:n], off)
			c.held(int64(n), false)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// read fills p. With SkipErrors, what cannot be read is zero, in units as small as the image has.
func (c *copier) read(d *disk.Disk, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if !c.o.SkipErrors {
		return fmt.Errorf("read %s at %d: %w", d.Path, off, err)
	}
	const unit = 4 << 10
	for at := 0; at < len(p); {
		part := p[at:min(at+unit, len(p))]
		if n := d.Damaged(off + int64(at)); n > int64(len(part)) { // to try each unit of it would take long
			part = p[at:][:min(n, int64(len(p)-at))]
			clear(part)
			c.skip(off+int64(at), int64(len(part)), err)
			at += len(part)
			continue
		}
		if n, err := d.ReadAt(part, off+int64(at)); n < len(part) {
			clear(part)
			c.skip(off+int64(at), int64(len(part)), err)
		}
		at += len(part)
	}
	return nil
}

// skip notes that a range could not be read.
func (c *copier) skip(off, n int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.result.Skipped
	i, _ := slices.BinarySearchFunc(list, off, func(s Skipped, off int64) int { return cmp.Compare(s.Offset, off) })
	before := i > 0 && list[i-1].Offset+list[i-1].Length == off // for the same reason, or one like it
	after := i < len(list) && off+n == list[i].Offset
	switch {
	case before && after:
		list[i-1].Length += n + list[i].Length
		list = slices.Delete(list, i, i+1)
	case before:
		list[i-1].Length += n
	case after: // the reason is that of the first byte, whichever worker was first
		list[i] = Skipped{off, n + list[i].Length, err.Error()}
	case len(list) == maxSkippedOpen:
		c.result.Dropped++
	default:
		list = slices.Insert(list, i, Skipped{off, n, err.Error()})
	}
	c.result.Skipped = list
}
