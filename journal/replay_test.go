package journal

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func TestR12FileShorterThanFlushed(t *testing.T) {
	build := func(flushed uint64) *image {
		im := newImage(16)
		tail := im.custom(Entry{LogGUID: thisSession, Tail: noTail, FlushedFileOffset: math.MaxUint64})
		im.custom(Entry{LogGUID: thisSession, Tail: uint32(tail), FlushedFileOffset: flushed})
		return im
	}
	im := build(0)
	if err := im.find(t).Check(im.size); err != nil {
		t.Errorf("the value of an entry that is not the head counts: %v", err)
	}
	im = build(uint64(im.size))
	if err := im.find(t).Check(im.size); err != nil {
		t.Errorf("a file of just the length: %v", err)
	}
	for _, flushed := range []uint64{uint64(im.size) + 1, 1 << 40, math.MaxInt64 + 1, math.MaxUint64} {
		im := build(flushed)
		wantRefused(t, im, ondisk.RuleFileShorterThanLog)
	}
}

func TestR13ForbiddenWrites(t *testing.T) {
	const logEnd = logOffset + 16*SectorSize
	page := filled(1)
	for _, c := range []struct {
		name   string
		update Update
		ok     bool
	}{
		{"first byte", Update{FileOffset: 0, Data: page}, false},
		{"header 2", Update{FileOffset: 128 << 10, Data: page}, false},
		{"last page of header 2", Update{FileOffset: 188 << 10, Data: page}, false},
		{"region table", Update{FileOffset: 192 << 10, Data: page}, true},
		{"zeros over everything", Update{FileOffset: 0, ZeroLength: 1 << 40}, false},
		{"zeros up to the region table", Update{FileOffset: 188 << 10, ZeroLength: SectorSize}, false},
		{"zeros over the region tables", Update{FileOffset: 192 << 10, ZeroLength: 128 << 10}, true},
		{"no zeros at 0", Update{FileOffset: 0, ZeroLength: 0}, true},
		{"before the log", Update{FileOffset: logOffset - SectorSize, Data: page}, true},
		{"first page of the log", Update{FileOffset: logOffset, Data: page}, false},
		{"last page of the log", Update{FileOffset: logEnd - SectorSize, Data: page}, false},
		{"behind the log", Update{FileOffset: logEnd, Data: page}, true},
		{"zeros up to the log", Update{FileOffset: logOffset - 8*SectorSize, ZeroLength: 8 * SectorSize}, true},
		{"zeros into the log", Update{FileOffset: logOffset - 8*SectorSize, ZeroLength: 9 * SectorSize}, false},
		{"zeros around the log", Update{FileOffset: 512 << 10, ZeroLength: 16 << 20}, false},
		{"zeros out of the log", Update{FileOffset: logEnd - SectorSize, ZeroLength: 1 << 20}, false},
		{"no zeros in the log", Update{FileOffset: logOffset, ZeroLength: 0}, true},
		{"last page of the largest file", Update{FileOffset: math.MaxInt64 - 2*SectorSize + 1, Data: page}, true},
		{"across the largest file", Update{FileOffset: math.MaxInt64 - SectorSize + 1, Data: page}, false},
		{"past the largest file", Update{FileOffset: 1 << 63, Data: page}, false},
		{"last page of 64 bits", Update{FileOffset: -SectorSize & math.MaxUint64, Data: page}, false},
		{"zeros past the largest file", Update{FileOffset: dataOffset, ZeroLength: 1<<63 - SectorSize}, false},
		{"zeros that wrap", Update{FileOffset: dataOffset, ZeroLength: -SectorSize & math.MaxUint64}, false},
		{"no zeros at the end of 64 bits", Update{FileOffset: -SectorSize & math.MaxUint64, ZeroLength: 0}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(16)
			im.entry(self, data(0, 1), c.update)
			if c.ok {
				im.replay(t)
				return
			}
			wantRefused(t, im, ondisk.RuleLogTarget)
		})
	}
	t.Run("LastFileOffset", func(t *testing.T) {
		im := newImage(16)
		im.custom(Entry{LogGUID: thisSession, Tail: noTail, LastFileOffset: math.MaxInt64})
		im.replay(t)
		im.custom(Entry{LogGUID: thisSession, Tail: 0, LastFileOffset: math.MaxInt64 + 1})
		wantRefused(t, im, ondisk.RuleLogTarget)
	})
	t.Run("not replayed", func(t *testing.T) {
		im := newImage(16)
		im.entry(self, Update{FileOffset: 0, Data: page})
		im.entry(self)
		im.replay(t)
	})
}

