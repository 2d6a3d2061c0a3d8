package journal

import (
	"errors"
	"io"
	"math"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// headerSection is the end of the part of the file that the log must not change: the file identifier and
// both headers. The region tables behind it may be logged. In bytes.
const headerSection = 192 << 10

// A Sequence is the active sequence of a log, without the entries before the tail of its head, which have
// been put in place already. It reads the log, which must not change, from the file that Find was given.
// Any number of goroutines may use it.
type Sequence struct {
	Region Region

	Tail           int64  // position of the first entry, bytes
	End            int64  // position behind the head, bytes; equals Tail if the ring is full
	SequenceNumber uint64 // of the head
	Entries        int    // at least 1
	Updates        int64  // descriptors in these entries; 0 if there is nothing to do
	Newer          int    // valid entries of the session that are newer than the head, and not reached from it

	FlushedFileOffset uint64 // of the head: the file is damaged if it is shorter, bytes
	LastFileOffset    uint64 // of the head: the file is at least so long after replay, bytes

	r       io.ReaderAt
	entries []entry // tail first
}

func newSequence(r io.ReaderAt, reg Region, entries []entry) *Sequence {
	head := entries[len(entries)-1]
	s := &Sequence{
		Region:            reg,
		Tail:              entries[0].pos,
		End:               (head.pos + head.length) % reg.Length,
		SequenceNumber:    head.sequenceNumber,
		Entries:           len(entries),
		FlushedFileOffset: head.flushedFileOffset,
		LastFileOffset:    head.lastFileOffset,
		r:                 r,
		entries:           entries,
	}
	for _, e := range entries {
		s.Updates += e.descriptors
	}
	return s
}

// Check checks that the sequence may be replayed into a file of size bytes: the file is not shorter than
// its log says (rule R12), and no update touches what is not for the log to touch (rule R13). A good checksum
// does not put an entry above suspicion. NewOverlay and Apply check the same.
func (s *Sequence) Check(size int64) error {
	if err := s.checkSizes(size); err != nil {
		return err
	}
	return s.updates(func(update) error { return nil })
}

func (s *Sequence) checkSizes(size int64) error {
	head := s.Region.at(s.entries[len(s.entries)-1].pos)
	switch {
	case size < 0:
		return errors.New("journal: negative file size")
	case s.FlushedFileOffset > uint64(size):
		return ondisk.Corrupt(ondisk.RuleFileShorterThanLog, "log entry", head,
			"the file is %d bytes long, FlushedFileOffset is %d", size, s.FlushedFileOffset)
	case s.LastFileOffset > math.MaxInt64:
		return ondisk.Corrupt(ondisk.RuleLogTarget, "log entry", head, "LastFileOffset %#x", s.LastFileOffset)
	}
	return nil
}

// An update is a descriptor of a sequence that has passed rule R13.
type update struct {
	descriptor
	off, end int64 // the range of the file that it changes, bytes; empty for zeros of length 0
	data     int64 // position of the data sector, bytes; data descriptors only
}

// updates calls do for each descriptor in order, until do or a check fails. It reads descriptors only.
func (s *Sequence) updates(do func(update) error) error {
	g := newRingReader(s.r, s.Region)
	for _, e := range s.entries {
		data := e.pos + descriptorSectors(e.descriptors)*SectorSize
		for i := range e.descriptors {
			at := entryHeaderSize + i*descriptorSize // in the entry
			pos := e.pos + at
			b, err := g.sector(pos - pos%SectorSize)
			if err != nil {
				return err
			}
			d, err := decodeDescriptor((*[descriptorSize]byte)(b[pos%SectorSize:]), e.sequenceNumber, s.Region.at(pos))
			if err != nil {
				return err // of an entry that was valid: the file changed meanwhile
			}
			u := update{descriptor: d}
			if !d.zero {
				if u.data = data % s.Region.Length; data >= e.pos+e.length {
					return invalid(s.Region.at(pos), "more data descriptors than data sectors")
				}
				data += SectorSize
			}
			if err := s.checkUpdate(&u, s.Region.at(pos)); err != nil {
				return err
			}
			if err := do(u); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkUpdate sets the range of u, whose descriptor lies at file offset off, if it keeps rule R13.
func (s *Sequence) checkUpdate(u *update, off int64) error {
	n := uint64(SectorSize)
	if u.zero {
		n = u.zeroLength
	}
	if n == 0 {
		return nil // touches nothing, wherever
	}
	if u.fileOffset > math.MaxInt64 || n > math.MaxInt64-u.fileOffset {
		return ondisk.Corrupt(ondisk.RuleLogTarget, "log descriptor", off,
			"writes %d bytes at %#x, past the largest file", n, u.fileOffset)
	}
	u.off, u.end = int64(u.fileOffset), int64(u.fileOffset+n) // #nosec G115 -- bounded above
	switch {
	case u.off < headerSection:
		return ondisk.Corrupt(ondisk.RuleLogTarget, "log descriptor", off, "writes into the headers, at %#x", u.off)
	case s.Region.overlaps(u.off, u.end):
		return ondisk.Corrupt(ondisk.RuleLogTarget, "log descriptor", off, "writes into the log, %d bytes at %#x", n, u.off)
	}
	return nil
}
