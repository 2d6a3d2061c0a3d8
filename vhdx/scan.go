package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vhdxfs/vhdxfs/cache"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// loadBAT makes the BAT readable and validates every entry of it that describes something.
func (l *layer) loadBAT() error {
	r, _ := l.tables.find(ondisk.BATRegionGUID) // validateRegions has seen it
	entries := l.geo.BATEntries()
	if need := entries * ondisk.BATEntrySize; need > int64(r.Length) {
		err := ondisk.Corrupt(ondisk.RuleBATTooSmall, "BAT", int64(r.Offset), "the region has %s, but %d entries need %s", sizes.Text(int64(r.Length)), entries, sizes.Text(int64(need))) // #nosec G115 -- validateRegions has seen it
		if l.tolerate(err) != nil || r.Length < ondisk.PageSize {
			return err
		}
		l.geo.DiskSize = l.geo.BlocksOf(int64(r.Length)/ondisk.BATEntrySize) << l.geo.BlockShift
		entries = l.geo.BATEntries()
	}
	l.bat = l.cache.Span(l.src, int64(r.Offset), l.geo.BATPages()) // #nosec G115 -- inside the file, or validateRegions has refused or reported it, and reads fail
	if l.geo.HasParent {
		l.bitmaps = make([]atomic.Pointer[cache.Span], l.geo.Chunks())
	}
	l.space = newSpaceMap(l.size)
	l.findObjects()
	for _, o := range l.objects {
		l.space.mark(o.off, o.n)
	}
	for _, r := range l.tables.regions {
		if !r.Inside(l.size) { // as an optional region may
			l.unwritable = "a region is outside the file"
		}
	}
	return l.scanBAT(&batScan{layer: l, off: int64(r.Offset), entries: entries}) // #nosec G115 -- inside the file, or validateRegions has refused or reported it, and reads fail
}

// batOffset returns the file offset of the BAT region.
func (l *layer) batOffset() int64 {
	r, _ := l.tables.find(ondisk.BATRegionGUID)
	return int64(r.Offset) // #nosec G115 -- inside the file, or validateRegions has refused or reported it, and reads fail
}

// run reads the BAT once, from its first entry to its last, and validates each. Holes of the file are skipped, so
// that the time it takes is that of what is allocated, not of the disk's size. It reports false where it stopped after
// having read limit bytes, and goes on when it is called again.
func (s *batScan) run(limit int64) (done bool, err error) {
	l := s.layer
	if s.buf == nil {
		s.buf = make([]byte, min(1*ondisk.MiB, l.geo.BATPages()*ondisk.PageSize))
	}
	for s.next < s.entries {
		at, left := s.entryOffset(s.next), (s.entries-s.next)*ondisk.BATEntrySize
		hole, err := l.hole(at, left)
		if err != nil {
			return false, err
		}
		// next is the first entry of a page throughout, so whole pages of a hole can be skipped.
		if pages := hole / ondisk.PageSize; pages > 0 || hole == left {
			if hole == left {
				pages = (hole + ondisk.PageSize - 1) / ondisk.PageSize
			}
			l.bat.MarkZero(s.next/ondisk.EntriesPerPage, pages)
			s.next += pages * ondisk.EntriesPerPage
			continue
		}
		if limit <= 0 {
			return false, nil
		}
		b := s.buf[:min(int64(len(s.buf)), left)]
		if err := readFull(l.src, b, at, "BAT"); err != nil {
			return false, err
		}
		if err := s.pages(b, s.next); err != nil {
			return false, err
		}
		s.next += int64(len(b)) / ondisk.BATEntrySize
		limit -= int64(len(b))
	}
	return true, s.end()
}

// hole returns how many of the n bytes from file offset off on are known to be zero without reading them.
func (l *layer) hole(off, n int64) (int64, error) {
	data, err := l.file.NextData(off)
	switch {
	case errors.Is(err, io.EOF):
	case err != nil:
		return 0, fmt.Errorf("find data behind %#x: %w", off, err)
	default:
		n = min(data-off, n)
	}
	// Pages of the log may lie over a hole of the file.
	for n > 0 && l.replay != nil && l.replay.Overlaps(off, n) {
		n = n / 2 / ondisk.PageSize * ondisk.PageSize
	}
	return n, nil
}

// A batScan validates BAT entries in the order of the BAT.
type batScan struct {
	layer   *layer
	off     int64 // file offset of the BAT
	entries int64 // all there are
	next    int64 // the first entry that was not validated yet, the first of a page

	buf    []byte
	counts BlockCounts // so far

	chunk     int64 // of the entries being validated
	partial   int64 // entry of the first partially present block of the chunk, where any is set
	hasBitmap bool
	any       bool // partial is set

	kept *spaceMap // places that blocks keep without being present; nil while there are none
}

