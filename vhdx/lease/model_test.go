package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// The model: hosts that each take the lease of one image on one storage, and count. A host that is in reads the counter once,
// as an image is loaded, and then writes the next number again and again, with a sync after each. Two of them at once write a
// number that is not the next one, which the storage notices. From time to time a host names another log in the headers, and
// counts on there: a host that loads the image finds only what is in the log that the headers name, so headers that are written
// over by what was there before lose numbers, which the storage notices, too.
//
// Time is simulated. A host may be stopped for any time wherever it looks at its clock and at each access to headers and locks,
// whose requests and answers may be as late as that; it may lose its locks, get them late, or never; it may end without a word.
// A write of data is late by less than Grace: what is later than that, no lease keeps off (see the package).

// A storage is what the hosts share.
type storage struct {
	mu      sync.Mutex // held for memory only
	headers [2][ondisk.HeaderSize]byte
	past    [2][]pastHeader // what each place held before, if the storage shows that
	stale   time.Duration   // how old it may be
	counter uint64
	logs    map[uuid.UUID]uint64 // the newest number in each
	wrong   string               // what no storage should see
	locked  map[*modelHost]bool
	entered int
	broken  int // leases, by a person
}

// A pastHeader is what a place held until a host wrote there.
type pastHeader struct {
	header [ondisk.HeaderSize]byte
	until  time.Time
	by     *modelHost
}

func newStorage(h ondisk.Header) *storage {
	s := &storage{locked: make(map[*modelHost]bool), logs: make(map[uuid.UUID]uint64)}
	for i := range s.headers {
		h.SequenceNumber++
		s.headers[i] = *h.Encode()
	}
	return s
}

// A modelHost is a host with the image open.
type modelHost struct {
	imagefile.Plain
	name  string
	s     *storage
	began time.Time
	rate  float64 // of its clock; 0 is 1
	rng   *rand.Rand

	locks string // "work", "never seen", "lost"

	mu      sync.Mutex // held for memory only
	asleep  time.Time  // until then
	pauseAt int        // the number of the step at which it is stopped
	pause   time.Duration
	step    int
	dieAt   int
	dead    bool

	full bool // there is no space for headers
	torn int  // so many reads of headers come in the middle of a write
}

var errDead = errors.New("this host has ended")

// awake is each step at which a host may be stopped. It returns an error when the host is no more.
func (h *modelHost) awake() error {
	h.mu.Lock()
	h.step++
	if h.step == h.pauseAt {
		h.asleep = time.Now().Add(h.pause)
	}
	if h.dieAt > 0 && h.step >= h.dieAt {
		h.dead = true
	}
	dead, until := h.dead, h.asleep
	h.mu.Unlock()
	if dead {
		return errDead
	}
	time.Sleep(time.Until(until))
	return nil
}

func (h *modelHost) now() time.Duration {
	_ = h.awake()
	if h.rate != 0 {
		return time.Duration(float64(time.Since(h.began)) * h.rate)
	}
	return time.Since(h.began)
}

// random returns a time below most.
func (h *modelHost) random(most time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Duration(h.rng.Int64N(int64(most)))
}

func (h *modelHost) isDead() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead
}

// latency is that of an access to the storage.
func (h *modelHost) latency(most time.Duration) {
	d := h.random(10 * time.Millisecond)
	if h.random(20) == 0 {
		d = h.random(most)
	}
	time.Sleep(d)
}

func (h *modelHost) ReadFresh(p []byte, off int64) (int, error) {
	if err := h.awake(); err != nil {
		return 0, err
	}
	h.latency(time.Second)
	h.s.mu.Lock()
	i := 0
	if off == ondisk.HeaderOffsets[1] {
		i = 1
	}
	n := copy(p, h.s.headers[i][:])
	if age := h.s.stale; age > 0 && h.random(4) != 0 {
		if h.random(2) != 0 {
			age = h.random(age)
		}
		at := time.Now().Add(-age)
		for j := len(h.s.past[i]) - 1; j >= 0 && h.s.past[i][j].until.After(at) && h.s.past[i][j].by != h; j-- { // its own writes it sees
			copy(p, h.s.past[i][j].header[:])
		}
	}
	h.s.mu.Unlock()
	if h.tears() {
		clear(p[:len(p)/2])
	}
	return n, h.awake()
}