// wantRefused fails unless Check, NewOverlay and Apply all refuse im by rule r, and Apply does so before
// it changes anything.
func wantRefused(t *testing.T, im *image, r ondisk.Rule) {
	t.Helper()
	s := im.find(t)
	wantRule(t, s.Check(im.size), r)
	_, err := NewOverlay(im, im.size, s)
	wantRule(t, err, r)
	before := im.clone()
	wantRule(t, Apply(im, s), r)
	if im.size != before.size {
		t.Errorf("Apply changed the size to %d", im.size)
	}
	sameFile(t, im, before, im.size, pagesOf(im.sparseFile, before), newRand(1))
}

// QEMU does not grow the file when LastFileOffset is a multiple of 1 MiB.
func TestReplayGrowsTheFile(t *testing.T) {
	for _, c := range []struct {
		name   string
		last   uint64
		update Update
		want   int64
	}{
		{"by LastFileOffset", dataOffset + 4<<20, data(0, 1), dataOffset + 4<<20},
		{"by data", 0, data(1000, 1), dataOffset + 1001*SectorSize},
		{"by zeros", 0, zero(1, 2000), dataOffset + 2001*SectorSize},
		{"not by less", dataOffset, data(0, 1), dataOffset + 1<<20},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(16)
			im.custom(Entry{LogGUID: thisSession, Tail: noTail, LastFileOffset: c.last, Updates: []Update{c.update}})
			if after := im.replay(t); after.size != c.want {
				t.Errorf("%d bytes, want %d", after.size, c.want)
			}
		})
	}
}

// A file whose log was written by a larger machine: nothing stands behind its end but the log says it does.
func TestOverlayBehindTheEnd(t *testing.T) {
	im := newImage(16)
	im.cut(1000) // the end lies inside a page
	im.custom(Entry{
		LogGUID: thisSession, Tail: noTail, LastFileOffset: dataOffset + 2<<20,
		Updates: []Update{data(300, 1)},
	})
	im.replay(t)
}

func TestOverlaps(t *testing.T) {
	im := newImage(16)
	im.entry(self, data(1, 1), zero(4, 2), data(9, 1), data(6, 1))
	v, err := NewOverlay(im, im.size, im.find(t))
	if err != nil {
		t.Fatal(err)
	}
	const at = dataOffset
	for _, c := range []struct {
		off, n int64
		want   bool
	}{
		{0, at, false},
		{0, at + SectorSize, false},
		{0, at + SectorSize + 1, true},
		{at + SectorSize - 1, 1, false},
		{at + SectorSize, 1, true},
		{at + 2*SectorSize - 1, 1, true},
		{at + 2*SectorSize, 2 * SectorSize, false},
		{at + 2*SectorSize, 2*SectorSize + 1, true},
		{at + 4*SectorSize, 1, true},
		{at + 6*SectorSize - 1, 1, true},
		{at + 6*SectorSize + 100, 1, true},
		{at + 7*SectorSize, 2 * SectorSize, false},
		{at + 10*SectorSize, im.size - at - 10*SectorSize, false},
		{at + 10*SectorSize, im.size - at - 10*SectorSize + 1, true},
		{im.size, 1, true},
		{math.MaxInt64, math.MaxInt64, true},
		{-1, 1, true},
		{at + SectorSize, 0, false},
		{at + SectorSize, -1, false},
	} {
		if got := v.Overlaps(c.off, c.n); got != c.want {
			t.Errorf("Overlaps(%#x, %d) = %v, want %v", c.off, c.n, got, c.want)
		}
	}
	if n, err := v.ReadAt(make([]byte, 1), -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1) = %d, %v", n, err)
	}
	if n, err := v.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("ReadAt of nothing = %d, %v", n, err)
	}
}

