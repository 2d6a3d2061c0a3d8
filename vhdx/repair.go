package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
)

// RepairOptions says how to repair an image.
type RepairOptions struct {
	Open      Options // Parents, ParentDirs, CacheSize and Lock count
	UndoFile  string  // where what is changed is kept; "" is beside the image, see Repair
	DropLog   bool    // give up a log that cannot be replayed
	FreeLeaks bool    // give space back that nothing uses, though it holds data
	DryRun    bool    // plan all of it and change nothing

	Phase    func(name string, total int64) // begins a part of the work, of so many bytes; may be nil
	Progress func(n int64)                  // n more of them are done; may be nil
}

// A RepairReport says what Repair found and did.
type RepairReport struct {
	Path     string    `json:"path"`
	Before   *Report   `json:"before"`
	Fixes    []Fix     `json:"repairs"`
	Left     []Finding `json:"left"`             // broken rules that cannot be repaired; then nothing was changed
	Advice   []string  `json:"advice,omitempty"` // what can be done about them, or about space that was kept
	UndoFile string    `json:"undo_file,omitempty"`
	UndoSize int64     `json:"undo_bytes"`
	DryRun   bool      `json:"dry_run"`
	Changed  bool      `json:"changed"`
	After    *Report   `json:"after"`
}

// Damaged reports whether bytes of the disk were lost, or may be others than were written.
func (r *RepairReport) Damaged() bool {
	for _, f := range r.Fixes {
		if f.Effect != Harmless {
			return true
		}
	}
	return false
}

// A Fix is one repair: what was found, what is done about it, and what that means for the disk.
type Fix struct {
	Finding
	Done   string      `json:"done"`
	Effect Effect      `json:"effect"`
	Ranges []DiskRange `json:"ranges,omitempty"` // of the virtual disk, that are lost or suspect
}

// Effect says what a repair means for the readers of the disk.
type Effect string

// The effects of a repair.
const (
	Harmless Effect = "none"
	Suspect  Effect = "suspect" // the bytes may not be those that were written
	Lost     Effect = "lost"    // the bytes are gone, and read as zeros
)

// A DiskRange is a range of the virtual disk, in bytes.
type DiskRange struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
}

// Repair repairs the image at path, but not its parents. All of the work is planned on a draft in memory first, and
// the draft is examined as Check does it: where a broken rule of the image remains, nothing is changed. Then every
// byte that is going to change goes into the undo file. That gets its name when it is complete and durable, and the
// image changes after that. So Undo can restore the image from there byte for byte, also after a power cut. A repair
// that fails halfway, as on a full disk, is undone at once.
//
// The undo file is PATH.undo, or PATH.undo2 and so on where that is taken; of a device it has to be named. It is never
// written over another file, and only users that may read the image may read it.
// An image with nothing to repair is not touched, and there is no undo file. One whose repair was interrupted is to be
// restored first.
//
// DataWriteGuid stays what it is, so that children of the image still fit: they are no worse off than before. The
// error tells that nothing could be examined or changed; what cannot be repaired is no error but in the report. It
// matches ErrLocked where another program has the image open.
func Repair(ctx context.Context, path string, o RepairOptions) (*RepairReport, error) {
	o.Open.Writable, o.Open.Salvage = false, false
	before, err := Check(path, o.Open)
	if err != nil {
		return nil, err
	}
	rep := &RepairReport{Path: path, Before: before, After: before, DryRun: o.DryRun, Fixes: []Fix{}, Left: []Finding{}}
	op := newOpener(o.Open)
	op.collect = true
	flags, kind := os.O_RDWR, imagefile.Exclusive
	if o.DryRun {
		flags, kind = os.O_RDONLY, imagefile.Shared
	}
	top, err := op.openLayer(path, flags, kind)
	if err != nil {
		return nil, err
	}
	r, err := newRepairer(ctx, op, top, o)
	if err == nil {
		err = r.unfinished()
	}
	if err == nil {
		err = r.plan()
	}
	if err == nil {
		err = r.carryOut(rep)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), top.close())
	}
	if err := top.close(); err != nil {
		return nil, err
	}
	if rep.Changed {
		if rep.After, err = Check(path, o.Open); err != nil {
			return nil, fmt.Errorf("the image was repaired (undo file %s), but: %w", rep.UndoFile, err)
		}
	}
	return rep, nil
}

// carryOut does what was planned, unless that is nothing, or not enough, or not wanted yet.
func (r *repairer) carryOut(rep *RepairReport) (err error) {
	if len(r.left) > 0 {
		rep.Left, rep.Advice = r.left, r.advise()
		return nil
	}
	rep.Fixes, rep.Advice = append([]Fix{}, r.fixes...), r.adviseSpace()
	if !r.d.changed() {
		return nil
	}
	undo, err := newUndoPath(r.top.file, r.top.path, r.o.UndoFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo.close()) }()
	rep.UndoFile = undo.path
	if r.o.DryRun {
		rep.After = r.report()
		rep.UndoSize, err = r.undoSize()
		return err
	}
	if r, err = r.underLease(); err != nil {
		return err
	}
	rep.Fixes, rep.Advice = append([]Fix{}, r.fixes...), r.adviseSpace()
	rep.UndoSize, err = r.apply(undo)
	rep.Changed = err == nil
	return err
}

// underLease takes the lease of the image, where there is to be one, and returns the repairer to go on with: if another host may
// have written meanwhile, it has planned anew. The undo file has the header that the mark of the lease has replaced, and a
// finished repair leaves headers that say that no host is in.
func (r *repairer) underLease() (*repairer, error) {
	f, err := holdLease(r.o.Open.Lock, r.top.file, r.op.leaseOptions(r.top.path))
	if f == nil {
		return r, err
	}
	r.top.file, r.d.base = f, f
	next := r
	if f.Waited || f.Before != r.copies[r.slot] {
		next, err = newRepairer(r.ctx, r.op, r.top, r.o)
		if err == nil {
			err = next.plan()
		}
		if err == nil && len(next.left) > 0 {
			err = errors.New("another host has changed it meanwhile; check it again")
		}
		if err != nil {
			return nil, errors.Join(err, f.Unmark())
		}
		if len(next.fixes) == 0 { // the mark has replaced a damaged header, and nothing else is to be done
			next.fixes = r.fixes
		}
	}
	next.header.FileWriteGUID = lease.Released(f.NewGUID())
	return next, nil
}

// report examines the draft as Check would the image.
func (r *repairer) report() *Report {
	l := r.last
	err := r.op.openParent(l)
	rep := l.newReport()
	if l.parent() != nil {
		defer l.parent().close()
	}
	var fe *FormatError
	if errors.As(err, &fe) {
		rep.Errors = append(rep.Errors, newFinding(fe))
	} else if err != nil {
		rep.Errors = append(rep.Errors, Finding{Message: "the check ended here: " + err.Error()})
	} else {
		rep.Info = l.info()
	}
	return rep
}
