package vhdx

import "fmt"

// clean makes everything durable and in its place, and the headers say that there is nothing to replay.
func (w *writer) clean() error { return w.cleanThen(func() error { return nil }) }

// cleanAndShrink makes the image clean and cuts free space off the end of the file before the next change.
func (w *writer) cleanAndShrink() error { return w.cleanThen(w.shrink) }

// leave is cleanAndShrink for an image that has no writers for now; if there was no change, the file stays as it is.
func (w *writer) leave() error { return w.cleanThen(w.shrinkChanged) }

// shrinkChanged is shrink for a file that was changed since it was opened.
func (w *writer) shrinkChanged() error {
	if !w.headers.everChanged() {
		return nil
	}
	return w.shrink()
}

// cleanThen makes the image clean and calls do before the next change. The holes in the file come last, without the gate,
// so that no change has to wait for them. They lie where nothing is mapped and no read looks, and the allocator gives none of
// that space away while it makes one.
func (w *writer) cleanThen(do func() error) (err error) {
	defer w.catch(&err)
	if err := w.cleanAlone(do); err != nil {
		return err
	}
	w.space.giveBack()
	return nil
}

// cleanAlone is cleanThen without the holes. With the gate held alone no change is under way: after emptyLog nothing becomes
// dirty until do has returned, and the headers stay true.
func (w *writer) cleanAlone(do func() error) error {
	w.gate.Lock()
	defer w.gate.Unlock()
	w.committer.mu.Lock()
	defer w.committer.mu.Unlock()
	return w.makeCleanThen(do)
}

// makeClean does what clean does. The caller holds the gate alone, and the committer's mu.
func (w *writer) makeClean() error { return w.makeCleanThen(func() error { return nil }) }

// makeCleanThen makes everything durable and in its place, and calls do. What follows is another change, which is
// announced anew. The caller holds the gate alone, and the committer's mu.
func (w *writer) makeCleanThen(do func() error) error {
	if err := w.committer.emptyLog(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	w.headers.cleaned()
	return nil
}

// close makes the image clean, gives free space at the end of the file back, and ends the writer.
func (w *writer) close() error {
	w.stop()
	return w.leave()
}

// sync makes everything durable that was written before the call.
func (w *writer) sync() error { return w.committer.sync() }

// stop ends what goes on in the background.
func (w *writer) stop() { w.worker.stop() }

func (w *writer) tidy() error    { return w.committer.tidy() }
func (w *writer) anyFreed() bool { return w.space.anyFreed() }
func (w *writer) giveBack()      { w.space.giveBack() }

// shrink cuts free space off the end of the file, which takes less time than a hole; that before it is left to giveBack.
// The log is empty, so no entry speaks of the larger size, and the caller holds the gate alone, and the committer's mu. The cut is a
// change of the file, which the headers tell of.
func (w *writer) shrink() error {
	if w.file.IsDevice() || !w.knowsSpace() {
		return nil
	}
	end, size := w.space.usedEnd()
	if end >= size {
		return nil
	}
	if err := w.announce(fileWrite); err != nil {
		return err
	}
	if err := w.committer.emptyLog(); err != nil { // damaged region tables come into the log with the announcement
		return err
	}
	// With the gate held alone no block can be put behind end meanwhile, and nothing names what is there. So a power cut before
	// the sync leaves a valid image with either size.
	if err := w.space.cut(end); err != nil {
		return fmt.Errorf("shrink the image to %d bytes: %w", end, err)
	}
	return nil
}

// knowsSpace reports whether it is known which space of the file is free. After a replay, which is a change of the file, it may not
// be known yet, and nothing waits for it here: the space stays, for a writer that comes later.
func (w *writer) knowsSpace() bool {
	if w.space.settled.Load() {
		return true
	}
	l := w.current()
	if !l.wasValidated() || l.mayGrow() != nil {
		return false
	}
	w.space.settle(l)
	return true
}
