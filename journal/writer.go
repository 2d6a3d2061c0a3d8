package journal

import (
	"errors"
	"fmt"
	"math"
	"sync"
)

// ErrFull says that an entry does not fit beside those that are still needed, and that nothing was written.
// Space comes back by putting entries in place and releasing them, see Writer.
var ErrFull = errors.New("journal: the log is full")

const (
	// maxEntryPages bounds the memory in which an entry is put together to somewhat more than 16 MiB.
	maxEntryPages = 4096
	// keptBuffer is how much of that memory is kept for the next entry, in bytes.
	keptBuffer = 1 << 20
)

// A Page gives the page of the file at FileOffset, a multiple of SectorSize, new bytes.
type Page struct {
	FileOffset int64
	Data       *[SectorSize]byte
}

// A Mark is the end of an entry. Later marks are larger.
type Mark int64

// A Writer appends entries to the log, one for each batch of pages (MS-VHDX 2.3.1). It never syncs; the
// caller does, and tells it what that achieved:
//
//	m, err := w.Append(pages, flushed, last) // in the log, perhaps
//	f.Sync()
//	w.Durable(m)                             // in the log for certain: the pages may go to their places
//	...write the pages to their places, here or much later...
//	f.Sync()
//	w.Release(m)                             // in place for certain: entries after this one need not name it
//
// A batch is one entry, and an entry with a bad checksum is none: after a crash a batch is there as a whole or
// not at all. That is why a batch has at most MaxPages pages, and why a larger set of changes has to be
// divided by a caller that knows which of them may become durable alone. QEMU cannot replay an entry of more
// than 126 pages.
//
// The space of an entry is free only once a later entry that no longer names it as the tail is durable: until
// then that later one may get lost, and the replay would begin in what overwrote the space. So Release gives
// nothing back by itself. The next entry carries the new tail, and once that entry is durable, the space is
// free. If no other entry comes, Append with no pages does it; one sector stays in reserve so that such an
// entry always has room. To empty a log after ErrFull: put everything in place, sync, Release, Append(nil), sync,
// Durable.
//
// Pages in place must stay as the log left them until they are released: no other use may be made of their place
// in the file, since a replay writes them again.
//
// Any number of goroutines may call its methods. Order between entries is that of the calls of Append.
type Writer struct {
	f   File
	reg Region

	mu             sync.Mutex // guards what follows; not held across a sync
	sequenceNumber uint64     // of the newest entry
	head           Mark       // the end of the newest entry
	tail           Mark       // of the next entry: the end of the last entry that was released
	needed         Mark       // the tail of the newest durable entry: what lies behind must not be overwritten
	pending        []pending  // entries not known to be durable, oldest first
	buf            []byte
	err            error // of the first write that failed
}

// pending is an entry that may be lost.
type pending struct{ end, tail Mark }

// Start begins a session: it appends an empty entry with the number firstSeq, not 0, to the log reg and syncs f.
// Then the header may name reg.GUID, which must not have been in use before. The header must not name any other
// log now, because Start overwrites what is in it (the order is not that of MS-VHDX 2.3.2, in which a crash
// between the two leaves a header that names a log without entries). The sizes are as in Append.
func Start(f File, reg Region, firstSeq uint64, flushed, last int64) (*Writer, error) {
	if err := reg.check(); err != nil {
		return nil, err
	}
	if firstSeq == 0 {
		return nil, errors.New("journal: sequence number 0")
	}
	w := &Writer{f: f, reg: reg, sequenceNumber: firstSeq - 1}
	m, err := w.write(nil, flushed, last)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("journal: sync the first entry: %w", err)
	}
	w.Durable(m)
	return w, nil
}

// Append writes pages as one entry behind the newest one, without a sync, and returns its end. The pages must not
// change meanwhile. flushed is a size of the file that is on stable media now, the larger the better, and last
// the smallest size in which all structures have room, those in pages included; both in bytes, multiples of
// 1 MiB if the size of the file allows it (FlushedFileOffset and LastFileOffset).
//
// It returns ErrFull if the entry does not fit now. After any other error of writing the log, every call of
// Append fails with that same error: whether the entry is there is not known.
func (w *Writer) Append(pages []Page, flushed, last int64) (Mark, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if limit := w.MaxPages(); len(pages) > limit {
		return 0, fmt.Errorf("journal: %d pages in a batch, at most %d fit into this log", len(pages), limit)
	}
	for _, p := range pages {
		if err := w.reg.checkPage(p.FileOffset); err != nil {
			return 0, err
		}
	}
	if w.sequenceNumber == math.MaxUint64 {
		return 0, errors.New("journal: no sequence number is left in this session")
	}
	room := w.free() - SectorSize
	if len(pages) == 0 && w.tail > w.newestTail() {
		room += SectorSize // this is what the reserve is for
	}
	if EntryLength(len(pages)) > room {
		return 0, ErrFull
	}
	return w.write(pages, flushed, last)
}