// No bytes overlap nothing, wherever they are.
func TestNoBytesDoNotOverlap(t *testing.T) {
	im := newImage(16)
	im.entry(self, data(0, 1), zero(1, 1))
	v, err := NewOverlay(im, im.size, im.find(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, dataOffset + 1, dataOffset + SectorSize + 1, im.size, im.size + 1} {
		if v.Overlaps(off, 0) {
			t.Errorf("the update overlaps 0 bytes at %#x", off)
		}
	}
}

// Reads that begin and end at any byte near the ends of a page, whose bytes come from the descriptor.
func TestOverlayEdgesOfPages(t *testing.T) {
	im := newImage(16)
	im.entry(self, data(1, 0x10), data(2, 0x20))
	v, err := NewOverlay(im, im.size, im.find(t))
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 4*SectorSize)
	for n, b := range []byte{0xEE, 0x10, 0x20, 0xEE} {
		copy(whole[n*SectorSize:], filled(b)[:])
	}
	for page := range 4 {
		for from := page*SectorSize - 10; from < page*SectorSize+10; from++ {
			for n := range 25 {
				if from < 0 || from+n > len(whole) {
					continue
				}
				got := make([]byte, n)
				if _, err := v.ReadAt(got, dataOffset+int64(from)); err != nil || !bytes.Equal(got, whole[from:from+n]) {
					t.Fatalf("%d bytes at %d = % x, %v; want % x", n, from, got, err, whole[from:from+n])
				}
			}
		}
	}
}

func TestUnionOfZeros(t *testing.T) {
	got := union([]zeroUpdate{{extent{50, 60}, 1}, {extent{10, 20}, 2}, {extent{20, 30}, 3}, {extent{12, 18}, 4}, {extent{55, 70}, 5}})
	if want := []extent{{10, 30}, {50, 70}}; !slices.Equal(got, want) {
		t.Errorf("union = %v, want %v", got, want)
	}
}

// A read that fails is reported, with the bytes before it.
func TestOverlayReadError(t *testing.T) {
	im := newImage(16)
	im.entry(self, data(1, 1))
	v, err := NewOverlay(im, im.size, im.find(t))
	if err != nil {
		t.Fatal(err)
	}
	size := im.size
	im.size = dataOffset + 3*SectorSize // behind our back
	p := make([]byte, 4*SectorSize)
	if n, err := v.ReadAt(p, dataOffset); n != 2*SectorSize || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt = %d, %v; want %d and an unexpected end of file", n, err, 2*SectorSize)
	}
	im.size = logOffset
	if n, err := v.ReadAt(p, dataOffset+SectorSize); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt = %d, %v; want 0 and an unexpected end of file", n, err)
	}
	im.size = size
}

func TestTooManyZeroDescriptors(t *testing.T) {
	im := newImage(9000)
	u := make([]Update, maxZeroUpdates+2)
	for i := range u {
		u[i] = zero(2*i, 1)
	}
	u[0].ZeroLength = 0 // does not count
	im.entry(self, u[:maxZeroUpdates+1]...)
	v, err := NewOverlay(im, im.size, im.find(t))
	if err != nil {
		t.Fatalf("%d zero descriptors: %v", maxZeroUpdates, err)
	}
	if got := len(v.zeros); got != maxZeroUpdates {
		t.Errorf("%d ranges of zeros, want %d", got, maxZeroUpdates)
	}
	im = newImage(9000)
	im.entry(self, u...)
	_, err = NewOverlay(im, im.size, im.find(t))
	if err == nil || errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("%d zero descriptors: error %v, want one that does not call the image corrupt", maxZeroUpdates+1, err)
	}
}

