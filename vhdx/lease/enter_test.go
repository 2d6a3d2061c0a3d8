package lease

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A new writer waits for all of the lease where anything says that another one may be in, and for Settle where nothing does.
func TestWaitOfANewWriter(t *testing.T) {
	held := Epoch{Host: "gone", Since: time.Unix(1764500000, 0)}
	released := held
	released.Released = true
	header := func(sequence uint64, e Epoch, log byte) ondisk.Header {
		h := ondisk.Header{SequenceNumber: sequence, FileWriteGUID: uuid.UUID{1}, DataWriteGUID: uuid.UUID{2}, Version: 1, LogGUID: uuid.UUID{log}}
		if e != (Epoch{}) {
			h.FileWriteGUID = e.newGUID()
		}
		return h
	}
	none := Epoch{}
	const inUse, log = "image was in use by gone, since ", "image has a log in use; waiting 13s"
	for name, c := range map[string]struct {
		headers [2]ondisk.Header
		why     string
	}{
		"no lease":               {[2]ondisk.Header{header(1, none, 0), header(2, none, 0)}, ""},
		"released":               {[2]ondisk.Header{header(1, released, 0), header(2, released, 0)}, ""},
		"held":                   {[2]ondisk.Header{header(1, held, 0), header(2, held, 0)}, inUse},
		"held by the first":      {[2]ondisk.Header{header(5, held, 0), header(2, none, 0)}, inUse},
		"marked in the first":    {[2]ondisk.Header{header(1, held, 0), header(2, none, 0)}, inUse},
		"marked in the second":   {[2]ondisk.Header{header(2, released, 0), header(1, held, 0)}, inUse},
		"log in use":             {[2]ondisk.Header{header(1, none, 0), header(2, none, 3)}, log},
		"log of before":          {[2]ondisk.Header{header(1, none, 3), header(2, none, 0)}, ""},
		"log of a released one":  {[2]ondisk.Header{header(1, released, 3), header(2, released, 3)}, ""},
		"held, first damaged":    {[2]ondisk.Header{{}, header(2, held, 0)}, inUse},
		"held, second damaged":   {[2]ondisk.Header{header(2, held, 0), {}}, inUse},
		"released, one damaged":  {[2]ondisk.Header{{}, header(2, released, 0)}, ""},
		"no lease, one damaged":  {[2]ondisk.Header{header(2, none, 0), {}}, ""},
		"log in use, one broken": {[2]ondisk.Header{header(2, none, 3), {}}, log},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				for i, h := range c.headers {
					s.set(i, h)
					if h == (ondisk.Header{}) {
						s.put(i, [ondisk.HeaderSize]byte{})
					}
				}
				reader := newHost(s)
				if e, is, err := Holder(reader); err != nil || is != (c.why == inUse) || is && e != held {
					t.Errorf("the holder is %+v, %t, %v", e, is, err)
				}
				h, log := newHost(s), newLog()
				began := h.now()
				f, err := Enter(h, Options{Path: "image", Host: "a", Now: h.now, Log: log})
				if err != nil {
					t.Fatal(err)
				}
				forgets := slices.Contains(h.called(), "forget")
				waited, want := h.now()-began, Usual.Settle
				if c.why != "" {
					want = Usual.Watch + Usual.Length + Usual.Grace
				}
				if waited != want || f.Waited != (c.why != "") || !forgets {
					t.Errorf("it has waited for %v, and tells %t, and has dropped what is cached: %t; want %v", waited, f.Waited, forgets, want)
				}
				if n := log.count(c.why); c.why != "" && n != 1 || c.why == "" && n != 0 {
					t.Errorf("logged: %q", log.lines)
				}
				if _, slot, _ := current(f.left.raw); f.Before != c.headers[slot] {
					t.Errorf("before, the header was %+v; want %+v", f.Before, c.headers[slot])
				}
				e, hs := s.epochs(t)
				for i := range e {
					want := f.Before
					want.SequenceNumber += uint64(2 - i)
					want.FileWriteGUID = hs[i].FileWriteGUID
					if e[i].Host != "a" || e[i].Released || hs[i] != want {
						t.Errorf("header %d is %+v with %+v; want %+v", i, hs[i], e[i], want)
					}
				}
				if got, slot := f.Header(); got != hs[0] || s.has()[slot] != *hs[0].Encode() {
					t.Errorf("the header is said to be %+v", got)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The terms of the tests and of the program need not be whole seconds, nor need a watch be long.
func TestWaitOfOtherTerms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		s.set(0, ondisk.Header{SequenceNumber: 9, FileWriteGUID: Epoch{Host: "gone"}.newGUID(), Version: 1})
		h := newHost(s)
		terms := Terms{Length: 8300 * time.Millisecond, Beat: time.Second, Grace: time.Second, Watch: time.Millisecond, Settle: time.Second}
		began := h.now()
		f, err := Enter(h, Options{Terms: terms, Now: h.now})
		if err != nil {
			t.Fatal(err)
		}
		if waited := h.now() - began; waited < terms.Length+terms.Grace || waited > terms.Length+terms.Grace+2*terms.Watch || !f.Waited {
			t.Errorf("it has waited for %v, and tells %t", waited, f.Waited)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// An own function is told of the wait before it begins.
func TestWaitIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		s.set(0, ondisk.Header{SequenceNumber: 9, LogGUID: uuid.UUID{3}})
		h := newHost(s)
		told, began := 0, h.now()
		f, err := Enter(h, Options{Now: h.now, Waiting: func(string) {
			if told++; h.now() != began || len(h.called()) > 0 {
				t.Errorf("it is told after %v", h.now()-began)
			}
		}})
		if err != nil || told != 1 {
			t.Fatalf("told %d times, %v", told, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A new writer gives up where it finds that another one is alive, and has changed nothing that this one needs.
func TestNewWriterFindsAnother(t *testing.T) {
	other := ondisk.Header{SequenceNumber: 20, FileWriteGUID: Epoch{Host: "other", Since: time.Unix(1764500000, 0)}.newGUID(), Version: 1}
	stranger := other
	stranger.FileWriteGUID = uuid.UUID{9}
	for name, c := range map[string]struct {
		held    bool          // so that the new one watches first
		after   time.Duration // when the other one writes
		slot    int           // where; 2 is both
		h       ondisk.Header
		refused bool
		who     string
	}{
		"while it watches":                     {true, time.Second, 0, other, true, "another host (other, since"},
		"while it watches, a stranger":         {true, time.Second, 1, stranger, true, "another program or host"},
		"while it waits, in place of the mark": {true, 5 * time.Second, 0, other, true, "another host (other, since"},
		"while it waits, in the other place":   {true, 5 * time.Second, 1, other, false, ""},
		"at the end, in place of the mark":     {true, 13*time.Second - 1, 0, other, true, "another host (other, since"},
		"at once, in place of the mark":        {false, time.Second / 2, 0, other, true, "another host (other, since"},
		"at once, in the other place":          {false, time.Second / 2, 1, other, true, "another host (other, since"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				if c.held {
					h := ondisk.Header{SequenceNumber: 10, FileWriteGUID: Epoch{Host: "gone"}.newGUID(), Version: 1}
					s.set(1, h)
				}
				go func() {
					time.Sleep(c.after)
					s.set(c.slot, c.h)
				}()
				h := newHost(s)
				began := h.now()
				f, err := Enter(h, Options{Path: "image", Host: "a", Now: h.now})
				if !c.refused {
					if err != nil {
						t.Fatal(err)
					}
					if f.Before != c.h {
						t.Errorf("it goes on from %+v; want %+v", f.Before, c.h)
					}
					if err := f.Close(); err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, imagefile.ErrLocked) || f != nil || !strings.Contains(err.Error(), "image: "+c.who) {
					t.Errorf("it comes in with %v, %v", f, err)
				}
				if waited := h.now() - began; waited > c.after+time.Second {
					t.Errorf("it finds that after %v; want %v", waited, c.after)
				}
				if s.has()[c.slot] != *c.h.Encode() {
					t.Error("it has written over what the other one has written")
				}
				if n := len(slices.DeleteFunc(h.called(), func(call string) bool { return call != "write header" })); n > 1 {
					t.Errorf("it has written headers %d times", n)
				}
			})
		})
	}
}

// A new writer looks once more before it leaves its mark: another one may have come in since it looked first.
func TestNewWriterLooksBeforeItsMark(t *testing.T) {
	for slot := range 2 {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			other := ondisk.Header{SequenceNumber: 20, FileWriteGUID: Epoch{Host: "other"}.newGUID(), Version: 1}
			h := newHost(s)
			reads := 0
			h.do(func(call string) error {
				if call == "read headers" {
					if reads++; reads == 3 {
						s.set(slot, other)
					}
				}
				return nil
			})
			f, err := Enter(h, Options{Path: "image", Now: h.now})
			if !errors.Is(err, imagefile.ErrLocked) || !strings.Contains(err.Error(), "another host (other, since") {
				t.Errorf("it comes in with %v, %v", f, err)
			}
			if got := h.called(); len(got) > 0 {
				t.Errorf("the storage was asked for %q", got)
			}
		})
	}
}

// A new writer that watches takes its locks again; a lock that is back is one of a host that is alive, and other errors say nothing.
func TestNewWriterFindsALock(t *testing.T) {
	for _, c := range []struct{ err, want error }{{imagefile.ErrLocked, imagefile.ErrLocked}, {unix.EIO, nil}, {nil, nil}} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			s.set(1, ondisk.Header{SequenceNumber: 10, FileWriteGUID: Epoch{Host: "gone"}.newGUID(), Version: 1})
			before := s.has()
			h := newHost(s)
			h.relocked = func() (bool, error) { return false, c.err }
			f, err := Enter(h, Options{Now: h.now})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("with %v it comes in with %v", c.err, err)
			}
			if err != nil {
				if s.has() != before {
					t.Error("it has changed the headers")
				}
				return
			}
			h.mu.Lock()
			h.relocked = nil
			h.mu.Unlock()
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A new writer that was late after it looked at the headers first waits for all of the lease: another one may have come in, without
// a sign of it.
func TestSlowNewWriter(t *testing.T) {
	for _, c := range []struct {
		late   time.Duration
		waited bool
	}{{Usual.Settle / 2, false}, {Usual.Settle/2 + 1, true}} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(plainStorage())
			writes := 0
			h.do(func(call string) error {
				if call == "write header" {
					if writes++; writes == 1 {
						time.Sleep(c.late)
					}
				}
				return nil
			})
			f, err := Enter(h, Options{Now: h.now})
			if err != nil {
				t.Fatal(err)
			}
			if f.Waited != c.waited {
				t.Errorf("late by %v, it has waited: %t", c.late, f.Waited)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Each error of the storage ends the attempt to come in; none is taken for an answer.
func TestEnterReportsEveryError(t *testing.T) {
	for name, c := range map[string]struct {
		held  bool
		enter func(imagefile.File, Options) error
	}{
		"enter": {false, func(f imagefile.File, o Options) error {
			w, err := Enter(f, o)
			if w != nil {
				err = errors.Join(err, w.Close())
			}
			return err
		}},
		"take over": {true, func(f imagefile.File, o Options) error {
			w, err := Enter(f, o)
			if w != nil {
				err = errors.Join(err, w.Close())
			}
			return err
		}},
		"hold": {true, func(f imagefile.File, o Options) error {
			w, err := Hold(f, o)
			if w != nil {
				err = errors.Join(err, w.Close())
			}
			return err
		}},
		"enter a new image": {false, func(f imagefile.File, o Options) error {
			w, err := EnterNew(f, o)
			if w != nil {
				err = errors.Join(err, w.Close())
			}
			return err
		}},
		"break":  {true, func(f imagefile.File, o Options) error { _, _, err := Break(f, o); return err }},
		"holder": {true, func(f imagefile.File, o Options) error { _, _, err := Holder(f); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			// failing returns what comes of the nth access with an error, and whether there was one.
			failing := func(nth int) (err error, failed bool) {
				synctest.Test(t, func(t *testing.T) {
					s := plainStorage()
					if c.held {
						s.set(1, ondisk.Header{SequenceNumber: 10, FileWriteGUID: Epoch{Host: "gone"}.newGUID(), Version: 1})
					}
					h := newHost(s)
					n := 0
					h.do(func(call string) error {
						if call == "relock" || call == "unlock" { // which decide nothing
							return nil
						}
						if n++; n == nth {
							failed = true
							return unix.EIO
						}
						return nil
					})
					err = c.enter(h, Options{Now: h.now})
				})
				return err, failed
			}
			n := 1
			for ; ; n++ {
				err, failed := failing(n)
				if !failed {
					if err != nil {
						t.Errorf("without an error: %v", err)
					}
					break
				}
				if !errors.Is(err, unix.EIO) {
					t.Errorf("error %d: %v", n, err)
				}
			}
			if n < 3 {
				t.Errorf("it has asked the storage %d times only", n-1)
			}
		})
	}
}

// Between its two headers, a new writer that was late looks whether the image is still its own.
func TestSlowClaim(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			other := ondisk.Header{SequenceNumber: 20, FileWriteGUID: Epoch{Host: "other"}.newGUID(), Version: 1}
			h := newHost(s)
			writes := 0
			h.do(func(call string) error {
				if call == "sync" {
					if writes++; writes == 2 { // of the first header of the claim
						time.Sleep(Usual.Length)
						if taken {
							s.set(0, other)
						}
					}
				}
				return nil
			})
			f, err := Enter(h, Options{Path: "image", Now: h.now})
			if taken {
				if !errors.Is(err, imagefile.ErrLocked) {
					t.Errorf("it comes in with %v", err)
				}
				if writes != 2 {
					t.Errorf("it has written %d headers", writes)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A storage that takes longer than the lease for each header lets no writer in.
func TestClaimOnASlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(plainStorage())
		h.do(func(call string) error {
			if call == "read headers" {
				time.Sleep(Usual.Length)
			}
			return nil
		})
		if f, err := Enter(h, Options{Now: h.now}); err == nil || !strings.Contains(err.Error(), "the storage answers too slowly") {
			t.Errorf("it comes in with %v, %v", f, err)
		}
		if got := h.called(); len(slices.DeleteFunc(got, func(call string) bool { return call != "write header" })) != 1 {
			t.Errorf("beside the mark it has written: %q", got)
		}
	})
}

// Sequence numbers at both ends of what a header can have: a mark has one below the header that counts, and a claim has two above.
func TestSequenceNumbers(t *testing.T) {
	for _, c := range []struct {
		sequence uint64
		want     string
	}{
		{0, "the sequence number of the header is 0"},
		{1, ""},
		{math.MaxUint64 - 4, ""},
		{math.MaxUint64 - 2, "cannot record that the image is closed"},
		{math.MaxUint64 - 1, "no sequence numbers left"},
		{math.MaxUint64, "no sequence numbers left"},
	} {
		for slot := range 2 {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				s.set(slot, ondisk.Header{SequenceNumber: c.sequence, Version: 1})
				s.put(1-slot, [ondisk.HeaderSize]byte{})
				h := newHost(s)
				f, err := Enter(h, Options{Now: h.now})
				if err == nil {
					err = f.Close()
				}
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("from %d on: %v; want %q", c.sequence, err, c.want)
				}
				if _, hs := s.epochs(t); hs[0].SequenceNumber < c.sequence {
					t.Errorf("from %d on, the number becomes %d", c.sequence, hs[0].SequenceNumber)
				}
			})
		}
	}
}

