package lease

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Terms are the times of a lease. All hosts that share an image have to agree in Length.
type Terms struct {
	Length time.Duration // how long after a confirmation a change may begin
	Beat   time.Duration // how often the headers are read
	Grace  time.Duration // how much longer a new writer waits, for changes that have begun
	Watch  time.Duration // how long a new writer looks for signs of life before it takes over
	Settle time.Duration // how long it waits where nothing says that there is another
}

// Usual are the terms of the program.
var Usual = Terms{Length: 8 * time.Second, Beat: 2 * time.Second, Grace: 2 * time.Second, Watch: 3 * time.Second, Settle: time.Second}

// Options say how a lease is taken.
type Options struct {
	Path  string             // of the image, for messages
	Host  string             // the name of this host; "" asks the system
	Terms Terms              // zero is Usual
	Log   logrus.FieldLogger // nil is nowhere

	Waiting func(why string) // called before the wait for another host; nil logs it

	// Now is a clock that goes on while the host sleeps; nil is the system's. Sleep waits by the same clock. Both are for tests.
	Now   func() time.Duration
	Sleep func(time.Duration)

	fault string // a part of the protocol that is left out, for tests that have to notice
}

// ErrTakenOver is matched by the error for an image that another host has taken over. The image cannot be used any more by
// what has it open.
var ErrTakenOver = errors.New("taken over by another host")

// A TakenOverError says who has the image. It matches ErrTakenOver.
type TakenOverError struct {
	Path  string
	Epoch Epoch // zero where the other one keeps no lease
}

func (e *TakenOverError) Error() string {
	who := ErrTakenOver.Error()
	if e.Epoch != (Epoch{}) {
		who = fmt.Sprintf("%s (%s)", who, e.Epoch)
	}
	return fmt.Sprintf("%s was %s; what was synced before is safe; unmount it here, and mount it again after the other host has closed it", e.Path, who)
}

func (e *TakenOverError) Unwrap() error { return ErrTakenOver }

// never is a time of confirmation that is too old at any time.
const never = time.Duration(math.MinInt64 / 2)

// A Lease is what its holder knows. It is shared by all descriptors of one open file. Any number of goroutines may use it.
type Lease struct {
	o     Options
	file  imagefile.File // the first descriptor, for the headers; the last one that is closed
	epoch Epoch

	confirmed atomic.Int64 // when the headers were read last that were found to be ours, ns by Now
	lost      atomic.Pointer[error]

	mu       mutex         // held while headers are read or written; guards what follows
	may      [2][][]byte   // what each place may hold, if no other host has written there; the last one is the newest
	dropped  [2]int        // how many there were before the first of may
	failed   [2]int        // how many of the last ones may not have been written, after an error
	header   ondisk.Header // the newest of them
	slot     int           // of the newest
	torn     int           // how often in a row they did not look like headers
	unsure   bool          // a change failed, of which it is not known what the storage has
	given    bool          // the image is only read from now on
	keep     bool          // the headers stay as they are when the lease ends
	left     sight         // the headers when the wait was over
	replaced []byte        // what the mark has replaced
	whenLost func(error)
	beating  bool               // the goroutine runs
	quit     chan struct{}      // ends it
	ended    chan struct{}      // it has
	handles  map[*File]struct{} // that are open

	told map[string]bool // what was logged already; of the goroutine alone
}

// A mutex is held while the storage is waited for. It is a channel for the sake of tests in which time is simulated.
type mutex chan struct{}

func (m mutex) Lock()   { m <- struct{}{} }
func (m mutex) Unlock() { <-m }

// boottime is the system's clock that goes on while the host is suspended.
func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // each kernel that runs this has it
	}
	return time.Duration(t.Nano())
}

func newLease(f imagefile.File, o Options) *Lease {
	if o.Terms == (Terms{}) {
		o.Terms = Usual
	}
	if o.Host == "" {
		o.Host, _ = os.Hostname() // a name is for people
	}
	if o.Now == nil {
		o.Now = boottime
	}
	if o.Sleep == nil {
		o.Sleep = time.Sleep
	}
	if o.Log == nil {
		l := logrus.New()
		l.SetLevel(logrus.PanicLevel)
		o.Log = l
	}
	if o.Waiting == nil {
		o.Waiting = func(why string) { o.Log.Warn(why) }
	}
	l := &Lease{o: o, file: f, epoch: Epoch{Host: o.Host, Since: time.Now()}, told: make(map[string]bool), mu: make(mutex, 1),
		quit: make(chan struct{}), ended: make(chan struct{}), handles: make(map[*File]struct{})}
	l.confirmed.Store(int64(never))
	return l
}

