package journal

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/vhdxfs/vhdxfs/test/powercut"
)

var crashRuns = flag.Uint64("crashruns", 5, "how many runs TestWriterLosesPower cuts at every operation")

// The file of the crash test is as small as it can be.
const (
	crashLog   = headerSection
	crashPages = 12
)

// A crashRun keeps a log over some pages of a file until the power goes, and remembers what may be left.
type crashRun struct {
	rng     *rand.Rand
	disk    *powercut.Disk
	reg     Region
	w       *Writer // nil while no header names the log
	version byte

	history [][crashPages]byte // which version each page has after each batch; the last may not be written
	acked   int                // the batch in history that a sync covers

	live    []crashEntry // entries of the session, oldest first
	durable int          // how many of them are durable
	placed  int          // how many of them are in place
	flushed int64
}

type crashEntry struct {
	pages []Page
	batch int // in history
}

func (r *crashRun) pageOffset(n int) int64 { return r.reg.Offset + r.reg.Length + int64(n)*SectorSize }

func newCrashRun(seed uint64) *crashRun {
	rng := newRand(seed)
	r := &crashRun{rng: rng, reg: Region{Offset: crashLog, Length: (7 + rng.Int64N(20)) * SectorSize, GUID: thisSession}}
	img := make([]byte, r.pageOffset(crashPages))
	for n := range crashPages {
		copy(img[r.pageOffset(n):], filled(0)[:])
	}
	r.flushed = int64(len(img))
	r.disk = powercut.New(bytes.NewReader(img), int64(len(img)))
	r.disk.Tearable = func(int64) bool { return true } // all of it is log or protected by it
	r.history = make([][crashPages]byte, 1)
	return r
}

// run returns when the power goes, or after some steps.
func (r *crashRun) run(t *testing.T) {
	err := r.start()
	for range 60 {
		if err != nil {
			r.must(t, err)
			return
		}
		switch r.rng.IntN(8) {
		case 0, 1, 2:
			err = r.append(t)
		case 3:
			err = r.sync()
		case 4, 5:
			err = r.place()
		case 6:
			if r.rng.IntN(4) == 0 {
				err = r.restart()
			}
		case 7:
			var size int64
			if size, err = r.disk.Size(); err == nil {
				err = r.disk.Truncate(size + r.rng.Int64N(3*SectorSize))
			}
		}
	}
	r.must(t, err)
}

// start begins a session. The header that names it is no part of this test: it names it as soon as it may.
func (r *crashRun) start() error {
	reg := r.reg
	reg.GUID[0]++
	w, err := Start(r.disk, reg, 1000, r.flushed, r.flushed)
	if err == nil {
		r.w, r.reg = w, reg
	}
	return err
}

// must fails the test for every error but a cut.
func (r *crashRun) must(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, powercut.ErrCut) {
		t.Fatal(err)
	}
}

func (r *crashRun) append(t *testing.T) error {
	var pages []Page
	state := r.history[len(r.history)-1]
	for _, n := range r.rng.Perm(crashPages)[:r.rng.IntN(min(crashPages, r.w.MaxPages())+1)] {
		r.version++
		state[n] = r.version
		pages = append(pages, Page{r.pageOffset(n), filled(r.version)})
	}
	r.history = append(r.history, state)
	for tries := 0; ; tries++ {
		last, err := r.disk.Size()
		if err != nil {
			return err
		}
		err = r.w.Append(pages, r.flushed, last)
		if err == nil {
			r.live = append(r.live, crashEntry{pages, len(r.history) - 1})
			return nil
		}
		if !errors.Is(err, ErrFull) {
			return err
		}
		if tries > 0 {
			t.Errorf("a batch of %d pages does not fit into an empty log", len(pages))
		}
		if err := r.restart(); err != nil {
			return err
		}
	}
}

// restart puts everything into its place and begins a new session.
func (r *crashRun) restart() error {
	if err := r.sync(); err != nil {
		return err
	}
	for r.placed < r.durable {
		if err := r.place(); err != nil {
			return err
		}
	}
	if err := r.sync(); err != nil {
		return err
	}
	r.w, r.live, r.durable, r.placed = nil, nil, 0, 0
	return r.start()
}

func (r *crashRun) sync() error {
	size, err := r.disk.Size()
	if err == nil {
		err = r.disk.Sync()
	}
	if err != nil {
		return err
	}
	r.flushed = size
	r.durable = len(r.live)
	for _, e := range r.live {
		r.acked = max(r.acked, e.batch)
	}
	return nil
}

// place puts the oldest durable entry that is not there yet into its place.
func (r *crashRun) place() error {
	if r.placed == r.durable {
		return nil
	}
	for _, p := range r.live[r.placed].pages {
		if _, err := r.disk.WriteAt(p.Data[:], p.FileOffset); err != nil {
			return err
		}
	}
	r.placed++
	return nil
}

// check replays what is left of the file, if a header names the log, and compares it with the history.
func (r *crashRun) check(t *testing.T, img []byte) {
	t.Helper()
	f := &bytesFile{img}
	if r.w != nil {
		s, err := Find(f, r.reg)
		if err != nil {
			t.Fatal(err)
		}
		if err := Apply(f, s); err != nil {
			t.Fatal(err)
		}
	}
	var got [crashPages]int // versions, -1 for none
	for n := range got {
		page := (*[SectorSize]byte)(f.b[r.pageOffset(n):])
		if got[n] = int(page[0]); *page != *filled(page[0]) {
			got[n] = -1
		}
	}
	best, where := 0, 0
	for k := len(r.history) - 1; k >= r.acked; k-- {
		same := 0
		for n := range got {
			if got[n] == int(r.history[k][n]) {
				same++
			}
		}
		if same == crashPages {
			return
		}
		if same >= best {
			best, where = same, k
		}
	}
	t.Fatalf("the pages are as after none of the batches %d to %d; most like after %d, with %d pages of %d",
		r.acked, len(r.history)-1, where, best, crashPages)
}

// A bytesFile is a file in b.
type bytesFile struct{ b []byte }

func (f *bytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *bytesFile) WriteAt(p []byte, off int64) (int, error) { return copy(f.b[off:], p), nil }
func (f *bytesFile) Size() (int64, error)                     { return int64(len(f.b)), nil }
func (f *bytesFile) Sync() error                              { return nil }
func (f *bytesFile) NextData(off int64) (int64, error)        { return off, nil }

func (f *bytesFile) Truncate(size int64) error { // to more
	f.b = append(f.b, make([]byte, size-int64(len(f.b)))...)
	return nil
}

// The power goes at every operation of several runs. For every state that is left, the log has an active sequence, and
// replaying it gives the pages as they were after one batch: the last one that was synced, or one after it.
func TestWriterLosesPower(t *testing.T) {
	const outcomes = 6
	states, step := 0, 1
	if testing.Short() {
		step = 23
	}
	for seed := range *crashRuns {
		for cut, done := 1, false; !done && !t.Failed(); cut += step {
			r := newCrashRun(seed)
			r.disk.CutAt(cut)
			r.run(t)
			done = r.disk.Powered()
			for o := range uint64(outcomes) {
				img := r.disk.AfterCut(rand.New(rand.NewPCG(o, uint64(cut)))).Bytes()
				states++
				r.check(t, img)
				if t.Failed() {
					t.Fatalf("seed %d, cut %d, outcome %d", seed, cut, o)
				}
			}
		}
	}
	t.Logf("%d states", states)
}