// Hold leaves the header that counts as it is, before and after, and its mark can be taken away.
func TestHold(t *testing.T) {
	for _, slot := range []int{0, 1} {
		for _, unmark := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				s.set(slot, ondisk.Header{SequenceNumber: 10, FileWriteGUID: uuid.UUID{4}, DataWriteGUID: uuid.UUID{2}, Version: 1})
				before := s.has()
				h := newHost(s)
				f, err := Hold(h, Options{Host: "a", Now: h.now})
				if err != nil {
					t.Fatal(err)
				}
				e, hs := s.epochs(t)
				if s.has()[slot] != before[slot] || e[1].Host != "a" || e[1].Released || !IsMark(hs[1], hs[0]) {
					t.Errorf("the headers are %+v", hs)
				}
				if b, at := f.Replaced(); at != 1-slot || string(b) != string(before[1-slot][:]) {
					t.Errorf("the mark has replaced header %d", at)
				}
				if e, held, err := Holder(newHost(s)); !held || e.Host != "a" || err != nil {
					t.Errorf("the holder is %+v, %t, %v", e, held, err)
				}
				if got, at := f.Header(); got != hs[0] || at != slot {
					t.Errorf("the header is said to be %+v in %d", got, at)
				}
				if unmark {
					if err := f.Unmark(); err != nil {
						t.Error(err)
					}
				} else {
					before = s.has()
				}
				time.Sleep(3 * Usual.Beat)
				h.called()
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if got := h.called(); s.has() != before || !slices.Equal(got, []string{"close"}) {
					t.Errorf("unmark %t: the close has done %q", unmark, got)
				}
			})
		}
	}
}

