package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Rings are mostly data sectors, and inputs of their size are more than the fuzzer can search. An input
// is therefore a ring of fuzzSectors sectors with the middle of each sector left out: fragmentSize bytes
// stand for one. What comes first holds the header and two descriptors; the last of these is repeated
// until the sector is full, which gives entries of many descriptors; the rest ends the sector.
const (
	fuzzSectors  = 16
	fragmentHead = entryHeaderSize + 2*descriptorSize
	fragmentTail = 8
	fragmentSize = fragmentHead + fragmentTail
)

// expand returns the ring that in stands for.
func expand(in []byte) []byte {
	ring := make([]byte, fuzzSectors*SectorSize)
	for s := ring; len(s) > 0 && len(in) > 0; s = s[SectorSize:] {
		n := copy(s[:fragmentHead], in)
		in = in[n:]
		last := s[fragmentHead-descriptorSize : fragmentHead]
		if string(last[:4]) == "zero" || string(last[:4]) == "desc" {
			for at := fragmentHead; at+descriptorSize <= SectorSize; at += descriptorSize {
				copy(s[at:], last)
			}
		}
		n = copy(s[SectorSize-fragmentTail:SectorSize], in)
		in = in[n:]
	}
	return ring
}

// contract returns an input that stands for a ring like b.
func contract(b []byte) []byte {
	var in []byte
	for ; len(b) > 0; b = b[SectorSize:] {
		in = append(in, b[:fragmentHead]...)
		in = append(in, b[SectorSize-fragmentTail:SectorSize]...)
	}
	return bytes.TrimRight(in, "\x00")
}

// stampRing makes what begins like an entry have the LogGuid and the checksum that it needs.
func stampRing(ring []byte) {
	for pos := 0; pos < len(ring); pos += SectorSize {
		n := int(le.Uint32(ring[pos+8:]))
		if string(ring[pos:pos+4]) != "loge" || n < SectorSize || n > len(ring) {
			continue
		}
		ondisk.PutGUID(ring[pos+32:], thisSession)
		turned := append(bytes.Clone(ring[pos:]), ring[:pos]...)
		le.PutUint32(ring[pos+4:], ondisk.Checksum(turned[:n], 4))
	}
}

// FuzzEntry reads arbitrary bytes as an entry. One that is valid must be the same when encoded again.
func FuzzEntry(f *testing.F) {
	add := func(e Entry) {
		e.LogGUID = thisSession
		b := make([]byte, fuzzSectors*SectorSize)
		copy(b, AppendEntry(nil, &e))
		f.Add(contract(b), true)
		f.Add(contract(b), false)
	}
	add(Entry{SequenceNumber: 7, Updates: []Update{data(0, 1), zero(3, 2)}})
	add(Entry{SequenceNumber: 1<<64 - 1, Tail: 4096})
	add(Entry{SequenceNumber: 1 << 33, Updates: make([]Update, 300)})
	f.Fuzz(func(t *testing.T, in []byte, stamp bool) {
		ring := expand(in)
		if stamp {
			stampRing(ring)
		}
		im := &image{sparseFile: newSparseFile(nil), reg: Region{Offset: 1 << 20, Length: int64(len(ring)), GUID: thisSession}}
		im.WriteAt(ring, im.reg.Offset)
		h, err := readEntry(newRingReader(im, im.reg), 0)
		if err != nil {
			if !errors.Is(err, ondisk.ErrCorrupt) {
				t.Fatalf("rejected without ErrCorrupt: %v", err)
			}
			return
		}
		e := Entry{
			LogGUID: h.LogGUID, SequenceNumber: h.SequenceNumber, Tail: h.Tail,
			FlushedFileOffset: h.FlushedFileOffset, LastFileOffset: h.LastFileOffset,
		}
		s := newSequence(im, im.reg, []entry{{length: int64(h.EntryLength), sequenceNumber: h.SequenceNumber, descriptors: int64(h.DescriptorCount)}})
		if err := s.updates(func(u update) error {
			e.Updates = append(e.Updates, readUpdate(t, s, &u))
			return nil
		}); err != nil {
			wantRule(t, err, ondisk.RuleLogTarget)
			return
		}
		again := AppendEntry(nil, &e)
		im.put(again, 0)
		if h2, err := readEntry(newRingReader(im, im.reg), 0); err != nil || h2 != h {
			t.Fatalf("encode then decode = %+v, %v; want %+v", h2, err, h)
		}
		first := descriptorSectors(int64(h.DescriptorCount)) * SectorSize
		if !bytes.Equal(again[first:], ring[first:h.EntryLength]) {
			t.Fatal("data sectors differ when encoded again")
		}
	})
}

