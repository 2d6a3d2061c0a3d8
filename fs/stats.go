package fs

import (
	"encoding/json"
	"strconv"

	"github.com/vhdxfs/vhdxfs/internal/tally"
)

// A Stat is one number of a mount's statistics.
type Stat struct {
	Name  string // words joined by "_", the unit among them unless it is plain to see
	Help  string
	Gauge bool // it goes up and down; else it counts from the mount on
	Value int64
}

// Stats are the statistics of a mount, all of them, in an order that does not change.
type Stats []Stat

// Map returns the values by their names.
func (s Stats) Map() map[string]int64 {
	m := make(map[string]int64, len(s))
	for _, st := range s {
		m[st.Name] = st.Value
	}
	return m
}

// Stats returns the statistics as they are now. It does not wait for requests that are being served.
func (s *Server) Stats() Stats { return s.fs.stats() }

// counters count requests that were answered without an error. They are striped, since every request of every
// processor adds to them.
type counters struct {
	reads, readBytes, zeroReads, splicedReads tally.Counter
	writes, writtenBytes                      tally.Counter
	discards, discardedBytes                  tally.Counter
	zeroings, zeroedBytes                     tally.Counter
	allocations, syncs, seeks, errors         tally.Counter
	passedOpens                               tally.Counter
}

func (f *fileSystem) stats() Stats {
	c, im := &f.counters, f.disk.Stats()
	return Stats{
		{"reads", "requests to read disk.raw; what the kernel has cached needs none", false, c.reads.Value()},
		{"read_bytes", "bytes read", false, c.readBytes.Value()},
		{"zero_reads", "reads of ranges that no file holds", false, c.zeroReads.Value()},
		{"spliced_reads", "reads answered without a copy to user space", false, c.splicedReads.Value()},
		{"writes", "requests to write disk.raw", false, c.writes.Value()},
		{"written_bytes", "bytes in them", false, c.writtenBytes.Value()},
		{"discards", "requests to discard a range, as fstrim and mkfs make them", false, c.discards.Value()},
		{"discarded_bytes", "bytes in those ranges", false, c.discardedBytes.Value()},
		{"zeroings", "requests to zero a range", false, c.zeroings.Value()},
		{"zeroed_bytes", "bytes in those ranges", false, c.zeroedBytes.Value()},
		{"allocations", "requests to reserve space", false, c.allocations.Value()},
		{"syncs", "requests to make everything durable", false, c.syncs.Value()},
		{"seeks", "requests for the next data or hole", false, c.seeks.Value()},
		{"passed_opens", "opens of disk.raw whose reads the kernel answers by itself; they are not among reads", false, c.passedOpens.Value()},
		{"errors", "requests that failed", false, c.errors.Value()},
		{"writers", "open handles of disk.raw for writing", true, f.writers.Load()},

		{"cache_hits", "pages of block tables that were in memory when they were needed", false, im.CacheHits},
		{"cache_misses", "pages of block tables that had to be read", false, im.CacheMisses},
		{"cache_pages", "pages of block tables in memory, of 4 KiB each", true, im.CachePages},
		{"file_syncs", "fdatasyncs of the image file", false, im.FileSyncs},
		{"header_updates", "header updates", false, im.HeaderUpdates},
		{"log_entries", "entries written to the image's log", false, im.LogEntries},
		{"logged_pages", "pages of block tables in those entries", false, im.LoggedPages},
		{"checkpoints", "checkpoints of logged pages", false, im.Checkpoints},
		{"blocks_allocated", "blocks allocated in the image", false, im.BlocksAllocated},
		{"blocks_freed", "blocks released", false, im.BlocksFreed},
		{"dirty_pages", "changed pages of block tables that are not yet in the log", true, im.DirtyPages},
		{"pages_in_log", "pages of block tables in the log that are not yet in place", true, im.PagesInLog},
		{"allocated_bytes", "bytes of the disk that the image and its parents hold", true, im.AllocatedNow},
	}
}

// statPrefix begins the names of attributes that hold one number.
const statPrefix = "stats."

// statXAttrs are the statistics as extended attributes: each number by itself, and all of them as JSON.
func (f *fileSystem) statXAttrs() map[string]string {
	stats := f.stats()
	values := make(map[string]string, len(stats)+1)
	for _, s := range stats {
		values[statPrefix+s.Name] = strconv.FormatInt(s.Value, 10)
	}
	if b, err := json.Marshal(stats.Map()); err == nil {
		values["stats"] = string(b)
	}
	return values
}