// A host that holds the image notices by itself that it is not its own any more.
func TestHoldNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		h := newHost(s)
		a, err := Hold(h, Options{Host: "a", Now: h.now})
		if err != nil {
			t.Fatal(err)
		}
		_, b := s.enter(t, "b", Options{})
		if !errors.Is(a.Err(), ErrTakenOver) {
			t.Errorf("the first host has %v", a.Err())
		}
		for _, f := range []*File{a, b} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestUnmarkReportsItsErrors(t *testing.T) {
	for _, at := range []string{"write header", "sync"} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(plainStorage())
			f, err := Hold(h, Options{Now: h.now})
			if err != nil {
				t.Fatal(err)
			}
			h.do(func(call string) error {
				if call == at {
					return unix.EIO
				}
				return nil
			})
			if err := f.Unmark(); !errors.Is(err, unix.EIO) {
				t.Errorf("with an error at %s: %v", at, err)
			}
			_ = f.Close()
		})
	}
}

func TestIsMark(t *testing.T) {
	held := Epoch{Host: "a", Since: time.Unix(1764500000, 0)}
	released := held
	released.Released = true
	other := ondisk.Header{SequenceNumber: 10, FileWriteGUID: uuid.UUID{1}, DataWriteGUID: uuid.UUID{2}, Version: 1}
	for name, c := range map[string]struct {
		change func(*ondisk.Header)
		want   bool
	}{
		"mark":              {func(h *ondisk.Header) {}, true},
		"released":          {func(h *ondisk.Header) { h.FileWriteGUID = released.newGUID() }, false},
		"no epoch":          {func(h *ondisk.Header) { h.FileWriteGUID = uuid.UUID{1} }, false},
		"same number":       {func(h *ondisk.Header) { h.SequenceNumber++ }, false},
		"larger number":     {func(h *ondisk.Header) { h.SequenceNumber += 2 }, false},
		"smaller number":    {func(h *ondisk.Header) { h.SequenceNumber-- }, false},
		"another data GUID": {func(h *ondisk.Header) { h.DataWriteGUID[0]++ }, false},
		"another log":       {func(h *ondisk.Header) { h.LogGUID[0]++ }, false},
	} {
		mark := other
		mark.SequenceNumber--
		mark.FileWriteGUID = held.newGUID()
		c.change(&mark)
		if got := IsMark(mark, other); got != c.want {
			t.Errorf("%s: IsMark = %t", name, got)
		}
	}
}

