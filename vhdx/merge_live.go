package vhdx

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// Merge does what the function Merge does while the disk is in use: it writes what an image of the chain holds into one
// that it is based on. child is the path of that image as Info tells it, "" for the image itself, and o.Into is another such
// path. Of o, Open does not count. Reads and writes go on.
//
// The steps are those that the function Merge tells of, done with the layers that are read meanwhile. The bytes of a parent that
// change are just those that its child hides, so each byte of the disk reads the same before and after each step, and a cut or an
// error leaves a chain that shows the disk. What is different:
//
//   - An image that was merged is left out of the chain in memory when the image above it names the result as its parent,
//     durably. Its file is removed and closed when the last read that may use it has ended.
//   - The image itself is written to while it is merged; see changeOver.
//
// The parents are locked against every other program as long as they change. ctx is looked at between two steps.
func (im *Image) Merge(ctx context.Context, child string, o MergeOptions) (r *MergeResult, err error) {
	err = im.reshape(func(w *writer) error {
		r, err = im.merge(ctx, w, child, o)
		return err
	})
	return r, err
}

// merge does what Merge does, inside reshape.
func (im *Image) merge(ctx context.Context, w *writer, child string, o MergeOptions) (*MergeResult, error) {
	withoutNil(&o.Phase, &o.Progress)
	if o.Shared == nil {
		o.Shared = func(int64) {}
	}
	m := &liveMerge{merge: merge{MergeOptions: o, ctx: ctx, pace: pace{rate: o.Rate}}, im: im, w: w, files: hostFiles{w.lockMode}, lastBytes: lastBytes}
	if err := m.plan(child); err != nil {
		return nil, err
	}
	if o.DryRun {
		return m.dryRun(), nil
	}
	if err := m.do(); err != nil {
		return nil, err
	}
	w.log.Infof("%s was merged into %s", m.result.Merged[len(m.result.Merged)-1], m.result.Path)
	return &m.result, nil
}

// A liveMerge is one call of Image.Merge. Tests do its steps with files that lose power.
type liveMerge struct {
	merge
	im     *Image
	w      *writer // of the disk
	files  chainFiles
	layers []*layer // those that take part, the child first, the result last
	over   *layer   // the child of the first; nil where that is the image itself

	above  *Image                // the same, with a writer
	opened map[*Image]*openedFor // the parents that have one

	changes   *follower // of the image itself, while it is copied
	buf       []byte    // for ownPiece bytes of it
	lastBytes int64     // how much of it may be left to copy while all changes wait
}

// plan looks at everything that can be known before something is changed.
func (m *liveMerge) plan(child string) error {
	own := m.w.current().path
	if m.w.byOption {
		return optionsError{fmt.Errorf("the parents of %s are given by parent= or overlay=; unmount it to merge", own)}
	}
	var chain []*layer
	first, last := -1, -1
	for l := m.w.current(); l != nil; l = l.parent() {
		if first < 0 && (l.path == child || child == "") {
			first = len(chain)
		} else if first >= 0 && last < 0 && (l.path == m.Into || m.Into == "") {
			last = len(chain)
		}
		chain = append(chain, l)
	}
	switch {
	case first < 0:
		return optionsError{fmt.Errorf("%s is not in the chain of %s", child, own)}
	case chain[first].parent() == nil:
		return optionsError{fmt.Errorf("%s has no parent to merge into", chain[first].path)}
	case last < 0:
		return optionsError{fmt.Errorf("%s is not a parent of %s", m.Into, chain[first].path)}
	}
	m.layers = chain[first : last+1]
	if first > 0 {
		m.over = chain[first-1]
	}
	for _, l := range chain[max(first-1, 0) : last+1] {
		switch {
		case l.file.IsDevice():
			return optionsError{fmt.Errorf("%s is not a regular file; unmount the disk to merge", l.path)}
		case wantsLease(m.w.lockMode, l.file):
			return optionsError{fmt.Errorf("%s can be used by other hosts, and parents have no lease; unmount the disk to merge", l.path)}
		case l.dataWriteGUID() == uuid.Nil:
			return fmt.Errorf("%s has no DataWriteGuid to identify it; use vhdxfs flatten instead", l.path)
		}
	}
	if err := checkSizes(m.layers); err != nil {
		return err
	}
	top, into := m.layers[0], m.layers[len(m.layers)-1]
	if first == 0 && m.Reflink == imagefile.ReflinkAlways {
		return optionsError{fmt.Errorf("%s is written to while it is merged, so it is copied; omit --reflink", own)}
	}
	if m.KeepName && filepath.Dir(realPath(into.path)) != filepath.Dir(realPath(top.path)) {
		return optionsError{fmt.Errorf("%s cannot be renamed to %s, which is in another directory", into.path, top.path)}
	}
	return nil
}

