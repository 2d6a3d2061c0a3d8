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
func mustAppend(t *testing.T, w *Writer, pages []Page) Mark {
	t.Helper()
	m, err := w.Append(pages, 0, 0)
	if err != nil {
		t.Fatalf("append %d pages at %d: %v", len(pages), w.Head(), err)
	}
	return m
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
	if im.syncs != 1 || w.Head() != SectorSize || w.Tail() != 0 || w.Free() != 14*SectorSize {
		t.Errorf("%d syncs, head %d, tail %d, %d bytes free", im.syncs, w.Head(), w.Tail(), w.Free())
	}
	if _, err := Start(im, im.reg, 0, 0, 0); err == nil {
		t.Error("Start takes sequence number 0")
	}
	if _, err := Start(im, Region{Offset: logOffset}, 1, 0, 0); err == nil {
		t.Error("Start takes an empty log")
	}
	for left := range 2 {
		if _, err := Start(&failingFile{im.sparseFile, left}, im.reg, 1, 0, 0); !errors.Is(err, errFile) {
			t.Errorf("Start on a file that fails at change %d: %v", left, err)
		}
	}
}

// What is appended is what a reader finds, over many rounds of the ring, with entries of all sizes.
func TestAppendIsReplayed(t *testing.T) {
	for seed := range uint64(10) {
		rng := newRand(seed)
		im := newImage(8 + rng.Int64N(300))
		w := start(t, im)
		if w.MaxPages() == 0 {
			t.Fatalf("nothing fits into %d sectors", im.reg.Length/SectorSize)
		}
		model := im.clone()
		var batches [][]Page // not released
		var marks []Mark
		rounds := 0
		for range 200 {
			pages := batch(rng.IntN(100), rng.IntN(min(w.MaxPages(), 200)+1), byte(rng.Uint32()))
			m, err := w.Append(pages, 0, 0)
			if errors.Is(err, ErrFull) {
				rounds++
				done := rng.IntN(len(batches)) + 1
				for _, b := range batches[:done] {
					for _, p := range b {
						im.WriteAt(p.Data[:], p.FileOffset)
					}
				}
				w.Release(marks[done-1])
				batches, marks = batches[done:], marks[done:]
				w.Durable(mustAppend(t, w, nil))
				batches, marks = append(batches, nil), append(marks, w.Head())
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			batches, marks = append(batches, pages), append(marks, m)
			for _, p := range pages {
				model.WriteAt(p.Data[:], p.FileOffset)
			}
			s := im.find(t)
			if got := int64(len(s.entries)); got > int64(len(batches))+1 || s.End != int64(m)%im.reg.Length {
				t.Fatalf("seed %d: active are %d entries up to %d, want those of %d batches up to %d",
					seed, got, s.End, len(batches), int64(m)%im.reg.Length)
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
		if rounds == 0 && im.reg.Length < 64*SectorSize {
			t.Errorf("seed %d: the log never got full", seed)
		}
	}
}

func TestMaxPages(t *testing.T) {
	for _, c := range []struct {
		sectors int64
		want    int
	}{
		{1, 0}, {2, 0}, {3, 0}, {4, 1}, {8, 5}, {128, 125}, {129, 126}, {130, 126}, {131, 127}, {256, 252},
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
	if _, err := w.Append(batch(0, n+1, 1), 0, 0); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("%d pages: %v, want an error that is not ErrFull", n+1, err)
	}
	w.Durable(mustAppend(t, w, batch(0, n, 1)))
	if w.Free() != 0 {
		t.Errorf("%d bytes free behind the largest batch", w.Free())
	}
	if im.find(t).Updates != int64(n) {
		t.Error("the largest batch is not in the log")
	}
	// It fits again and again, each time after one entry that frees it.
	for round := range 5 {
		w.Release(w.Head())
		w.Durable(mustAppend(t, w, nil))
		w.Durable(mustAppend(t, w, batch(0, n, byte(round))))
	}
}

func TestErrFull(t *testing.T) {
	im := newImage(8)
	w := start(t, im)
	m1 := mustAppend(t, w, batch(0, 2, 1))
	m2 := mustAppend(t, w, batch(0, 2, 2)) // 7 sectors are in use, 1 is in reserve
	full := func(pages []Page, when string) {
		t.Helper()
		before := im.clone()
		if _, err := w.Append(pages, 0, 0); !errors.Is(err, ErrFull) {
			t.Fatalf("%s: %v, want ErrFull", when, err)
		}
		sameFile(t, im, before, im.size, pagesOf(im.sparseFile, before), newRand(1))
	}
	full(batch(0, 1, 3), "a page in a full log")
	full(nil, "an entry that would free nothing")
	w.Durable(m2)
	full(nil, "an entry that would free nothing, all being durable")
	w.Release(m1)
	if w.Free() != 0 {
		t.Errorf("Release alone frees %d bytes", w.Free())
	}
	full(batch(0, 1, 3), "released, but every durable entry still names it as the tail")
	m3 := mustAppend(t, w, nil)
	full(nil, "the reserve is used up")
	full(batch(0, 1, 3), "the entry with the new tail is not durable")
	w.Durable(m2)
	full(batch(0, 1, 3), "the entry with the new tail is still not durable")
	w.Durable(m3)
	if got := w.Free(); got != 3*SectorSize { // the first entry of 1 sector and that of m1, less the reserve
		t.Errorf("%d bytes free, want 3 sectors", got)
	}
	m4 := mustAppend(t, w, batch(0, 1, 3))
	if s := im.find(t); s.Entries != 3 || s.Tail != 4*SectorSize || s.Updates != 3 {
		t.Errorf("active: %d entries from %d with %d updates", s.Entries, s.Tail, s.Updates)
	}
	w.Release(m4)
	if w.Tail() != m4 {
		t.Errorf("tail %d, want %d", w.Tail(), m4)
	}
	w.Release(m1) // late news changes nothing
	if w.Tail() != m4 {
		t.Errorf("tail %d went back, want %d", w.Tail(), m4)
	}
	m5 := mustAppend(t, w, nil)
	w.Durable(m5)
	if s := im.find(t); s.Entries != 1 || s.Tail != int64(m4)%im.reg.Length {
		t.Errorf("active: %d entries from %d, want the last alone", s.Entries, s.Tail)
	}
}

// What is in place was durable before.
func TestReleaseSaysDurable(t *testing.T) {
	im := newImage(8)
	w := start(t, im)
	w.Release(w.Head())
	m := mustAppend(t, w, batch(0, 1, 1)) // names itself as the tail
	free := w.Free()
	w.Release(m)
	if got := w.Free(); got != free+SectorSize {
		t.Errorf("%d bytes free, want those of the first entry more than %d", got, free)
	}
}

func TestAppendRefuses(t *testing.T) {
	im := newImage(16)
	w := start(t, im)
	for _, off := range []int64{
		-SectorSize, 0, headerSection - SectorSize, logOffset, logOffset + 15*SectorSize, dataOffset + 512, math.MaxInt64 - SectorSize + 1,
	} {
		if _, err := w.Append([]Page{{off, filled(1)}}, 0, 0); err == nil {
			t.Errorf("Append takes a page at %#x", off)
		}
	}
	if _, err := w.Append(nil, -1, 0); err == nil {
		t.Error("Append takes a negative size")
	}
	if s := im.find(t); s.Entries != 1 || w.Head() != SectorSize {
		t.Errorf("%d entries up to %d after nothing but errors", s.Entries, w.Head())
	}
	m := mustAppend(t, w, []Page{{headerSection, filled(1)}, {logOffset - SectorSize, filled(1)}, {logOffset + 16*SectorSize, filled(1)}})
	if err := im.find(t).Check(im.size); err != nil || m != w.Head() {
		t.Errorf("pages at the limits: %v", err)
	}
}

func TestSequenceNumbersEnd(t *testing.T) {
	im := newImage(16)
	im.seq = math.MaxUint64 - 1
	w := start(t, im)
	mustAppend(t, w, batch(0, 1, 1))
	if _, err := w.Append(batch(1, 1, 1), 0, 0); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("Append past the last number: %v", err)
	}
	if s := im.find(t); s.SequenceNumber != math.MaxUint64 {
		t.Errorf("head %d", s.SequenceNumber)
	}
}

// An entry that could not be written may be there all the same, so nothing may follow it.
func TestAppendKeepsFailing(t *testing.T) {
	im := newImage(8)
	for _, at := range []int{2, 4} { // the change that fails; the second of them is the part behind the end of the ring
		f := &failingFile{im.sparseFile, at}
		w, err := Start(f, im.reg, 1, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if at == 4 {
			w.Release(mustAppend(t, w, batch(0, 4, 1)))
			if _, err := w.Append(nil, 0, 0); err != nil {
				t.Fatal(err)
			}
			w.Durable(w.Head())
			f.left = 1
		}
		_, first := w.Append(batch(0, 2, 1), 0, 0)
		if !errors.Is(first, errFile) {
			t.Fatalf("change %d: %v, want that of the file", at, first)
		}
		f.left = math.MaxInt
		if _, err := w.Append(nil, 0, 0); err != first {
			t.Errorf("change %d: then %v, want the same error again", at, err)
		}
	}
}
