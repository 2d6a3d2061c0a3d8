package vhdx

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// MergeOptions says how to merge. The functions may be nil.
type MergeOptions struct {
	Open     Options                        // Parents, ParentDirs, CacheSize and Lock count
	Into     string                         // the image to merge into; "" is the parent
	Delete   bool                           // remove what was merged
	KeepName bool                           // the result takes the name of the image, whose file is gone then
	Rate     int64                          // so many bytes of data a second at the most; 0 is no bound
	DryRun   bool                           // say what would be done, and change nothing
	Check    func() error                   // may refuse, when all images are locked and nothing is changed
	Reflink  imagefile.Reflink              // whether the result shares space with what is merged
	Phase    func(name string, total int64) // begins to merge one image, which holds so many bytes of data
	Progress func(n int64)                  // n more of them are done
	Shared   func(n int64)                  // n more of those that are done share space
}

// A MergeResult says what Merge did. Sizes are in bytes.
type MergeResult struct {
	Merged []string `json:"merged"`     // the images that are not needed any more, the nearest to the result first
	Into   string   `json:"into"`       // the image that they were merged into
	Path   string   `json:"path"`       // where it is now
	Data   int64    `json:"data_bytes"` // written to it, or shared with it
	Shared int64    `json:"shared_bytes"`
	Zero   int64    `json:"zero_bytes"` // made zero in it
	DryRun bool     `json:"dry_run,omitempty"`
}

// mergePiece is how many bytes are copied at once.
const mergePiece = 4 * ondisk.MiB

// Merge writes what the differencing image at path holds into an image that it is based on, its parent or one further
// down, which then reads as the image did. Images between the two are merged one after the other, the lowest first.
// All of them are locked against every other program, the parents below against writers.
//
// A cut, an error, or the end of ctx leaves every image of the chain that was not merged yet reading as before, and
// Merge can be run again. For one image and its parent, which go by C and P here, this is so because the bytes of P
// that change are just those that C hides, and because C accepts P at any moment by its DataWriteGuid:
//
//  1. C gets P's DataWriteGuid as its parent_linkage, and a new one as its parent_linkage2 (MS-VHDX 2.6.2.6.3),
//     durably: one entry of the log.
//  2. P gets the new DataWriteGuid, durably: one update of the headers. Other children of P do not accept it any
//     more, and rightly so. It has a form of its own, which says until step 5 that P alone is a mix; see ErrMixed.
//  3. P gets the size of C, also where that is smaller: C shows nothing of P behind its own end. What C holds is
//     written to P, which is made clean.
//  4. C gets the DataWriteGuid that P has as its parent_linkage, and its own one as its parent_linkage2, durably.
//  5. P gets the DataWriteGuid of C, durably. It holds the same disk with the same data, so that children of C may
//     take P as their parent from here on.
//  6. C loses its parent_linkage2. It still reads as before, through P, until it is removed.
//
// Run again after a cut, merge does all of this again, with the DataWriteGuid that P has then. Where a run of images is merged,
// the one above C then names P as its parent, whose DataWriteGuid it knows from C; also one entry of the log.
func Merge(ctx context.Context, path string, o MergeOptions) (_ *MergeResult, err error) {
	withoutNil(&o.Phase, &o.Progress)
	if o.Shared == nil {
		o.Shared = func(int64) {}
	}
	// Nothing in the background: what is done, and when, is said above.
	o.Open.Commit, o.Open.IdleClean, o.Open.AnyParent, o.Open.DetectZeroes = 0, 0, false, true
	layers, err := planMerge(path, o)
	if err != nil {
		return nil, err
	}
	if o.DryRun {
		return mergeDryRun(path, layers, o)
	}
	run, closeFiles, err := openRun(path, o.Open, len(layers))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeFiles()) }()
	if err := checkRun(run, layers); err != nil {
		return nil, err
	}
	if o.Check != nil {
		if err := o.Check(); err != nil {
			return nil, err
		}
	}
	m := &merge{MergeOptions: o, ctx: ctx, run: run, pace: pace{rate: o.Rate}}
	if err := m.do(); err != nil {
		return nil, err
	}
	return &m.result, nil
}

// A merge is one call of Merge.
type merge struct {
	MergeOptions
	ctx    context.Context
	run    []*Image // the child first, the result last
	pace   pace
	result MergeResult
}

func (m *merge) do() error {
	last := len(m.run) - 1
	into := m.run[last]
	m.result.Into, m.result.Path = into.current().path, into.current().path
	for i := last - 1; i >= 0; i-- {
		child := m.run[i]
		if err := m.push(child, into); err != nil {
			return fmt.Errorf("merge %s into %s: %w", child.current().path, into.current().path, err)
		}
		m.result.Merged = append(m.result.Merged, child.current().path)
		if i > 0 {
			if err := m.skip(m.run[i-1], child, into); err != nil {
				return fmt.Errorf("make %s the parent of %s: %w", into.current().path, m.run[i-1].current().path, err)
			}
		}
	}
	return m.tidy()
}

// push merges child into its parent; the steps are those that Merge tells of.
func (m *merge) push(child, parent *Image) error {
	own := child.current().headers.header().DataWriteGUID
	share, err := m.newSharing(child, parent)
	if err != nil {
		return err
	}
	if err := handOver(child, parent, newMixed()); err != nil {
		return err
	}
	if child.Size() != parent.Size() {
		if err := parent.Resize(m.ctx, child.Size()); err != nil {
			return err
		}
		child.current().setParent(parent.current())
	}
	if err := m.copyDown(child, parent, share); err != nil {
		return err
	}
	if err := settle(parent); err != nil {
		return err
	}
	if err := handOver(child, parent, own); err != nil {
		return err
	}
	return child.writer.expectParent(own, uuid.Nil)
}