// dryRun says what do would do.
func (m *liveMerge) dryRun() *MergeResult {
	last := len(m.layers) - 1
	r := &MergeResult{Into: m.layers[last].path, Path: m.layers[last].path, DryRun: true}
	if m.KeepName {
		r.Path = m.layers[0].path
	}
	for _, l := range m.layers[:last] {
		r.Merged = append([]string{l.path}, r.Merged...)
		r.Data += l.allocated()
	}
	return r
}

// do merges the images one after the other, the lowest first. After an error those that were merged are not in the chain any more.
func (m *liveMerge) do() (err error) {
	defer func() {
		if eerr := m.end(); err == nil { // else it is most often the same error
			err = eerr
		}
	}()
	if err := m.open(); err != nil {
		return err
	}
	if m.Check != nil {
		if err := m.Check(); err != nil {
			return err
		}
	}
	last := len(m.run) - 1
	m.result.Into, m.result.Path = m.layers[last].path, m.layers[last].path
	for i := last - 1; i >= 0; i-- {
		if err := m.mergeOne(i, m.run[last]); err != nil {
			return err
		}
		m.result.Merged = append(m.result.Merged, m.layers[i].path)
	}
	return nil
}

// mergeOne merges image i of the run, which has into as its parent, and leaves it out of the chain.
func (m *liveMerge) mergeOne(i int, into *Image) error {
	child := m.run[i]
	m.opened[into].frozen.child = child.current
	if child == m.im {
		return m.mergeOwn(into)
	}
	if err := m.push(child, into); err != nil {
		return fmt.Errorf("merge %s into %s: %w", m.layers[i].path, m.result.Into, err)
	}
	if i == 0 && m.KeepName {
		if _, err := m.files.rename(into.current(), child.current()); err != nil {
			return fmt.Errorf("the merge is done, but: %w", err)
		}
		m.result.Path = m.layers[0].path
		m.opened[into].frozen.child = m.above.current
		into.writer.rename(m.result.Path)
		m.opened[child].unnamed = true
	} else {
		above := m.above
		if i > 0 {
			above = m.run[i-1]
		}
		if err := m.skip(above, child, into); err != nil {
			return fmt.Errorf("make %s the parent of %s: %w", m.result.Into, above.current().path, err)
		}
		m.opened[into].frozen.child = above.current
	}
	parentChanges.Add(1)
	m.w.space.awaitReads()
	return m.drop(child)
}

// drop ends the use of a parent that no image names any more.
func (m *liveMerge) drop(child *Image) error {
	p := m.opened[child]
	delete(m.opened, child)
	p.out = true
	l := child.current()
	err := p.end()
	if m.Delete && !p.unnamed {
		if rerr := m.files.remove(l); rerr != nil {
			err = errors.Join(err, fmt.Errorf("the merge is done, but: %w", rerr))
		}
	}
	return errors.Join(err, l.abandon())
}

// open gives every image that is going to change a writer.
func (m *liveMerge) open() error {
	m.opened = make(map[*Image]*openedFor)
	op := newOpener(Options{Lock: m.w.lockMode, DetectZeroes: true, Log: m.w.log})
	op.cache, op.epochs = m.w.current().cache, m.w.space.reads
	writable := func(l *layer, child func() *layer) (*Image, error) {
		if l == m.w.current() {
			return m.im, nil
		}
		p, err := m.openParent(op, l, child)
		if err != nil {
			return nil, fmt.Errorf("a merge changes all of its images: %w", err)
		}
		m.opened[p.im] = p
		return p.im, nil
	}
	var child *Image
	layers := m.layers
	if m.over != nil {
		layers = append([]*layer{m.over}, layers...)
	}
	for i, l := range layers {
		above := child // at the end of the loop, child is the result
		by := func() *layer { return above.current() }
		if i == 0 && m.over != nil && m.over != m.w.current() {
			over := m.childOf(m.over)
			by = func() *layer { return over }
		}
		im, err := writable(l, by)
		if err != nil {
			return err
		}
		if m.run, child = append(m.run, im), im; i == 0 && m.over != nil {
			m.above, m.run = im, nil
		}
	}
	return nil
}

// childOf returns the layer of which l is the parent.
func (m *liveMerge) childOf(l *layer) *layer {
	c := m.w.current()
	for c.parent() != l {
		c = c.parent()
	}
	return c
}

