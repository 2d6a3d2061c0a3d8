package journal

import (
	"errors"
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Find finds the active sequence of the log reg in r. An error matches ondisk.ErrCorrupt and names rule R11
// if there is none; others are of reading.
//
// No part of the log is read more than three times, for any content. MS-VHDX 2.3.2 describes a search that
// tries every sector as the start of a sequence; this one collects all valid entries first, then joins them.
func Find(r io.ReaderAt, reg Region) (*Sequence, error) {
	if err := reg.check(); err != nil {
		return nil, err
	}
	entries, err := scan(newRingReader(r, reg))
	if err != nil {
		return nil, err
	}
	active := activeSequence(entries, reg.Length)
	if active == nil {
		return nil, ondisk.Corrupt(ondisk.RuleLogSequence, "log", reg.Offset,
			"no complete sequence among %d valid entries with LogGuid %v", len(entries), reg.GUID)
	}
	s := newSequence(r, reg, active)
	for _, e := range entries {
		if e.sequenceNumber > s.SequenceNumber {
			s.Newer++
		}
	}
	return s, nil
}

// An entry is a valid log entry and its place.
type entry struct {
	pos               int64 // position, bytes
	length            int64 // bytes
	tail              int64 // position, bytes
	sequenceNumber    uint64
	descriptors       int64
	flushedFileOffset uint64 // bytes
	lastFileOffset    uint64 // bytes
}

// scan returns the valid entries of a log by rising position. They do not overlap: past its first sector,
// each sector of an entry begins with the signature of a descriptor or of a data sector, and so begins no
// other entry. The same holds for an invalid one as far as readEntry gets with it, which keeps the work
// linear however entries claim to overlap.
func scan(g *ringReader) ([]entry, error) {
	var entries []entry
	for pos := int64(0); pos < g.reg.Length; {
		s, err := g.sector(pos)
		if err != nil {
			return nil, err
		}
		if string(s[:4]) != "loge" {
			pos += SectorSize
			continue
		}
		h, err := readEntry(g, pos)
		if errors.Is(err, ondisk.ErrCorrupt) {
			pos += SectorSize
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{
			pos:               pos,
			length:            int64(h.EntryLength),
			tail:              int64(h.Tail),
			sequenceNumber:    h.SequenceNumber,
			descriptors:       int64(h.DescriptorCount),
			flushedFileOffset: h.FlushedFileOffset,
			lastFileOffset:    h.LastFileOffset,
		})
		pos += int64(h.EntryLength)
	}
	return entries, nil
}

// readEntry reads the entry at position pos, one sector at a time, and checks all that makes it valid, up to
// the first thing that does not. Its error matches ondisk.ErrCorrupt unless it is of reading.
func readEntry(g *ringReader, pos int64) (EntryHeader, error) {
	s, err := g.sector(pos)
	if err != nil {
		return EntryHeader{}, err
	}
	h, want, err := decodeEntryHeader((*[entryHeaderSize]byte)(s[:]), g.reg.at(pos))
	if err != nil {
		return EntryHeader{}, err
	}
	if err := h.check(g.reg, g.reg.at(pos)); err != nil {
		return EntryHeader{}, err
	}

	length, left := int64(h.EntryLength), int64(h.DescriptorCount)
	need := descriptorSectors(left) * SectorSize // of the descriptors so far
	sum := ondisk.Checksum(s[:], checksumField)
	for at := int64(0); at < length; at += SectorSize {
		off := g.reg.at(pos + at)
		if at > 0 {
			if s, err = g.sector(pos + at); err != nil {
				return EntryHeader{}, err
			}
			sum = ondisk.Update(sum, s[:])
		}
		switch {
		case left > 0:
			var data int64
			data, err = dataDescriptors(s, at == 0, &left, h.SequenceNumber, off)
			need += data * SectorSize
		case at > 0:
			err = checkDataSector(s, h.SequenceNumber, off)
		}
		if err == nil && (need > length || left == 0 && need < length) {
			err = invalid(off, "EntryLength %d, the descriptors need %d", length, need)
		}
		if err != nil {
			return EntryHeader{}, err
		}
	}
	if sum != want {
		return EntryHeader{}, invalid(g.reg.at(pos), "checksum %#08x, stored %#08x", sum, want)
	}
	return h, nil
}

// dataDescriptors checks the descriptors in the sector s, which is the first of its entry or a later one,
// and returns how many of them have a data sector. left is how many the entry still has.
func dataDescriptors(s *[SectorSize]byte, first bool, left *int64, seq uint64, off int64) (int64, error) {
	at := 0
	if first {
		at = entryHeaderSize
	}
	var data int64
	for ; at < SectorSize && *left > 0; at += descriptorSize {
		d, err := decodeDescriptor((*[descriptorSize]byte)(s[at:]), seq, off+int64(at))
		if err != nil {
			return 0, err
		}
		if !d.zero {
			data++
		}
		*left--
	}
	return data, nil
}

// activeSequence returns the entries of the active sequence in a log of length bytes, from the tail of its
// head up to the head, or nil. The entries must be sorted by position and not overlap.
func activeSequence(entries []entry, length int64) []entry {
	n := len(entries)
	at := func(i int) *entry { return &entries[i%n] }
	// Only a neighbour can be a successor, as entries do not overlap. Sequence numbers end a run when they
	// would wrap, since no entry has number 0, and keep a ring that is exactly full from being endless.
	joined := func(i int) bool { // whether the entry i+1 continues the sequence of entry i
		a, b := at(i), at(i+1)
		return (a.pos+a.length)%length == b.pos && a.sequenceNumber+1 == b.sequenceNumber
	}

	var active []entry
	for first := range n {
		if joined(first + n - 1) {
			continue // not the start of a sequence
		}
		head := first
		for joined(head) {
			head++
		}
		if active != nil && at(head).sequenceNumber <= active[len(active)-1].sequenceNumber {
			continue
		}
		for tail := first; tail <= head; tail++ {
			if at(tail).pos != at(head).tail {
				continue
			}
			// Entries before the tail are in place already. Replaying one of them could wipe bytes that
			// were written there since.
			active = make([]entry, 0, head-tail+1)
			for i := tail; i <= head; i++ {
				active = append(active, *at(i))
			}
			break
		}
	}
	return active
}