// Sequences of random updates, replayed by both ways and by doing one update after the other, as MS-VHDX
// words it.
func TestReplayModel(t *testing.T) {
	seeds := uint64(50)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		rng := newRand(seed)
		im := newImage(64 + rng.Int64N(64))
		im.pos = rng.Int64N(im.reg.Length/SectorSize) * SectorSize
		im.cut(rng.Int64N(SectorSize))
		model := im.clone()
		var last int64
		tail := int64(self)
		for range 1 + rng.IntN(5) {
			u := make([]Update, rng.IntN(12))
			for i := range u {
				if rng.IntN(3) == 0 {
					u[i] = zero(rng.IntN(300), rng.IntN(40))
				} else {
					u[i] = data(rng.IntN(300), byte(rng.Uint32()))
				}
				naive(model, u[i])
			}
			last = dataOffset + rng.Int64N(2<<20)
			pos := im.custom(Entry{LogGUID: thisSession, Tail: uint32(tail), LastFileOffset: uint64(last), Updates: u})
			if tail == self {
				tail = pos
			}
		}
		model.size = max(model.size, last)
		for off, p := range im.pages {
			if off >= logOffset && off < logOffset+im.reg.Length {
				model.pages[off] = p
			}
		}
		after := im.replay(t)
		if after.size != model.size {
			t.Fatalf("seed %d: %d bytes after replay, want %d", seed, after.size, model.size)
		}
		sameFile(t, after, model, model.size, pagesOf(after, model, im.sparseFile), rng)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		plain := im.clone()
		if err := Apply(noHoles{plain}, im.find(t)); err != nil {
			t.Fatalf("seed %d: Apply without holes: %v", seed, err)
		}
		sameFile(t, plain, model, model.size, pagesOf(plain, model), rng)
	}
}

// naive does one update.
func naive(f *sparseFile, u Update) {
	if u.Data != nil {
		f.WriteAt(u.Data[:], int64(u.FileOffset))
	} else if u.ZeroLength > 0 {
		f.wipe(int64(u.FileOffset), int64(u.FileOffset+u.ZeroLength))
	}
}

// A failingFile fails once: at a change of the file, or at another operation on it if all of them count.
type failingFile struct {
	*sparseFile
	left int // operations before the one that fails
	all  bool
	last string // the operation that failed
}

var errFile = errors.New("no")

func (f *failingFile) fail(what string) error {
	if f.left--; f.left != -1 {
		return nil
	}
	f.last = what
	return errFile
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if f.all {
		if err := f.fail("read"); err != nil {
			return 0, err
		}
	}
	return f.sparseFile.ReadAt(p, off)
}

func (f *failingFile) Size() (int64, error) {
	if f.all {
		if err := f.fail("size"); err != nil {
			return 0, err
		}
	}
	return f.sparseFile.Size()
}

func (f *failingFile) NextData(off int64) (int64, error) {
	if f.all {
		if err := f.fail("next data"); err != nil {
			return 0, err
		}
	}
	return f.sparseFile.NextData(off)
}

func (f *failingFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fail("write"); err != nil {
		return 0, err
	}
	return f.sparseFile.WriteAt(p, off)
}

func (f *failingFile) Truncate(size int64) error {
	if err := f.fail("truncate"); err != nil {
		return err
	}
	return f.sparseFile.Truncate(size)
}

func (f *failingFile) Sync() error {
	if err := f.fail("sync"); err != nil {
		return err
	}
	return f.sparseFile.Sync()
}

// A replay that was cut short is done again, to the same end.
func TestApplyFailsAndIsRepeated(t *testing.T) {
	im := newImage(32)
	tail := im.entry(self, data(0, 1), zero(4, 8), data(3, 1))
	im.custom(Entry{
		LogGUID: thisSession, Tail: uint32(tail), LastFileOffset: dataOffset + 2<<20,
		Updates: []Update{data(1, 1), data(5, 1)},
	})
	want := im.clone()
	if err := Apply(want, im.find(t)); err != nil {
		t.Fatal(err)
	}
	left := 0
	for ; ; left++ {
		f := &failingFile{sparseFile: im.clone(), left: left}
		s, err := Find(f, im.reg)
		if err != nil {
			t.Fatal(err)
		}
		err = Apply(f, s)
		if err == nil {
			break
		}
		if !errors.Is(err, errFile) {
			t.Fatalf("change %d: error %v, want that of the file", left, err)
		}
		f.left = math.MaxInt
		if s, err = Find(f, im.reg); err != nil {
			t.Fatalf("after failure of change %d: %v", left, err)
		}
		if err := Apply(f, s); err != nil {
			t.Fatalf("after failure of change %d: %v", left, err)
		}
		sameFile(t, f, want, want.size, pagesOf(f.sparseFile, want), newRand(1))
	}
	if left != 7 { // growth, zeros, 4 pages, sync
		t.Errorf("Apply made %d changes, want 7", left)
	}
}