// pages validates the entries in b, the first of which is entry i and begins a page.
func (s *batScan) pages(b []byte, i int64) error {
	for len(b) > 0 {
		page := b[:min(ondisk.PageSize, len(b))]
		if allZero(page) {
			s.layer.bat.MarkZero(i/ondisk.EntriesPerPage, 1)
		} else if err := s.page(page, i); err != nil {
			return err
		}
		b = b[len(page):]
		i += ondisk.EntriesPerPage
	}
	return nil
}

// page validates the entries in b, the first of which is entry i. QEMU writes tables that say of each block that it is
// zero, and for the largest disk there are 64 Mi of these; so equal entries are taken together where nothing has to be
// said of each.
func (s *batScan) page(b []byte, i int64) error {
	for len(b) > 0 {
		e, n := ondisk.BATEntry(ondisk.LE.Uint64(b)), equalWords(b)
		blocks, plain := s.plain(i, n, e)
		s.counts.add(e.State(), blocks)
		for j := i; j < i+n && !plain; j++ {
			if err := s.entry(j, e); err != nil {
				return err
			}
		}
		i += n
		b = b[n*ondisk.BATEntrySize:]
	}
	return nil
}

// plain reports whether the n entries from i on, which are all e, keep the rules and describe payload blocks without a
// place in the file, or nothing, and how many blocks these are.
func (s *batScan) plain(i, n int64, e ondisk.BATEntry) (blocks int64, plain bool) {
	if e == 0 {
		return 0, true // blocks that are not present are counted as the rest
	}
	if e != ondisk.BATEntry(ondisk.Undefined) && e != ondisk.BATEntry(ondisk.Zero) && e != ondisk.BATEntry(ondisk.Unmapped) {
		return 0, false
	}
	first, bitmap := s.layer.geo.Entry(i)
	last, lastBitmap := s.layer.geo.Entry(i + n - 1)
	if bitmap || lastBitmap || last-first != n-1 {
		return 0, false // the entry of a sector bitmap block is among them
	}
	end := s.layer.geo.PayloadBlocks()
	return max(0, min(last+1, end)-first), true
}

// equalWords returns how many words at the beginning of b are the same.
func equalWords(b []byte) int64 {
	if bytes.Equal(b[ondisk.BATEntrySize:], b[:len(b)-ondisk.BATEntrySize]) { // several times as fast as to look at words
		return int64(len(b) / ondisk.BATEntrySize)
	}
	n, first := ondisk.BATEntrySize, ondisk.LE.Uint64(b)
	for n < len(b) && ondisk.LE.Uint64(b[n:]) == first {
		n += ondisk.BATEntrySize
	}
	return int64(n / ondisk.BATEntrySize)
}

// allZero reports whether all of b is zero. To compare with zeros is several times as fast as to look at words.
func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// zeros is never written.
var zeros [ondisk.PageSize]byte

// entry validates entry i, which is not zero.
func (s *batScan) entry(i int64, e ondisk.BATEntry) error {
	l := s.layer
	n, bitmap := l.geo.Entry(i)
	chunk := n
	if !bitmap {
		chunk = n >> l.geo.ChunkShift
	}
	if chunk != s.chunk {
		if err := s.chunkEnd(); err != nil {
			return err
		}
		s.chunk = chunk
	}
	switch {
	case bitmap && l.geo.HasParent:
		return s.bitmap(i, e)
	case bitmap:
		s.warn(i, "%#x for a sector bitmap block, only differencing disks have those", int64(e)) // #nosec G115 -- shown as the unsigned number that it is, see anys
		return nil
	case n < l.geo.PayloadBlocks():
		return s.payload(i, n, e)
	}
	return nil // behind the last block: describes nothing
}

// chunkEnd checks what can only be known when all entries of a chunk were seen.
func (s *batScan) chunkEnd() error {
	defer func() { s.any, s.hasBitmap = false, false }()
	if s.any && !s.hasBitmap {
		return s.bad(func() *FormatError {
			return ondisk.Corrupt(ondisk.RuleNoSectorBitmap, "BAT entry", s.entryOffset(s.partial), "partially present block in chunk %d without a sector bitmap block", s.chunk)
		})
	}
	return nil
}

func (s *batScan) entryOffset(i int64) int64 { return s.off + i*ondisk.BATEntrySize }

// bad takes a broken rule, of which say makes the text; see layer.report. There may be 64 Mi of them: no text is made of one
// that is not kept, and nothing allocated, which takes far longer than to find it.
func (s *batScan) bad(say func() *FormatError) error {
	if s.layer.collect && !s.layer.room(&s.layer.errors) {
		return nil
	}
	return s.layer.report(say())
}

// warn remembers what is odd about an entry; see bad.
func (s *batScan) warn(i int64, format string, args ...int64) {
	if s.layer.room(&s.layer.warnings) {
		s.layer.warn("BAT entry", s.entryOffset(i), format, anys(args)...)
	}
}

// warnKept remembers an odd place that block b keeps, whose entry is e.
func (s *batScan) warnKept(i, b int64, e ondisk.BATEntry, what string) {
	if s.layer.room(&s.layer.warnings) {
		s.layer.warn("BAT entry", s.entryOffset(i), "block %d in state %v %s %#x", b, e.State(), what, e.Offset())
	}
}