// tears reports whether a read of a header comes in the middle of a write.
func (h *modelHost) tears() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.torn == 0 {
		return false
	}
	h.torn--
	return true
}

// tear has so many reads of headers come in the middle of a write, and returns how many were still to come.
func (h *modelHost) tear(n int) (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	left, h.torn = h.torn, n
	return left
}

func (h *modelHost) WriteAt(p []byte, off int64) (int, error) {
	for i, at := range ondisk.HeaderOffsets {
		if off != at {
			continue
		}
		if err := h.awake(); err != nil {
			return 0, err
		}
		if h.full {
			return 0, unix.ENOSPC
		}
		h.latency(time.Second)
		h.s.mu.Lock()
		if h.s.stale > 0 {
			h.s.past[i] = append(h.s.past[i], pastHeader{h.s.headers[i], time.Now(), h})
		}
		copy(h.s.headers[i][:], p)
		h.s.mu.Unlock()
		return len(p), h.awake()
	}
	h.latency(time.Second)
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if v := binary.LittleEndian.Uint64(p); v != h.s.counter+1 && h.s.wrong == "" {
		h.s.wrong = fmt.Sprintf("%v: %s writes %d after %d", time.Since(h.began), h.name, v, h.s.counter)
	} else {
		h.s.counter = v
		h.s.logs[uuid.UUID(p[8:])] = v
	}
	return len(p), nil
}

func (h *modelHost) ReadAt(p []byte, off int64) (int, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	binary.LittleEndian.PutUint64(p, h.s.logs[uuid.UUID(p[8:])])
	return len(p), nil
}

func (h *modelHost) Size() (int64, error) { return ondisk.MiB, nil }
func (h *modelHost) Truncate(int64) error { return nil }
func (h *modelHost) Sync() error          { h.latency(time.Second); return h.awake() }
func (h *modelHost) Close() error         { return h.Unlock() }

func (h *modelHost) Lock(imagefile.LockMode, imagefile.LockKind) error {
	_, err := h.Relock(imagefile.Exclusive)
	if err != nil {
		_ = h.Unlock()
	}
	return err
}

func (h *modelHost) Relock(imagefile.LockKind) (lost bool, err error) {
	if err := h.awake(); err != nil {
		return false, err
	}
	h.latency(time.Second)
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.locks == "never seen" {
		return false, nil
	}
	lost = !h.s.locked[h]
	h.s.locked[h] = true
	if len(h.s.locked) > 1 {
		return lost, imagefile.ErrLocked
	}
	return lost, nil
}

func (h *modelHost) Unlock() error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	delete(h.s.locked, h)
	return nil
}

// use has the image in use for as long as the host is let, and returns how it came to an end.
func (h *modelHost) use(o Options, until time.Duration) error {
	if err := h.Lock(imagefile.LockOn, imagefile.Exclusive); err != nil {
		return err
	}
	o.Path, o.Host, o.Now = "image", h.name, h.now
	f, err := Enter(h, o)
	if err != nil {
		return errors.Join(err, h.Unlock())
	}
	defer func() {
		if !h.isDead() {
			_ = f.Close()
		}
		if h.isDead() { // maybe only now
			f.kill()
		}
	}()
	h.s.mu.Lock()
	h.s.entered++
	h.s.mu.Unlock()
	var b [24]byte
	header, slot := f.Header()
	copy(b[8:], header.LogGUID[:])
	if _, err := f.ReadAt(b[:], ondisk.MiB); err != nil {
		return err
	}
	for h.now() < until {
		if err := h.awake(); err != nil {
			return err
		}
		if h.random(4) == 0 { // a log that begins with what the one before ends with
			header.LogGUID, header.FileWriteGUID = h.newLog(b), f.NewGUID()
			for range ondisk.HeaderOffsets {
				header.SequenceNumber++
				slot = 1 - slot
				if _, err := f.WriteAt(header.Encode()[:], ondisk.HeaderOffsets[slot]); err != nil {
					return err
				}
				if err := f.Sync(); err != nil {
					return err
				}
			}
			copy(b[8:], header.LogGUID[:])
		}
		binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
		if _, err := f.WriteAt(b[:], ondisk.MiB); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		time.Sleep(h.random(3 * time.Second))
	}
	return nil
}

