package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// Snapshot freezes the image while it is in use: at one moment it becomes the parent of a new differencing child, and
// the disk goes on in that. What was written before is in the frozen image, durably, and it has no log to replay; what
// is written later goes to the child. Changes and syncs wait meanwhile, for as long as it takes to make a small file;
// reads go on. Only the options KeepName and ParentPaths count. name is the name that the new file gets in the
// directory of the image, without a path, or "".
//
// The child is complete, durable, locked, loaded and checked before it gets its name, and nothing is written to it
// before that name is durable. Until then an error leaves everything as it was. So after a cut either the image has
// everything, or the child with the image as its parent; with KeepName whichever has the image's name.
//
// The image's locks stay throughout, so that at no moment another program could write to it; in the end those are
// dropped that keep readers off.
func (im *Image) Snapshot(ctx context.Context, name string, o SnapshotOptions) (r *SnapshotResult, err error) {
	err = im.reshape(func(w *writer) error {
		r, err = im.snapshot(ctx, w, name, o)
		return err
	})
	return r, err
}

// snapshot does what Snapshot does, inside reshape.
func (im *Image) snapshot(ctx context.Context, w *writer, name string, o SnapshotOptions) (r *SnapshotResult, err error) {
	s, err := im.planSnapshot(ctx, name, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if r == nil {
			if err = errors.Join(err, s.undo()); err != nil && o.KeepName {
				err = &tempError{err, filepath.Base(s.first), filepath.Base(s.child)}
			}
		}
		s.place.Close()
	}()
	if err := s.begin(); err != nil {
		return nil, err
	}
	if err := w.clean(); err != nil { // most of it is synced before any change has to wait
		return nil, err
	}
	if err := s.freeze(); err != nil {
		return nil, err
	}
	w.log.Infof("%s is frozen; the disk continues in %s", s.frozen, s.child)
	return &SnapshotResult{Frozen: s.frozen, Child: s.child}, nil
}

// A liveSnapshot is one call of Image.Snapshot. Tests do its steps with files that lose power.
type liveSnapshot struct {
	ctx   context.Context
	im    *Image
	w     *writer
	o     SnapshotOptions
	file  File      // of the image
	place *location // likewise
	image string    // its path, no symbolic link

	frozen string   // what the image is called in the end
	child  string   // what the child is called in the end
	first  string   // and at first: with KeepName it takes the name of the image later
	linked bool     // the image got the name frozen from us
	b      *Builder // of the child
	named  bool     // the child may have its final name: nothing can be undone any more
}

// planSnapshot looks at what can be known before something is done.
func (im *Image) planSnapshot(ctx context.Context, name string, o SnapshotOptions) (plan *liveSnapshot, err error) {
	w := im.writer
	s := &liveSnapshot{ctx: ctx, im: im, w: w, o: o}
	path := w.current().path
	if s.file = w.file; s.file.IsDevice() {
		return nil, optionsError{fmt.Errorf("%s is not a regular file; unmount it, and name a child for it", path)}
	}
	if s.place, err = locationOf(s.file, path); err != nil {
		return nil, err
	}
	defer func() {
		if plan == nil {
			s.place.Close()
		}
	}()
	s.image = s.place.path() // its directory is where parent and child belong
	if own, err := s.place.mountedAlone(); err != nil {
		return nil, err
	} else if own {
		return nil, aloneError(s.image)
	}
	switch {
	case w.byOption:
		return nil, optionsError{fmt.Errorf("the parents of %s are given by parent= or overlay=, which would be wrong after the snapshot; unmount it first", path)}
	case name == "":
		name = s.place.Join(s.place.freeName(o.KeepName))
	case name != filepath.Base(name) || strings.Trim(name, ".") == "" || name == "/":
		return nil, optionsError{fmt.Errorf("%q is not a file name; the new file must be in the directory of the image", name)}
	default:
		name = filepath.Join(filepath.Dir(s.image), name)
	}
	s.frozen, s.child, s.first = s.image, name, name
	if o.KeepName {
		s.frozen, s.child, s.first = name, path, s.place.Join(newfile.TempName(s.place.name))
	}
	return s, nil
}

// begin gives the image its second name, and begins the child.
func (s *liveSnapshot) begin() (err error) {
	if s.o.KeepName {
		if s.linked, err = s.place.link(filepath.Base(s.frozen)); err != nil {
			return err
		}
		s.o.done("link")
	}
	o, err := CreateOptions{Parent: s.frozen, ParentPaths: s.o.ParentPaths}.childOf(s.im, s.first)
	if err != nil {
		return optionsError{err}
	}
	if s.b, err = newBuilder(s.ctx, s.first, o); err != nil {
		return err
	}
	s.o.done("begin")
	return nil
}