// Whatever fails once in a replay, even if all that follows succeeds, the caller gets to know.
func TestApplyReportsEveryError(t *testing.T) {
	im := newImage(200)
	im.pos = 62 * SectorSize // an entry goes over the end of what is read at once
	tail := im.entry(self, data(0, 1), data(1, 1))
	im.custom(Entry{LogGUID: thisSession, Tail: uint32(tail), LastFileOffset: dataOffset + 2<<20, Updates: []Update{
		data(0, 1), zero(4, 8), data(3, 1),
	}})
	im.WriteAt(filled(1)[:], dataOffset+4*SectorSize)
	failed := map[string]int{}
	for left := 0; ; left++ {
		f := &failingFile{sparseFile: im.clone(), left: left, all: true}
		s, err := Find(f, im.reg)
		if err == nil {
			err = Apply(f, s)
		}
		if f.left >= 0 {
			break
		}
		if failed[f.last]++; !errors.Is(err, errFile) {
			t.Errorf("operation %d, a %s, failed; Find and Apply return %v", left, f.last, err)
		}
	}
	for _, what := range []string{"read", "size", "truncate", "next data", "write", "sync"} {
		if failed[what] == 0 {
			t.Errorf("a %s was never made to fail", what)
		}
	}
}

// A log that changes after it was found is refused before anything is written.
func TestLogChangesBeneath(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte)
	}{
		{"a data descriptor more", func(b []byte) { copy(b[entryHeaderSize+descriptorSize:], "desc") }},
		{"a descriptor of another entry", func(b []byte) { b[entryHeaderSize+24]++ }},
		{"a descriptor of no kind", func(b []byte) { clear(b[entryHeaderSize:][:descriptorSize]) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(16)
			im.entry(self, data(0, 1), zero(1, 1))
			s := im.find(t)
			im.damage(c.change, false)
			before := im.clone()
			if err := s.Check(im.size); !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("Check: %v, want a damaged log", err)
			}
			if err := Apply(im, s); !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("Apply: %v, want a damaged log", err)
			}
			sameFile(t, im, before, im.size, pagesOf(im.sparseFile, before), newRand(1))
		})
	}
}

// Zeros are written where the file has data, and nowhere else: a hole stays a hole.
func TestApplyKeepsHoles(t *testing.T) {
	im := newImage(16)
	im.WriteAt(filled(1)[:], dataOffset+350*SectorSize)
	im.Truncate(dataOffset + 600*SectorSize)
	im.entry(self, zero(300, 250))
	f := im.clone()
	if err := Apply(f, im.find(t)); err != nil {
		t.Fatal(err)
	}
	for n := int64(300); n < 350; n++ {
		if f.pages[dataOffset+n*SectorSize] != nil {
			t.Fatalf("page %d had no space, and has some after the replay", n)
		}
	}
	var p [SectorSize]byte
	if f.ReadAt(p[:], dataOffset+350*SectorSize); p != [SectorSize]byte{} {
		t.Error("the page with data is not zero after the replay")
	}
}

// What a replay adds to the file is not written, however much it is.
func TestApplyWritesNoZerosBehindTheEnd(t *testing.T) {
	im := newImage(16)
	im.entry(self, zero(255, 1<<40/SectorSize))
	f := &failingFile{sparseFile: im.sparseFile, left: 3} // growth, the last page, sync
	if err := Apply(noHoles{f}, im.find(t)); err != nil {
		t.Error(err)
	}
}
