package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A Window is the part of a disk that a mount shows: a partition.
type Window struct {
	Partition int
	Off, Len  int64 // bytes
}

// A window is a disk that is part of another one. Offsets count from its begin, and no byte outside is ever asked for:
// every range goes through inside. What is not about bytes, such as a sync, concerns all of the image.
type window struct {
	Disk
	off, size int64
	elsewhere atomic.Int64 // how many of the disk's allocated bytes are not in the window
}

// newWindow returns the part w of disk, which has to lie inside it.
func newWindow(disk Disk, w Window) (*window, error) {
	if w.Off < 0 || w.Len <= 0 || w.Off > disk.Size() || w.Len > disk.Size()-w.Off {
		return nil, fmt.Errorf("partition %d (%#x bytes at %#x) ends beyond the end of the disk (%#x)", w.Partition, w.Len, w.Off, disk.Size())
	}
	d := &window{Disk: disk, off: w.Off, size: w.Len}
	return d, d.count()
}

// count looks how many allocated bytes are not in the window.
func (d *window) count() error {
	const step = 32 << 20 // bytes, which bounds the extents in memory also where each has one sector
	var extents []vhdx.Extent
	held := int64(0)
	for off := int64(0); off < d.size; off += step {
		epoch := d.BeginRead() // for each step, since all of them may take long
		var err error
		extents, err = d.Resolve(extents[:0], off, min(step, d.size-off))
		d.EndRead(epoch)
		if err != nil {
			return err
		}
		for _, e := range extents {
			if e.File != nil {
				held += e.Len
			}
		}
	}
	if err := d.Validated(); err != nil { // else the disk does not know how much it holds
		return err
	}
	d.elsewhere.Store(d.Disk.AllocatedBytes() - held)
	return nil
}

// inside returns the byte of the disk for byte off of the window, from which n bytes lie inside the window.
func (d *window) inside(off, n int64) (int64, error) {
	if off < 0 || n < 0 || n > d.size-off {
		return 0, fmt.Errorf("%d bytes at %#x of a partition of %#x bytes: %w", n, off, d.size, vhdx.ErrBeyondEnd)
	}
	return d.off + off, nil
}

func (d *window) Size() int64 { return d.size }

// AllocatedBytes goes by what the window held at first, and what the disk holds more or less since: while the mount
// lasts, nothing writes outside of the window.
func (d *window) AllocatedBytes() int64 {
	return min(max(d.Disk.AllocatedBytes()-d.elsewhere.Load(), 0), d.size)
}

// Compact compacts all of the image, and so gives up blocks outside of the window, too.
func (d *window) Compact(ctx context.Context, o vhdx.CompactOptions) (*vhdx.CompactResult, error) {
	r, err := d.Disk.Compact(ctx, o)
	return r, errors.Join(err, d.count())
}

// Merge merges images as a whole. Blocks that are in two of them were counted twice.
func (d *window) Merge(ctx context.Context, child string, o vhdx.MergeOptions) (*vhdx.MergeResult, error) {
	r, err := d.Disk.Merge(ctx, child, o)
	return r, errors.Join(err, d.count())
}

func (d *window) Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error) {
	at, err := d.inside(off, n)
	if err != nil {
		return dst, err
	}
	first := len(dst)
	dst, err = d.Disk.Resolve(dst, at, n)
	for i := range dst[first:] {
		dst[first+i].DiskOff -= d.off
	}
	return dst, err
}

func (d *window) InMemory(off, n int64) bool {
	at, err := d.inside(off, n)
	return err == nil && d.Disk.InMemory(at, n)
}

func (d *window) SeekData(off int64) (int64, error) { return d.seek(d.Disk.SeekData, off) }

func (d *window) SeekHole(off int64) (int64, error) {
	to, err := d.seek(d.Disk.SeekHole, off)
	if err == io.EOF && off >= 0 && off < d.size {
		return d.size, nil // the end counts as a hole
	}
	return to, err
}

// seek is one of the disk's seeks, as if the disk ended where the window does.
func (d *window) seek(seek func(int64) (int64, error), off int64) (int64, error) {
	at, err := d.inside(off, 1)
	if err != nil {
		return 0, io.EOF
	}
	if at, err = seek(at); err != nil {
		return 0, err
	}
	if at -= d.off; at >= d.size {
		return 0, io.EOF
	}
	return at, nil
}

func (d *window) WriteAt(p []byte, off int64) (int, error) {
	at, err := d.inside(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, at)
}

func (d *window) Zero(off, n int64) error     { return d.change(d.Disk.Zero, off, n) }
func (d *window) Discard(off, n int64) error  { return d.change(d.Disk.Discard, off, n) }
func (d *window) Allocate(off, n int64) error { return d.change(d.Disk.Allocate, off, n) }

func (d *window) change(do func(off, n int64) error, off, n int64) error {
	at, err := d.inside(off, n)
	if err != nil {
		return err
	}
	return do(at, n)
}

// Grow refuses: a partition table says how large a partition is.
func (d *window) Grow(context.Context, int64) error {
	return fmt.Errorf("the partition table sets the size of a partition; mount the whole disk to resize it: %w", unix.EPERM)
}
