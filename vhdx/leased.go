package vhdx

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
)

// ErrTakenOver is matched by the error for an image that another host has taken over while it was open. It cannot be read or
// written here any more.
var ErrTakenOver = lease.ErrTakenOver

// TakenOverError says which host has the image.
type TakenOverError = lease.TakenOverError

// InUseError says which host was found to have an image in use while this one waited for it. It matches ErrLocked.
type InUseError = lease.InUseError

// HostText says which host has a lease, and since when, for people.
func HostText(host string, since time.Time) string {
	return lease.Epoch{Host: host, Since: since}.String()
}

// wantsLease reports whether a writer of f is to keep other hosts off.
func wantsLease(mode LockMode, f File) bool {
	return mode == LockLease || mode == "" && f.Host().Shared
}

// takeLease takes the lease of l, which was found valid and is going to be written, if it is to have one, and returns l as it is
// then. Before, its file was not changed.
func (o *opener) takeLease(l *layer) (*layer, *lease.File, error) {
	if !wantsLease(o.Lock, l.file) {
		return l, nil, nil
	}
	f, err := lease.Enter(l.file, o.leaseOptions(l.path))
	if err != nil {
		return l, nil, err
	}
	seen := l.headers.header()
	l.file = f
	if l.replay == nil {
		l.src = f
	}
	if !f.Waited && f.Before == seen { // nobody has written since l was loaded
		l.setHeader(f.Header())
		return l, f, nil
	}
	fresh := o.newLayer(f, l.path)
	if err := fresh.load(); err != nil {
		return l, nil, fmt.Errorf("after it was taken over: %w", err)
	}
	if err := fresh.sameDisk(l); err != nil {
		return l, nil, err
	}
	fresh.setParent(l.parent())
	return fresh, f, nil
}

// TellWait, if it is not nil, is called before a wait for another host, which takes some seconds, with the reason; nil logs it. It
// has to be set before any image is opened.
var TellWait func(why string)

func (o *opener) leaseOptions(path string) lease.Options {
	return lease.Options{Path: path, Log: o.Log, Waiting: TellWait}
}

// sameDisk returns an error if l is not what it was when it was loaded before, as another host has left it.
func (l *layer) sameDisk(before *layer) error {
	a, b := l.meta.locator, before.meta.locator
	if (a == nil) != (b == nil) || a != nil && a.Linkage != b.Linkage {
		return errors.New("another host has given it another parent meanwhile; try again")
	}
	return l.mayGrow()
}

// under makes f the lease that the writer has; nil is none.
func (w *writer) under(f *lease.File) {
	w.lease.Store(f)
	if f != nil {
		f.WhenLost(func(err error) {
			w.endWith(err)
			if do := w.whenTaken.Load(); do != nil {
				(*do)()
			}
		})
	}
}

// WhenTakenOver has do called when another host takes the image over. It must not wait for anything. It is called at once if that
// was so before.
func (im *Image) WhenTakenOver(do func()) {
	w := im.writer
	if w == nil {
		return
	}
	w.whenTaken.Store(&do)
	if l := w.lease.Load(); l != nil && l.Err() != nil {
		do()
	}
}

// leaseOf returns the lease that a file has, and nil without one.
func leaseOf(f File) *lease.File {
	if m, ok := f.(meteredFile); ok {
		f = m.File
	}
	l, _ := f.(*lease.File)
	return l
}

// ours returns an error if another host has taken f over. It comes before each change of a name of f, which goes through no File.
func ours(f File) error {
	if l := leaseOf(f); l != nil {
		return l.Check()
	}
	return nil
}

// withoutLease returns f as it is under its lease: its names are the same, whichever host has it.
func withoutLease(f File) File {
	if l := leaseOf(f); l != nil {
		return l.File
	}
	return f
}

// leaseNew takes the lease of a new image that goes on for one that has a lease. Where it fails, f is closed.
func (w *writer) leaseNew(f File, path string) (File, error) {
	if w.lease.Load() == nil {
		return f, nil
	}
	l, err := lease.EnterNew(f, lease.Options{Path: path, Log: w.log})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// newFileWrite returns a new FileWriteGuid, which tells of the lease if there is one.
func (w *writer) newFileWrite() uuid.UUID {
	if l := w.lease.Load(); l != nil {
		return l.NewGUID()
	}
	return uuid.New()
}

// confirmed returns an error if another host has taken the image over. It waits only where that was not looked at for too long.
func (im *Image) confirmed() error {
	if im.writer == nil {
		return nil
	}
	l := im.writer.lease.Load()
	if l == nil {
		return nil
	}
	return l.Check()
}

// holdLease takes the lease of the image in f for a caller that writes the headers itself, and returns nil where there is to be none.
func holdLease(mode LockMode, f File, o lease.Options) (*lease.File, error) {
	if !wantsLease(mode, f) {
		return nil, nil
	}
	return lease.Hold(f, o)
}

// heldElsewhere reports whether the headers of an image that is open for reading say that a host may be writing it.
func (im *Image) heldElsewhere(mode LockMode) (bool, error) {
	f := im.current().file
	if !wantsLease(mode, f) {
		return false, nil
	}
	_, held, err := lease.Holder(f)
	return held, err
}

// tellOfWriters logs which images of a chain, that are only going to be read, another host may be writing. Its locks would have kept
// this one off, but a storage may have lost them.
func (o *opener) tellOfWriters(l *layer) {
	if o.Log == nil {
		return
	}
	if o.Writable {
		l = l.parent()
	}
	for ; l != nil; l = l.parent() {
		if !wantsLease(o.Lock, l.file) {
			continue
		}
		for i, h := range l.headers.copies {
			e, leased := lease.EpochOf(h.FileWriteGUID)
			if l.headers.err[i] == nil && leased && !e.Released {
				o.Log.Warnf("%s was in use by another host (%s), and was not closed; if that host still writes it, what is read here may be wrong", l.path, e)
				break
			}
		}
	}
}

// A BrokenLease says what BreakLease did.
type BrokenLease struct {
	Path   string     `json:"path"`
	Broken bool       `json:"broken"` // false where there was no lease to break, and nothing was changed
	Lease  *LeaseInfo `json:"lease,omitempty"`
}

// BreakLease says in the headers of the image at path that no host writes it, so that the next writer need not wait. It fails with
// an error that matches ErrLocked where a program has the image locked. It is for images whose writer cannot write any more: one
// that is alive, and reaches the storage, is cut off by it.
func BreakLease(path string, o Options) (_ *BrokenLease, err error) {
	op := newOpener(o)
	l, err := op.openLayer(path, os.O_RDWR, imagefile.Exclusive)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.abandon()) }()
	op.skim, l.skim = true, true
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	e, broken, err := lease.Break(l.file, op.leaseOptions(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r := &BrokenLease{Path: path, Broken: broken}
	if broken && e != (lease.Epoch{}) {
		r.Lease = &LeaseInfo{State: LeaseHeld, Host: e.Host, Since: e.Since}
	}
	return r, nil
}
