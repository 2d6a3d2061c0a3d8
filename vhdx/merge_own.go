package vhdx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

const (
	// ownPiece is how many bytes of the image itself are copied at once: as long as they are read, changes of their block wait.
	ownPiece = 1 * ondisk.MiB

	// lastBytes is how much may be left to copy while all changes of the disk wait.
	lastBytes = 8 * ondisk.MiB

	// freePasses is how often what was changed meanwhile is copied before that slows down who changes it.
	freePasses = 3
)

// mergeOwn merges the image itself into its parent, which is written to from then on.
//
// What the image holds is copied while it changes. Each change is noted after it was made, and what was changed is copied again,
// the last part of it while changes wait. So the parent gets, byte by byte, what was on the disk at some moment since the begin.
// As long as the image is there, it hides what it holds; what it holds after a cut it held durably, and where it holds less than
// was copied, because that was not synced, the parent shows a version that was written since the last sync.
//
// Then, while changes wait and both images are clean, the identity is handed over as the function Merge does it, and the parent
// becomes the image that is written. Its first change gives it a new DataWriteGuid, from which on the child does not accept it any
// more, and which no child has. With KeepName it has the name of the child before that, durably.
func (m *liveMerge) mergeOwn(into *Image) error {
	if err := m.copyOwn(into); err != nil {
		return fmt.Errorf("merge %s into %s: %w", m.layers[0].path, m.result.Into, err)
	}
	return m.changeOver(into)
}

// copyOwn writes to the parent what the image holds, but for the last changes.
func (m *liveMerge) copyOwn(into *Image) error {
	if err := handOver(m.im, into, newMixed()); err != nil {
		return err
	}
	if m.im.Size() != into.Size() {
		if err := into.Resize(m.ctx, m.im.Size()); err != nil {
			return err
		}
	}
	m.changes = newFollower(m.im.Size())
	m.w.follow(m.changes)
	m.buf = make([]byte, ownPiece)
	if err := m.copyAll(into); err != nil {
		return err
	}
	before := int64(0)
	for pass, slow := 1, time.Duration(0); ; pass++ {
		if err := into.Sync(); err != nil { // so that little is left to sync while changes wait
			return err
		}
		left := m.changes.bytes()
		if left <= m.lastBytes {
			return nil
		}
		if pass > freePasses && left > before/2 {
			slow = max(1, 2*slow)
		}
		before = left
		m.Phase("merge what was written meanwhile", left)
		if err := m.copyChanged(into, slow); err != nil {
			return err
		}
	}
}

