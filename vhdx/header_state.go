package vhdx

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A headerState owns the two headers of the image file, and what they tell of changes (MS-VHDX 2.2.2). What always holds:
//
//   - header is what the copy in slot says, and that copy is durable. The other one is older, or the same with another
//     sequence number, or, after a write that found no space, either; it is the one that the next update begins with.
//   - announced is never more than what the headers tell, durably. It goes back only with the gate held alone, when no change
//     is under way.
//   - While there is a writer nothing else writes to the headers. A lease does, before and after.
type headerState struct {
	*failure
	counters     *counters
	newFileWrite func() uuid.UUID // returns a new FileWriteGuid, which may tell of a lease

	// The widest kind of change that the headers tell of. Each change reads it without mu, with the gate held: one that finds
	// enough was announced durably before, and that cannot be taken back while the gate is held. It is changed with mu held.
	announced atomic.Int32

	mu        sync.Mutex // held while the headers are synced; guards what follows
	file      File       // that of the current layer
	layer     *layer     // the current one, which tells the user what the headers say
	header    ondisk.Header
	slot      int       // of the copy that is header
	opened    bool      // they have told of a change at least once
	repaired  bool      // damaged region tables are in the log
	dataWrite uuid.UUID // the DataWriteGuid to announce instead of a new one, if not zero
}

// A writeKind says how visible a change is (MS-VHDX 2.2.2).
type writeKind int32

const (
	noWrite   writeKind = iota
	fileWrite           // visible in the bytes of the file only
	dataWrite           // visible to readers of the disk
)

// use takes file, that of layer l. The headers of the same file stay as they were written: what is in their places may be
// newer, and not durable. Those of another file have told of no change yet.
func (h *headerState) use(l *layer, file File, another bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file, h.layer = file, l
	if another {
		h.header, h.slot = l.headers.header(), l.headers.current
		h.opened, h.repaired, h.dataWrite = false, false, uuid.Nil
	}
}

// told returns the widest kind of change that the headers tell of.
func (h *headerState) told() writeKind { return writeKind(h.announced.Load()) }

// announce has the headers tell of a change of the given kind, durably, unless they do. The first change renews FileWriteGuid,
// the first one that a reader of the disk can see DataWriteGuid also. before comes before the first update since the image was
// clean, and an error of it is the result. repair, with mu held, has damaged region tables repaired, and reports whether they
// were; it is called until it has done so once.
func (h *headerState) announce(kind writeKind, before func() error, repair func() bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	told := h.told()
	if told >= kind {
		return h.err()
	}
	next := h.header
	if told == noWrite {
		if err := before(); err != nil {
			return err
		}
		next.FileWriteGUID = h.newFileWrite()
	}
	if kind == dataWrite {
		next.DataWriteGUID = h.newDataWrite()
	}
	if err := h.write(next); err != nil {
		return err
	}
	h.repaired = h.repaired || repair()
	h.opened = true
	h.announced.Store(int32(kind)) // last: from here on other changes need not wait for mu
	return nil
}

// cleaned says that the image is clean: the next change is announced anew. The caller holds the gate alone, so no change slips
// through that has seen the old value and is not announced.
func (h *headerState) cleaned() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced.Store(int32(noWrite))
}

// everChanged reports whether a change was announced since the file was opened.
func (h *headerState) everChanged() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opened
}

// now returns the current header.
func (h *headerState) now() ondisk.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.header
}

// keepDataWrite has id be the DataWriteGuid of all that is written from the next announcement on.
func (h *headerState) keepDataWrite(id uuid.UUID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dataWrite = id
}

// newDataWrite returns the DataWriteGuid for what is going to be written. The caller holds mu.
func (h *headerState) newDataWrite() uuid.UUID {
	if h.dataWrite != uuid.Nil {
		return h.dataWrite
	}
	return uuid.New()
}

// update changes the header, durably.
func (h *headerState) update(change func(*ondisk.Header)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.header
	change(&next)
	return h.write(next)
}

// write makes next the current header: first in the place of the other copy, which becomes the current one when it is durable,
// then in the place of this one, so that either may be lost (MS-VHDX 2.2.2). The sync between the two is what makes that true:
// without it a power cut could tear both. Where the host copies on write there may be no space for a header; then next may or
// may not be there. The caller holds mu.
func (h *headerState) write(next ondisk.Header) error {
	next.SequenceNumber = h.header.SequenceNumber
	if next.SequenceNumber > math.MaxUint64-uint64(len(ondisk.HeaderOffsets)) {
		return h.fail(errors.New("the headers have no sequence numbers left"))
	}
	for copies := range ondisk.HeaderOffsets {
		next.SequenceNumber++
		slot := 1 - h.slot
		if _, err := h.file.WriteAt(next.Encode()[:], ondisk.HeaderOffsets[slot]); outOfSpace(err) && copies > 0 {
			break // the other one is current and durable, and the next update begins with this one
		} else if err != nil {
			return h.metadata(fmt.Errorf("write header: %w", err)) // without space, the current one is as it was
		}
		if err := h.file.Sync(); err != nil {
			return h.fail(fmt.Errorf("sync header: %w", err))
		}
		h.header, h.slot = next, slot
	}
	h.counters.headerUpdates.Add(1)
	h.layer.setHeader(h.header, h.slot)
	return nil
}
