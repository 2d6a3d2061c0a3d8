package lease

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A plainHost is a host whose storage answers at once, for tests of single steps.
type plainHost struct {
	imagefile.Plain
	s     *storage
	began time.Time

	mu       sync.Mutex                    // held for memory only
	calls    []string                      // what changes, and what reaches no file any more
	before   func(call string) error       // called before each access; nil does nothing
	relocked func() (lost bool, err error) // what Relock answers; nil answers that all is well
	closed   bool
}

// newHost returns a host that has been on for an hour.
func newHost(s *storage) *plainHost { return &plainHost{s: s, began: time.Now().Add(-time.Hour)} }

func plainStorage() *storage {
	return newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, DataWriteGUID: uuid.UUID{2}, Version: 1})
}

func (h *plainHost) now() time.Duration { return time.Since(h.began) }

// call notes an access and has the test look at it.
func (h *plainHost) call(name string) error {
	h.mu.Lock()
	before := h.before
	if h.closed {
		name += " after close"
	}
	h.calls = append(h.calls, name)
	h.mu.Unlock()
	if before != nil {
		return before(name)
	}
	return nil
}

// do has something called before each access.
func (h *plainHost) do(before func(call string) error) {
	h.mu.Lock()
	h.before = before
	h.mu.Unlock()
}

// called returns the accesses since the last time, without the reads of headers.
func (h *plainHost) called() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	calls := slices.DeleteFunc(h.calls, func(c string) bool { return c == "read headers" || c == "relock" })
	h.calls = nil
	return calls
}

func slotAt(off int64) int { return slices.Index(ondisk.HeaderOffsets[:], off) }

func (h *plainHost) ReadFresh(p []byte, off int64) (int, error) {
	if err := h.call("read headers"); err != nil {
		return 0, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return copy(p, h.s.headers[slotAt(off)][:]), nil
}

func (h *plainHost) WriteAt(p []byte, off int64) (int, error) {
	i := slotAt(off)
	if i < 0 {
		return len(p), h.call("write")
	}
	if err := h.call("write header"); err != nil {
		return 0, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return copy(h.s.headers[i][:], p), nil
}

func (h *plainHost) ReadAt(p []byte, off int64) (int, error) { return len(p), h.call("read") }
func (h *plainHost) Truncate(size int64) error               { return h.call(fmt.Sprint("truncate ", size)) }
func (h *plainHost) Sync() error                             { return h.call("sync") }
func (h *plainHost) Share() error                            { return h.call("share") }
func (h *plainHost) Unlock() error                           { return h.call("unlock") }
func (h *plainHost) Forget() error                           { return h.call("forget") }
func (h *plainHost) Size() (int64, error)                    { return ondisk.MiB, nil }
func (h *plainHost) Fd() (uintptr, bool)                     { return 7, true }
func (h *plainHost) PunchHole(off, n int64) error            { return h.call(fmt.Sprint("punch ", off, n)) }
func (h *plainHost) Allocate(off, n int64) error             { return h.call(fmt.Sprint("allocate ", off, n)) }
func (h *plainHost) ZeroRange(off, n int64) error            { return h.call(fmt.Sprint("zero ", off, n)) }

func (h *plainHost) Clone(off int64, src imagefile.File, from, n int64) error {
	return h.call(fmt.Sprint("clone ", off, from, n))
}

func (h *plainHost) Named(path string) (imagefile.File, error) {
	return &plainHost{s: h.s, began: h.began}, h.call("name " + path)
}

func (h *plainHost) Relock(imagefile.LockKind) (bool, error) {
	if err := h.call("relock"); err != nil {
		return false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.relocked != nil {
		return h.relocked()
	}
	return false, nil
}

func (h *plainHost) Close() error {
	err := h.call("close")
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	return err
}

// A logKeeper keeps what is logged.
type logKeeper struct {
	*logrus.Logger
	mu    sync.Mutex
	lines []string
}

func newLog() *logKeeper {
	l := &logKeeper{Logger: logrus.New()}
	l.SetOutput(io.Discard)
	l.AddHook(l)
	return l
}

func (l *logKeeper) Levels() []logrus.Level { return logrus.AllLevels }

func (l *logKeeper) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, e.Message)
	return nil
}

// count returns how many lines have the text in them.
func (l *logKeeper) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// has returns what the headers of the image are.
func (s *storage) has() [2][ondisk.HeaderSize]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.headers
}

