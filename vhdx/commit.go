package vhdx

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/google/uuid"

	"vhdxfs/journal"
	"vhdxfs/vhdx/ondisk"
)

// maxDirtyPages bounds what one log entry carries: with the pages of two region tables to repair, the descriptors
// still fit into one sector, and two such entries into the smallest log.
const maxDirtyPages = 126 - 2*ondisk.RegionTableSize/ondisk.PageSize

// maxLoggedPages bounds the memory for pages that are in the log and not in their places, however long the log is.
const maxLoggedPages = 1024

// A session is a log in use: entries under one LogGuid, and what they say, which may not be in its place yet.
type session struct {
	log     *journal.Writer
	flushed int64                 // size of the file that is known to be on stable media, bytes
	logged  map[int64]*loggedPage // by file offset: durable in the log
	guid    uuid.UUID
	ending  bool // a header without it may be there, so nothing may be added that only the log has
}

// A loggedPage is a page as the log holds it.
type loggedPage struct {
	data *[ondisk.PageSize]byte
	pins []dirtyPage // to be unpinned when the page is in its place
}

// sync makes everything durable that was written before the call. Callers that arrive while others wait share
// one round: one fdatasync for payload and log together, and one before it where a mapping must not be durable
// before its payload. Without changes it does nothing.
func (w *writer) sync() error {
	return w.rounds.run(func() (err error) {
		defer w.catch(&err)
		w.roundMu.Lock()
		defer w.roundMu.Unlock()
		return w.round()
	})
}

// A sharedRun is work that many goroutines ask for at once. One run serves all calls that came before it began.
type sharedRun struct {
	mu           sync.Mutex
	cond         sync.Cond // a run has ended; its L is mu
	begun, ended uint64    // runs; they differ while one is under way
	err          error     // of the last run that ended
}

// run returns when a run has ended that began after the call, with its error or that of a later one. A run that is under
// way does not serve the call: it may have looked at the changes before the caller made its own. One of the waiting
// callers does the work, without mu; the others sleep until it is done for them.
func (r *sharedRun) run(do func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for mine := r.begun + 1; r.ended < mine; {
		if r.begun > r.ended {
			r.cond.Wait()
			continue
		}
		r.begun++
		r.mu.Unlock()
		err := do()
		r.mu.Lock()
		r.ended, r.err = r.begun, err
		r.cond.Broadcast()
	}
	return r.err
}

// round runs a sync round. The caller holds roundMu.
func (w *writer) round() error {
	if err := w.err(); err != nil {
		return err
	}
	// The flag is taken before the sync, and changed sets it after the bytes are in the file. So a write that finds it set,
	// and leaves it, was made before the sync that follows here; any later one sets it again for the next round.
	unsynced := w.unsynced.Swap(false)
	if !w.uncommitted() {
		if !unsynced {
			return nil
		}
		return w.syncFile()
	}
	// A batch that an earlier round could not log goes first: it may hold older versions of pages that are dirty again, and
	// a replay puts the pages of later entries over those of earlier ones.
	err := w.logHeld()
	if err == nil && w.anyDirty() {
		w.held = w.takeBatch()
		err = w.logHeld()
	}
	if err != nil {
		w.unsynced.Store(true) // nothing is lost; the next round tries again
	}
	return err
}

// logHeld commits the batch that was taken. Where there is no space for that the batch stays, and the next round tries
// again. The caller holds roundMu.
func (w *writer) logHeld() error {
	if w.held == nil {
		return nil
	}
	if err := w.commit(w.held); err != nil {
		return w.waitForSpace(err)
	}
	w.held = nil
	return nil
}

// anyUnmapped reports whether space waits to be given up.
func (w *writer) anyUnmapped() bool {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	return len(w.unmapped) > 0
}

// uncommitted reports whether there is metadata to put into the log. The caller holds roundMu.
func (w *writer) uncommitted() bool { return w.held != nil || w.anyDirty() }

func (w *writer) anyDirty() bool {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	return len(w.dirty)+len(w.raw) > 0
}

// waitForSpace has new changes fail, if err says that there is no space for what was changed before: that is in memory
// or in the log, and waits. It returns err.
func (w *writer) waitForSpace(err error) error {
	if outOfSpace(err) && w.err() == nil {
		w.stuck.Store(true)
	}
	return err
}

// unstick tries again what failed for want of space. It reads stuck without a lock first, since each change calls it: a
// change that misses the flag only takes its turn before the failure, and what it maps waits in memory as the rest does.
func (w *writer) unstick() error {
	if !w.stuck.Load() {
		return nil
	}
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	if !w.stuck.Load() {
		return nil
	}
	return w.emptyLog()
}

// syncFile makes the file durable, or the image read-only; see failure.
func (w *writer) syncFile() error { return w.durable(w.file) }

