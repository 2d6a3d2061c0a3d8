package vhdx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// ErrSize is matched by the error of a size that a disk cannot have.
var ErrSize = errors.New("invalid disk size")

// Resize gives the disk another size in bytes. What it gains reads as zero, what it loses is gone; a fixed disk gets
// the space for its new blocks at once. DataWriteGuid changes, so children of the image become useless. While a disk
// becomes larger reads go on and changes wait; while it becomes smaller no other method may be called. Until the new
// size is in the log everything can be undone: an error, ctx, or a power cut leave the disk as it was. Where the block
// allocation table outgrows its region it moves: the new one is durable before the region tables name it, and they do
// so in the log entry that holds the new size (MS-VHDX 2.2.3).
func (im *Image) Resize(ctx context.Context, size int64) error {
	return im.resize(ctx, size, math.MaxInt64)
}

// Grow is Resize for a disk that is in use: it does not make it smaller, even if another Resize runs at the same time.
func (im *Image) Grow(ctx context.Context, size int64) error { return im.resize(ctx, size, size) }

// resize does what Resize does, unless the disk has more than most bytes.
func (im *Image) resize(ctx context.Context, size, most int64) error {
	return im.reshape(func(w *writer) error {
		if now := im.Size(); now > most {
			return fmt.Errorf("%w: the disk has %s and cannot shrink while it is in use", ErrSize, sizes.Exact(now))
		}
		if err := im.CanResize(size); err != nil || size == im.Size() {
			return err
		}
		w.gate.Lock()
		defer w.gate.Unlock()
		w.committer.mu.Lock()
		defer w.committer.mu.Unlock()
		// From here on no log names a page that is changed in its place below.
		if err := w.makeClean(); err != nil {
			return err
		}
		r := newResizing(ctx, w, size)
		if err := r.prepare(); err != nil {
			r.undo()
			return err
		}
		err := r.commit()
		w.space.awaitReads() // before the next change
		return err
	})
}

// CanResize says why the disk cannot have that many bytes, with an error that matches ErrSize.
func (im *Image) CanResize(size int64) error { return im.current().canResize(size) }

func (l *layer) canResize(size int64) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w%s", ErrSize, fmt.Sprintf(format, args...))
	}
	switch {
	case size <= 0 || size > ondisk.MaxDiskSize:
		return bad(" %s: must be at most 64 TiB", sizes.Exact(size))
	case size%l.geo.SectorSize != 0:
		return bad(" %s: must be a multiple of %d bytes", sizes.Exact(size), l.geo.SectorSize)
	case l.parent() != nil && size > l.geo.DiskSize && l.parent().geo.DiskSize > l.geo.DiskSize:
		return bad(": its parent is larger, and parent data beyond the current end would become visible; flatten it first")
	}
	return nil
}

// A resizing is one call of Resize.
type resizing struct {
	ctx    context.Context
	w      *writer
	old    ondisk.Geometry
	new    ondisk.Geometry
	small  *ondisk.Geometry // the one of both with fewer blocks
	batOff int64            // file offset of the BAT, the new one where it moves
	moves  bool             // the BAT does
	places []place          // taken so far
	blocks place            // of the blocks that a fixed disk gains
	pages  map[int64]*[ondisk.PageSize]byte
}

func newResizing(ctx context.Context, w *writer, size int64) *resizing {
	r := &resizing{ctx: ctx, w: w, old: w.current().geo, new: w.current().geo, batOff: w.current().batOffset(), pages: make(map[int64]*[ondisk.PageSize]byte)}
	r.new.DiskSize = size
	if r.small = &r.old; r.shrinks() {
		r.small = &r.new
	}
	return r
}

func (r *resizing) shrinks() bool { return r.new.DiskSize < r.old.DiskSize }

// prepare does everything that no reader can see before the disk has its new size.
func (r *resizing) prepare() error {
	if err := r.w.announce(fileWrite); err != nil {
		return err
	}
	if !r.shrinks() {
		if err := r.completeLastBlock(); err != nil {
			return err
		}
		if err := r.allocateBlocks(); err != nil {
			return err
		}
		if err := r.moveBAT(); err != nil {
			return err
		}
	}
	if err := r.changeEntries(!r.shrinks()); err != nil {
		return err
	}
	if err := r.changeMetadata(); err != nil {
		return err
	}
	if err := r.reserve(); err != nil {
		return err
	}
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return r.w.announce(dataWrite) // last: children still fit a disk that could not be resized
}