// breakLease is what a person does who knows that a host is off. Locks keep that off where another one has the image by now.
func (s *storage) breakLease(after time.Duration, st story) {
	time.Sleep(after)
	m := &modelHost{name: "operator", s: s, began: time.Now(), locks: st.locks, rng: rand.New(rand.NewPCG(st.seed, 9))}
	if m.Lock(imagefile.LockOn, imagefile.Exclusive) != nil {
		return
	}
	_, broken, err := Break(m, Options{fault: st.fault, Now: m.now})
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.locked, m); broken {
		s.broken++
	}
	if err != nil && !errors.Is(err, imagefile.ErrLocked) {
		s.wrong = fmt.Sprintf("operator: %v", err)
	}
}

// newLog returns the name of a new log, which holds what is in b.
func (h *modelHost) newLog(b [24]byte) (id uuid.UUID) {
	h.mu.Lock()
	binary.LittleEndian.PutUint64(id[:], h.rng.Uint64())
	h.mu.Unlock()
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.s.logs[id] = binary.LittleEndian.Uint64(b[:])
	return id
}

// kill ends what the process of the host does by itself.
func (f *File) kill() {
	if f.beating {
		close(f.quit)
		<-f.ended
	}
}

// A story is what happens in one run of the model.
type story struct {
	seed  uint64
	held  bool   // the headers tell of a writer that is not there
	locks string // see modelHost
	fault string
	stale time.Duration // the storage shows headers that are up to so old
}

// run runs the model and returns what the storage has seen that it should not have, and how often a host came in.
func (st story) run(t *testing.T) (wrong string, entered int) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(st.seed, 1))
		h := ondisk.Header{FileWriteGUID: uuid.UUID{1}, DataWriteGUID: uuid.UUID{2}, Version: 1}
		if st.held {
			h.FileWriteGUID = Epoch{Host: "gone", Since: time.Now()}.newGUID()
		}
		s := newStorage(h)
		s.stale = st.stale
		began := time.Now()
		pauses := []time.Duration{300 * time.Millisecond, 900 * time.Millisecond, 3 * time.Second, 7 * time.Second, 9 * time.Second, 12 * time.Second, 40 * time.Second}
		var hosts sync.WaitGroup
		for i := range 2 + int(st.seed%3)/2 { // most often two, else three
			m := &modelHost{name: string(rune('a' + i)), s: s, began: began, locks: st.locks, rng: rand.New(rand.NewPCG(st.seed, uint64(i)+2))}
			m.rate = 0.98 + 0.04*rng.Float64()
			m.pauseAt, m.pause = 1+rng.IntN(80), pauses[rng.IntN(len(pauses))]
			if rng.IntN(4) == 0 {
				m.dieAt = 1 + rng.IntN(120)
			}
			start := time.Duration(rng.Int64N(int64(2 * time.Second)))
			if rng.IntN(2) == 0 {
				start = time.Duration(rng.Int64N(int64(40 * time.Second)))
			}
			late := time.Duration(rng.Int64N(int64(45 * time.Second))) // after which the storage gives the lock of a host away that has ended
			hosts.Go(func() {
				time.Sleep(start)
				for range 4 {
					err := m.use(Options{fault: st.fault}, time.Since(began)+m.random(40*time.Second))
					if m.isDead() {
						time.Sleep(late)
						_ = m.Unlock()
						if st.locks == "work" && m.random(2) == 0 {
							s.breakLease(m.random(time.Second), st)
						}
						return
					}
					if err != nil && !errors.Is(err, imagefile.ErrLocked) && !errors.Is(err, ErrTakenOver) {
						s.mu.Lock()
						s.wrong = fmt.Sprintf("%s: %v", m.name, err)
						s.mu.Unlock()
						return
					}
					time.Sleep(m.random(4 * time.Second))
				}
			})
			if st.locks == "lost" {
				lost := time.Duration(rng.Int64N(int64(60 * time.Second)))
				hosts.Go(func() {
					time.Sleep(lost)
					_ = m.Unlock()
				})
			}
		}
		hosts.Wait()
		wrong, entered = s.wrong, s.entered
	})
	return wrong, entered
}