// put makes b a header, whatever it is.
func (s *storage) put(slot int, b [ondisk.HeaderSize]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers[slot] = b
}

func (s *storage) set(slot int, h ondisk.Header) { s.put(slot, *h.Encode()) }

// enter takes the lease of the image of s.
func (s *storage) enter(t *testing.T, name string, o Options) (*plainHost, *File) {
	t.Helper()
	h := newHost(s)
	o.Path, o.Host, o.Now = "image", name, h.now
	f, err := Enter(h, o)
	if err != nil {
		t.Fatal(err)
	}
	h.called()
	return h, f
}

// epochs returns what both headers tell, the one that counts first. What is damaged tells nothing.
func (s *storage) epochs(t *testing.T) (e [2]Epoch, h [2]ondisk.Header) {
	t.Helper()
	b := s.has()
	_, slot, err := current([2][]byte{b[0][:], b[1][:]})
	if err != nil {
		t.Fatal(err)
	}
	for i := range h {
		h[i], _ = ondisk.DecodeHeader(&b[slot^i], 0)
		e[i], _ = EpochOf(h[i].FileWriteGUID)
	}
	return e, h
}

// What the options do not say comes from the system, and nothing counts as confirmed at first, also where a host has just been
// started.
func TestDefaults(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	l := newLease(newHost(plainStorage()), Options{})
	if l.epoch.Host != name || l.o.Terms != Usual || l.o.Log.(*logrus.Logger).IsLevelEnabled(logrus.ErrorLevel) {
		t.Errorf("the lease is %+v", l)
	}
	if a := boottime(); l.o.Now() < a || a <= 0 {
		t.Errorf("the clock shows %v and then %v", a, l.o.Now())
	}
	if l := newLease(nil, Options{Now: func() time.Duration { return 0 }}); l.Fresh() {
		t.Error("it is confirmed")
	}
}

// Each change, and each read, reaches the storage as long as the image is this host's, and not any more when another one has it.
func TestEachAccessIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		h, f := s.enter(t, "a", Options{})
		accesses := []struct {
			want string
			do   func() error
		}{
			{"write", func() error { _, err := f.WriteAt([]byte{1}, ondisk.MiB); return err }},
			{"read", func() error { _, err := f.ReadAt([]byte{1}, ondisk.MiB); return err }},
			{"truncate 5", func() error { return f.Truncate(5) }},
			{"sync", func() error { return f.Sync() }},
			{"punch 1 2", func() error { return f.PunchHole(1, 2) }},
			{"allocate 3 4", func() error { return f.Allocate(3, 4) }},
			{"zero 5 6", func() error { return f.ZeroRange(5, 6) }},
			{"clone 7 8 9", func() error { return f.Clone(7, h, 8, 9) }},
			{"write header", func() error {
				header, slot := f.Header()
				_, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[slot])
				return err
			}},
		}
		for _, a := range accesses {
			if err := a.do(); err != nil {
				t.Errorf("%s: %v", a.want, err)
			}
			if got := h.called(); !slices.Equal(got, []string{a.want}) {
				t.Errorf("%s: the storage was asked for %q", a.want, got)
			}
			failure := errors.New("no")
			h.do(func(call string) error {
				if call == a.want {
					return failure
				}
				return nil
			})
			if err := a.do(); !errors.Is(err, failure) && a.want != "write header" && a.want != "sync" { // see TestCloseAfterAnError
				t.Errorf("%s: the error of the storage becomes %v", a.want, err)
			}
			h.do(nil)
			h.called()
		}
		if fd, ok := f.Fd(); fd != 7 || !ok {
			t.Errorf("the descriptor is %d, %t", fd, ok)
		}
		_, other := s.enter(t, "b", Options{})
		h.called()
		for _, a := range accesses {
			if err := a.do(); !errors.Is(err, ErrTakenOver) || !strings.Contains(err.Error(), "(b, since") {
				t.Errorf("%s after another host has the image: %v", a.want, err)
			}
			if got := h.called(); len(got) > 0 {
				t.Errorf("%s after another host has the image: the storage was asked for %q", a.want, got)
			}
		}
		if _, ok := f.Fd(); ok {
			t.Error("the descriptor can still be used")
		}
		for _, f := range []*File{f, other} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A confirmation holds from the moment at which the reading of the headers began, for Length. After it, a change waits for the next.
func TestConfirmationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		defer f.Close()
		away := errors.New("away")
		h.do(func(call string) error {
			if call == "read headers" {
				return away
			}
			return nil
		})
		at := time.Duration(f.confirmed.Load())
		time.Sleep(at + Usual.Length - 1 - h.now())
		if !f.Fresh() {
			t.Error("the confirmation has ended early")
		}
		if err := f.Truncate(1); err != nil {
			t.Errorf("at the last moment: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if f.Fresh() {
			t.Error("the confirmation has not ended")
		}
		h.called()

		began := h.now()
		err := f.Truncate(1) // the storage answers with errors for longer than the change can wait
		if !errors.Is(err, away) || !strings.Contains(err.Error(), "cannot confirm that no other host has image") {
			t.Errorf("while the storage is away: %v", err)
		}
		if waited := h.now() - began; waited <= 2*Usual.Length || waited > 2*Usual.Length+askPause {
			t.Errorf("it has waited for %v", waited)
		}
		if got := h.called(); len(got) > 0 {
			t.Errorf("meanwhile the storage was asked for %q", got)
		}

		back := make(chan struct{})
		go func() {
			time.Sleep(3 * time.Second)
			h.do(nil)
			close(back)
		}()
		if err := f.Truncate(1); err != nil {
			t.Errorf("after the storage is back: %v", err)
		}
		select {
		case <-back:
		default:
			t.Error("it has not waited for the storage")
		}

		const slow = 3 * time.Second
		h.do(func(call string) error {
			if call == "read headers" {
				time.Sleep(slow)
			}
			return nil
		})
		f.mu.Lock()
		began = h.now()
		err = f.confirm()
		f.mu.Unlock()
		if got := time.Duration(f.confirmed.Load()); err != nil || got != began {
			t.Errorf("a confirmation that began at %v counts from %v on, %v", began, got, err)
		}
		h.do(nil)
	})
}

// An answer counts also where it comes at the end of the time for which a change waits for one, and the change then waits no more.
func TestLateConfirmation(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			h, f := s.enter(t, "a", Options{})
			back := h.now() + Usual.Length + 2*Usual.Length + 1
			h.do(func(call string) error {
				if call != "read headers" {
					return nil
				}
				if h.now() < back {
					return unix.EIO
				}
				if taken {
					s.set(0, ondisk.Header{SequenceNumber: 20, FileWriteGUID: Epoch{Host: "b"}.newGUID(), Version: 1})
				}
				return nil
			})
			time.Sleep(Usual.Length)
			err := f.Truncate(1)
			if err != f.Err() || taken != errors.Is(err, ErrTakenOver) {
				t.Errorf("taken %t: %v", taken, err)
			}
			if late := h.now() - back; late < 0 || late >= askPause {
				t.Errorf("taken %t: it has waited %v longer", taken, late)
			}
			_ = f.Close()
		})
	}
}

// A storage that takes longer than Length for each answer confirms nothing.
func TestSlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		h, f := plainStorage().enter(t, "a", Options{Log: log})
		h.do(func(call string) error {
			if call == "read headers" {
				time.Sleep(Usual.Length)
			}
			return nil
		})
		time.Sleep(2 * Usual.Length)
		h.called()
		if err := f.Truncate(1); err == nil || !strings.Contains(err.Error(), "the storage answers too slowly") {
			t.Errorf("the change ends with %v", err)
		}
		if got := h.called(); len(got) > 0 {
			t.Errorf("the storage was asked for %q", got)
		}
		if n := log.count("does not answer"); n == 0 {
			t.Error("nothing was logged")
		}
		h.do(nil)
		time.Sleep(2 * Usual.Length)
		if err := f.Truncate(1); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// While the storage hangs, that is logged once the lease has ended; while it answers, nothing is.
func TestBeatLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		h, f := plainStorage().enter(t, "a", Options{Log: log})
		time.Sleep(time.Minute)
		if n := log.count(""); n != 0 {
			t.Errorf("%d lines while all is well: %q", n, log.lines)
		}
		for _, c := range []struct {
			what string
			do   func(broken bool)
		}{
			{"writes wait", func(broken bool) {
				h.do(nil)
				if broken {
					h.do(func(call string) error {
						if call == "read headers" {
							return errors.New("away")
						}
						return nil
					})
				}
			}},
			{"may also hold a lock", func(broken bool) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.relocked = nil
				if broken {
					h.relocked = func() (bool, error) { return false, imagefile.ErrLocked }
				}
			}},
		} {
			for n := 1; n <= 2; n++ { // once each time
				c.do(true)
				time.Sleep(time.Minute)
				if got := log.count(c.what); got != n {
					t.Errorf("%q was logged %d times; want %d", c.what, got, n)
				}
				c.do(false)
				time.Sleep(time.Minute)
			}
		}
		h.mu.Lock()
		lost := true
		h.relocked = func() (was bool, err error) {
			was, lost = lost, false
			return was, nil
		}
		h.mu.Unlock()
		time.Sleep(time.Minute)
		if got := log.count("has lost the lock"); got != 1 {
			t.Errorf("a lost lock was logged %d times", got)
		}
		if got := log.count(""); got != 5 {
			t.Errorf("logged: %q", log.lines)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A panic in the background ends no more than the work there: each change still looks at the headers.
func TestPanicInABeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		h, f := plainStorage().enter(t, "a", Options{Log: log})
		h.mu.Lock()
		h.relocked = func() (bool, error) { panic("out of order") }
		h.mu.Unlock()
		time.Sleep(time.Minute)
		if n := log.count("out of order"); n != 1 {
			t.Errorf("logged: %q", log.lines)
		}
		if err := errors.Join(f.Truncate(1), f.Close()); err != nil {
			t.Error(err)
		}
	})
}

