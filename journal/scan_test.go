package journal

import (
	"errors"
	"io"
	"math"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func TestR11NoCompleteSequence(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(im *image)
	}{
		{"empty log", func(im *image) {}},
		{"entries of another session", func(im *image) {
			im.custom(Entry{LogGUID: otherSession, Tail: noTail, Updates: []Update{data(0, 1)}})
		}},
		{"tail before the sequence", func(im *image) {
			im.pos = 4 * SectorSize
			im.entry(0, data(0, 1))
			im.entry(0, data(1, 1))
		}},
		{"tail inside an entry", func(im *image) {
			im.entry(self, data(0, 1), data(1, 1))
			im.entry(SectorSize, data(0, 1))
		}},
		{"tail behind the head", func(im *image) { im.entry(2*SectorSize, data(0, 1)) }},
		{"tail behind a gap in the numbers", func(im *image) {
			tail := im.entry(self, data(0, 1))
			im.seq++
			im.entry(tail, data(0, 1))
			im.damage(func(b []byte) { b[0] = 0 }, false)
		}},
		{"only the head is complete, and it is damaged", func(im *image) {
			first := im.pos
			im.entry(self)
			im.WriteAt([]byte{1}, im.reg.at(first)+SectorSize-1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(16)
			c.fill(im)
			_, err := Find(im, im.reg)
			wantRule(t, err, ondisk.RuleLogSequence)
			var fe *ondisk.FormatError
			if errors.As(err, &fe); fe.Structure != "log" || fe.Offset != logOffset {
				t.Errorf("error is about %q at %#x, want the log at %#x", fe.Structure, fe.Offset, logOffset)
			}
		})
	}
}

func TestFindRefusesImpossibleRegion(t *testing.T) {
	for _, reg := range []Region{
		{Offset: logOffset, GUID: thisSession},
		{Offset: logOffset, Length: -SectorSize, GUID: thisSession},
		{Offset: logOffset, Length: 1000, GUID: thisSession},
		{Offset: -SectorSize, Length: 1 << 20, GUID: thisSession},
		{Offset: math.MaxInt64 - 1, Length: 1 << 20, GUID: thisSession},
		{Offset: logOffset, Length: 1 << 32, GUID: thisSession},
	} {
		_, err := Find(&failingFile{sparseFile: newImage(16).sparseFile, all: true}, reg) // which fails if it is read
		wantRule(t, err, ondisk.RuleLogSequence)
	}
}

// A pieceReader records the longest read.
type pieceReader struct {
	io.ReaderAt
	longest int
}

func (r *pieceReader) ReadAt(p []byte, off int64) (int, error) {
	r.longest = max(r.longest, len(p))
	return r.ReaderAt.ReadAt(p, off)
}

// The memory of a search does not grow with the length that a header gives the log.
func TestLongLogIsReadInPieces(t *testing.T) {
	im := newImage(16 << 10)
	im.entry(self, data(0, 1))
	r := &pieceReader{ReaderAt: im}
	if _, err := Find(r, im.reg); err != nil {
		t.Fatal(err)
	}
	if r.longest > 1<<20 {
		t.Errorf("%d bytes of the log are read at once", r.longest)
	}
}

// A log that cannot be read is not a damaged one.
func TestFindReadError(t *testing.T) {
	im := newImage(16)
	im.entry(self)
	im.size = logOffset + 8*SectorSize
	_, err := Find(im, im.reg)
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("error %v, want an unexpected end of file", err)
	}
}

// Nothing behind the log is read: the file may end with it.
func TestLogAtTheEndOfTheFile(t *testing.T) {
	im := newImage(100)
	im.entry(self, data(0, 1))
	im.entry(0, data(1, 1))
	im.size = logOffset + im.reg.Length
	if s := im.find(t); s.Entries != 2 {
		t.Errorf("%d entries are active, want 2", s.Entries)
	}
}

