package vhdx

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// ErrParentMismatch is matched by the error for a parent that was changed since its child was made, or is another
// disk.
var ErrParentMismatch = errors.New("the parent does not fit")

// SetParentOptions says how to name another parent.
type SetParentOptions struct {
	Open        Options  // Parents, of the new parent, ParentDirs, CacheSize and Lock count
	ParentPaths []string // as in CreateOptions
	Unsafe      bool     // take a parent with another identity
	DryRun      bool     // check all of this, and change nothing
}

// SetParentResult says what SetParent did.
type SetParentResult struct {
	Path    string    `json:"path"`
	Parent  string    `json:"parent"`
	Linkage uuid.UUID `json:"parent_linkage"` // the parent's DataWriteGuid
	Foreign bool      `json:"foreign_parent"` // its identity is not the one that was expected
	DryRun  bool      `json:"dry_run,omitempty"`
}

// SetParent makes the differencing image at path name the file at parent as its parent: for one that has moved, or
// another that holds the same. Parent and child are checked as at every opening; an error that matches
// ErrParentMismatch says that only the identity is another one, which Unsafe allows. The locator changes in one entry
// of the log, so that a cut leaves the old one or the new one.
//
// With a foreign parent the disk reads as something else, which no child of the image may mistake for what it was:
// DataWriteGuid is renewed, durably, before the locator changes.
func SetParent(path, parent string, o SetParentOptions) (_ *SetParentResult, err error) {
	o.Open.Writable, o.Open.AnyParent, o.Open.Commit, o.Open.IdleClean = false, false, 0, 0
	o.Open.Mixed = true // it may be the child that is merged into the parent, which has to find it for that
	// The new parent has to be sound by itself, with parents of the right identity, even if the options allow others.
	p, err := Open(parent, o.Open)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	defer func() { err = errors.Join(err, p.Close()) }()

	if p.Holds(path) {
		return nil, optionsError{fmt.Errorf("%s cannot become the parent of %s: it is the same image, or a child of it", parent, path)}
	}
	linkage := p.current().headers.header().DataWriteGUID
	keys, err := parentKeys(path, parent, o.ParentPaths, linkage)
	if err != nil {
		return nil, optionsError{err}
	}
	op := newOpener(o.Open)
	op.writing, op.Parents, op.AnyParent = 1, append([]string{parent}, o.Open.Parents...), true
	if o.DryRun {
		op.writing = 0
	}
	top, err := op.open(path)
	if err != nil {
		return nil, err
	}
	foreign, err := checkNewParent(top, p.current(), o.Unsafe)
	if err != nil {
		return nil, errors.Join(err, top.close())
	}
	if o.DryRun {
		return &SetParentResult{Path: path, Parent: parent, Linkage: linkage, Foreign: foreign, DryRun: true}, top.close()
	}
	run, closeAll, err := runOf(op, top, 1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	w := run[0].writer
	if foreign {
		if err := w.setDataWrite(uuid.New()); err != nil {
			return nil, err
		}
	}
	if err := w.linkParent(keys); err != nil {
		return nil, err
	}
	return &SetParentResult{Path: path, Parent: parent, Linkage: linkage, Foreign: foreign}, nil
}

// checkNewParent checks that p can become the parent of l, and reports whether its identity is another one than l
// expects.
func checkNewParent(l, p *layer, unsafe bool) (foreign bool, err error) {
	if !l.geo.HasParent {
		return false, optionsError{fmt.Errorf("%s has no parent", l.path)}
	}
	got := p.headers.header().DataWriteGUID
	if l.meta.locator.Accepts(got) {
		return false, nil
	}
	for _, i := range []*layer{l, p} {
		if IsMixed(i.headers.header().DataWriteGUID) {
			return true, fmt.Errorf("%s: %w", i.path, ErrMixed)
		}
	}
	if !unsafe {
		why := ondisk.Corrupt(ondisk.RuleParentChanged, "parent locator", l.meta.locatorOffset,
			"%s has changed since the child was created, or is another disk: its DataWriteGuid is %v, not %v", p.path, got, l.meta.locator.Linkage)
		return true, fmt.Errorf("%s: %w", l.path, errors.Join(ErrParentMismatch, why))
	}
	return true, nil
}
