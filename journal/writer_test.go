package journal

import (
	"errors"
	"math"
	"testing"
)

// start starts a session on im, whose sizes do not matter.
func start(t *testing.T, im *image) *Writer {
	t.Helper()
	w, err := Start(im, im.reg, im.seq, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// batch returns n pages of the data from the first on, all filled with b.
func batch(first, n int, b byte) []Page {
	p := make([]Page, n)
	for i := range p {
		p[i] = Page{dataOffset + int64(first+i)*SectorSize, filled(b)}
	}
	return p
}

// mustAppend appends a batch that must fit.
func mustAppend(t *testing.T, w *Writer, pages []Page) {
	t.Helper()
	if err := w.Append(pages, 0, 0); err != nil {
		t.Fatalf("append %d pages at %d: %v", len(pages), w.head, err)
	}
}

func TestStart(t *testing.T) {
	im := newImage(16)
	im.custom(Entry{LogGUID: otherSession, Tail: noTail, Updates: []Update{data(0, 1)}})
	w, err := Start(im, im.reg, 7, dataOffset, dataOffset+5)
	if err != nil {
		t.Fatal(err)
	}
	s := im.find(t)
	if s.Entries != 1 || s.Updates != 0 || s.SequenceNumber != 7 || s.Tail != 0 || s.End != SectorSize ||
		s.FlushedFileOffset != dataOffset || s.LastFileOffset != dataOffset+5 {
		t.Errorf("first entry: %+v", *s)
	}
	if im.syncs != 1 || w.head != SectorSize || w.Free() != 13*SectorSize {
		t.Errorf("%d syncs, head %d, %d bytes free", im.syncs, w.head, w.Free())
	}
	if _, err := Start(im, im.reg, 0, 0, 0); err == nil {
		t.Error("Start takes sequence number 0")
	}
	if _, err := Start(im, Region{Offset: logOffset}, 1, 0, 0); err == nil {
		t.Error("Start takes an empty log")
	}
	small := newImage(1)
	if n := start(t, small).Free(); n != 0 {
		t.Errorf("%d bytes are free in a log of one sector, which the first entry has", n)
	}
	for left := range 2 {
		if _, err := Start(&failingFile{sparseFile: im.sparseFile, left: left}, im.reg, 1, 0, 0); !errors.Is(err, errFile) {
			t.Errorf("Start on a file that fails at change %d: %v", left, err)
		}
	}
}

// What is appended is what a reader finds, over many sessions, with entries of all sizes.
func TestAppendIsReplayed(t *testing.T) {
	seeds := uint64(10)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		rng := newRand(seed)
		im := newImage(8 + rng.Int64N(300))
		w := start(t, im)
		if w.MaxPages() == 0 {
			t.Fatalf("nothing fits into %d sectors", im.reg.Length/SectorSize)
		}
		model := im.clone()
		var batches [][]Page // of the session
		sessions := 1
		for range 200 {
			pages := batch(rng.IntN(100), rng.IntN(min(w.MaxPages(), 200)+1), byte(rng.Uint32()))
			err := w.Append(pages, 0, 0)
			if errors.Is(err, ErrFull) {
				for _, b := range batches {
					for _, p := range b {
						im.WriteAt(p.Data[:], p.FileOffset)
					}
				}
				batches = nil
				sessions++
				im.reg.GUID[0]++
				w = start(t, im)
				mustAppend(t, w, pages)
			} else if err != nil {
				t.Fatal(err)
			}
			batches = append(batches, pages)
			for _, p := range pages {
				model.WriteAt(p.Data[:], p.FileOffset)
			}
			s := im.find(t)
			if got := len(s.entries); got != len(batches)+1 || s.Tail != 0 || s.End != w.head {
				t.Fatalf("seed %d: active are %d entries from %d up to %d, want those of %d batches up to %d",
					seed, got, s.Tail, s.End, len(batches), w.head)
			}
			if s.End > im.reg.Length-endGap {
				t.Fatalf("seed %d: the sequence ends at %d in a log of %d bytes", seed, s.End, im.reg.Length)
			}
			if rng.IntN(10) > 0 {
				continue
			}
			v, err := NewOverlay(im, im.size, s)
			if err != nil {
				t.Fatal(err)
			}
			for n := range int64(300) {
				var got, want [SectorSize]byte
				v.ReadAt(got[:], dataOffset+n*SectorSize)
				model.ReadAt(want[:], dataOffset+n*SectorSize)
				if got != want {
					t.Fatalf("seed %d: page %d differs from what was appended", seed, n)
				}
			}
		}
		if sessions == 1 && im.reg.Length < 64*SectorSize {
			t.Errorf("seed %d: the log never got full", seed)
		}
	}
}

func TestMaxPages(t *testing.T) {
	for _, c := range []struct {
		sectors int64
		want    int
	}{
		{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 1}, {8, 4}, {129, 125}, {130, 126}, {131, 126}, {132, 127}, {256, 251},
		{256 << 10, maxEntryPages}, {1<<20 - 256, maxEntryPages},
	} {
		reg := Region{Length: c.sectors * SectorSize}
		if got := (&Writer{reg: reg}).MaxPages(); got != c.want {
			t.Errorf("MaxPages of %d sectors = %d, want %d", c.sectors, got, c.want)
		}
	}
	im := newImage(256)
	w := start(t, im)
	n := w.MaxPages()
	if err := w.Append(batch(0, n+1, 1), 0, 0); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("%d pages: %v, want an error that is not ErrFull", n+1, err)
	}
	mustAppend(t, w, batch(0, n, 1))
	if w.Free() != 0 {
		t.Errorf("%d bytes free behind the largest batch", w.Free())
	}
	if im.find(t).Updates != int64(n) {
		t.Error("the largest batch is not in the log")
	}
}