// checkPage refuses an update that no reader would accept (rule R13).
func (reg Region) checkPage(off int64) error {
	if off%SectorSize != 0 || off < headerSection || off > math.MaxInt64-SectorSize || reg.overlaps(off, off+SectorSize) {
		return fmt.Errorf("journal: the log cannot hold a page at %#x", off)
	}
	return nil
}

// EntryLength returns the bytes that an entry of n pages takes in the log.
func EntryLength(n int) int64 { return (descriptorSectors(int64(n)) + int64(n)) * SectorSize }

// MaxPages returns the largest number of pages in a batch, all of which fit once everything before is released.
// It is 252 for a log of 1 MiB.
func (w *Writer) MaxPages() int {
	// The entry that freed the others is there, and the reserve.
	room := w.reg.Length - 2*SectorSize
	n := int(max(0, min(room/SectorSize, maxEntryPages)))
	for n > 0 && EntryLength(n) > room {
		n--
	}
	return n
}

// write does Append once it is known that there is room.
func (w *Writer) write(pages []Page, flushed, last int64) (Mark, error) {
	if flushed < 0 || last < 0 {
		return 0, fmt.Errorf("journal: negative file size %d or %d", flushed, last)
	}
	e := Entry{
		LogGUID:           w.reg.GUID,
		SequenceNumber:    w.sequenceNumber + 1,
		Tail:              uint32(int64(w.tail) % w.reg.Length),
		FlushedFileOffset: uint64(flushed),
		LastFileOffset:    uint64(last),
		Updates:           make([]Update, len(pages)),
	}
	for i, p := range pages {
		e.Updates[i] = Update{FileOffset: uint64(p.FileOffset), Data: p.Data}
	}
	b := AppendEntry(w.buf[:0], &e)
	if cap(b) <= keptBuffer {
		w.buf = b
	}

	pos := int64(w.head) % w.reg.Length
	first := b[:min(int64(len(b)), w.reg.Length-pos)]
	_, err := w.f.WriteAt(first, w.reg.at(pos))
	if rest := b[len(first):]; err == nil && len(rest) > 0 {
		_, err = w.f.WriteAt(rest, w.reg.at(0))
	}
	if err != nil {
		w.err = fmt.Errorf("journal: write an entry of %d bytes at %#x: %w", len(b), w.reg.at(pos), err)
		return 0, w.err
	}
	w.sequenceNumber++
	w.head += Mark(len(b))
	w.pending = append(w.pending, pending{end: w.head, tail: w.tail})
	return w.head, nil
}

// Durable says that the entries up to m are on stable media: a sync of the file has succeeded that began after
// the Append that returned m was done.
func (w *Writer) Durable(m Mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.durable(m)
}

func (w *Writer) durable(m Mark) {
	n := 0
	for n < len(w.pending) && w.pending[n].end <= m {
		w.needed = w.pending[n].tail
		n++
	}
	w.pending = append(w.pending[:0], w.pending[n:]...)
}

// Release says that the pages of all entries up to m are in place on stable media, and so the entries also. A
// page of such an entry that a later entry has too may be in place as that one has it, if that one was durable
// when the page was written.
func (w *Writer) Release(m Mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.durable(m)
	w.tail = max(w.tail, min(m, w.head))
}

// Head returns the end of the newest entry.
func (w *Writer) Head() Mark {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.head
}

// Tail returns the end of the last entry that was released: where a replay would begin if another entry became
// durable now.
func (w *Writer) Tail() Mark {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tail
}

// Free returns how many bytes the next entry may have now.
func (w *Writer) Free() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(0, w.free()-SectorSize)
}

// free includes the reserve.
func (w *Writer) free() int64 { return w.reg.Length - int64(w.head-w.needed) }

// newestTail returns the tail that the newest entry names.
func (w *Writer) newestTail() Mark {
	if n := len(w.pending); n > 0 {
		return w.pending[n-1].tail
	}
	return w.needed
}