// reserve gives the pages that come into the log entry their space: once the log says so there is no way back.
func (r *resizing) reserve() error {
	for _, off := range slices.Sorted(maps.Keys(r.pages)) {
		if err := r.w.reservePage(off); err != nil {
			return err
		}
	}
	return nil
}

// undo gives back the space that was taken.
func (r *resizing) undo() {
	for _, p := range r.places {
		r.w.space.release(p)
	}
}

func (r *resizing) allocate(size int64) (place, error) {
	p, err := r.w.space.allocate(size)
	if err == nil {
		r.places = append(r.places, p)
	}
	return p, err
}

// completeLastBlock makes the bytes zero that the last block has behind the end of the disk, and which the disk gains.
func (r *resizing) completeLastBlock() error {
	end := r.old.DiskSize
	if r.old.InBlock(end) == 0 {
		return nil
	}
	entry, _, err := r.w.current().lookup(end-1, end)
	if err != nil || entry.State() != ondisk.FullyPresent && entry.State() != ondisk.PartiallyPresent {
		return err
	}
	// The file may end where the disk did.
	w, in := r.w, r.old.InBlock(end)
	if err := w.space.growTo(entry.FileOff() + r.old.BlockSize); err != nil {
		return err
	}
	return w.space.zeroPlace(entry.FileOff()+in, r.old.BlockSize-in, w.current().keepsBlocks())
}

// allocateBlocks finds space for the blocks that a fixed disk gains.
func (r *resizing) allocateBlocks() error {
	const step = 256 * ondisk.MiB // after which ctx is looked at
	n := (r.new.PayloadBlocks() - r.old.PayloadBlocks()) << r.old.BlockShift
	if !r.w.current().keepsBlocks() || n == 0 {
		return nil
	}
	at, err := r.allocate(n)
	if err != nil {
		return err
	}
	r.blocks = at
	for off := int64(0); off < n; off += step {
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		part := min(step, n-off)
		if at.fresh {
			err = r.w.space.fill(at.off+off, part)
		} else {
			err = r.w.space.zeroPlace(at.off+off, part, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changeMetadata puts the pages that hold the virtual disk size into the log entry (MS-VHDX 2.6.2.2).
func (r *resizing) changeMetadata() error {
	_, off, err := r.w.current().item(ondisk.DiskSizeGUID)
	if err != nil {
		return err
	}
	first := off / ondisk.PageSize * ondisk.PageSize
	b := make([]byte, ondisk.RoundUp(off+8, ondisk.PageSize)-first)
	if err := readFull(r.w.file, b, first, "metadata"); err != nil {
		return err
	}
	ondisk.LE.PutUint64(b[off-first:], uint64(r.new.DiskSize))
	for i := int64(0); i < int64(len(b)); i += ondisk.PageSize {
		r.pages[first+i] = (*[ondisk.PageSize]byte)(b[i:])
	}
	return nil
}

// commit makes the new size durable, and the image clean.
func (r *resizing) commit() error {
	w := r.w
	w.dirty.addRaw(r.pages, true) // before the log says so, all that was prepared has to be durable
	w.changed()
	if err := w.makeClean(); err != nil {
		return w.fail(err) // the size of the disk is unknown
	}
	if err := w.reload(); err != nil {
		return w.fail(err)
	}
	if r.shrinks() {
		// Nothing looks at these entries any more, but a program that lets the disk grow may.
		if err := r.clearEntries(); err != nil {
			return w.fail(err)
		}
	}
	return nil
}

// clearEntries clears the entries of the blocks that the disk has lost.
func (r *resizing) clearEntries() error {
	if err := r.w.announce(fileWrite); err != nil {
		return err
	}
	if err := r.changeEntries(true); err != nil {
		return err
	}
	r.w.changed()
	return r.w.makeClean()
}

// reload loads the layer anew from the file, which is clean and used by nothing else.
func (w *writer) reload() error {
	l := w.current().again()
	if err := l.load(); err != nil {
		return fmt.Errorf("after the disk was resized: %w", err)
	}
	w.space.giveBack() // the new layer's space has none of it in use
	w.replace(l, false)
	return nil
}
