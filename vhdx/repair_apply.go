package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// undoSize returns how large the undo file would be.
func (r *repairer) undoSize() (int64, error) {
	if err := r.finish(); err != nil {
		return 0, err
	}
	return r.writeUndo(io.Discard)
}

// finish has the headers tell of the change, of any kind, with a new FileWriteGuid.
func (r *repairer) finish() error {
	if r.copies[r.slot].SequenceNumber > math.MaxUint64-3 {
		return errors.New("the headers have no sequence numbers left")
	}
	return r.setHeader(func(*ondisk.Header) {})
}

// apply writes the undo file, and then makes the image what the draft is. If that fails it restores the image at once.
// It returns the size of the undo file.
func (r *repairer) apply(undo undoPlace) (int64, error) {
	if err := r.finish(); err != nil {
		return 0, err
	}
	size, err := r.saveUndo(undo)
	if err != nil {
		if f := leaseOf(r.top.file); f != nil {
			err = errors.Join(err, f.Unmark())
		}
		return 0, fmt.Errorf("write the undo file %v: %w; the image is unchanged; put the undo file elsewhere with --undo-file", undo, err)
	}
	err = r.change()
	if err == nil {
		return size, nil
	}
	if uerr := r.rollBack(undo); uerr != nil {
		// Do not return the reason for the end: an interrupted user must not read that nothing was changed.
		return 0, fmt.Errorf("the image is partly repaired; restore it from the undo file %v: %v: %w", undo, err, uerr)
	}
	return 0, fmt.Errorf("%w; the image is unchanged", err)
}

func (r *repairer) saveUndo(undo undoPlace) (int64, error) {
	f, err := undo.create()
	if err != nil {
		return 0, err
	}
	size, err := r.writeUndo(f)
	if err != nil {
		return 0, errors.Join(err, f.Discard())
	}
	return size, f.Commit()
}

func (r *repairer) rollBack(undo undoPlace) error {
	u, c, err := undo.open()
	if err != nil {
		return err
	}
	// No other program has written meanwhile, and a user that interrupts the repair wants it undone.
	u.phase, u.progress = r.o.Phase, r.o.Progress
	_, err = u.restore(context.WithoutCancel(r.ctx), r.top.file, true)
	if err := errors.Join(err, c.Close()); err != nil {
		return err
	}
	return undo.remove()
}

// change makes the image what the draft is, in an order in which a power cut leaves an image that can be opened, or
// repaired again, should the undo file be lost. First the headers say that the image changes (MS-VHDX 2.2.2). What nothing
// points to yet is durable before anything points there; of the two copies of the region table one is always whole; and
// a log is named until its pages are in their places.
func (r *repairer) change() error {
	f, d := r.top.file, r.d
	if err := writeSynced(f, r.announcement()[:], ondisk.HeaderOffsets[1-r.slot]); err != nil {
		return err
	}
	if err := r.growFile(); err != nil {
		return err
	}
	current := int64(-1)
	if t, err := readRegionTables(f); err == nil {
		current = t.offset()
	}
	inTable := func(at, table int64) bool { return table >= 0 && table <= at && at < table+ondisk.RegionTableSize }
	other := ondisk.RegionTableOffsets[0] + ondisk.RegionTableOffsets[1] - current
	for _, part := range []func(at int64) bool{
		func(at int64) bool { return current >= 0 && inTable(at, other) },
		func(at int64) bool { return inTable(at, current) },
		func(at int64) bool {
			header := at == ondisk.HeaderOffsets[0] || at == ondisk.HeaderOffsets[1]
			return !header && at < d.old && (current < 0 || !inTable(at, other) && !inTable(at, current))
		},
	} {
		if err := r.writePages(part); err != nil {
			return err
		}
	}
	for i, slot := range []int{r.slot, 1 - r.slot} {
		if err := writeSynced(f, r.headerCopy(i)[:], ondisk.HeaderOffsets[slot]); err != nil {
			return err
		}
	}
	return r.shrinkFile()
}

func writeSynced(f File, b []byte, off int64) error {
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	return f.Sync()
}

// writePages writes the changed pages for whose offsets want holds, and syncs them.
func (r *repairer) writePages(want func(at int64) bool) error {
	wrote := false
	for _, at := range r.d.offsets() {
		if !want(at) {
			continue
		}
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		n := min(ondisk.PageSize, r.d.size-at)
		if _, err := r.top.file.WriteAt(r.d.pages[at][:n], at); err != nil {
			return err
		}
		wrote = true
	}
	if !wrote {
		return nil
	}
	return r.top.file.Sync()
}

// growFile makes the file larger, where the draft is, and fills what was added.
func (r *repairer) growFile() error {
	f, d := r.top.file, r.d
	if d.size <= d.old {
		return nil
	}
	if err := lengthen(f, d.old, d.size); err != nil {
		return err
	}
	total := int64(0)
	for _, c := range d.copies {
		total += c.n
	}
	r.o.Phase("copy", total)
	buf := make([]byte, ondisk.MiB)
	for _, c := range d.copies {
		for done := int64(0); done < c.n; done += ondisk.MiB {
			if err := context.Cause(r.ctx); err != nil {
				return err
			}
			b := buf[:min(ondisk.MiB, c.n-done)]
			r.o.Progress(int64(len(b)))
			if err := readFull(d, b, c.off+done, "the image"); err != nil {
				return err
			}
			if allZero(b) {
				continue // as it is already
			}
			if _, err := f.WriteAt(b, c.off+done); err != nil {
				return err
			}
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return r.writePages(func(at int64) bool { return at >= d.old })
}

// shrinkFile gives space back that nothing uses.
func (r *repairer) shrinkFile() error {
	f, d := r.top.file, r.d
	for _, h := range d.holes {
		if err := f.PunchHole(h.off, h.n); err != nil && !imagefile.IsUnsupported(err) {
			return err
		}
	}
	if d.size < d.old {
		if err := f.Truncate(d.size); err != nil {
			return err
		}
	}
	if d.size < d.old || len(d.holes) > 0 {
		return f.Sync()
	}
	return nil
}
