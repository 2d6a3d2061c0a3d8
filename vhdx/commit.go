package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vhdxfs/journal"
)

// maxDirtyPages bounds what one log entry carries: with the pages of two region tables to repair, the descriptors
// still fit into one sector, and two such entries into the smallest log.
const maxDirtyPages = 126 - 2*regionTableSize/pageSize

// maxLoggedPages bounds the memory for pages that are in the log and not in their places, however long the log is.
const maxLoggedPages = 1024

// A session is a log in use: entries under one LogGuid, and what they say that is not in its place yet.
type session struct {
	log     *journal.Writer
	flushed int64                 // size of the file that is known to be on stable media, bytes
	durable journal.Mark          // behind the last entry that is
	logged  map[int64]*loggedPage // by file offset: durable in the log, not in its place
}

// A loggedPage is a page as the log holds it.
type loggedPage struct {
	data *[pageSize]byte
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

// A sharedRun is something that many want done, of which one run serves all who came before it began.
type sharedRun struct {
	mu           sync.Mutex
	cond         sync.Cond // a run has ended; its L is mu
	begun, ended uint64    // runs; they differ while one is under way
	err          error     // of the last run that ended
}

// run returns when a run has ended that began after the call, with its error or that of a later one. One of those who
// wait does what is to be done; the others sleep until it is done for them, and hold nobody up.
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
	unsynced := w.unsynced.Swap(false)
	if !w.anyDirty() {
		if !unsynced {
			return nil
		}
		return w.syncFile()
	}
	if err := w.startSession(); err != nil {
		w.unsynced.Store(true) // nothing is lost; the next round tries again
		return err
	}
	return w.commit(w.takeBatch())
}

func (w *writer) anyDirty() bool {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	return len(w.dirty)+len(w.raw) > 0
}

// syncFile makes the file durable, or the image read-only: after a failed fdatasync the kernel may have dropped
// what it could not write, and a second one would succeed without it.
func (w *writer) syncFile() error {
	if err := w.file.Sync(); err != nil {
		return w.fail(fmt.Errorf("sync the image: %w", err))
	}
	return nil
}

// The barriers, each by its own name: the crash test leaves out one after the other, and has to notice.
func (w *writer) syncPayload() error { return w.syncFile() } // before the log entry that maps it
func (w *writer) syncLog() error     { return w.syncFile() } // before a sync returns, and before pages go to their places
func (w *writer) syncPlaces() error  { return w.syncFile() } // before the log's tail moves past them

// startSession begins to use the log, unless it is in use. An entry under the new LogGuid is durable before the
// headers name it: a header must never name a log that holds nothing valid (MS-VHDX 2.3.3).
func (w *writer) startSession() error {
	if w.session != nil {
		return nil
	}
	region := w.l.log()
	region.GUID = uuid.New()
	size := w.fileSize()
	log, err := journal.Start(w.file, region, rand.Uint64()>>1+1, size/mib*mib, w.lastOffset())
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("begin a log: %w", err) // which no header names yet
	}
	if err != nil {
		return w.fail(err)
	}
	w.counters.entry(0)
	w.headerMu.Lock()
	defer w.headerMu.Unlock()
	h := w.header
	h.LogGUID, h.LogVersion = region.GUID, 0
	if err := w.updateHeaders(h); err != nil {
		return err
	}
	w.session = &session{log: log, durable: log.Head(), flushed: size / mib * mib, logged: make(map[int64]*loggedPage)}
	return nil
}

func (w *writer) fileSize() int64 {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	return w.size
}

// lastOffset returns the smallest file size that holds everything. It is not larger than the file, which may end
// inside the last block, or be a device.
func (w *writer) lastOffset() int64 {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	return min(w.space.end(), w.size)
}

// A batch is the dirty metadata as it stood at one instant.
type batch struct {
	pages    []journal.Page
	pins     []dirtyPage // those of the pages that the cache holds, in the same order; zero for others
	barrier  bool
	unmapped []place
}