// NewGUID returns a FileWriteGuid that says that this writer is in.
func (l *Lease) NewGUID() uuid.UUID { return l.epoch.newGUID() }

// Check returns nil if a change may begin now: the headers were read a short time ago and were those of this writer. If that is
// too long ago they are read now, which takes as long as the storage does. It is called before each change. The error matches
// ErrTakenOver if another host has the image, for good; any other says that the lease could not be confirmed, or was given up.
func (l *Lease) Check() error {
	if l.Fresh() {
		return nil
	}
	return l.ask()
}

// Fresh reports whether Check would not wait.
func (l *Lease) Fresh() bool {
	return l.o.Now()-time.Duration(l.confirmed.Load()) < l.o.Terms.Length || l.o.fault == "no self-fence" && l.lost.Load() == nil
}

// Err returns an error that matches ErrTakenOver once another host has the image.
func (l *Lease) Err() error {
	if e := l.lost.Load(); e != nil {
		return *e
	}
	return nil
}

// askPause is between two attempts to read the headers, where the storage answers with an error.
const askPause = 500 * time.Millisecond

// ask reads the headers until they are confirmed. A storage that hangs is waited for, for as long as it takes: so does any
// access to it. One that answers with errors is asked again for a while.
func (l *Lease) ask() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for began := l.o.Now(); ; {
		if err := l.Err(); err != nil {
			return err
		}
		if l.given {
			return errors.New("the image is only read here")
		}
		if l.Fresh() {
			return nil // another one has asked meanwhile
		}
		err := l.confirm()
		if l.Fresh() || l.Err() != nil {
			continue
		}
		if l.o.Now()-began > 2*l.o.Terms.Length {
			if err == nil {
				err = errors.New("the storage answers too slowly")
			}
			return fmt.Errorf("cannot confirm that no other host has %s: %w", l.o.Path, err)
		}
		l.o.Sleep(askPause)
	}
}

// confirm reads both headers and compares them with what this writer has written. The caller holds mu.
func (l *Lease) confirm() error {
	began := l.o.Now()
	got, err := readSlots(l.file)
	if err != nil {
		return err
	}
	if !l.wrote(got) {
		if l.torn++; l.torn < maxTorn && torn(got) {
			return errTorn
		}
		l.lose(got)
		return l.Err()
	}
	l.torn = 0
	if l.Err() == nil {
		l.confirmed.Store(int64(began))
	}
	return nil
}

// maxTorn is how often in a row a header may be read that is not valid, before it is taken for damaged by another host.
const maxTorn = 3

var errTorn = errors.New("a header is not valid; it may have been read while it was written")

// torn reports whether a header may have been read while it was written.
func torn(got [2][]byte) bool {
	for i, b := range got {
		if _, err := ondisk.DecodeHeader((*[ondisk.HeaderSize]byte)(b), ondisk.HeaderOffsets[i]); err != nil {
			return true
		}
	}
	return false
}

// wrote reports whether the headers are what this writer has written, or has found when it came in. The caller holds mu.
func (l *Lease) wrote(got [2][]byte) bool {
	return contains(l.may[0], got[0]) && contains(l.may[1], got[1]) || l.o.fault == "no header check"
}

// stranger returns the epoch in the headers that are none of those expected, first in the one that counts, and zero where they
// tell of none.
func stranger(may [2][][]byte, got [2][]byte) Epoch {
	_, slot, _ := current(got)
	for _, i := range []int{slot, 1 - slot} {
		if e, ok := epochIn(got[i]); ok && !contains(may[i], got[i]) {
			return e
		}
	}
	return Epoch{}
}

// epochIn returns the epoch that a header tells of. One that is damaged tells of none.
func epochIn(header []byte) (Epoch, bool) {
	h, _ := ondisk.DecodeHeader((*[ondisk.HeaderSize]byte)(header), 0)
	return EpochOf(h.FileWriteGUID)
}

