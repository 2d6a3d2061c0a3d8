package hash

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// BlockSize is how many bytes of the disk the digest of a block is of. The last block may be shorter.
const BlockSize = 1 << 20

// A Digest is a SHA-256.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Options says what to compute.
type Options struct {
	Workers int                             // that read at once; 0 is DefaultWorkers
	Whole   bool                            // compute the digest of the whole disk, for which zeros take time, too
	Block   func(off int64, d Digest) error // if not nil, is told the digests of the blocks that are not zero, in their order

	Phase    func(name string, total int64) // if not nil, is told how many bytes there are to do
	Progress func(n int64)                  // if not nil, is told how many more bytes are done
}

// DefaultWorkers keeps a disk of some queue depth busy without taking much memory.
const DefaultWorkers = 8

// A Result is what was computed.
type Result struct {
	Size  int64   // of the disk, bytes
	Data  int64   // bytes in blocks that are not zero
	Whole *Digest // of the whole disk
}

var zeros [BlockSize]byte

// Disk computes the digests of d.
func Disk(ctx context.Context, d *disk.Disk, o Options) (*Result, error) {
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	h := &hasher{d: d, o: o, result: &Result{Size: d.Size()}, whole: sha256.New()}
	if o.Phase != nil {
		total := d.Size()
		if !o.Whole {
			total = 0
			if err := eachBlock(d, func(_, n int64) error { total += n; return nil }); err != nil {
				return nil, err
			}
		}
		o.Phase("hash", total)
	}
	if err := h.run(ctx); err != nil {
		return nil, err
	}
	return h.result, nil
}

// A hasher computes the digests of one disk.
type hasher struct {
	d      *disk.Disk
	o      Options
	result *Result
	whole  hash.Hash
	pos    int64 // bytes of the disk that whole has
}

// A job is one block to be read.
type job struct {
	off    int64
	p      []byte
	done   chan struct{} // closed when what follows is known
	zero   bool
	digest Digest // if blocks are asked for, and it is not zero
}

// run has workers read the blocks, and takes them in their order.
func (h *hasher) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	// A block that was read waits for its turn, so there are as many buffers again as workers.
	buffers := make(chan []byte, 2*h.o.Workers)
	for range cap(buffers) {
		buffers <- make([]byte, BlockSize)
	}
	jobs, turns := make(chan *job), make(chan *job, cap(buffers))
	group.Go(func() (err error) {
		defer close(jobs)
		defer close(turns)
		defer fault.Catch(&err)
		return eachBlock(h.d, func(off, n int64) error {
			var j *job
			select {
			case b := <-buffers:
				j = &job{off: off, p: b[:n], done: make(chan struct{})}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			turns <- j // there is room for each buffer
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range h.o.Workers {
		group.Go(func() (err error) {
			defer fault.Catch(&err)
			for j := range jobs {
				if err := h.read(j); err != nil {
					return err
				}
				close(j.done)
			}
			return nil
		})
	}
	group.Go(func() (err error) {
		defer fault.Catch(&err)
		for j := range turns {
			select {
			case <-j.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := h.take(ctx, j); err != nil {
				return err
			}
			buffers <- j.p[:BlockSize]
		}
		if !h.o.Whole || ctx.Err() != nil { // or the list of blocks ended because of an error
			return context.Cause(ctx)
		}
		if err := h.zerosTo(ctx, h.d.Size()); err != nil {
			return err
		}
		h.result.Whole = (*Digest)(h.whole.Sum(nil))
		return nil
	})
	return group.Wait()
}

// read reads a block.
func (h *hasher) read(j *job) error {
	if n, err := h.d.ReadAt(j.p, j.off); n < len(j.p) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at %d: %w", h.d.Path, j.off, err)
	}
	if j.zero = string(j.p) == string(zeros[:len(j.p)]); !j.zero && h.o.Block != nil {
		j.digest = sha256.Sum256(j.p)
	}
	return nil
}

// take adds a block that was read to what is computed.
func (h *hasher) take(ctx context.Context, j *job) error {
	if !j.zero {
		h.result.Data += int64(len(j.p))
		if h.o.Block != nil {
			if err := h.o.Block(j.off, j.digest); err != nil {
				return err
			}
		}
	}
	if !h.o.Whole {
		h.tell(int64(len(j.p)))
		return nil
	}
	if err := h.zerosTo(ctx, j.off); err != nil {
		return err
	}
	h.whole.Write(j.p)
	h.pos += int64(len(j.p))
	h.tell(int64(len(j.p)))
	return nil
}

// zerosTo adds zeros to the digest of the whole disk. They are the same few pages each time, so that they stay in the
// processor's cache.
func (h *hasher) zerosTo(ctx context.Context, off int64) error {
	const step = 16 << 10
	for h.pos < off {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		part := min(off-h.pos, BlockSize)
		for left := part; left > 0; left -= min(left, step) {
			h.whole.Write(zeros[:min(left, step)])
		}
		h.pos += part
		h.tell(part)
	}
	return nil
}

func (h *hasher) tell(n int64) {
	if h.o.Progress != nil {
		h.o.Progress(n)
	}
}

// eachBlock calls do for every block in which something may be that is not zero, in order.
func eachBlock(d *disk.Disk, do func(off, n int64) error) error {
	for off := int64(0); off < d.Size(); {
		r, err := d.Data(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.Path, err)
		}
		for off = max(off, r.From/BlockSize*BlockSize); off < r.To; off += BlockSize {
			if err := do(off, min(BlockSize, d.Size()-off)); err != nil {
				return err
			}
		}
	}
	return nil
}