// undo removes what begin has made.
func (s *liveSnapshot) undo() (err error) {
	if s.named {
		return nil
	}
	if s.b != nil {
		err = s.b.Discard()
	}
	if s.linked {
		err = errors.Join(err, s.place.RemoveFile(filepath.Base(s.frozen), s.place.file)) // the image still has its own name
	}
	return err
}

// freeze makes the switch: nothing is changed from its begin to its end but by itself.
func (s *liveSnapshot) freeze() error {
	w := s.w
	w.gate.Lock()
	defer w.gate.Unlock()
	w.committer.mu.Lock()
	defer w.committer.mu.Unlock()
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return err
	}
	own, below, err := s.open()
	if err != nil {
		return err
	}
	child, err := s.load(own, below)
	if err == nil {
		err = s.giveNames(own)
	}
	if err != nil {
		return errors.Join(err, own.Close(), below.Close())
	}
	w.replace(child, true)
	err = s.release(below)
	// Reads that are still under way may use the file by the name it was opened with.
	w.space.awaitReads()
	_ = s.file.Close() // what was written by it is durable, and another descriptor remains
	return err
}

// release makes the image one that is only read. If another host has it by now, the child is not the disk any more, and what is
// written to it would be lost.
func (s *liveSnapshot) release(below File) error {
	err := ours(below)
	if err == nil {
		if err := below.Share(); err != nil {
			s.w.log.WithError(err).Warnf("%s stays locked against readers until the unmount", s.frozen)
		}
		if l := leaseOf(below); l != nil {
			err = l.Err()
		}
	}
	if err != nil {
		s.w.lease.Load().End(err)
	}
	return err
}

// settle makes the image what it is to be for good.
func (s *liveSnapshot) settle() error {
	if err := s.w.makeCleanThen(s.w.shrinkChanged); err != nil || !s.w.headers.everChanged() {
		return err
	}
	s.w.space.giveBack() // later there is no writer that could do it
	return nil
}

// finish completes the child of the image as that is now, durably.
func (s *liveSnapshot) finish() (err error) {
	if s.b.o.locator, err = parentKeys(s.first, s.frozen, s.o.ParentPaths, s.w.headers.now().DataWriteGUID); err != nil {
		return err
	}
	return s.b.Finish()
}

// open opens and locks the complete child, and returns it and the image by the names that they are going to have.
func (s *liveSnapshot) open() (own, below File, err error) {
	f, err := imagefile.Open(s.b.TempPath(), os.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() // another descriptor of it remains
	if err := f.Lock(s.w.lockMode, imagefile.Exclusive); err != nil {
		return nil, nil, err
	}
	a, err := safefile.AccessOf(s.place.file)
	if err == nil {
		err = s.b.give(a)
	}
	if err != nil {
		return nil, nil, err
	}
	if own, err = f.Named(s.child); err != nil {
		return nil, nil, err
	}
	if below, err = s.file.Named(s.frozen); err != nil {
		return nil, nil, errors.Join(err, own.Close())
	}
	if own, err = s.w.leaseNew(own, s.child); err != nil {
		return nil, nil, errors.Join(err, below.Close())
	}
	return own, below, nil
}

// load loads the child, and the image as its parent. Only reads use what it returns, before replace.
func (s *liveSnapshot) load(own, below File) (*layer, error) {
	l := s.w.current()
	child, parent := newLayer(own, s.child, l.cache), newLayer(below, s.frozen, l.cache)
	parent.setParent(l.parent())
	if err := child.load(); err != nil {
		return nil, err
	}
	if err := new(opener).checkParent(child, parent); err != nil {
		return nil, err
	}
	child.setParent(parent)
	s.o.done("complete")
	return child, nil
}

// giveNames gives the complete child its name, durably. An error leaves the image with its own; if that is not known,
// nothing is written any more.
func (s *liveSnapshot) giveNames(child File) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	for _, path := range []string{s.image, s.frozen} {
		if err := s.place.has(filepath.Base(path)); err != nil {
			return err
		}
	}
	if err := ours(s.file); err != nil {
		return err
	}
	first := filepath.Base(s.first)
	remove := func() error {
		d, _ := descriptorOf(child, s.first)
		return s.place.RemoveFile(first, d)
	}
	if err := s.b.Commit(); err != nil {
		return errors.Join(err, remove())
	}
	s.o.done("commit")
	if !s.o.KeepName {
		s.named = true
		return nil
	}
	err := ours(s.file)
	if err == nil {
		err = s.place.Rename(first, s.place.name)
	}
	if err != nil {
		return errors.Join(err, remove())
	}
	s.named = true
	s.o.done("rename")
	if err := s.place.Sync(); err != nil {
		// The name may be that of the one or of the other after a cut, and they must not differ.
		return s.w.fail(fmt.Errorf("make the name %s durable: %w", s.image, err))
	}
	return nil
}