// A host that loses the image is told by itself, once, and gives its locks to the other one.
func TestHostIsToldOfALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		log := newLog()
		h, a := s.enter(t, "a", Options{Log: log})
		var told []error
		a.WhenLost(func(err error) { told = append(told, err) })
		if len(told) > 0 || a.Err() != nil {
			t.Errorf("before the loss: %v, %v", told, a.Err())
		}
		_, b := s.enter(t, "b", Options{})
		synctest.Wait()
		if len(told) != 1 || !errors.Is(told[0], ErrTakenOver) || !errors.Is(a.Err(), ErrTakenOver) {
			t.Errorf("told %v, the error is %v", told, a.Err())
		}
		if e, ok := errors.AsType[*TakenOverError](a.Err()); !ok || e.Epoch.Host != "b" || e.Path != "image" {
			t.Errorf("the error is %+v", e)
		}
		if got := h.called(); !slices.Equal(got, []string{"unlock"}) {
			t.Errorf("it has done %q", got)
		}
		if n := log.count("was taken over"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		a.WhenLost(func(err error) { told = append(told, err) })
		if len(told) != 2 || told[1] != a.Err() {
			t.Errorf("who asks later is told %v", told)
		}
		a.mu.Lock()
		err := a.confirm()
		a.mu.Unlock()
		if err == nil || len(told) != 2 || a.Fresh() {
			t.Errorf("it asks again: %v, told %v, fresh %t", err, told, a.Fresh())
		}
		select {
		case <-a.ended:
		default:
			t.Error("it still looks at the headers")
		}
		for _, f := range []*File{a, b} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// The error names the host that has written a header, if it keeps a lease, and never this one.
func TestLossNamesTheOther(t *testing.T) {
	header := func(sequence uint64, host string) *[ondisk.HeaderSize]byte {
		h := ondisk.Header{SequenceNumber: sequence, FileWriteGUID: uuid.UUID{8}, Version: 1}
		if host != "" {
			h.FileWriteGUID = Epoch{Host: host, Since: time.Unix(1764500000, 0)}.newGUID()
		}
		return h.Encode()
	}
	damaged := new([ondisk.HeaderSize]byte)
	for name, c := range map[string]struct {
		headers [2]*[ondisk.HeaderSize]byte // nil is this host's
		want    string
	}{
		"both damaged":           {[2]*[ondisk.HeaderSize]byte{damaged, damaged}, ""},
		"first damaged":          {[2]*[ondisk.HeaderSize]byte{damaged, nil}, ""},
		"second damaged":         {[2]*[ondisk.HeaderSize]byte{nil, damaged}, ""},
		"no lease":               {[2]*[ondisk.HeaderSize]byte{header(1, ""), header(20, "")}, ""},
		"mark in the first":      {[2]*[ondisk.HeaderSize]byte{header(1, "b"), nil}, "b"},
		"mark in the second":     {[2]*[ondisk.HeaderSize]byte{nil, header(1, "b")}, "b"},
		"first counts":           {[2]*[ondisk.HeaderSize]byte{header(20, "b"), header(19, "c")}, "b"},
		"second counts":          {[2]*[ondisk.HeaderSize]byte{header(19, "c"), header(20, "b")}, "b"},
		"second counts, damaged": {[2]*[ondisk.HeaderSize]byte{header(1, "b"), damaged}, "b"},
		"only an older has one":  {[2]*[ondisk.HeaderSize]byte{header(20, ""), header(19, "b")}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				_, f := s.enter(t, "a", Options{})
				for i, b := range c.headers {
					if b != nil {
						s.put(i, *b)
					}
				}
				time.Sleep(Usual.Length - Usual.Beat/2) // a damaged one is read several times
				e, ok := errors.AsType[*TakenOverError](f.Err())
				if !ok {
					t.Fatalf("the error is %v", f.Err())
				}
				if e.Epoch.Host != c.want || (e.Epoch == Epoch{}) != (c.want == "") || strings.Contains(e.Error(), "another host ("+c.want) != (c.want != "") {
					t.Errorf("the error is %v", e)
				}
				if err := f.Truncate(1); !errors.Is(err, ErrTakenOver) { // though it was confirmed a short time ago
					t.Errorf("a change: %v", err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Each time that a header is read while it is written is another one: only several in a row say that it stays damaged.
func TestTornHeadersNotInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		_, f := s.enter(t, "a", Options{})
		time.Sleep(Usual.Beat / 2)
		for range 2 * maxTorn {
			good := s.has()[0]
			s.put(0, [ondisk.HeaderSize]byte{})
			time.Sleep(Usual.Beat)
			s.put(0, good)
			time.Sleep(Usual.Beat)
		}
		if err := errors.Join(f.Err(), f.Truncate(1), f.Close()); err != nil {
			t.Error(err)
		}
	})
}

// An image that ends because of another one is lost as if it was taken over itself, once.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		var told []error
		f.WhenLost(func(err error) { told = append(told, err) })
		lost := errors.New("lost")
		f.End(lost)
		f.End(errors.New("again"))
		if len(told) != 1 || told[0] != lost || f.Err() != lost || f.Truncate(1) != lost || len(h.called()) != 0 {
			t.Errorf("told %v, the error is %v", told, f.Err())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The headers say that the image is closed only if it is clean and nothing has failed whose outcome is not known.
func TestCloseAfterAnError(t *testing.T) {
	failAt := func(at string, e error) func(*testing.T, *plainHost, *File) {
		return func(t *testing.T, h *plainHost, f *File) {
			h.do(func(call string) error {
				if call == at {
					return e
				}
				return nil
			})
			header, slot := f.Header()
			header.SequenceNumber++
			_, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[1-slot])
			if err := errors.Join(err, f.Sync()); !errors.Is(err, e) {
				t.Errorf("%s fails with %v", at, err)
			}
			h.do(nil)
		}
	}
	for name, c := range map[string]struct {
		do       func(*testing.T, *plainHost, *File)
		released bool
	}{
		"nothing":              {func(*testing.T, *plainHost, *File) {}, true},
		"header without space": {failAt("write header", unix.ENOSPC), true},
		"header beyond quota":  {failAt("write header", unix.EDQUOT), true},
		"header with an error": {failAt("write header", unix.EIO), false},
		"sync with an error":   {failAt("sync", unix.EIO), false},
		"header with an error, then without space": {func(t *testing.T, h *plainHost, f *File) {
			failAt("write header", unix.EIO)(t, h, f)
			failAt("write header", unix.ENOSPC)(t, h, f)
		}, false},
		"log in use": {func(t *testing.T, _ *plainHost, f *File) {
			header, slot := f.Header()
			header.SequenceNumber++
			header.LogGUID = uuid.UUID{5}
			if _, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[1-slot]); err != nil {
				t.Error(err)
			}
		}, false},
		"storage away": {func(t *testing.T, h *plainHost, f *File) {
			h.do(func(string) error { return unix.EIO })
			time.Sleep(2 * Usual.Length)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := plainStorage()
				h, f := s.enter(t, "a", Options{})
				c.do(t, h, f)
				before := s.has()
				if err := f.Close(); err != nil && name != "storage away" {
					t.Errorf("close: %v", err)
				}
				if e, _ := s.epochs(t); e[0].Host != "a" || e[0].Released != c.released || e[1].Released != c.released {
					t.Errorf("the headers tell of %+v; want released %t", e, c.released)
				}
				if !c.released && s.has() != before {
					t.Error("the headers have changed")
				}
				if f.Fresh() {
					t.Error("it is confirmed after the close")
				}
			})
		})
	}
}