func TestErrFull(t *testing.T) {
	im := newImage(9)
	w := start(t, im)
	mustAppend(t, w, batch(0, 2, 1))
	mustAppend(t, w, batch(0, 2, 2)) // 7 sectors are in use, 2 are the gap
	for _, pages := range [][]Page{batch(0, 1, 3), nil} {
		before := im.clone()
		if err := w.Append(pages, 0, 0); !errors.Is(err, ErrFull) {
			t.Fatalf("%d pages: %v, want ErrFull", len(pages), err)
		}
		sameFile(t, im, before, im.size, pagesOf(im.sparseFile, before), newRand(1))
	}
	if s := im.find(t); s.Entries != 3 || s.Tail != 0 || w.Free() != 0 {
		t.Errorf("active: %d entries from %d; %d bytes free", s.Entries, s.Tail, w.Free())
	}
}

func TestAppendRefuses(t *testing.T) {
	im := newImage(16)
	w := start(t, im)
	for _, off := range []int64{
		-SectorSize, 0, headerSection - SectorSize, logOffset, logOffset + 15*SectorSize, dataOffset + 512, math.MaxInt64 - SectorSize + 1,
	} {
		if err := w.Append([]Page{{off, filled(1)}}, 0, 0); err == nil {
			t.Errorf("Append takes a page at %#x", off)
		}
	}
	for _, size := range [][2]int64{{-1, 0}, {0, -1}} {
		if err := w.Append(nil, size[0], size[1]); err == nil {
			t.Errorf("Append takes the sizes %v", size)
		}
	}
	if s := im.find(t); s.Entries != 1 || w.head != SectorSize {
		t.Errorf("%d entries up to %d after nothing but errors", s.Entries, w.head)
	}
	mustAppend(t, w, []Page{{headerSection, filled(1)}, {logOffset - SectorSize, filled(1)}, {logOffset + 16*SectorSize, filled(1)}})
	if err := im.find(t).Check(im.size); err != nil {
		t.Errorf("pages at the limits: %v", err)
	}
}

func TestSequenceNumbersEnd(t *testing.T) {
	im := newImage(16)
	im.seq = math.MaxUint64 - 1
	w := start(t, im)
	mustAppend(t, w, batch(0, 1, 1))
	if err := w.Append(batch(1, 1, 1), 0, 0); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("Append past the last number: %v", err)
	}
	if s := im.find(t); s.SequenceNumber != math.MaxUint64 {
		t.Errorf("head %d", s.SequenceNumber)
	}
}

// An entry that could not be written, or only a part of it, does not count, and the next one takes its place.
func TestAppendAgain(t *testing.T) {
	for _, torn := range []int{0, 64, SectorSize, 2*SectorSize + 5} {
		im := newImage(16)
		f := &failingFile{sparseFile: im.sparseFile, left: math.MaxInt}
		w, err := Start(f, im.reg, 1, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, w, batch(0, 1, 1))
		f.left = 0
		if err := w.Append(batch(0, 3, 2), 0, 0); !errors.Is(err, errFile) {
			t.Fatalf("append: %v, want the error of the file", err)
		}
		e := Entry{LogGUID: im.reg.GUID, SequenceNumber: 3}
		for _, p := range batch(0, 3, 2) {
			e.Updates = append(e.Updates, Update{FileOffset: uint64(p.FileOffset), Data: p.Data})
		}
		im.WriteAt(AppendEntry(nil, &e)[:torn], im.reg.at(w.head))
		if s := im.find(t); s.Entries != 2 {
			t.Errorf("%d bytes of an entry: %d entries, want those before it", torn, s.Entries)
		}
		f.left = math.MaxInt
		mustAppend(t, w, batch(0, 2, 3))
		if s := im.find(t); s.Entries != 3 || s.Updates != 3 || s.End != w.head {
			t.Errorf("%d bytes of an entry, then another: %d entries with %d updates", torn, s.Entries, s.Updates)
		}
	}
}
