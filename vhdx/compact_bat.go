package vhdx

import "errors"

// moveBAT moves the BAT to free space before it, if there is any: one that has outgrown its region was put at the end
// of the file. It is a resize to the size that the disk has already: changes wait, reads go on. It reports whether the
// BAT has moved.
func (c *compaction) moveBAT() (moved bool, err error) {
	w := c.w
	w.gate.Lock()
	defer w.gate.Unlock()
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	r := newResizing(c.ctx, w, w.l.geo.diskSize)
	to, err := w.allocateBelow(w.l.geo.batLength(), r.batOff)
	if errors.Is(err, errNoHole) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r.places = append(r.places, to)
	if err := r.copyBAT(to); err != nil {
		r.undo()
		return false, err
	}
	err = r.commit()
	w.awaitReads()
	c.im.top = w.l
	return err == nil, err
}

// copyBAT copies the BAT to another place, which nobody looks at before the log says so.
func (r *resizing) copyBAT(to place) error {
	if err := r.w.makeClean(); err != nil { // or pages of the BAT might be newer in the log
		return err
	}
	if err := r.w.announce(fileWrite); err != nil { // nobody who reads the disk can tell
		return err
	}
	if err := r.placeBAT(to); err != nil {
		return err
	}
	return r.changeEntries(true)
}
