package journal

import (
	"errors"
	"fmt"
	"math"
	"sync"
)

// ErrFull says that an entry does not fit behind the newest one, and that nothing was written.
var ErrFull = errors.New("journal: the log is full")

const (
	// maxEntryPages bounds the memory in which an entry is put together to somewhat more than 16 MiB.
	maxEntryPages = 4096
	// keptBuffer is how much of that memory is kept for the next entry, in bytes.
	keptBuffer = 1 << 20
	// endGap is what stays unused at the end of the log, in bytes. QEMU 7.2 steps over one sector behind the last entry
	// and looks there for the next sequence; where that is the first entry, or the one behind an empty first entry, it
	// finds the same sequence again, without end.
	endGap = 2 * SectorSize
)

// A Page gives the page of the file at FileOffset, a multiple of SectorSize, new bytes.
type Page struct {
	FileOffset int64
	Data       *[SectorSize]byte
}

// A Writer appends entries to the log, one for each batch of pages (MS-VHDX 2.3.1), from the beginning of the log to its
// end. It never syncs; the caller does: an entry is in the log for certain after a sync that began when Append had
// returned. Its pages must not go to their places before that sync has returned.
//
// A batch is one entry, and an entry with a bad checksum is none: after a crash a batch is there as a whole or
// not at all. That is why a batch has at most MaxPages pages, and why a larger set of changes has to be
// divided by a caller that knows which of them may become durable alone. QEMU cannot replay an entry of more
// than 126 pages.
//
// The log does not go round, and all entries of a session name the first one as their tail. To empty a log: put
// everything in place, sync, have the header name no log, and Start a session with another LogGuid. MS-VHDX allows to go
// on at the beginning of the log, and a Sequence may do so. But QEMU replays a sequence from its first entry rather than
// from the tail, and of one that goes over the end of the log only the entries behind the end.
//
// Pages in place must stay as the log left them until the header does not name the log any more. No other use may be
// made of their place in the file, since a replay writes them again.
//
// Any number of goroutines may call its methods. Order between entries is that of the calls of Append.
type Writer struct {
	f   File
	reg Region

	mu             sync.Mutex // guards what follows; not held across a sync
	sequenceNumber uint64     // of the newest entry
	head           int64      // position behind the newest entry, bytes
	buf            []byte
}

// Start begins a session: it writes an empty entry with the number firstSeq, not 0, to the beginning of the log reg and
// syncs f. Then the header may name reg.GUID, which must not have been in use before. The header must not name any other
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
	if err := w.write(nil, flushed, last); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("journal: sync the first entry: %w", err)
	}
	return w, nil
}

// Append writes pages as one entry behind the newest one, without a sync. The pages must not change meanwhile. flushed is
// a size of the file that is on stable media now, the larger the better, and last the smallest size in which all
// structures have room, those in pages included; both in bytes, multiples of 1 MiB if the size of the file allows it
// (FlushedFileOffset and LastFileOffset).
//
// It returns ErrFull if the entry does not fit. After an error nothing was appended: what there is of the entry does not
// count, and the next call writes over it.
func (w *Writer) Append(pages []Page, flushed, last int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if limit := w.MaxPages(); len(pages) > limit {
		return fmt.Errorf("journal: %d pages in a batch, at most %d fit into this log", len(pages), limit)
	}
	for _, p := range pages {
		if err := w.reg.checkPage(p.FileOffset); err != nil {
			return err
		}
	}
	if w.sequenceNumber == math.MaxUint64 {
		return errors.New("journal: no sequence number is left in this session")
	}
	if EntryLength(len(pages)) > w.free() {
		return ErrFull
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

// MaxPages returns the largest number of pages in a batch, which fit when a session has begun. It is 251 for a log of
// 1 MiB.
func (w *Writer) MaxPages() int {
	room := w.reg.Length - SectorSize - endGap
	n := int(max(0, min(room/SectorSize, maxEntryPages)))
	for n > 0 && EntryLength(n) > room {
		n--
	}
	return n
}

// write does Append once it is known that there is room.
func (w *Writer) write(pages []Page, flushed, last int64) error {
	if flushed < 0 || last < 0 {
		return fmt.Errorf("journal: negative file size %d or %d", flushed, last)
	}
	e := Entry{
		LogGUID:           w.reg.GUID,
		SequenceNumber:    w.sequenceNumber + 1,
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

	if _, err := w.f.WriteAt(b, w.reg.at(w.head)); err != nil {
		return fmt.Errorf("journal: write an entry of %d bytes at %#x: %w", len(b), w.reg.at(w.head), err)
	}
	w.sequenceNumber++
	w.head += int64(len(b))
	return nil
}

// Free returns how many bytes the next entry may have.
func (w *Writer) Free() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(0, w.free())
}

func (w *Writer) free() int64 { return w.reg.Length - endGap - w.head }