// readUpdate returns u with its page, as it was when it was encoded.
func readUpdate(t *testing.T, s *Sequence, u *update) Update {
	if u.zero {
		return Update{FileOffset: u.fileOffset, ZeroLength: u.zeroLength}
	}
	p := page{data: uint32(u.data), leading: u.leading, trailing: u.trailing}
	v := Update{FileOffset: u.fileOffset, Data: new([SectorSize]byte)}
	if err := p.read(s, v.Data[:], 0); err != nil {
		t.Fatal(err)
	}
	return v
}

// FuzzReplay replays arbitrary rings in all ways, which must agree.
func FuzzReplay(f *testing.F) {
	add := func(fill func(im *image)) {
		im := newImage(fuzzSectors)
		fill(im)
		b := make([]byte, im.reg.Length)
		im.ReadAt(b, im.reg.Offset)
		f.Add(contract(b), true)
		f.Add(contract(b), false)
	}
	add(func(im *image) {
		tail := im.entry(self, data(0, 1), zero(0, 300))
		im.entry(tail, zero(2, 2), data(300, 2))
		im.entry(tail, Update{FileOffset: 1 << 61, Data: filled(3)}, Update{FileOffset: dataOffset, ZeroLength: 1 << 62})
	})
	add(func(im *image) {
		u := make([]Update, 260)
		for i := range u {
			u[i] = zero(2, 1)
		}
		im.entry(self, append([]Update{data(2, 1)}, u...)...)
		im.entry(self, append(u, data(2, 2))...)
	})
	add(func(im *image) { im.entry(self, Update{FileOffset: 0, Data: filled(3)}) })
	f.Fuzz(func(t *testing.T, in []byte, stamp bool) {
		ring := expand(in)
		if stamp {
			stampRing(ring)
		}
		im := &image{sparseFile: newSparseFile(nil), reg: Region{Offset: logOffset, Length: int64(len(ring)), GUID: thisSession}}
		im.WriteAt(ring, im.reg.Offset)
		for n := range int64(4) { // some data to lose
			im.WriteAt(filled(0xEE)[:], dataOffset+n*SectorSize)
		}

		s, err := Find(im, im.reg)
		if err != nil {
			wantRule(t, err, ondisk.RuleLogSequence)
			return
		}
		if s.Entries > fuzzSectors || s.Updates > fuzzSectors*SectorSize/descriptorSize {
			t.Fatalf("%d entries with %d updates in %d sectors", s.Entries, s.Updates, fuzzSectors)
		}
		cerr := s.Check(im.size)
		v, verr := NewOverlay(im, im.size, s)
		after := im.clone()
		aerr := Apply(after, s)
		if (cerr == nil) != (verr == nil) || (cerr == nil) != (aerr == nil) {
			t.Fatalf("Check: %v, NewOverlay: %v, Apply: %v", cerr, verr, aerr)
		}
		if cerr != nil {
			if !errors.Is(cerr, ondisk.ErrCorrupt) {
				t.Fatalf("rejected without ErrCorrupt: %v", cerr)
			}
			return
		}

		model := im.clone()
		if err := s.updates(func(u update) error {
			naive(model, readUpdate(t, s, &u))
			return nil
		}); err != nil {
			t.Fatalf("Check passed, but: %v", err)
		}
		model.size = max(model.size, int64(s.LastFileOffset))
		if v.Size() != model.size || after.size != model.size {
			t.Fatalf("overlay has %d bytes, replayed file %d, want %d", v.Size(), after.size, model.size)
		}
		at := pagesOf(after, model)
		sameFile(t, v, model, model.size, at, newRand(1))
		sameFile(t, after, model, model.size, at, newRand(2))
	})
}