// end ends the use of the parents that are still open.
func (m *liveMerge) end() error {
	if m.changes != nil {
		m.w.follow(nil)
	}
	var errs []error
	// The lowest first: one that is loaded again takes the parent that its layer has by then.
	for _, im := range slices.Backward(append([]*Image{m.above}, m.run...)) {
		if p := m.opened[im]; p != nil {
			errs = append(errs, p.end())
		}
	}
	m.opened = nil
	parentChanges.Add(1)
	return errors.Join(errs...)
}

// openedFor is a parent of a disk in use that has a writer for now.
type openedFor struct {
	im      *Image
	frozen  *frozenLayer
	files   chainFiles
	out     bool // it is not part of the chain any more
	unnamed bool // its name is that of another file
}

// A frozenLayer is what a writer has to know of a parent that is read meanwhile by a chain of which it is a part.
type frozenLayer struct {
	file  *frozenFile   // changes go to it
	child func() *layer // the layer that reads through this one
}

// replaced has the chain go on with l instead of the layer before.
func (f *frozenLayer) replaced(l *layer) {
	f.child().setParent(l)
	parentChanges.Add(1)
}

// A frozenFile is a file that is open twice, and written by another descriptor than the one it is read and locked by: reads that
// are under way go on.
type frozenFile struct {
	File
	w File
}

func (f *frozenFile) WriteAt(p []byte, off int64) (int, error) { return f.w.WriteAt(p, off) }
func (f *frozenFile) Truncate(size int64) error                { return f.w.Truncate(size) }
func (f *frozenFile) Sync() error                              { return f.w.Sync() }
func (f *frozenFile) PunchHole(off, n int64) error             { return f.w.PunchHole(off, n) }
func (f *frozenFile) Allocate(off, n int64) error              { return f.w.Allocate(off, n) }
func (f *frozenFile) ZeroRange(off, n int64) error             { return f.w.ZeroRange(off, n) }
func (f *frozenFile) Clone(off int64, src File, srcOff, n int64) error {
	return f.w.Clone(off, src, srcOff, n)
}
func (f *frozenFile) Close() error { return errors.Join(f.w.Close(), f.File.Close()) }

// openParent gives a parent a writer. Where its log has to be replayed, that is done now, and the chain goes on with what the
// file holds then.
func (m *liveMerge) openParent(op *opener, l *layer, child func() *layer) (*openedFor, error) {
	f, err := m.files.reopen(l)
	if err != nil {
		return nil, err
	}
	p := &openedFor{frozen: &frozenLayer{&frozenFile{l.file, f}, child}, files: m.files}
	w, err := newWriterOf(op, l, p.frozen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", l.path, err), m.files.share(l), f.Close())
	}
	m.w.space.awaitReads() // of the layer before the replay
	p.im = &Image{own: w.own, writer: w}
	return p, nil
}

// endPatience is for reads that may still use space which was given up.
const endPatience = 10 * time.Second

// end makes the image clean and takes its writer away. Where that fails, the chain goes on with what the file holds, as if it
// were opened now: the next merge replays it.
func (p *openedFor) end() error {
	w := p.im.writer
	err := w.err()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), endPatience)
		_ = w.space.drain(ctx) // else the space is free when the image is opened again
		cancel()
		if err = w.close(); err != nil {
			err = fmt.Errorf("close %s: %w", w.current().path, err)
		}
	} else {
		w.stop()
	}
	l := w.current()
	switch fresh := l.again(); {
	case p.out:
	case err == nil:
		l.fileSize = w.space.fileSize()
	case fresh.load() == nil:
		p.frozen.replaced(fresh)
	default:
		l.unwritable = "it could not be read again after an error"
	}
	return errors.Join(err, p.files.share(l), p.frozen.file.w.Close())
}

// as returns a layer that is the same as l, with the same pages and the same space, under another path. Nothing changes the
// layer meanwhile.
func (l *layer) as(path string) *layer {
	t := l.again()
	t.path = path
	l.mu.Lock()
	defer l.mu.Unlock()
	t.src, t.fileSize, t.size, t.replay = l.src, l.fileSize, l.size, l.replay
	t.creator, t.headers, t.tables, t.items, t.meta, t.geo = l.creator, l.headers, l.tables, slices.Clone(l.items), l.meta, l.geo
	t.sequence, t.bat, t.bitmaps, t.space, t.objects = l.sequence, l.bat, l.bitmaps, l.space, l.objects
	t.unwritable, t.keptShared, t.counts = l.unwritable, l.keptShared, l.counts
	t.warnings, t.dropped = slices.Clone(l.warnings), l.dropped
	t.owner.Store(l.owner.Load())
	return t
}