func contains(list [][]byte, b []byte) bool {
	for _, c := range list {
		if bytes.Equal(b, c) {
			return true
		}
	}
	return false
}

// lose ends all use of the image, for good. The caller holds mu.
func (l *Lease) lose(got [2][]byte) {
	err := &TakenOverError{Path: l.o.Path, Epoch: stranger(l.may, got)}
	if !l.end(err) {
		return
	}
	l.o.Log.Error(err)
	_ = l.file.Unlock() // they are the other one's to take
}

// end is End, and returns false where the image was lost before. The caller holds mu.
func (l *Lease) end(err error) bool {
	if !l.lost.CompareAndSwap(nil, &err) {
		return false
	}
	l.confirmed.Store(int64(never))
	if l.whenLost != nil {
		l.whenLost(err)
	}
	return true
}

// End ends all use of the image, for good, because that of another one which it needs was lost.
func (l *Lease) End(lost error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(lost)
}

// WhenLost has do called when another host has the image, or at once if that is so. It must not call the lease.
func (l *Lease) WhenLost(do func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whenLost = do
	if err := l.Err(); err != nil {
		do(err)
	}
}

// readSlots reads both headers as the storage has them now.
func readSlots(f imagefile.File) (got [2][]byte, err error) {
	for i, off := range ondisk.HeaderOffsets {
		got[i] = make([]byte, ondisk.HeaderSize)
		if n, err := f.ReadFresh(got[i], off); n < len(got[i]) {
			return got, fmt.Errorf("read header at %#x: %w", off, err)
		}
	}
	return got, nil
}

// current returns the header that counts, and its place.
func current(got [2][]byte) (h ondisk.Header, slot int, err error) {
	a, aerr := ondisk.DecodeHeader((*[ondisk.HeaderSize]byte)(got[0]), ondisk.HeaderOffsets[0])
	b, berr := ondisk.DecodeHeader((*[ondisk.HeaderSize]byte)(got[1]), ondisk.HeaderOffsets[1])
	switch {
	case aerr != nil && berr != nil:
		return h, 0, aerr
	case aerr != nil || b.SequenceNumber > a.SequenceNumber: // 0 where it is damaged
		return b, 1, nil
	}
	return a, 0, nil
}

// beats begins to confirm the lease, again and again.
func (l *Lease) beats() {
	l.beating = true
	go l.beat()
}

// beat confirms the lease again and again, and looks after the locks.
func (l *Lease) beat() {
	defer close(l.ended)
	defer fault.Reported(l.o.Log)
	tick := time.NewTicker(l.o.Terms.Beat)
	defer tick.Stop()
	for {
		select {
		case <-l.quit:
			return
		case <-tick.C:
		}
		f, err := l.pulse()
		if l.Err() != nil {
			return
		}
		l.tell("unconfirmed", err, "cannot confirm that no other host has %s; writes wait", l.o.Path)
		if err == nil {
			l.lookAfterLocks(f)
		}
	}
}

// pulse confirms the lease, and returns a descriptor of the image. While the storage hangs it says so.
func (l *Lease) pulse() (imagefile.File, error) {
	late := time.AfterFunc(l.o.Terms.Length, func() {
		l.o.Log.Warnf("the storage of %s does not answer; reads and writes wait until it is known that no other host has the image", l.o.Path)
	})
	defer late.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.given {
		return l.file, nil
	}
	return l.file, l.confirm()
}

// lookAfterLocks takes the locks again. What it finds is told and decides nothing: after a storage was split in two, both sides
// may hold locks; and a writer whose lock was lost is still the one in the headers.
func (l *Lease) lookAfterLocks(f imagefile.File) {
	lost, err := f.Relock(imagefile.Exclusive)
	if l.Err() != nil { // meanwhile
		_ = f.Unlock()
		return
	}
	if lost {
		l.o.Log.Warnf("the storage has lost the lock on %s, which was taken again; the image is still this host's", l.o.Path)
	}
	l.tell("lock", err, "another program or host may also hold a lock on %s; its headers still name this host, so the mount continues", l.o.Path)
}

// tell logs an error once, until it is gone.
func (l *Lease) tell(what string, err error, format string, args ...any) {
	if err != nil && !l.told[what] {
		l.o.Log.WithError(err).Warnf(format, args...)
	}
	l.told[what] = err != nil
}