// stories runs the model many times and returns what went wrong first, and how many were in.
func stories(t *testing.T, common story, n int) (wrong string, entered int) {
	for seed := range uint64(n) {
		for _, held := range []bool{false, true} {
			for _, locks := range []string{"work", "lost", "never seen"} {
				st := common
				st.seed, st.held, st.locks = seed, held, locks
				w, e := st.run(t)
				if entered += e; w != "" {
					return fmt.Sprintf("%+v: %s", st, w), entered
				}
			}
		}
	}
	return "", entered
}

// Of two hosts at most one writes, whatever happens to them and to their locks.
func TestTwoHostsNeverWriteAtOnce(t *testing.T) {
	n := 400
	if testing.Short() {
		n = 60
	}
	wrong, entered := stories(t, story{}, n)
	if wrong != "" {
		t.Error(wrong)
	}
	if entered < 4*n {
		t.Errorf("in %d runs hosts came in only %d times", 6*n, entered)
	}
}

// A storage that shows what a header held half a second ago does no harm. One that shows it for longer may, as docs/cluster.md says.
func TestOldHeaders(t *testing.T) {
	n := 100
	if testing.Short() {
		n = 20
	}
	if wrong, _ := stories(t, story{stale: 500 * time.Millisecond}, n); wrong != "" {
		t.Error(wrong)
	}
	if wrong, _ := stories(t, story{stale: 15 * time.Second}, 400); wrong == "" {
		t.Error("headers that are 15 s old do no harm")
	} else {
		t.Log(wrong)
	}
}

// The model notices where a part of the protocol is left out.
func TestModelFindsMutants(t *testing.T) {
	for _, fault := range []string{"no epoch", "no header check", "no wait", "no self-fence", "claim at once"} {
		t.Run(strings.ReplaceAll(fault, " ", "-"), func(t *testing.T) {
			if wrong, _ := stories(t, story{fault: fault}, 400); wrong == "" {
				t.Error("nothing went wrong")
			} else {
				t.Log(wrong)
			}
		})
	}
}

// in returns what a host has that took the lease, of an image that nobody has locked.
func (s *storage) in(t *testing.T, name string, o Options) (*modelHost, *File) {
	t.Helper()
	m := &modelHost{name: name, s: s, began: time.Now(), locks: "never seen", rng: rand.New(rand.NewPCG(1, 1))}
	o.Host, o.Now = name, m.now
	f, err := Enter(m, o)
	if err != nil {
		t.Fatal(err)
	}
	return m, f
}

// A lease that is broken while its host is alive cuts that host off before the next one can write, and keeps the log that it has
// named last.
func TestBreakCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		_, a := s.in(t, "a", Options{})
		h, slot := a.Header()
		h.LogGUID = uuid.UUID{7}
		for range ondisk.HeaderOffsets {
			h.SequenceNumber++
			slot = 1 - slot
			if _, err := a.WriteAt(h.Encode()[:], ondisk.HeaderOffsets[slot]); err != nil {
				t.Fatal(err)
			}
		}
		b := &modelHost{name: "b", s: s, began: time.Now(), locks: "never seen", rng: rand.New(rand.NewPCG(2, 2))}
		if e, broken, err := Break(b, Options{}); err != nil || !broken || e.Host != "a" {
			t.Errorf("Break returns %v, %t, %v", e, broken, err)
		}
		if !errors.Is(a.Err(), ErrTakenOver) {
			t.Errorf("the lease is broken, and its host has %v", a.Err())
		}
		_, c := s.in(t, "c", Options{Waiting: func(why string) { t.Errorf("the next host waits: %s", why) }})
		if c.Before.LogGUID != h.LogGUID {
			t.Errorf("the log is %v; want %v", c.Before.LogGUID, h.LogGUID)
		}
		for _, f := range []*File{a, c} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A host whose storage hangs while it closes the image writes no header after its lease has ended.
func TestCloseIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		m, a := s.in(t, "a", Options{})
		m.mu.Lock()
		m.pauseAt, m.pause = m.step+3, 30*time.Second // in the first write, after Close has looked at its clock
		m.mu.Unlock()
		closed := make(chan error)
		go func() { closed <- a.Close() }()
		time.Sleep(5 * time.Second)
		_, b := s.in(t, "b", Options{})
		if err := <-closed; err == nil {
			t.Error("the close that came too late says that the image is closed")
		}
		time.Sleep(time.Minute)
		if err := b.Err(); err != nil {
			t.Errorf("the other host: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A host that notices that it lost the image while it takes its locks again keeps none.
func TestLostHostKeepsNoLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		m, a := s.in(t, "a", Options{})
		m.locks = "work"
		a.mu.Lock()
		a.lose([2][]byte{s.headers[0][:], s.headers[1][:]})
		a.mu.Unlock()
		a.lookAfterLocks(m)
		if s.locked[m] {
			t.Error("it has a lock")
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The header that counts is alone where the other one could not be written for want of space. If it is in the place of the mark of
// another host, which has seen the headers before, that host loses what is told durable from then on: so it is asked at once
// whether it is still there.
func TestHeaderAloneIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		m, a := s.in(t, "a", Options{})
		h, slot := a.Header()
		h.LogGUID = uuid.UUID{7}
		h.SequenceNumber++
		if _, err := a.WriteAt(h.Encode()[:], ondisk.HeaderOffsets[1-slot]); err != nil {
			t.Fatal(err)
		}
		if err := a.Sync(); err != nil {
			t.Fatal(err)
		}
		mark := h
		mark.SequenceNumber, mark.LogGUID, mark.FileWriteGUID = h.SequenceNumber-2, uuid.Nil, Epoch{Host: "b"}.newGUID()
		s.headers[1-slot] = *mark.Encode()
		m.full = true
		h.SequenceNumber++
		if _, err := a.WriteAt(h.Encode()[:], ondisk.HeaderOffsets[slot]); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("the second header: %v", err)
		}
		m.full = false
		if err := a.Sync(); !errors.Is(err, ErrTakenOver) {
			t.Errorf("the next sync: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A header that is read while it is being written is no header of another host. One that stays as it is is.
func TestTornHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		m, a := s.in(t, "a", Options{})
		m.tear(1)
		time.Sleep(20 * time.Second)
		if err := errors.Join(a.Err(), a.Check()); err != nil || m.tear(1000) != 0 {
			t.Errorf("after a header was read while it was written: %v", err)
		}
		time.Sleep(20 * time.Second)
		if err := a.Check(); !errors.Is(err, ErrTakenOver) {
			t.Errorf("with a header that stays damaged: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Who takes the image over is told by its mark, and who is found alive by what it changes.
func TestHostsAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(ondisk.Header{FileWriteGUID: uuid.UUID{1}, Version: 1})
		_, a := s.in(t, "a", Options{})
		b := &modelHost{name: "b", s: s, began: time.Now(), locks: "never seen", rng: rand.New(rand.NewPCG(2, 2))}
		in := make(chan *File)
		go func() {
			f, err := Enter(b, Options{Host: "b", Now: b.now})
			if err != nil {
				t.Error(err)
			}
			in <- f
		}()
		time.Sleep(9 * time.Second) // b has left its mark, and waits
		if taken, ok := errors.AsType[*TakenOverError](a.Err()); !ok || taken.Epoch.Host != "b" {
			t.Errorf("the first host: %v; want that b has the image", a.Err())
		}
		f := <-in
		c := &modelHost{name: "c", s: s, began: time.Now(), locks: "never seen", rng: rand.New(rand.NewPCG(3, 3))}
		go func() {
			time.Sleep(time.Second)
			h, slot := f.Header()
			h.SequenceNumber++
			h.FileWriteGUID = f.NewGUID()
			_, err := f.WriteAt(h.Encode()[:], ondisk.HeaderOffsets[1-slot])
			in <- nil
			if err != nil {
				t.Error(err)
			}
		}()
		_, err := Enter(c, Options{Host: "c", Now: c.now})
		if used, ok := errors.AsType[*InUseError](err); !ok || !strings.Contains(used.Who, "(b, since") {
			t.Errorf("the third host: %v; want that b has the image", err)
		}
		<-in
		for _, f := range []*File{a, f} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