// settle makes durable what was written to a parent, before it says that it is another disk.
func settle(parent *Image) error { return parent.Clean() }

// handOver gives the parent another DataWriteGuid, which the child knows before.
func handOver(child, parent *Image, coming uuid.UUID) error {
	if err := child.writer.expectParent(parent.current().headers.header().DataWriteGUID, coming); err != nil {
		return err
	}
	return parent.writer.setDataWrite(coming)
}

// skip makes into the parent of above instead of between, which was merged into it.
func (m *merge) skip(above, between, into *Image) error {
	// On Windows they are in the places that the image between knows.
	var further []string
	for _, key := range []string{ondisk.KeyVolumePath, ondisk.KeyAbsolutePath} {
		if p := between.current().meta.locator.Values[key]; p != "" {
			if _, _, err := windowsPath(p); err == nil {
				further = append(further, p)
			}
		}
	}
	keys, err := parentKeys(above.current().path, into.current().path, further, into.current().headers.header().DataWriteGUID)
	if err != nil {
		return err
	}
	if err := above.writer.linkParent(keys); err != nil {
		return err
	}
	above.current().setParent(into.current())
	return nil
}

// copyDown writes to parent what child holds, or shares it.
func (m *merge) copyDown(child, parent *Image, share *sharing) error {
	total := int64(0)
	err := m.eachHeld(child, child.Extent, mergePiece, func(e Extent) error {
		if e.File != nil {
			total += e.Len
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.Phase("merge "+m.name(child.current()), total)
	buf := make([]byte, mergePiece)
	unsynced := int64(0)
	write := func(e Extent, from, to int64) error {
		if from == to {
			return nil
		}
		e.FileOff, e.DiskOff, e.Len = e.FileOff+from-e.DiskOff, from, to-from
		p := buf[:e.Len]
		if err := e.Read(p); err != nil {
			return err
		}
		_, err := parent.WriteAt(p, e.DiskOff)
		return err
	}
	return m.eachHeld(child, child.Extent, mergePiece, func(e Extent) error {
		if e.File == nil {
			m.result.Zero += e.Len
			return parent.Zero(e.DiskOff, e.Len)
		}
		from, to, err := share.part(e)
		if err != nil {
			return err
		}
		if err := write(e, e.DiskOff, from); err != nil {
			return err
		}
		done, err := share.do(e, from, to)
		if err != nil {
			return err
		}
		if err := write(e, done, e.End()); err != nil {
			return err
		}
		m.result.Data += e.Len
		m.result.Shared += done - from
		m.Shared(done - from)
		m.Progress(e.Len)
		if unsynced += e.Len; unsynced >= syncEvery { // so that other syncs of the host's disk need not wait for more
			unsynced = 0
			if err := parent.Sync(); err != nil {
				return err
			}
		}
		return m.pace.wait(m.ctx, e.Len)
	})
}

// name returns how progress names an image.
func (m *merge) name(l *layer) string { return filepath.Base(l.path) }

// eachHeld calls do for every piece of the disk that im itself holds, as data or as zeros that hide its parent: data
// in pieces that end at multiples of piece at the latest, zeros as next finds them: it returns the extent that begins at a byte.
func (m *merge) eachHeld(im *Image, next func(off int64) (Extent, error), piece int64, do func(Extent) error) error {
	for off := int64(0); off < im.Size(); {
		if err := context.Cause(m.ctx); err != nil {
			return err
		}
		e, err := next(off)
		if err != nil {
			return err
		}
		if e.Layer == 0 && e.File != nil {
			e.Len = min(e.Len, piece-off%piece)
		}
		off = e.End()
		if e.Layer > 0 {
			continue
		}
		if err := do(e); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes and renames files as the options want it. The images are clean and their locks are held.
func (m *merge) tidy() error {
	last := len(m.run) - 1
	for i, im := range m.run[:last] {
		if err := im.Clean(); err != nil {
			return err
		}
		if m.Delete && !(i == 0 && m.KeepName) {
			p, err := im.location()
			if err == nil {
				err = errors.Join(p.remove(), p.Close())
			}
			if err != nil {
				return fmt.Errorf("the merge is done, but: %w", err)
			}
		}
	}
	if !m.KeepName {
		return nil
	}
	if err := m.run[last].Clean(); err != nil {
		return err
	}
	if err := m.takeName(m.run[0], m.run[last]); err != nil {
		return fmt.Errorf("the merge is done, but: %w", err)
	}
	m.result.Path = m.run[0].current().path
	return nil
}

// takeName gives the name of the image top to the merged one, durably.
func (m *merge) takeName(top, merged *Image) error {
	to, err := top.location()
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := merged.location()
	if err != nil {
		return err
	}
	defer from.Close()
	_, err = takeName(from, to)
	return err
}

// takeName gives the name of one file to another, durably. It reports whether it has that.
func takeName(from, to *location) (done bool, err error) {
	if !to.Same(from.Dir) {
		return false, fmt.Errorf("%s and %s are no longer in the same directory", from.path(), to.path())
	}
	if err := errors.Join(from.check(), to.check()); err != nil {
		return false, err
	}
	if err := to.Rename(from.name, to.name); err != nil {
		return false, err
	}
	return true, to.Sync()
}

// location returns where the image itself is, for removing and renaming, and an error if another file is there by now, or if
// another host has the image.
func (im *Image) location() (*location, error) {
	if err := ours(im.current().file); err != nil {
		return nil, err
	}
	p, err := locationOf(im.current().file, im.current().path)
	if err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}