func TestActiveSequence(t *testing.T) {
	for _, c := range []struct {
		name    string
		sectors int64
		fill    func(im *image)
		entries int
		updates int64
		seq     uint64
		tail    int64 // sectors
		end     int64 // sectors
		pages   []byte
	}{
		{"one empty entry", 16, func(im *image) { im.entry(self) }, 1, 0, 100, 0, 1, nil},
		{"later entries win", 16, func(im *image) {
			tail := im.entry(self, data(0, 1), data(1, 1))
			im.entry(tail, data(1, 2), data(2, 2))
		}, 2, 4, 101, 0, 6, []byte{1, 2, 2, 0xEE}},
		{"entries before the tail are in place already", 16, func(im *image) {
			first := im.entry(self, zero(0, 1), data(1, 1))
			tail := im.entry(first, data(2, 2))
			im.entry(tail, data(3, 3))
		}, 2, 2, 102, 2, 6, []byte{0xEE, 0xEE, 2, 3}},
		{"head alone", 16, func(im *image) {
			im.entry(self, zero(0, 1))
			im.entry(self, data(1, 2))
		}, 1, 1, 101, 1, 3, []byte{0xEE, 2}},
		{"sequence around the end", 8, func(im *image) {
			im.pos = 5 * SectorSize
			tail := im.entry(self, data(0, 1))
			im.entry(tail)
			im.entry(tail, data(1, 2))
		}, 3, 2, 102, 5, 2, []byte{1, 2}},
		{"entry around the end", 8, func(im *image) {
			im.pos = 6 * SectorSize
			tail := im.entry(self, data(0, 1), data(1, 2), data(2, 3))
			im.entry(tail, data(2, 4))
		}, 2, 4, 101, 6, 4, []byte{1, 2, 4, 0xEE}},
		{"header alone before the end", 4, func(im *image) {
			im.pos = 3 * SectorSize
			im.entry(self, data(0, 1), data(1, 2))
		}, 1, 2, 100, 3, 2, []byte{1, 2}},
		{"ring full of one entry", 4, func(im *image) {
			im.entry(self, data(0, 1), data(1, 2), data(2, 3))
		}, 1, 3, 100, 0, 0, []byte{1, 2, 3}},
		{"ring full of one entry around the end", 4, func(im *image) {
			im.pos = 2 * SectorSize
			im.entry(self, data(0, 1), data(1, 2), data(2, 3))
		}, 1, 3, 100, 2, 2, []byte{1, 2, 3}},
		{"ring full of entries", 8, func(im *image) {
			tail := im.entry(self, data(0, 1))
			im.entry(tail, data(1, 2))
			im.entry(tail, data(2, 3))
			im.entry(tail, data(0, 4))
		}, 4, 4, 103, 0, 0, []byte{4, 2, 3}},
		{"ring full of entries around the end", 8, func(im *image) {
			im.pos = 3 * SectorSize
			tail := im.entry(self, data(0, 1))
			im.entry(tail, data(1, 2))
			im.entry(tail, data(2, 3))
			im.entry(tail, data(0, 4))
		}, 4, 4, 103, 3, 3, []byte{4, 2, 3}},
		{"ring of one sector", 1, func(im *image) { im.entry(self, zero(0, 1)) }, 1, 1, 100, 0, 0, []byte{0}},
		{"the larger head of two, the first", 16, func(im *image) {
			im.seq = 200
			im.entry(self, data(0, 2))
			im.seq = 100
			im.entry(self, data(0, 1))
		}, 1, 1, 200, 0, 2, []byte{2}},
		{"the larger head of two, the second", 16, func(im *image) {
			im.entry(self, data(0, 1))
			im.seq = 200
			im.entry(self, data(0, 2))
		}, 1, 1, 200, 2, 4, []byte{2}},
		{"the larger head, not the larger first entry", 16, func(im *image) {
			tail := im.entry(self, data(0, 1))
			for range 4 {
				im.entry(tail)
			}
			im.seq = 102
			im.entry(self, data(0, 2))
		}, 5, 1, 104, 0, 6, []byte{1}},
		{"incomplete sequence with a larger head", 16, func(im *image) {
			im.entry(self, data(0, 1))
			im.seq = 200
			im.entry(0, data(0, 2))
		}, 1, 1, 100, 0, 2, []byte{1}},
		{"torn entry behind the head", 16, func(im *image) {
			im.entry(self, data(0, 1))
			torn := im.entry(0, data(0, 2), data(1, 2))
			im.WriteAt(make([]byte, SectorSize), im.reg.at(torn+2*SectorSize))
		}, 1, 1, 100, 0, 2, []byte{1, 0xEE}},
		{"a gap before the next number", 16, func(im *image) {
			im.entry(self, data(0, 1))
			im.pos += SectorSize
			im.entry(0, data(0, 2))
		}, 1, 1, 100, 0, 2, []byte{1}},
		{"torn entry over the place of older ones, short of the tail", 16, func(im *image) {
			im.pos = 3 * SectorSize
			im.entry(self, data(0, 1))
			b := AppendEntry(nil, &Entry{LogGUID: thisSession, SequenceNumber: 102, Updates: make([]Update, 127)})
			le.PutUint32(b[8:], 10*SectorSize)
			im.put(b, SectorSize)
		}, 1, 1, 100, 3, 5, []byte{1}},
		{"equal heads, where MS-VHDX keeps the first it meets", 16, func(im *image) {
			im.entry(self, data(0, 1))
			im.seq--
			im.entry(self, data(0, 2))
		}, 1, 1, 100, 0, 2, []byte{1}},
		{"old entry behind the head, of the number before it", 16, func(im *image) {
			im.pos, im.seq = 2*SectorSize, 98
			im.entry(self, data(0, 2))
			im.pos, im.seq = 0, 100
			im.entry(self, data(0, 1))
		}, 1, 1, 100, 0, 2, []byte{1}},
		{"largest sequence number", 16, func(im *image) {
			im.seq = math.MaxUint64
			im.entry(self, data(0, 1))
		}, 1, 1, math.MaxUint64, 0, 2, []byte{1}},
		{"sequence numbers do not wrap", 16, func(im *image) {
			im.seq = math.MaxUint64 - 1
			tail := im.entry(self, data(0, 1))
			im.entry(tail, data(1, 1))
			im.seq = 1 // as 0 is no number; whether this were the successor or a new sequence
			im.entry(self, data(0, 2))
		}, 2, 2, math.MaxUint64, 0, 4, []byte{1, 1}},
		{"300 descriptors", 512, func(im *image) {
			u := make([]Update, 300)
			for i := range u {
				u[i] = data(i%200, byte(i/200+1))
			}
			im.pos = 400 * SectorSize
			im.entry(self, u...)
		}, 1, 300, 100, 400, (400 + 303) % 512, []byte{2, 2, 2}},
		{"zeros over data", 16, func(im *image) {
			tail := im.entry(self, data(0, 1), data(1, 1), zero(0, 1))
			im.entry(tail, zero(1, 2))
		}, 2, 4, 101, 0, 4, []byte{0, 0, 0, 0xEE}},
		{"data over zeros", 16, func(im *image) {
			tail := im.entry(self, zero(0, 4), data(0, 1))
			im.entry(tail, data(2, 2))
		}, 2, 3, 101, 0, 4, []byte{1, 0, 2, 0, 0xEE}},
		{"zeros of no length", 16, func(im *image) { im.entry(self, zero(0, 0)) }, 1, 1, 100, 0, 1, []byte{0xEE}},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(c.sectors)
			c.fill(im)
			s := im.find(t)
			if s.Entries != c.entries || s.Updates != c.updates || s.SequenceNumber != c.seq ||
				s.Tail != c.tail*SectorSize || s.End != c.end*SectorSize {
				t.Errorf("%d entries, %d updates, head %d, tail %d, end %d; want %d, %d, %d, %d, %d",
					s.Entries, s.Updates, s.SequenceNumber, s.Tail, s.End,
					c.entries, c.updates, c.seq, c.tail*SectorSize, c.end*SectorSize)
			}
			if err := s.Check(im.size); err != nil {
				t.Fatalf("Check: %v", err)
			}
			after := im.replay(t)
			for n, b := range c.pages {
				wantPage(t, after, n, b)
			}
		})
	}
}