// takeBatch takes everything that is dirty.
func (w *writer) takeBatch() *batch {
	w.metaMu.Lock()
	defer w.metaMu.Unlock()
	b := &batch{barrier: w.barrier, unmapped: w.unmapped}
	for off, d := range w.dirty {
		data := new([pageSize]byte)
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

// commit logs a batch and makes it durable, together with all payload.
func (w *writer) commit(b *batch) error {
	if b.barrier {
		if err := w.syncPayload(); err != nil {
			return err
		}
	}
	s := w.session
	last := w.lastOffset()
	mark, err := s.log.Append(b.pages, s.flushed, last)
	if errors.Is(err, journal.ErrFull) {
		if err := w.emptyLog(); err != nil {
			return err
		}
		mark, err = s.log.Append(b.pages, s.flushed, last)
	}
	if err != nil {
		return w.fail(err)
	}
	w.counters.entry(len(b.pages))
	size := w.fileSize() // it may be larger when the sync returns, but not durably
	if err := w.syncLog(); err != nil {
		return err
	}
	s.log.Durable(mark)
	s.durable, s.flushed = mark, size/mib*mib
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
	w.retire(b.unmapped)
	if len(s.logged) > maxLoggedPages {
		return w.emptyLog()
	}
	return nil
}

// retire hands over space whose unmapping is durable. It can be given away when the reads have ended that may
// still look there.
func (w *writer) retire(places []place) {
	if len(places) == 0 {
		return
	}
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	epoch := w.reads.turn()
	slices.SortFunc(places, func(p, q place) int { return cmp.Compare(p.off, q.off) })
	for _, p := range places {
		if n := len(w.freed); n > 0 && w.freed[n-1].epoch == epoch && w.freed[n-1].off+w.freed[n-1].size == p.off {
			w.freed[n-1].size += p.size // few large holes are made sooner than many small ones
			continue
		}
		w.freed = append(w.freed, freed{p, epoch})
	}
	select {
	case w.trimmed <- struct{}{}: // so that there is little left to do where the image is closed next
	default:
	}
}

// checkpoint puts every logged page into its place, durably, so that the log can be used anew. The caller holds
// roundMu.
func (w *writer) checkpoint() error {
	s := w.session
	if len(s.logged) == 0 {
		return nil
	}
	offsets := make([]int64, 0, len(s.logged))
	for off := range s.logged {
		offsets = append(offsets, off)
	}
	slices.Sort(offsets)
	for _, off := range offsets {
		if _, err := w.file.WriteAt(s.logged[off].data[:], off); err != nil {
			return w.fail(fmt.Errorf("write metadata at %#x: %w", off, err))
		}
	}
	if err := w.syncPlaces(); err != nil {
		return err
	}
	s.log.Release(s.durable)
	for _, lp := range s.logged {
		for _, d := range lp.pins {
			d.span.Unpin(d.page)
		}
	}
	clear(s.logged)
	w.counters.inLog.Store(0)
	w.counters.checkpoints.Add(1)
	return nil
}

// emptyLog makes the whole log free at once. After a checkpoint the entries are not needed any more, but the newest
// still names the oldest as its tail; an empty entry that names none has to be durable before their space is used.
func (w *writer) emptyLog() error {
	if err := w.checkpoint(); err != nil {
		return err
	}
	s := w.session
	mark, err := s.log.Append(nil, s.flushed, w.lastOffset())
	if err != nil {
		return w.fail(err)
	}
	w.counters.entry(0)
	if err := w.syncLog(); err != nil {
		return err
	}
	s.log.Durable(mark)
	return nil
}

// clean makes everything durable and in its place, and the headers say that there is nothing to replay.
func (w *writer) clean() error { return w.cleanThen(func() error { return nil }) }

// cleanAndShrink makes the image clean and cuts free space off the end of the file before anybody changes it again.
func (w *writer) cleanAndShrink() error { return w.cleanThen(w.shrink) }

// leave is cleanAndShrink for an image that nobody changes for now; if nobody has, the file stays as it is.
func (w *writer) leave() error {
	return w.cleanThen(func() error {
		if !w.opened {
			return nil
		}
		return w.shrink()
	})
}

// cleanThen makes the image clean and calls do before anybody changes it again. The holes in the file come when nobody
// has to wait for them.
func (w *writer) cleanThen(do func() error) (err error) {
	defer w.catch(&err)
	if err := w.cleanAlone(do); err != nil {
		return err
	}
	w.giveBack()
	return nil
}

func (w *writer) cleanAlone(do func() error) error {
	w.gate.Lock()
	defer w.gate.Unlock()
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	if err := w.makeClean(); err != nil {
		return err
	}
	return do()
}

// makeClean does what clean does. The caller holds the gate alone, and roundMu.
func (w *writer) makeClean() error {
	if err := w.round(); err != nil {
		return err
	}
	if w.session != nil {
		if err := w.checkpoint(); err != nil {
			return err
		}
		w.headerMu.Lock()
		defer w.headerMu.Unlock()
		h := w.header
		h.LogGUID = uuid.Nil
		if err := w.updateHeaders(h); err != nil {
			return err
		}
		w.session = nil
	}
	w.announced.Store(int32(noWrite))
	return nil
}

// background commits what nobody syncs, keeps room in the log, and makes an idle image clean.
func (w *writer) background() {
	defer close(w.ended)
	defer w.catch(new(error))
	for {
		select {
		case <-w.quit:
			return
		case <-w.wake:
		}
		if !w.untilClean() {
			return
		}
	}
}

// untilClean looks after the image until it is clean and all free space is given back, or until it is broken. It returns
// false when the writer ends.
func (w *writer) untilClean() bool {
	const (
		tick       = 250 * time.Millisecond
		retryAfter = 10 * time.Second
	)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	committed := time.Now()
	var retry time.Time // after a failure, as where the file cannot grow
	for (w.inUse() || w.anyFreed()) && w.err() == nil {
		select {
		case <-w.quit:
			return false
		case <-w.trimmed:
			w.giveBack()
			continue
		case <-ticker.C:
		}
		w.giveBack() // what reads were in the way of
		now := time.Now()
		if !w.inUse() || now.Before(retry) {
			continue
		}
		var err error
		switch idle := now.Sub(began.Add(time.Duration(w.lastUsed.Load()))); {
		case w.idleAfter > 0 && idle >= w.idleAfter:
			err = w.clean()
		case w.commitAfter > 0 && now.Sub(committed) >= w.commitAfter:
			committed = now
			err = w.tidy()
		}
		if err != nil {
			retry = now.Add(retryAfter)
			w.log.WithError(err).Warn("background commit failed; it is tried again")
		}
	}
	return true
}

// tidy commits what is dirty, and frees a log that is half full before a sync has to wait for it.
func (w *writer) tidy() (err error) {
	defer w.catch(&err)
	w.roundMu.Lock()
	defer w.roundMu.Unlock()
	if w.anyDirty() {
		if err := w.round(); err != nil {
			return err
		}
	}
	if s := w.session; s != nil && s.log.Free() < w.l.log().Length/2 {
		return w.emptyLog()
	}
	return nil
}

// close makes the image clean, gives free space at the end of the file back, and ends the writer.
func (w *writer) close() error {
	w.stop()
	return w.leave()
}

// stop ends what goes on in the background.
func (w *writer) stop() {
	w.stopOnce.Do(func() {
		close(w.quit)
		<-w.ended
	})
}

// shrink cuts free space off the end of the file, which takes less time than a hole; that before it is left to giveBack.
// The image is clean, so no log entry speaks of the larger size.
func (w *writer) shrink() error {
	if w.file.IsDevice() {
		return nil
	}
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	freed := w.takeFreed(math.MaxInt64)
	end := w.space.end()
	w.putBack(slices.DeleteFunc(freed, func(p place) bool { return p.off >= end }))
	if end >= w.size {
		return nil
	}
	if err := w.file.Truncate(end); err != nil {
		return fmt.Errorf("shrink the image to %d bytes: %w", end, err)
	}
	w.size, w.fresh = end, end
	w.space.cut(end)
	return w.syncFile()
}

// dataWriteGUID returns the DataWriteGuid as the headers have it now.
func (l *layer) dataWriteGUID() uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.headers.header().DataWriteGUID
}

// setHeader remembers what the copy of the header in the given slot says now, for Info.
func (l *layer) setHeader(h header, slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hs := &headers{copies: [2]header{h, h}, current: slot}
	hs.copies[1-slot].SequenceNumber--
	l.headers = hs
}