func anys(numbers []int64) []any {
	list := make([]any, len(numbers))
	for i, n := range numbers {
		list[i] = uint64(n) // offsets may have the highest bit set
	}
	return list
}

// payload validates entry i, that of payload block b.
func (s *batScan) payload(i, b int64, e ondisk.BATEntry) error {
	l := s.layer
	if e.Reserved() != 0 {
		s.warn(i, "reserved bits %#x", int64(e.Reserved())) // #nosec G115 -- shown as the unsigned number that it is, see anys
	}
	if e.State() != ondisk.NotPresent { // which is counted as the rest
		s.counts.add(e.State(), 1)
	}
	if e.State() == ondisk.PartiallyPresent && l.geo.HasParent && !s.any {
		s.any, s.partial = true, i
	}
	switch rule := l.payloadRule(e, l.onDisk(b)); {
	case rule == ondisk.RuleBlockOverlapsRegion:
		s.take(e) // so that a block that overlaps this one is found, too
		fallthrough
	case rule != 0:
		return s.bad(func() *FormatError { return l.payloadError(b, e, rule) })
	case e.Present() && !s.take(e):
		return s.bad(func() *FormatError {
			return ondisk.Corrupt(ondisk.RuleBlockOverlap, "BAT entry", s.entryOffset(i), "block %d at %#x overlaps another block", b, e.Offset())
		})
	case e.State() == ondisk.UnmappedDraft:
		s.warn(i, "state 5 of block %d, unmapped in a draft of the format; it reads as zeros", b)
	}
	if !e.Present() && e.Offset() != 0 {
		return s.keptPlace(i, b, e)
	}
	return nil
}

// take takes the place of a present payload block that has entry e, and reports whether all of it was free.
func (s *batScan) take(e ondisk.BATEntry) bool {
	off, size := e.FileOff(), s.layer.geo.BlockSize
	s.layer.space.grow(off + size) // a last block that the end of the file cuts counts as a whole block
	return s.layer.space.mark(off, size)
}

// keptPlace looks at the file offset that a block which is not present has kept. Nothing is read there, but
// the space counts as occupied.
func (s *batScan) keptPlace(i, b int64, e ondisk.BATEntry) error {
	l := s.layer
	off := e.Offset()
	if st := e.State(); st == ondisk.NotPresent || st == ondisk.Zero {
		s.warnKept(i, b, e, "has the file offset")
		return nil
	}
	if off > uint64(l.size) || l.geo.BlockSize > l.size-int64(off) { // #nosec G115 -- not larger than the file
		s.warnKept(i, b, e, "refers to a place outside the file, at")
		l.unwritable = "a block that is not present refers to a place outside the file"
		return nil
	}
	if s.kept == nil {
		s.kept = newSpaceMap(l.size)
	}
	if !s.kept.mark(int64(off), l.geo.BlockSize) { // #nosec G115 -- not larger than the file
		s.warnKept(i, b, e, "refers to the same place as another block, at")
		l.keptShared = true
	}
	return nil
}

// end finishes the scan when all entries were seen.
func (s *batScan) end() error {
	l := s.layer
	c := s.counts
	c.NotPresent = l.geo.PayloadBlocks() - c.Undefined - c.Zero - c.Unmapped - c.FullyPresent - c.PartiallyPresent
	l.mu.Lock()
	l.counts = c
	l.mu.Unlock()
	if s.kept != nil && l.space.merge(s.kept) {
		l.keptShared = true
		l.warn("BAT", s.off, "blocks that are not present refer to places in use")
	}
	return s.chunkEnd()
}

// bitmap validates entry i, that of the sector bitmap block of the chunk.
func (s *batScan) bitmap(i int64, e ondisk.BATEntry) error {
	l := s.layer
	if e.Reserved() != 0 {
		s.warn(i, "reserved bits %#x", int64(e.Reserved())) // #nosec G115 -- shown as the unsigned number that it is, see anys
	}
	if e.State() == ondisk.BitmapNotPresent {
		return nil
	}
	rule := l.bitmapRule(e)
	if rule != ondisk.RuleBitmapState {
		s.hasBitmap = true
		s.counts.SectorBitmaps++
	}
	if rule != 0 {
		return s.bad(func() *FormatError { return l.bitmapError(s.chunk, e, rule) })
	}
	off := e.FileOff()
	if !l.space.mark(off, ondisk.BitmapBlockSize) {
		return s.bad(func() *FormatError {
			return ondisk.Corrupt(ondisk.RuleBitmapPlace, "BAT entry", s.entryOffset(i), "sector bitmap block of chunk %d at %#x overlaps another block", s.chunk, off)
		})
	}
	l.bitmaps[s.chunk].Store(l.cache.Span(l.src, off, ondisk.BitmapBlockSize/ondisk.PageSize))
	return nil
}
