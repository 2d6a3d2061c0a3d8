package vhdx

import (
	"errors"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// moveBAT moves the BAT to free space before it, if there is any: one that has outgrown its region was put at the end
// of the file. Where it stays, it loses what its region has too much, as after the disk became smaller. Either is a
// resize to the size that the disk has already: changes wait, reads go on. It reports whether there was something to do.
func (c *compaction) moveBAT() (moved bool, err error) {
	w := c.w
	w.gate.Lock()
	defer w.gate.Unlock()
	w.committer.mu.Lock()
	defer w.committer.mu.Unlock()
	r := newResizing(c.ctx, w, w.current().geo.DiskSize)
	bat, _ := w.current().tables.find(ondisk.BATRegionGUID)
	need := w.current().geo.BATLength()
	to, err := w.space.allocateBelow(need, r.batOff)
	switch {
	case err == nil:
		r.places = append(r.places, to)
		err = r.copyBAT(to)
	case !errors.Is(err, errNoHole):
	case need < int64(bat.Length):
		err = r.cutBAT(need)
	default:
		return false, nil
	}
	if err == nil {
		err = r.reserve()
	}
	if err != nil {
		r.undo()
		return false, err
	}
	err = r.commit()
	w.space.awaitReads()
	return err == nil, err
}

// copyBAT copies the BAT to another place, which nothing looks at before the log says so.
func (r *resizing) copyBAT(to place) error {
	if err := r.begin(); err != nil {
		return err
	}
	if err := r.placeBAT(to); err != nil {
		return err
	}
	return r.changeEntries(true)
}

// cutBAT has the region of the BAT end size bytes after its start.
func (r *resizing) cutBAT(size int64) error {
	if err := r.begin(); err != nil {
		return err
	}
	r.nameBAT(place{off: r.batOff, size: size})
	return nil
}

// begin makes the image clean, or pages of the BAT might be newer in the log, and announces a change that no reader
// of the disk can see.
func (r *resizing) begin() error {
	if err := r.w.makeClean(); err != nil {
		return err
	}
	return r.w.announce(fileWrite)
}
