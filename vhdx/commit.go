package vhdx

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

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

// A committer makes changes durable: it turns dirty pages into entries of the log, and puts them into their places later. What
// always holds, where mu is not held:
//
//   - session is the log that the current header names, and nil while it names none. What logged has is durable in the log, and
//     the pages are pinned until they are in their places, or the cache could read older ones from there.
//   - A page goes to its place only after its entry is durable, as it is in the entry: pages in memory may be newer.
//   - No header names a log before an entry of it is durable, and no header stops naming one before all its pages are durable in
//     their places.
//   - held, where there is one, is older than all that is dirty, and is logged first.
//
// It knows nothing of blocks. Which order payload and its mapping become durable in, a batch says with barrier.
type committer struct {
	*failure
	counters *counters
	own      *atomic.Pointer[layer] // the current layer
	headers  *headerState
	space    *allocator
	dirty    *dirtyPages

	rounds sharedRun // one serves all callers of sync that came before it

	// These two are read without mu. To find unsynced set by another change is enough for a change, and stuck not yet set
	// costs it nothing; see round and unstick.
	unsynced atomic.Bool // something was written since the last round began
	stuck    atomic.Bool // there was no space for what was changed before

	mu      sync.Mutex // held by a sync round, also while it waits for the disk; guards what follows
	file    File       // that of the current layer
	session *session
	begun   *session // a log with an entry, which no header names for certain; nil but after a failure
	held    *batch   // taken, and not in the log yet; nil but after a failure
}

// init has c commit what is dirty. The other fields that c needs are set.
func (c *committer) init() { c.rounds.cond.L = &c.rounds.mu }

// wrote notes that something was written, and reports whether it is the first since the last round began.
func (c *committer) wrote() bool {
	if c.unsynced.Load() {
		return false
	}
	c.unsynced.Store(true)
	return true
}

// sync makes everything durable that was written before the call. Callers that arrive while others wait share
// one round: one fdatasync for payload and log together, and one before it where a mapping must not be durable
// before its payload. Without changes it does nothing.
func (c *committer) sync() error {
	return c.rounds.run(func() (err error) {
		defer c.catch(&err)
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.round()
	})
}

// round runs a sync round. The caller holds mu.
func (c *committer) round() error {
	if err := c.err(); err != nil {
		return err
	}
	// The flag is taken before the sync, and changed sets it after the bytes are in the file. So a write that finds it set,
	// and leaves it, was made before the sync that follows here; any later one sets it again for the next round.
	unsynced := c.unsynced.Swap(false)
	if !c.uncommitted() {
		if !unsynced {
			return nil
		}
		return c.syncFile()
	}
	// A batch that an earlier round could not log goes first: it may hold older versions of pages that are dirty again, and
	// a replay puts the pages of later entries over those of earlier ones.
	err := c.logHeld()
	if err == nil && c.dirty.count() > 0 {
		c.held = c.dirty.take()
		err = c.logHeld()
	}
	if err != nil {
		c.unsynced.Store(true) // nothing is lost; the next round tries again
	}
	return err
}

// logHeld commits the batch that was taken. Where there is no space for that the batch stays, and the next round tries
// again. The caller holds mu.
func (c *committer) logHeld() error {
	if c.held == nil {
		return nil
	}
	if err := c.commit(c.held); err != nil {
		return c.waitForSpace(err)
	}
	c.held = nil
	return nil
}

// uncommitted reports whether there is metadata to put into the log. The caller holds mu.
func (c *committer) uncommitted() bool { return c.held != nil || c.dirty.count() > 0 }

// waitForSpace has new changes fail, if err says that there is no space for what was changed before: that is in memory
// or in the log, and waits. It returns err.
func (c *committer) waitForSpace(err error) error {
	if outOfSpace(err) && c.err() == nil {
		c.stuck.Store(true)
	}
	return err
}

// unstick tries again what failed for want of space. It reads stuck without a lock first, since each change calls it: a
// change that misses the flag only takes its turn before the failure, and what it maps waits in memory as the rest does.
func (c *committer) unstick() error {
	if !c.stuck.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stuck.Load() {
		return nil
	}
	return c.emptyLog()
}

// syncFile makes the file durable, or the image read-only; see failure.
func (c *committer) syncFile() error { return c.durable(c.file) }

// The barriers, each by its own name: the crash test leaves out one after the other, and has to notice. A barrier is
// needed where a power cut could otherwise keep the later write and lose the earlier one.
func (c *committer) syncPayload() error { return c.syncFile() } // before the log entry that maps it
func (c *committer) syncLog() error     { return c.syncFile() } // before a sync returns, and before pages go to their places
func (c *committer) syncPlaces() error  { return c.syncFile() } // before the headers stop naming the log