// Entries behind a damaged one are not replayed, but they are noticed; those of other sessions, and older ones, say nothing.
func TestNewerEntries(t *testing.T) {
	for _, c := range []struct {
		name  string
		fill  func(im *image)
		seq   uint64
		newer int
	}{
		{"none", func(im *image) { im.entry(im.entry(self), data(0, 1)) }, 101, 0},
		{"behind a damaged one", func(im *image) {
			tail := im.entry(self, data(0, 1))
			hurt := im.entry(tail, data(1, 1))
			im.entry(tail, data(2, 1))
			im.entry(tail, data(3, 1))
			im.WriteAt([]byte{0xFF}, im.reg.at(hurt)+SectorSize+100)
		}, 100, 2},
		{"the last one is damaged", func(im *image) {
			tail := im.entry(self, data(0, 1))
			hurt := im.entry(tail, data(1, 1))
			im.WriteAt([]byte{0xFF}, im.reg.at(hurt)+SectorSize+100)
		}, 100, 0},
		{"of another session", func(im *image) {
			im.entry(self)
			im.pos += SectorSize
			im.seq += 5
			im.custom(Entry{LogGUID: otherSession, Tail: noTail, Updates: []Update{data(0, 1)}})
		}, 100, 0},
	} {
		im := newImage(16)
		c.fill(im)
		if s := im.find(t); s.SequenceNumber != c.seq || s.Newer != c.newer {
			t.Errorf("%s: head %d with %d newer entries, want %d with %d", c.name, s.SequenceNumber, s.Newer, c.seq, c.newer)
		}
	}
}

