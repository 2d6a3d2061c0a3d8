package fs

import (
	"context"
	"errors"
	"sync"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// errFenced is the answer to changes that come too late.
var errFenced = errors.New("the disk is being closed")

// A fencedDisk is a disk that can be closed to changes while it is served.
type fencedDisk struct {
	Disk

	mu     sync.RWMutex // held shared by every change, and alone while none may begin
	closed bool         // guarded by mu
}

// close returns when no change is under way any more, and lets no further one through.
func (d *fencedDisk) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
}

// change calls do unless the disk is closed to changes.
func (d *fencedDisk) change(do func() error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return errFenced
	}
	return do()
}

func (d *fencedDisk) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.change(func() error {
		n, err = d.Disk.WriteAt(p, off)
		return err
	})
	return n, err
}

func (d *fencedDisk) Zero(off, n int64) error {
	return d.change(func() error { return d.Disk.Zero(off, n) })
}

func (d *fencedDisk) Discard(off, n int64) error {
	return d.change(func() error { return d.Disk.Discard(off, n) })
}

func (d *fencedDisk) Allocate(off, n int64) error {
	return d.change(func() error { return d.Disk.Allocate(off, n) })
}

func (d *fencedDisk) Grow(ctx context.Context, size int64) error {
	return d.change(func() error { return d.Disk.Grow(ctx, size) })
}

func (d *fencedDisk) Compact(ctx context.Context, o vhdx.CompactOptions) (r *vhdx.CompactResult, err error) {
	err = d.change(func() error {
		r, err = d.Disk.Compact(ctx, o)
		return err
	})
	return r, err
}

func (d *fencedDisk) Snapshot(ctx context.Context, name string, o vhdx.SnapshotOptions) (r *vhdx.SnapshotResult, err error) {
	err = d.change(func() error {
		r, err = d.Disk.Snapshot(ctx, name, o)
		return err
	})
	return r, err
}

func (d *fencedDisk) Merge(ctx context.Context, child string, o vhdx.MergeOptions) (r *vhdx.MergeResult, err error) {
	err = d.change(func() error {
		r, err = d.Disk.Merge(ctx, child, o)
		return err
	})
	return r, err
}

// A sync that waits behind a closed fence would have nothing to do, but a caller that then writes must learn of it.
func (d *fencedDisk) Sync() error { return d.change(d.Disk.Sync) }