// The barriers, each by its own name: the crash test leaves out one after the other, and has to notice. A barrier is
// needed where a power cut could otherwise keep the later write and lose the earlier one.
func (w *writer) syncPayload() error { return w.syncFile() } // before the log entry that maps it
func (w *writer) syncLog() error     { return w.syncFile() } // before a sync returns, and before pages go to their places
func (w *writer) syncPlaces() error  { return w.syncFile() } // before the log's tail moves past them

// startSession begins to use the log, unless it is in use. An entry under the new LogGuid is durable before the
// headers name it: a header must never name a log that holds nothing valid (MS-VHDX 2.3.3).
func (w *writer) startSession() error {
	if w.session != nil {
		return nil
	}
	// A header update that failed for want of space may still have left a header that names this log. So the next try uses
	// the same log: another one would overwrite the entry that this header needs.
	if w.begun == nil {
		region := w.current().log()
		region.GUID = uuid.New()
		// The entry calls this size flushed before its own sync makes it so. That is safe here only: no header names the
		// entry before Start has synced both.
		size := w.space.fileSize()
		log, err := journal.Start(w.file, region, rand.Uint64()>>1+1, size/ondisk.MiB*ondisk.MiB, w.space.lastOffset())
		if err != nil {
			return w.metadata(fmt.Errorf("start a log: %w", err)) // which no header names yet
		}
		w.counters.entry(0)
		w.begun = &session{log: log, guid: region.GUID, flushed: size / ondisk.MiB * ondisk.MiB, logged: make(map[int64]*loggedPage)}
	}
	if err := w.headers.update(func(h *ondisk.Header) { h.LogGUID, h.LogVersion = w.begun.guid, 0 }); err != nil {
		return err
	}
	w.session, w.begun = w.begun, nil
	return nil
}

// A batch is the dirty metadata as it stood at one instant.
type batch struct {
	pages    []journal.Page
	pins     []dirtyPage // those of the pages that the cache holds, in the same order; zero for others
	barrier  bool
	unmapped []place
}

// takeBatch takes everything that is dirty. Changes are made with metaMu held, so the copies of the pages show one instant:
// an entry of the log never has a part of an edit. The bytes that they map are in the file already, since an edit applies
// after its payload is written; a sync from here on covers them.
func (w *writer) takeBatch() *batch {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	b := &batch{barrier: w.barrier, unmapped: w.unmapped}
	for off, d := range w.dirty {
		data := new([ondisk.PageSize]byte)
		d.p.Encode(data)
		b.pages = append(b.pages, journal.Page{FileOffset: off, Data: data})
		b.pins = append(b.pins, d)
	}
	for off, data := range w.raw {
		b.pages = append(b.pages, journal.Page{FileOffset: off, Data: data})
		b.pins = append(b.pins, dirtyPage{})
	}
	clear(w.dirty)
	clear(w.raw)
	w.barrier, w.unmapped = false, nil
	w.roomFree.Broadcast()
	return b
}

// commit logs a batch and makes it durable, together with all payload. Where a mapping must not be durable without its
// payload, a sync comes before the entry; else one sync serves both, and a power cut that keeps the entry alone shows
// zeros, as the block did before. The caller holds roundMu.
func (w *writer) commit(b *batch) error {
	if b.barrier {
		if err := w.syncPayload(); err != nil {
			return err
		}
	}
	// A log never goes round. One without room is emptied before the entry is written, and what is put into place are the
	// pages as they were logged, not as they are in memory now: those may have changes of this batch, which no entry has.
	if s := w.session; s != nil && (s.ending || journal.EntryLength(len(b.pages)) > s.log.Free() || len(s.logged)+len(b.pages) > maxLoggedPages) {
		if err := w.endSession(); err != nil {
			return err
		}
	}
	if err := w.startSession(); err != nil {
		return err
	}
	s := w.session
	// s.flushed is the size at the last sync, not the size now: a replay refuses a file that is smaller than what an entry
	// calls flushed, and a cut may lose the growth since.
	if err := s.log.Append(b.pages, s.flushed, w.space.lastOffset()); err != nil {
		return w.metadata(err) // there may be no space where the host copies on write
	}
	w.counters.entry(len(b.pages))
	size := w.space.fileSize() // it may be larger when the sync returns, but not durably
	if err := w.syncLog(); err != nil {
		return err
	}
	s.flushed = size / ondisk.MiB * ondisk.MiB
	// From here on the pages may go to their places. They stay pinned until then, or the cache could give one up and read
	// the old page from the file.
	for i, pg := range b.pages {
		lp := &loggedPage{data: pg.Data}
		if older := s.logged[pg.FileOffset]; older != nil {
			lp.pins = older.pins
		}
		if b.pins[i].span != nil {
			lp.pins = append(lp.pins, b.pins[i])
		}
		s.logged[pg.FileOffset] = lp
	}
	w.counters.inLog.Store(int64(len(s.logged)))
	w.space.retire(b.unmapped)
	return nil
}