// A lease is broken only where there is one, or a log in use; and where its host turns out to be alive, it keeps the image.
func TestBreak(t *testing.T) {
	gone := Epoch{Host: "gone", Since: time.Unix(1764500000, 0)}
	for name, c := range map[string]struct {
		h      ondisk.Header
		broken bool
		want   Epoch
	}{
		"no lease": {ondisk.Header{SequenceNumber: 9, FileWriteGUID: uuid.UUID{1}, Version: 1}, false, Epoch{}},
		"held":     {ondisk.Header{SequenceNumber: 9, FileWriteGUID: gone.newGUID(), Version: 1}, true, gone},
		"log":      {ondisk.Header{SequenceNumber: 9, FileWriteGUID: uuid.UUID{1}, LogGUID: uuid.UUID{3}, Version: 1}, true, Epoch{}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			s.set(1, c.h)
			before := s.has()
			h := newHost(s)
			began := h.now()
			e, broken, err := Break(h, Options{Host: "a", Now: h.now})
			if e != c.want || broken != c.broken || err != nil {
				t.Errorf("%s: Break returns %+v, %t, %v", name, e, broken, err)
			}
			if !c.broken {
				if s.has() != before {
					t.Errorf("%s: the headers have changed", name)
				}
				return
			}
			if waited := h.now() - began; waited < Usual.Watch {
				t.Errorf("%s: it has waited for %v", name, waited)
			}
			epochs, hs := s.epochs(t)
			for i := range hs {
				want := c.h
				want.SequenceNumber, want.FileWriteGUID = c.h.SequenceNumber+uint64(2-i), hs[i].FileWriteGUID
				if hs[i] != want || epochs[i].Host != "a" || !epochs[i].Released {
					t.Errorf("%s: header %d is %+v with %+v; want %+v", name, i, hs[i], epochs[i], want)
				}
			}
		})
	}
}