// The error says where the end of the lease cannot be recorded.
func TestCloseThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		h.do(func(call string) error {
			if call == "write header" || call == "close" {
				return fmt.Errorf("%s: %w", call, unix.EIO)
			}
			return nil
		})
		err := f.Close()
		if err == nil || !strings.Contains(err.Error(), "the next writer must wait: write header: write header: input/output error") ||
			!strings.Contains(err.Error(), "close: input/output error") {
			t.Errorf("close: %v", err)
		}
	})
}

// A lease lasts until its last descriptor is closed. The headers are then looked at by one that is open.
func TestLeaseOfManyDescriptors(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}, {1, 2, 0}} {
		synctest.Test(t, func(t *testing.T) {
			s := plainStorage()
			_, f := s.enter(t, "a", Options{})
			f.Waited = true
			files := []*File{f}
			for i := range 2 {
				other, err := f.Named(fmt.Sprint("name", i))
				if err != nil {
					t.Fatal(err)
				}
				o := other.(*File)
				if o.Before != f.Before || !o.Waited || o.Lease != f.Lease {
					t.Errorf("the other descriptor is %+v", o)
				}
				files = append(files, o)
			}
			for n, i := range order {
				if e, _ := s.epochs(t); e[0].Released {
					t.Fatalf("after %d of %v are closed, the headers tell of %v", n, order, e)
				}
				if err := files[i].Sync(); err != nil {
					t.Errorf("after %d of %v are closed: %v", n, order, err)
				}
				if err := files[i].Close(); err != nil {
					t.Error(err)
				}
				time.Sleep(3 * Usual.Beat)
				for _, f := range files {
					for _, call := range f.File.(*plainHost).called() {
						if strings.HasSuffix(call, "after close") {
							t.Errorf("after %d of %v are closed, there is a %s", n+1, order, call)
						}
					}
				}
			}
			if e, _ := s.epochs(t); !e[0].Released || !e[1].Released {
				t.Errorf("in the end the headers tell of %v", e)
			}
		})
	}
}

// A descriptor that cannot be duplicated is no descriptor.
func TestNamedReportsItsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		h.do(func(call string) error {
			if call == "name b" {
				return unix.EMFILE
			}
			return nil
		})
		if other, err := f.Named("b"); !errors.Is(err, unix.EMFILE) || other != nil {
			t.Errorf("Named returns %v, %v", other, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if e, _ := f.File.(*plainHost).s.epochs(t); !e[0].Released {
			t.Errorf("the headers tell of %v", e)
		}
	})
}

// A lease that has ended is not confirmed by what the background was about to do.
func TestShareDuringABeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := plainStorage().enter(t, "a", Options{})
		time.Sleep(Usual.Beat / 2)
		h.do(func(call string) error {
			if call == "write header" {
				time.Sleep(Usual.Beat)
			}
			return nil
		})
		if err := f.Share(); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1); err == nil {
			t.Error("it can still be changed")
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A file that is only read from now on has no lease: nothing can be changed through it, and other hosts need not wait.
func TestShareEndsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plainStorage()
		h, f := s.enter(t, "a", Options{})
		failure := errors.New("no")
		h.do(func(call string) error {
			if call == "share" {
				return failure
			}
			return nil
		})
		if err := f.Share(); !errors.Is(err, failure) {
			t.Errorf("share: %v", err)
		}
		h.do(nil)
		e, _ := s.epochs(t)
		if !e[0].Released || !e[1].Released {
			t.Errorf("the headers tell of %v", e)
		}
		h.called()
		for what, err := range map[string]error{"write": f.Truncate(1), "sync": f.Sync()} {
			if err == nil || !strings.Contains(err.Error(), "only read") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := f.ReadAt([]byte{1}, ondisk.MiB); err != nil {
			t.Errorf("read: %v", err)
		}
		other := func() *File {
			_, f := s.enter(t, "b", Options{Waiting: func(why string) { t.Errorf("the next host waits: %s", why) }})
			return f
		}()
		if got := h.called(); !slices.Equal(got, []string{"read"}) || f.Err() != nil {
			t.Errorf("it has done %q, %v", got, f.Err())
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		_, headers := s.epochs(t)
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, now := s.epochs(t); now != headers {
			t.Errorf("the close has changed the headers from %+v to %+v", headers, now)
		}
	})
}
