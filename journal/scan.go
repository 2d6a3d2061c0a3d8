package journal

import (
	"errors"
	"io"

	"vhdxfs/internal/ondisk"
)

// Find finds the active sequence of the log reg in r. An error matches ondisk.ErrCorrupt and names rule R11
// if there is none; others are of reading.
//
// The log is read once, or twice where an entry runs over its end. MS-VHDX 2.3.2 describes a search that
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
		return nil, ondisk.Corrupt(ondisk.R11, "log", reg.Offset,
			"no complete sequence among %d valid entries with LogGuid %v", len(entries), reg.GUID)
	}
	return newSequence(r, reg, active), nil
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

// scan returns the valid entries of a log by rising position. They do not overlap.
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
		h, seen, err := readEntry(g, pos)
		switch {
		case err == nil:
			entries = append(entries, entry{
				pos:               pos,
				length:            int64(h.EntryLength),
				tail:              int64(h.Tail),
				sequenceNumber:    h.SequenceNumber,
				descriptors:       int64(h.DescriptorCount),
				flushedFileOffset: h.FlushedFileOffset,
				lastFileOffset:    h.LastFileOffset,
			})
		case !errors.Is(err, ondisk.ErrCorrupt):
			return nil, err
		}
		pos += seen
	}
	return entries, nil
}

// readEntry reads the entry at position pos and checks all that makes it valid, one sector at a time.
// No entry begins within seen bytes from pos other than at pos itself, be this one valid or not: each of
// those sectors begins with the signature of a descriptor or of a data sector. So nothing is read twice
// however the entries of a log claim to overlap.
func readEntry(g *ringReader, pos int64) (h EntryHeader, seen int64, err error) {
	s, err := g.sector(pos)
	if err != nil {
		return EntryHeader{}, 0, err
	}
	h, want, err := decodeEntryHeader((*[entryHeaderSize]byte)(s[:]), g.reg.at(pos))
	if err == nil {
		err = h.check(g.reg, g.reg.at(pos))
	}
	if err != nil {
		return EntryHeader{}, SectorSize, err
	}

	end := int64(h.EntryLength)
	data := descriptorSectors(int64(h.DescriptorCount)) * SectorSize // offset of the next data sector
	left := int64(h.DescriptorCount)
	sum := ondisk.Checksum(s[:], checksumField)
	for at := int64(0); at < end; at += SectorSize {
		off := g.reg.at(pos + at)
		if at > 0 {
			if s, err = g.sector(pos + at); err != nil {
				return EntryHeader{}, 0, err
			}
			sum = ondisk.Update(sum, s[:])
		}
		if left > 0 {
			n, derr := dataDescriptors(s, at == 0, &left, h.SequenceNumber, off)
			if data += n * SectorSize; derr == nil && (data > end || left == 0 && data < end) {
				derr = invalid(off, "EntryLength %d, the descriptors need %d", end, data)
			}
			err = derr
		} else if at > 0 {
			err = checkDataSector(s, h.SequenceNumber, off)
		} else if data != end {
			err = invalid(off, "EntryLength %d of an entry without descriptors", end)
		}
		if err != nil {
			return EntryHeader{}, max(at, SectorSize), err
		}
	}
	if sum != want {
		return EntryHeader{}, end, invalid(g.reg.at(pos), "checksum %#08x, stored %#08x", sum, want)
	}
	return h, end, nil
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