// The lease of a new image is taken without a wait.
func TestEnterNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		_, before := s.epochs(t)
		h := newHost(s)
		began := h.now()
		f, err := EnterNew(h, Options{Host: "a", Now: h.now})
		if err != nil {
			t.Fatal(err)
		}
		e, hs := s.epochs(t)
		if h.now() != began || f.Waited || f.Before != before[0] || e[0].Host != "a" || e[1].Host != "a" || hs[1].SequenceNumber != before[0].SequenceNumber+1 {
			t.Errorf("after %v the headers are %+v; before: %+v, %+v", h.now()-began, hs, f.Before, before)
		}
		_, other := s.enter(t, "b", Options{})
		if !errors.Is(f.Err(), ErrTakenOver) {
			t.Errorf("after another host has the image: %v", f.Err())
		}
		for _, f := range []*File{f, other} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// Only a whole header is written at the place of one.
func TestWriteOverHeaders(t *testing.T) {
	const first, second, end = 64 << 10, 128 << 10, 192 << 10
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		for _, c := range []struct {
			off   int64
			n     int
			taken bool
		}{
			{0, first, true}, {0, first + 1, false}, {first - 1, 2, false}, {first, 4096, true}, {first, 4095, false}, {first, 8192, false},
			{first + 4096, 4096, false}, {second, 4096, true}, {second, 512, false}, {second - 4096, 8192, false}, {end - 1, 1, false},
			{end - 4096, 4096, false}, {end, 4096, true}, {0, end + 1, false},
		} {
			b := make([]byte, c.n)
			if slot := slotAt(c.off); slot >= 0 && c.taken {
				header, _ := f.Header()
				copy(b, header.Encode()[:])
			}
			if _, err := f.WriteAt(b, c.off); (err == nil) != c.taken {
				t.Errorf("%d bytes at %#x: %v", c.n, c.off, err)
			}
			if got := len(h.called()); got == 0 == c.taken {
				t.Errorf("%d bytes at %#x: %d writes", c.n, c.off, got)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What the headers may hold is what was written since the last sync, and what was newest then: no more is kept in memory, and older
// headers are not this writer's.
func TestOlderHeadersAreForeign(t *testing.T) {
	for _, back := range []int{0, 1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			h, f := s.enter(t, "a", Options{})
			write := func() [ondisk.HeaderSize]byte {
				header, slot := f.Header()
				header.SequenceNumber += 2
				if _, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[slot]); err != nil {
					t.Fatal(err)
				}
				return s.has()[slot]
			}
			_, slot := f.Header()
			var written [][ondisk.HeaderSize]byte
			for range 3 {
				written = append(written, write())
			}
			h.do(func(call string) error { // one that is written during the sync may be in the place, too
				if call == "sync" {
					h.do(nil)
					written = append(written, write())
				}
				return nil
			})
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if n := len(f.may[slot]); n != 2 {
				t.Errorf("%d contents are kept", n)
			}
			s.put(slot, written[len(written)-1-back])
			time.Sleep(2 * Usual.Beat)
			if taken := f.Err() != nil; taken != (back > 1) {
				t.Errorf("the header of %d writes ago: %v", back, f.Err())
			}
			_ = f.Close()
		})
	}
}

