package vhdx

import (
	"sync/atomic"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Stats tells what an image had to do since it was opened, and what it holds at the moment. The numbers are read one
// after the other while work goes on, so they belong to one instant only where none does.
type Stats struct {
	CacheHits   int64 // metadata pages that were in memory when they were looked up, parents' included
	CacheMisses int64 // metadata pages that had to be read
	CachePages  int64 // now in memory

	FileSyncs     int64 // fdatasyncs of the image file
	HeaderUpdates int64 // both headers each
	LogEntries    int64 // written
	LoggedPages   int64 // metadata pages in those entries
	Checkpoints   int64 // logged pages were put into their places

	BlocksAllocated int64 // payload blocks that were given a place in the file
	BlocksFreed     int64 // payload blocks that gave theirs up

	DirtyPages   int64 // changed now, and not in the log
	PagesInLog   int64 // now in the log, and not in their places
	AllocatedNow int64 // bytes of the disk that are held in files now, see Image.AllocatedBytes
}

// Stats returns the numbers as they are now. It waits for no input or output, so it answers even while a write hangs.
func (im *Image) Stats() Stats {
	l := im.current()
	hits, misses := l.cache.Lookups()
	s := Stats{
		CacheHits:    hits,
		CacheMisses:  misses,
		CachePages:   int64(l.cache.Pages()),
		AllocatedNow: im.AllocatedBytes(),
	}
	w := im.writer
	if w == nil {
		return s
	}
	s.FileSyncs = w.counters.fileSyncs.Load()
	s.HeaderUpdates = w.counters.headerUpdates.Load()
	s.LogEntries = w.counters.logEntries.Load()
	s.LoggedPages = w.counters.loggedPages.Load()
	s.Checkpoints = w.counters.checkpoints.Load()
	s.BlocksAllocated = w.counters.allocated.Load()
	s.BlocksFreed = w.counters.freed.Load()
	s.PagesInLog = w.counters.inLog.Load()
	s.DirtyPages = int64(w.dirty.count())
	return s
}

// A meteredFile counts its syncs.
type meteredFile struct {
	File
	syncs *atomic.Int64
}

func (f meteredFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

// counters count what a writer does seldom: each goes with a write to the file at the least, or with a change of
// metadata.
type counters struct {
	fileSyncs                                           atomic.Int64 // of the image file
	headerUpdates, logEntries, loggedPages, checkpoints atomic.Int64
	allocated, freed                                    atomic.Int64 // payload blocks
	inLog                                               atomic.Int64 // len(session.logged), for reading without the committer's mu
}

// entry counts a log entry of so many pages.
func (c *counters) entry(pages int) {
	c.logEntries.Add(1)
	c.loggedPages.Add(int64(pages))
}

// block counts a change of a payload block's state that gives it a place, or takes it away.
func (c *counters) block(from, to ondisk.BlockState) {
	present := func(s ondisk.BlockState) bool { return s == ondisk.FullyPresent || s == ondisk.PartiallyPresent }
	switch {
	case !present(from) && present(to):
		c.allocated.Add(1)
	case present(from) && !present(to):
		c.freed.Add(1)
	}
}
