package lease

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Enter takes the lease of the image in f, whose locks are held and whose headers were found valid, and returns f as a file that
// looks after it: each change through it is checked. Closing that releases the lease. It changes the headers. Where another host
// may still be in, it waits for so long that this one can write no more.
//
// It fails with an error that matches imagefile.ErrLocked where another host is found to be alive. Where it fails, f is as it was,
// and still open.
func Enter(f imagefile.File, o Options) (*File, error) {
	l := newLease(f, o)
	began := l.o.Now()
	seen, err := look(f)
	if err != nil {
		return nil, err
	}
	signs := seen.signs()
	if signs != "" {
		l.o.Waiting(fmt.Sprintf("%s %s; waiting %v until no other host can write it (if that host is off, vhdxfs break-lease skips the wait)",
			l.o.Path, signs, l.o.Terms.Watch+l.o.Terms.Length+l.o.Terms.Grace))
		if err := l.watch(seen); err != nil {
			return nil, err
		}
		began = l.o.Now()
	}
	if err := l.claim(seen); err != nil {
		return nil, err
	}
	// Another one may have seen the same headers, without a sign of us. It has written its own by now, or has taken longer than
	// half of this, and then waits for all of the lease itself.
	wait := l.o.Terms.Settle
	if signs != "" || l.o.Now()-began > l.o.Terms.Settle/2 {
		wait = l.o.Terms.Length + l.o.Terms.Grace
	}
	if l.o.fault == "no wait" {
		wait = 0
	}
	if err := l.settle(wait); err != nil {
		return nil, err
	}
	w := l.wrap(f)
	w.Before, w.Waited = seen.header, wait > l.o.Terms.Settle
	if w.Waited { // the other one may have written until a moment ago
		if err := f.Forget(); err != nil {
			return nil, err
		}
	}
	l.beating = true
	go l.beat()
	return w, nil
}

// EnterNew takes the lease of an image in f that no other program can know of yet.
func EnterNew(f imagefile.File, o Options) (*File, error) {
	l := newLease(f, o)
	seen, err := look(f)
	if err == nil {
		err = l.claim(seen)
	}
	if err == nil {
		err = l.settle(0)
	}
	if err != nil {
		return nil, err
	}
	w := l.wrap(f)
	w.Before = seen.header
	l.beating = true
	go l.beat()
	return w, nil
}

// A sight is what the headers of an image say.
type sight struct {
	raw    [2][]byte
	header ondisk.Header // that counts
	slot   int
}

func look(f imagefile.File) (s sight, err error) {
	if s.raw, err = readSlots(f); err != nil {
		return s, err
	}
	s.header, s.slot, err = current(s.raw)
	return s, err
}

func (s sight) equal(o sight) bool {
	return string(s.raw[0]) == string(o.raw[0]) && string(s.raw[1]) == string(o.raw[1])
}

// signs says why another host may be in, and "" where nothing says so.
func (s sight) signs() string {
	epoch, ok := EpochOf(s.header.FileWriteGUID)
	switch {
	case ok && epoch.Released:
		return ""
	case ok:
		return fmt.Sprintf("was in use by %s, and was not closed", epoch)
	case s.header.Dirty():
		return "has a log in use"
	}
	return ""
}

// Holder returns who has the image in f by its headers, and false where nobody has.
func Holder(f imagefile.File) (Epoch, bool, error) {
	s, err := look(f)
	if err != nil {
		return Epoch{}, false, err
	}
	e, ok := EpochOf(s.header.FileWriteGUID)
	return e, ok && !e.Released, nil
}

// watch looks for signs of life of another host, and returns an error where it finds one: a lock that is back, or headers that
// change.
func (l *Lease) watch(first sight) error {
	for began := l.o.Now(); l.o.Now()-began < l.o.Terms.Watch; {
		l.o.Sleep(l.o.Terms.Watch / 6)
		if _, err := l.file.Relock(imagefile.Exclusive); errors.Is(err, imagefile.ErrLocked) {
			return err
		}
		now, err := look(l.file)
		if err != nil {
			return err
		}
		if !now.equal(first) {
			return l.alive(now)
		}
	}
	return nil
}

// alive returns the error for an image that another host is found to use.
func (l *Lease) alive(s sight) error {
	who := "another program or host"
	if e, ok := EpochOf(s.header.FileWriteGUID); ok {
		who = "another host (" + e.String() + ")"
	}
	return &InUseError{Path: l.o.Path, Who: who}
}

// An InUseError says who has an image in use, by its headers. It matches imagefile.ErrLocked.
type InUseError struct {
	Path string
	Who  string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s: %s has it open for writing; stop it first", e.Path, e.Who)
}

func (e *InUseError) Unwrap() error { return imagefile.ErrLocked }

// claim puts a new epoch into both headers, durably.
func (l *Lease) claim(s sight) error {
	if l.o.fault == "no epoch" {
		l.may, l.header, l.slot = [2][][]byte{{s.raw[0]}, {s.raw[1]}}, s.header, s.slot
		return nil
	}
	h := s.header
	h.FileWriteGUID = l.NewGUID()
	return l.writeBoth(h, s.slot)
}

// writeBoth makes h the header, first in the place of the one that does not count.
func (l *Lease) writeBoth(h ondisk.Header, slot int) error {
	if h.SequenceNumber > math.MaxUint64-uint64(len(ondisk.HeaderOffsets)) {
		return errors.New("the headers have no sequence numbers left")
	}
	for range ondisk.HeaderOffsets {
		h.SequenceNumber++
		slot = 1 - slot
		b := h.Encode()[:]
		if _, err := l.file.WriteAt(b, ondisk.HeaderOffsets[slot]); err != nil {
			return fmt.Errorf("write header: %w", err)
		}
		if err := l.file.Sync(); err != nil {
			return fmt.Errorf("sync header: %w", err)
		}
		l.may[slot], l.header, l.slot = [][]byte{b}, h, slot
	}
	return nil
}

// settle waits, and returns an error unless both headers are our own at the end.
func (l *Lease) settle(wait time.Duration) error {
	for until := l.o.Now() + wait; ; {
		began := l.o.Now()
		s, err := look(l.file)
		if err != nil {
			return err
		}
		for i, b := range s.raw {
			if !contains(l.may[i], b) && l.o.fault != "no header check" {
				return l.alive(s)
			}
		}
		if began >= until {
			l.confirmed.Store(int64(began))
			return nil
		}
		l.o.Sleep(min(time.Second, until-l.o.Now()))
	}
}

// Break says in the headers of the image in f, whose locks are held, that nobody is in, and returns who was; it returns false, and
// changes nothing, where nobody was. It is for those who have cut the power of the other host.
func Break(f imagefile.File, o Options) (Epoch, bool, error) {
	l := newLease(f, o)
	s, err := look(f)
	if err != nil {
		return Epoch{}, false, err
	}
	e, held := EpochOf(s.header.FileWriteGUID)
	if held && e.Released || !held && !s.header.Dirty() {
		return Epoch{}, false, nil
	}
	return e, true, l.release(s.header, s.slot)
}

// release says that nobody is in.
func (l *Lease) release(h ondisk.Header, slot int) error {
	e := l.epoch
	e.Since, e.Released = time.Now(), true
	h.FileWriteGUID = e.newGUID()
	return l.writeBoth(h, slot)
}