// A header that could not be written leaves the old one or the new one, also after a sync. Neither is that of another host, and
// what is written later makes both foreign.
func TestHeaderThatFailed(t *testing.T) {
	for _, there := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			h, f := s.enter(t, "a", Options{})
			header, slot := f.Header()
			before := s.has()[slot]
			var failed [][ondisk.HeaderSize]byte
			h.do(func(call string) error {
				if call == "write header" {
					return unix.ENOSPC
				}
				return nil
			})
			for range 2 {
				header.SequenceNumber += 2
				b := header.Encode()
				if _, err := f.WriteAt(b[:], ondisk.HeaderOffsets[slot]); !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				failed = append(failed, *b)
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			}
			h.do(nil)
			if there {
				s.put(slot, failed[1])
			}
			time.Sleep(2 * Usual.Length)
			if err := f.Sync(); err != nil {
				t.Errorf("the failed header is there: %t; the next sync: %v", there, err)
			}
			header.SequenceNumber += 2
			if _, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[slot]); err != nil {
				t.Error(err)
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
			if n := len(f.may[slot]); n != 1 {
				t.Errorf("%d contents are kept", n)
			}
			s.put(slot, before)
			time.Sleep(2 * Usual.Beat)
			if !errors.Is(f.Err(), ErrTakenOver) {
				t.Errorf("with the old header: %v", f.Err())
			}
			_ = f.Close()
		})
	}
}

// A sync says that all is durable only if the image was this host's at its end.
func TestSyncChecksAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		h, a := s.enter(t, "a", Options{})
		var b *File
		h.do(func(call string) error {
			if call == "sync" && b == nil {
				_, b = s.enter(t, "b", Options{})
			}
			return nil
		})
		if err := a.Sync(); !errors.Is(err, ErrTakenOver) {
			t.Errorf("the sync ends with %v", err)
		}
		for _, f := range []*File{a, b} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
