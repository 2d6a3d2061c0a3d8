package vhdx

import (
	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// An edit is one change of metadata: of a BAT entry, or of several that belong together with bits of sector
// bitmaps. It becomes visible, and part of one log entry, as a whole.
type edit struct {
	w      *writer
	kind   writeKind
	claim  int
	pages  []dirtyPage // pinned
	places []place     // allocated, and not mapped yet
}

// edit begins a change of the given kind that touches at most claim pages. It waits until so many may become dirty,
// which can take a sync round. While there is no space for what was changed before it fails. The caller announces the
// change, defers end, and makes the change with apply.
func (w *writer) edit(kind writeKind, claim int) (*edit, error) {
	if err := w.committer.unstick(); err != nil {
		return nil, err
	}
	return w.editFreeing(kind, claim)
}

// editFreeing is edit for a change that gives up space, of which there may be none otherwise.
func (w *writer) editFreeing(kind writeKind, claim int) (*edit, error) {
	if err := w.dirty.claim(claim, w.err, w.sync); err != nil {
		return nil, err
	}
	return &edit{w: w, kind: kind, claim: claim}, nil
}

// page returns page i of span, to be changed in apply. The first time its place gets space: later, when the page has to
// go there, there may be none left. What the page holds says nothing about that: a hole may have been read as zeros, and
// with small blocks of the host's file system a part of a page may be one.
func (e *edit) page(span *cache.Span, i int64) (*cache.Page, error) {
	for _, d := range e.pages {
		if d.span == span && d.page == i {
			return d.p, nil
		}
	}
	p, err := span.Pin(i)
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			span.Unpin(i)
		}
	}()
	// The flag is set once, and goes with the page. So to find it set without a lock is enough, and to find it not set is
	// looked at again with fillMu held.
	if !p.HasSpace() {
		// Held until the page is known to have space. No other edit changes the page before, so what is written to its
		// place is what it holds there.
		e.w.fillMu.Lock()
		defer e.w.fillMu.Unlock()
		if !p.HasSpace() {
			if err := e.w.announce(e.kind); err != nil {
				return nil, err
			}
			var b [ondisk.PageSize]byte
			p.Encode(&b)
			if err := e.w.space.reserve(span.Offset(i), b[:]); err != nil {
				return nil, err
			}
		}
	}
	p.SetHasSpace()
	kept = true
	e.pages = append(e.pages, dirtyPage{span, i, p})
	return p, nil
}

// batPage returns the BAT page that holds entry i, and the entry's word in it.
func (e *edit) batPage(i int64) (p *cache.Page, word int, err error) {
	p, err = e.page(e.w.current().bat, i/ondisk.EntriesPerPage)
	return p, int(i % ondisk.EntriesPerPage), err
}

// apply makes the change with do, which sets words of the pages and must not wait for anything. Whatever the words name is in
// the file by now. Reads, which take no lock, may see one word before the next, so do sets first what others refer to. A
// round sees all or nothing of it, since it copies pages with the same lock held; a change of bytes alone it learns of from
// changed.
func (e *edit) apply(do func()) {
	e.w.dirty.apply(&e.pages, func() {
		do()
		e.places = nil // they are mapped, and end must not give them back
		e.w.changed()
	})
}

// end ends an edit. What was not applied, as after an error or a panic, leaves no claim, no pin and no space taken.
func (e *edit) end() {
	for _, p := range e.places {
		e.w.space.release(p)
	}
	e.w.dirty.unclaim(e.claim, e.pages)
	e.pages, e.places, e.claim = nil, nil, 0
}

// allocate finds space for size bytes, which apply maps.
func (e *edit) allocate(size int64) (place, error) {
	at, err := e.w.space.allocate(size)
	if err == nil {
		e.places = append(e.places, at)
	}
	return at, err
}