// endSession puts every logged page into its place, durably, and then has the headers say that there is nothing to replay,
// so that the log can be used anew. Where that fails for want of space nothing is lost: the log holds it, and it is tried
// again. The caller holds roundMu.
//
// The pages are synced in their places before the header without a LogGuid is written: after that header no replay brings
// back what was lost.
func (w *writer) endSession() error {
	s := w.session
	if s == nil {
		return nil
	}
	if err := w.place(); err != nil {
		return w.waitForSpace(err)
	}
	// After a failure either header may be the one that the next open finds, so an entry added now might not be replayed.
	s.ending = true
	if err := w.headers.update(func(h *ondisk.Header) { h.LogGUID = uuid.Nil }); err != nil {
		return w.waitForSpace(err)
	}
	for _, lp := range s.logged {
		for _, d := range lp.pins {
			d.span.Unpin(d.page)
		}
	}
	w.session = nil
	w.counters.inLog.Store(0)
	w.counters.checkpoints.Add(1)
	return nil
}

// place puts every logged page into its place, durably. Each one is durable in the log before (write-ahead), so a cut in the
// middle, or a torn page, is mended by the replay. The log stays as it is until syncPlaces has returned.
func (w *writer) place() error {
	logged := w.session.logged
	if len(logged) == 0 {
		return nil
	}
	for _, off := range slices.Sorted(maps.Keys(logged)) {
		if _, err := w.file.WriteAt(logged[off].data[:], off); err != nil {
			return w.metadata(fmt.Errorf("write metadata at %#x: %w", off, err))
		}
	}
	return w.syncPlaces()
}

// emptyLog makes everything durable and in its place. The caller holds roundMu.
func (w *writer) emptyLog() error {
	if err := w.round(); err != nil {
		return err
	}
	if err := w.endSession(); err != nil {
		return err
	}
	w.stuck.Store(false)
	return nil
}

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
// so that no change has to wait for them.
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
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	return w.makeCleanThen(do)
}

// makeClean does what clean does. The caller holds the gate alone, and roundMu.
func (w *writer) makeClean() error { return w.makeCleanThen(func() error { return nil }) }

// makeCleanThen makes everything durable and in its place, and calls do. What follows is another change, which is
// announced anew. The caller holds the gate alone, and roundMu.
func (w *writer) makeCleanThen(do func() error) error {
	if err := w.emptyLog(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	w.headers.cleaned()
	return nil
}

// tidy commits what is dirty, and frees a log that is half full before a sync has to wait for it.
func (w *writer) tidy() (err error) {
	defer w.catch(&err)
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	if w.stuck.Load() {
		return w.emptyLog()
	}
	if w.uncommitted() {
		if err := w.round(); err != nil {
			return err
		}
	}
	if s := w.session; s != nil && s.log.Free() < w.current().log().Length/2 {
		return w.endSession()
	}
	return nil
}

// close makes the image clean, gives free space at the end of the file back, and ends the writer.
func (w *writer) close() error {
	w.stop()
	return w.leave()
}

// stop ends what goes on in the background.
func (w *writer) stop() { w.worker.stop() }

func (w *writer) anyFreed() bool { return w.space.anyFreed() }
func (w *writer) giveBack()      { w.space.giveBack() }

// shrink cuts free space off the end of the file, which takes less time than a hole; that before it is left to giveBack.
// The log is empty, so no entry speaks of the larger size, and the caller holds the gate alone, and roundMu. The cut is a
// change of the file, which the headers tell of.
func (w *writer) shrink() error {
	if w.file.IsDevice() {
		return nil
	}
	end, size := w.space.usedEnd()
	if end >= size {
		return nil
	}
	if err := w.announce(fileWrite); err != nil {
		return err
	}
	if err := w.emptyLog(); err != nil { // damaged region tables come into the log with the announcement
		return err
	}
	// With the gate held alone no block can be put behind end meanwhile, and nothing names what is there. So a power cut before
	// the sync leaves a valid image with either size.
	if err := w.space.cut(end); err != nil {
		return fmt.Errorf("shrink the image to %d bytes: %w", end, err)
	}
	return nil
}

// dataWriteGUID returns the DataWriteGuid as the headers have it now.
func (l *layer) dataWriteGUID() uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.headers.header().DataWriteGUID
}

// setHeader remembers what the copy of the header in the given slot says now, for Info.
func (l *layer) setHeader(h ondisk.Header, slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hs := &headers{copies: [2]ondisk.Header{h, h}, current: slot}
	hs.copies[1-slot].SequenceNumber--
	l.headers = hs
}