// startSession begins to use the log, unless it is in use. An entry under the new LogGuid is durable before the
// headers name it: a header must never name a log that holds nothing valid (MS-VHDX 2.3.3).
func (c *committer) startSession() error {
	if c.session != nil {
		return nil
	}
	// A header update that failed for want of space may still have left a header that names this log. So the next try uses
	// the same log: another one would overwrite the entry that this header needs.
	if c.begun == nil {
		region := c.own.Load().log()
		region.GUID = uuid.New()
		// The entry calls this size flushed before its own sync makes it so. That is safe here only: no header names the
		// entry before Start has synced both.
		size := c.space.fileSize()
		log, err := journal.Start(c.file, region, rand.Uint64()>>1+1, size/ondisk.MiB*ondisk.MiB, c.space.lastOffset())
		if err != nil {
			return c.metadata(fmt.Errorf("start a log: %w", err)) // which no header names yet
		}
		c.counters.entry(0)
		c.begun = &session{log: log, guid: region.GUID, flushed: size / ondisk.MiB * ondisk.MiB, logged: make(map[int64]*loggedPage)}
	}
	if err := c.headers.update(func(h *ondisk.Header) { h.LogGUID, h.LogVersion = c.begun.guid, 0 }); err != nil {
		return err
	}
	c.session, c.begun = c.begun, nil
	return nil
}

// commit logs a batch and makes it durable, together with all payload. Where a mapping must not be durable without its
// payload, a sync comes before the entry; else one sync serves both, and a power cut that keeps the entry alone shows
// zeros, as the block did before. The caller holds mu.
func (c *committer) commit(b *batch) error {
	if b.barrier {
		if err := c.syncPayload(); err != nil {
			return err
		}
	}
	// A log never goes round. One without room is emptied before the entry is written, and what is put into place are the
	// pages as they were logged, not as they are in memory now: those may have changes of this batch, which no entry has.
	if s := c.session; s != nil && (s.ending || journal.EntryLength(len(b.pages)) > s.log.Free() || len(s.logged)+len(b.pages) > maxLoggedPages) {
		if err := c.endSession(); err != nil {
			return err
		}
	}
	if err := c.startSession(); err != nil {
		return err
	}
	s := c.session
	// s.flushed is the size at the last sync, not the size now: a replay refuses a file that is smaller than what an entry
	// calls flushed, and a cut may lose the growth since.
	if err := s.log.Append(b.pages, s.flushed, c.space.lastOffset()); err != nil {
		return c.metadata(err) // there may be no space where the host copies on write
	}
	c.counters.entry(len(b.pages))
	size := c.space.fileSize() // it may be larger when the sync returns, but not durably
	if err := c.syncLog(); err != nil {
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
	c.counters.inLog.Store(int64(len(s.logged)))
	c.space.retire(b.unmapped)
	return nil
}

// endSession puts every logged page into its place, durably, and then has the headers say that there is nothing to replay,
// so that the log can be used anew. Where that fails for want of space nothing is lost: the log holds it, and it is tried
// again. The caller holds mu.
//
// The pages are synced in their places before the header without a LogGuid is written: after that header no replay brings
// back what was lost.
func (c *committer) endSession() error {
	s := c.session
	if s == nil {
		return nil
	}
	if err := c.place(); err != nil {
		return c.waitForSpace(err)
	}
	// After a failure either header may be the one that the next open finds, so an entry added now might not be replayed.
	s.ending = true
	if err := c.headers.update(func(h *ondisk.Header) { h.LogGUID = uuid.Nil }); err != nil {
		return c.waitForSpace(err)
	}
	for _, lp := range s.logged {
		for _, d := range lp.pins {
			d.span.Unpin(d.page)
		}
	}
	c.session = nil
	c.counters.inLog.Store(0)
	c.counters.checkpoints.Add(1)
	return nil
}

// place puts every logged page into its place, durably. Each one is durable in the log before (write-ahead), so a cut in the
// middle, or a torn page, is mended by the replay. The log stays as it is until syncPlaces has returned.
func (c *committer) place() error {
	logged := c.session.logged
	if len(logged) == 0 {
		return nil
	}
	for _, off := range slices.Sorted(maps.Keys(logged)) {
		if _, err := c.file.WriteAt(logged[off].data[:], off); err != nil {
			return c.metadata(fmt.Errorf("write metadata at %#x: %w", off, err))
		}
	}
	return c.syncPlaces()
}

// emptyLog makes everything durable and in its place. The caller holds mu.
func (c *committer) emptyLog() error {
	if err := c.round(); err != nil {
		return err
	}
	if err := c.endSession(); err != nil {
		return err
	}
	c.stuck.Store(false) // last: what there was no space for is in its place
	return nil
}

// tidy commits what is dirty, and frees a log that is half full before a sync has to wait for it.
func (c *committer) tidy() (err error) {
	defer c.catch(&err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stuck.Load() {
		return c.emptyLog()
	}
	if c.uncommitted() {
		if err := c.round(); err != nil {
			return err
		}
	}
	if s := c.session; s != nil && s.log.Free() < c.own.Load().log().Length/2 {
		return c.endSession()
	}
	return nil
}

// unlog has all pages of the n bytes from file offset off on in their places, and none of them in a log that a replay
// might write them from. The caller holds the gate alone, so that it stays so.
func (c *committer) unlog(off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.round(); err != nil || c.session == nil {
		return err
	}
	for at := range c.session.logged {
		if at >= off && at < off+n {
			return c.endSession()
		}
	}
	return nil
}