// copyAll writes to the parent what the image holds.
func (m *liveMerge) copyAll(into *Image) error {
	total := int64(0)
	err := m.eachOwn(func(e Extent) error {
		if e.File != nil {
			total += e.Len
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.Phase("merge "+m.name(m.layers[0]), total)
	unsynced := int64(0)
	return m.eachOwn(func(e Extent) error {
		n, err := m.copyOwnPiece(into, e.DiskOff, e.Len, m.alone)
		if err != nil {
			return err
		}
		m.Progress(n)
		if unsynced += n; unsynced >= syncEvery {
			unsynced = 0
			if err := into.Sync(); err != nil {
				return err
			}
		}
		return m.pace.wait(m.ctx, n)
	})
}

// eachOwn calls do for every piece of the disk that the image itself holds, or held a moment ago.
func (m *liveMerge) eachOwn(do func(Extent) error) error {
	look := func(off int64) (Extent, error) { return m.im.look(off, m.im.Size()) }
	return m.eachHeld(m.im, look, ownPiece, do)
}

// alone calls do while nothing changes the block that has byte off.
func (m *liveMerge) alone(off int64, do func() error) error {
	return m.w.aloneAt(off, func(int64, *ondisk.Geometry) error { return do() })
}

// heldAlone is alone for a caller that holds the gate alone.
func heldAlone(_ int64, do func() error) error { return do() }

// copyOwnPiece writes to the parent what the image holds of the n bytes from off on, which are in one block and not more than
// ownPiece, unless they are zeros. It returns how many bytes of data it has written.
func (m *liveMerge) copyOwnPiece(into *Image, off, n int64, alone func(off int64, do func() error) error) (written int64, err error) {
	var parts []Extent
	err = alone(off, func() error {
		for at := off; at < off+n; {
			e, err := m.im.look(at, off+n)
			if err != nil {
				return err
			}
			at = e.End()
			if e.Layer > 0 {
				continue
			}
			if e.File != nil {
				if n > ownPiece {
					// It was all zeros before. The change may have been noted before the part was forgotten.
					m.changes.changed(e.DiskOff, e.Len)
					continue
				}
				if err := e.Read(m.buf[e.DiskOff-off:][:e.Len]); err != nil {
					return err
				}
			}
			parts = append(parts, e)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, e := range parts {
		if e.File == nil {
			m.result.Zero += e.Len
			err = into.Zero(e.DiskOff, e.Len)
		} else {
			_, err = into.WriteAt(m.buf[e.DiskOff-off:][:e.Len], e.DiskOff)
			m.result.Data += e.Len
			written += e.Len
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// copyChanged writes to the parent what was changed meanwhile. If slow is not zero, all changes wait while a part is copied, and
// then get as much time as that took, divided by slow: so there is an end to it, however fast the disk is written.
func (m *liveMerge) copyChanged(into *Image, slow time.Duration) (err error) {
	for off := int64(0); ; {
		if err := context.Cause(m.ctx); err != nil {
			return err
		}
		at, more := m.changes.next(off)
		if !more {
			return nil
		}
		begun, copied := time.Now(), int64(0)
		if slow > 0 {
			copied, off, err = m.copyHeld(into, at)
		} else {
			copied, off, err = m.copyPart(into, at, m.alone)
		}
		if err != nil {
			return err
		}
		m.Progress(copied)
		if slow > 0 {
			time.Sleep(time.Since(begun) / slow)
		} else if err := m.pace.wait(m.ctx, copied); err != nil {
			return err
		}
	}
}

// copyHeld copies what was changed in ownPiece bytes from off on, while all changes wait.
func (m *liveMerge) copyHeld(into *Image, off int64) (copied, end int64, err error) {
	m.w.gate.Lock()
	defer m.w.gate.Unlock()
	last := off + ownPiece
	for more := true; more && off < last; off, more = m.changes.next(end) {
		n := int64(0)
		if n, end, err = m.copyPart(into, off, heldAlone); err != nil {
			break
		}
		copied += n
	}
	return copied, end, err
}

// copyPart copies the part that begins at off, or, if its block has nothing but zeros, the block. It returns how many bytes of data
// that were, and where they end.
func (m *liveMerge) copyPart(into *Image, off int64, alone func(off int64, do func() error) error) (copied, end int64, err error) {
	g := &m.w.current().geo
	from, end := off, min(off+m.changes.part(), g.DiskSize)
	block := off >> g.BlockShift
	if e, err := m.im.look(block<<g.BlockShift, g.BlockEnd(block)); err == nil && e.Layer == 0 && e.File == nil && e.End() == g.BlockEnd(block) {
		from, end = e.DiskOff, e.End()
	}
	for at := from; at < end; at += m.changes.part() {
		m.changes.take(at) // before it is read; see writer.noted
	}
	copied, err = m.copyOwnPiece(into, from, end-from, alone)
	return copied, end, err
}

// changeOver copies the last changes and makes the parent the image that is written. Until it has the identity of the image, an
// error leaves everything as it is.
func (m *liveMerge) changeOver(into *Image) error {
	w := m.w
	if err := errors.Join(into.Clean(), w.clean()); err != nil { // most of it is done before any change has to wait
		return err
	}
	ctx, cancel := context.WithTimeout(m.ctx, endPatience)
	_ = into.writer.space.drain(ctx) // else that space is free when the image is opened again
	cancel()
	old := w.current()
	if err := m.swap(into); err != nil {
		return err
	}
	// Reads that began before have ended.
	delete(m.opened, into)
	var err error
	if m.Delete && !m.KeepName {
		if rerr := m.files.remove(old); rerr != nil {
			err = fmt.Errorf("the merge is done, but: %w", rerr)
		}
	}
	_ = old.abandon() // what was written by it is durable, or in the parent
	return err
}

// swap is the part of changeOver in which all changes of the disk wait.
func (m *liveMerge) swap(into *Image) (err error) {
	w, p := m.w, into.writer
	w.gate.Lock()
	defer w.gate.Unlock()
	w.committer.mu.Lock()
	defer w.committer.mu.Unlock()
	stays := !m.Delete && !m.KeepName
	if stays {
		err = w.makeCleanThen(w.shrinkChanged)
	} else {
		err = w.makeClean()
	}
	if err != nil {
		return err
	}
	for off, more := m.changes.next(0); more; off, more = m.changes.next(off) {
		if _, off, err = m.copyPart(into, off, heldAlone); err != nil {
			return err
		}
	}
	if err := settle(into); err != nil {
		return err
	}
	if err := context.Cause(m.ctx); err != nil {
		return err
	}
	own := w.headers.now().DataWriteGUID
	if err := w.replaceLocator(w.expecting(into.current().dataWriteGUID(), own)); err != nil {
		return err
	}
	if err := p.setDataWrite(own); err != nil {
		return err
	}
	if err := into.Clean(); err != nil {
		return err
	}
	path := into.current().path
	switch {
	case m.KeepName:
		path = w.current().path
		if done, err := m.files.rename(into.current(), w.current()); done && err != nil {
			// After a cut the name may be that of the one or of the other, and they must not differ.
			return w.fail(fmt.Errorf("make the name %s durable: %w", path, err))
		} else if err != nil {
			return err
		}
		m.result.Path = path
	case stays:
		if err := w.replaceLocator(w.expecting(own, uuid.Nil)); err != nil {
			return err
		}
	}
	l := into.current().as(path)
	l.file = m.opened[into].frozen.file
	p.stop() // from here on the space of the file has another owner
	size, waiting := p.space.handOver()
	l.fileSize = size
	w.replace(l, true)
	w.space.inherit(waiting)
	w.follower.Store(nil)
	parentChanges.Add(1)
	w.space.awaitReads()
	return nil
}