// T9: what Windows leaves in a log: an empty entry, stale ones of other sessions, and rubbish between them.
func TestT9NothingToDoAmongJunk(t *testing.T) {
	im := newImage(32)
	rng := newRand(9)
	junk := make([]byte, im.reg.Length)
	for i := range junk {
		junk[i] = byte(rng.Uint32())
	}
	im.WriteAt(junk, im.reg.Offset)
	im.custom(Entry{LogGUID: otherSession, Tail: noTail, Updates: []Update{data(0, 1)}})
	im.pos += 3 * SectorSize
	im.seq = 7000
	want := im.entry(self)
	im.pos += SectorSize
	im.seq = 90000
	im.custom(Entry{LogGUID: otherSession, Tail: noTail, Updates: []Update{data(0, 2)}})
	// A header that promises the whole ring, and one that is cut off.
	for _, pos := range []int64{20, 25} {
		b := AppendEntry(nil, &Entry{LogGUID: thisSession, SequenceNumber: 7001, Updates: []Update{data(0, 3)}})
		le.PutUint32(b[8:], uint32(im.reg.Length))
		im.put(b[:SectorSize], pos*SectorSize)
	}

	s := im.find(t)
	if s.Tail != want || s.Entries != 1 || s.Updates != 0 || s.SequenceNumber != 7000 {
		t.Errorf("active: tail %d, %d entries, %d updates, head %d", s.Tail, s.Entries, s.Updates, s.SequenceNumber)
	}
	v, err := NewOverlay(im, im.size, s)
	if err != nil {
		t.Fatal(err)
	}
	if v.Overlaps(0, im.size) {
		t.Error("an overlay without updates overlaps something")
	}
	wantPage(t, im.replay(t), 0, 0xEE)
}

// T10: QEMU stores the plain length of the file, Windows sometimes 0.
func TestT10UnalignedSizes(t *testing.T) {
	for _, c := range []struct{ flushed, last uint64 }{
		{0, 0}, {dataOffset + 1<<20 - 512, dataOffset + 12345}, {dataOffset + 777, dataOffset + 1<<20 + 333},
	} {
		im := newImage(16)
		im.custom(Entry{
			LogGUID: thisSession, Tail: noTail, Updates: []Update{data(0, 1)},
			FlushedFileOffset: c.flushed, LastFileOffset: c.last,
		})
		s := im.find(t)
		if s.FlushedFileOffset != c.flushed || s.LastFileOffset != c.last {
			t.Errorf("offsets %d and %d, want %d and %d", s.FlushedFileOffset, s.LastFileOffset, c.flushed, c.last)
		}
		after := im.replay(t)
		wantPage(t, after, 0, 1)
		if want := max(im.size, int64(c.last)); after.size != want {
			t.Errorf("%d bytes after replay, want %d", after.size, want)
		}
	}
}

// No part of the log is read over and over, however its entries claim to overlap: here each sector begins one of the whole ring.
func TestScanIsLinear(t *testing.T) {
	im := newImage(1024)
	for n := range im.reg.Length / SectorSize {
		b := AppendEntry(nil, &Entry{LogGUID: thisSession, SequenceNumber: 5})
		le.PutUint32(b[8:], uint32(im.reg.Length))
		le.PutUint32(b[24:], 127*uint32(im.reg.Length/SectorSize))
		for at := entryHeaderSize; at < SectorSize; at += descriptorSize {
			d := descriptor{fileOffset: dataOffset, sequenceNumber: 5}
			d.encode((*[descriptorSize]byte)(b[at:]))
		}
		im.put(b, n*SectorSize)
	}
	im.read = 0
	_, err := Find(im, im.reg)
	wantRule(t, err, ondisk.RuleLogSequence)
	if im.read > 3*im.reg.Length {
		t.Errorf("read %d bytes of a log of %d", im.read, im.reg.Length)
	}
}
