package vhdx

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// SharedLayers returns the pairs of layers of im and o that are the same file.
func (im *Image) SharedLayers(o *Image) map[[2]int]bool {
	shared := make(map[[2]int]bool)
	i := 0
	for a := im.current(); a != nil; a = a.parent() {
		j := 0
		for b := o.current(); b != nil; b = b.parent() {
			if imagefile.Same(a.file, b.file) {
				shared[[2]int{i, j}] = true
			}
			j++
		}
		i++
	}
	return shared
}

// A Link is one file of a chain, and how it is linked to its parent.
type Link struct {
	Path          string    `json:"path"`
	Type          DiskType  `json:"type,omitempty"` // "" where the file cannot be examined
	DiskSize      int64     `json:"disk_size"`      // bytes
	FileSize      int64     `json:"file_size"`      // bytes
	Allocated     int64     `json:"allocated_bytes"`
	DataWriteGUID uuid.UUID `json:"data_write_guid"`
	Log           LogState  `json:"log,omitempty"`

	Linkage *uuid.UUID `json:"parent_linkage,omitempty"` // the DataWriteGuid that the parent has to have
	State   LinkState  `json:"link,omitempty"`           // "" where there is no parent
	Problem string     `json:"problem,omitempty"`        // what is wrong with the link, or with the file
	Parent  *Link      `json:"parent,omitempty"`         // the file that is the parent, or is where it should be

	err error // of the file that is Parent
}

// Locked returns the error of the first parent that another program keeps from being examined, and nil where there is none.
func (k *Link) Locked() *LockedError {
	for ; k != nil; k = k.Parent {
		if locked, ok := errors.AsType[*LockedError](k.err); ok {
			return locked
		}
	}
	return nil
}

// LinkState says whether a differencing image and its parent fit.
type LinkState string

// The states of Link.State.
const (
	Linked         LinkState = "linked"
	ParentMissing  LinkState = "parent missing"  // no file is where it may be
	ParentChanged  LinkState = "parent changed"  // a file is there, with another DataWriteGuid
	ParentUnusable LinkState = "parent unusable" // a file is there that is damaged, in use, or no parent by another rule
)

// Chain examines the image at path and its parents one by one, and goes on as far as there are files where parents
// may be, whether they fit or not. The error concerns the image itself.
func Chain(path string, o Options) (*Link, error) { return newOpener(o).link(path, math.MaxInt, nil) }

// ParentLink is Chain for the image and its parent alone. It does not look at what blocks they have, which for large
// disks takes time.
func ParentLink(path string, o Options) (*Link, error) {
	op := newOpener(o)
	op.skim = true
	return op.link(path, 1, nil)
}

// LinkTo is ParentLink for an image that may be the child of one with one of the DataWriteGuids. For any other image it does not
// look for the parent, and State is "". A directory may hold hundreds of images, of which few or none are children of one.
func LinkTo(guids []uuid.UUID, path string, o Options) (*Link, error) {
	op := newOpener(o)
	op.skim = true
	return op.link(path, 1, func(p *ondisk.ParentLocator) bool { return o.AnyParent || slices.ContainsFunc(guids, p.Accepts) })
}

// link is Chain for so many parents at the most, and for none if wanted is not nil and false for the image itself.
func (op *opener) link(path string, parents int, wanted func(*ondisk.ParentLocator) bool) (*Link, error) {
	op.writing, op.Writable = 0, false
	defer func() {
		for _, l := range op.chain {
			_ = l.abandon() // only read
		}
	}()
	l, err := op.openLayer(path, os.O_RDONLY, imagefile.Shared)
	if err != nil {
		return nil, err
	}
	op.chain = append(op.chain, l)
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	first := l.link()
	if l.geo.HasParent && wanted != nil && !wanted(l.meta.locator) {
		return first, nil
	}
	for link := first; l.geo.HasParent && parents > 0; parents-- {
		if l = op.nextLink(l, link); l == nil {
			break
		}
		link = link.Parent
		if link.Type == "" { // it cannot be examined
			break
		}
	}
	return first, nil
}

func (l *layer) link() *Link {
	k := &Link{
		Path: l.path, Type: l.diskType(), DiskSize: l.geo.DiskSize, FileSize: l.fileSize, Allocated: l.allocated(),
		DataWriteGUID: l.headers.header().DataWriteGUID, Log: l.logInfo().State,
	}
	if l.meta.locator != nil {
		k.Linkage = &l.meta.locator.Linkage
	}
	return k
}

// nextLink finds the file that is the parent of l, or the one that comes nearest, says in link how they fit, and
// returns the parent, which is part of the chain then, or nil if there is no file.
func (o *opener) nextLink(l *layer, link *Link) *layer {
	if len(o.chain) == maxLayers {
		link.State, link.Problem = ParentUnusable, fmt.Sprintf("the chain has more than %d images", maxLayers)
		return nil
	}
	link.State = ParentMissing
	var best *layer
	for c := range o.search(l) {
		if c.refused != nil {
			if link.Problem == "" {
				link.Problem = fmt.Sprintf("%s (%s): %v", c.path, c.origin, c.refused)
			}
			continue
		}
		p, err := o.openCandidate(c, os.O_RDONLY, imagefile.Shared)
		if c.missing = errors.Is(err, os.ErrNotExist); c.missing {
			if link.Problem == "" {
				link.Problem = fmt.Sprintf("%s (%s): no such file", c.path, c.origin)
			}
			continue
		}
		state, k := ParentUnusable, &Link{Path: c.path}
		if err == nil {
			if err = o.checkCandidate(l, p, c); err == nil {
				state = Linked
			} else if ruleOf(err) == ondisk.RuleParentChanged {
				state = ParentChanged
			}
			if p.bat != nil || state == Linked { // without a BAT, where that was not looked at
				k = p.link()
			}
		}
		if link.Parent != nil && state != Linked { // the first that is there has told what is wrong
			if p != nil {
				_ = p.abandon()
			}
			continue
		}
		if best != nil {
			_ = best.abandon()
		}
		best, link.State, link.Parent, link.Problem, link.err = p, state, k, "", err
		if err != nil {
			link.Problem = err.Error()
		}
		if state == Linked {
			break
		}
	}
	if best != nil {
		o.chain = append(o.chain, best)
	}
	return best
}
