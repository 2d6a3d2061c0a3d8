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
	w, err := hold(f, o)
	if err != nil {
		return nil, err
	}
	if err := w.claim(w.left); err != nil {
		return nil, err
	}
	w.beats()
	return w, nil
}

// Hold is Enter for those who write the headers themselves: the header that counts stays as it is, and the mark of the new writer
// stays in the place of the other one. Other hosts see by it that one is in. The headers stay as they are when the lease ends.
func Hold(f imagefile.File, o Options) (*File, error) {
	w, err := hold(f, o)
	if err != nil {
		return nil, err
	}
	w.keep = true
	w.beats()
	return w, nil
}

// hold leaves a mark, and waits until no other host is in.
func hold(f imagefile.File, o Options) (*File, error) {
	l := newLease(f, o)
	began := l.o.Now()
	seen, err := l.look()
	if err != nil {
		return nil, err
	}
	signs := seen.signs()
	if signs != "" {
		l.o.Waiting(fmt.Sprintf("%s %s; waiting %v until no other host can write it (if that host is off, vhdxfs break-lease is faster)",
			l.o.Path, signs, l.o.Terms.Watch+l.o.Terms.Length+l.o.Terms.Grace))
		if err := l.watch(seen); err != nil {
			return nil, err
		}
	}
	replaced, err := l.mark(seen)
	if err != nil {
		return nil, err
	}
	// Another one may have seen the same headers, without a sign of us. It has left its mark by now, or has taken longer than half
	// of this, and then waits for all of the lease itself.
	wait, strict := l.o.Terms.Settle, true
	if signs != "" || l.o.Now()-began > l.o.Terms.Settle/2 {
		wait, strict = l.o.Terms.Length+l.o.Terms.Grace, false
	}
	if l.o.fault == "no wait" {
		wait = 0
	}
	left, err := l.settle(seen, wait, strict)
	if err != nil {
		return nil, err
	}
	// The other one may have written until a moment ago, or have come and gone since the caller has read the file.
	if err := f.Forget(); err != nil {
		return nil, err
	}
	l.left, l.replaced = left, replaced
	w := l.wrap(f)
	w.Before, w.Waited = left.header, !strict
	return w, nil
}

// EnterNew takes the lease of an image in f that no other program can know of yet.
func EnterNew(f imagefile.File, o Options) (*File, error) {
	l := newLease(f, o)
	seen, err := l.look()
	if err != nil {
		return nil, err
	}
	l.expect(seen)
	if err := l.claim(seen); err != nil {
		return nil, err
	}
	w := l.wrap(f)
	w.Before = seen.header
	w.beats()
	return w, nil
}

// A sight is what the headers of an image say.
type sight struct {
	at     time.Duration // when their reading began
	raw    [2][]byte
	header ondisk.Header // that counts
	slot   int
}

func (l *Lease) look() (s sight, err error) {
	s.at = l.o.Now()
	if s.raw, err = readSlots(l.file); err != nil {
		return s, err
	}
	s.header, s.slot, err = current(s.raw)
	return s, err
}

func (s sight) equal(o sight) bool {
	return string(s.raw[0]) == string(o.raw[0]) && string(s.raw[1]) == string(o.raw[1])
}

// both returns what the headers are, if they stay as they are.
func (s sight) both() [2][][]byte { return [2][][]byte{{s.raw[0]}, {s.raw[1]}} }

// held returns which host is in by one of the headers, or was on its way in, and false where none was.
func (s sight) held() (Epoch, bool) {
	for _, slot := range []int{s.slot, 1 - s.slot} {
		if e, ok := epochIn(s.raw[slot]); ok && !e.Released {
			return e, true
		}
	}
	return Epoch{}, false
}

// signs says why another host may be in, and "" where nothing says so.
func (s sight) signs() string {
	if e, held := s.held(); held {
		return fmt.Sprintf("was in use by %s, and was not closed", e)
	}
	if _, leased := EpochOf(s.header.FileWriteGUID); !leased && s.header.Dirty() {
		return "has a log in use"
	}
	return ""
}

// Holder returns which host has the image in f by its headers, and false where none has.
func Holder(f imagefile.File) (Epoch, bool, error) {
	s, err := newLease(f, Options{}).look()
	if err != nil {
		return Epoch{}, false, err
	}
	e, held := s.held()
	return e, held, nil
}

// watch looks for signs of life of another host, and returns an error where it finds one: a lock that is back, or headers that
// change.
func (l *Lease) watch(first sight) error {
	for began := l.o.Now(); l.o.Now()-began < l.o.Terms.Watch; {
		l.o.Sleep(l.o.Terms.Watch / 6)
		if _, err := l.file.Relock(imagefile.Exclusive); errors.Is(err, imagefile.ErrLocked) {
			return err
		}
		now, err := l.look()
		if err != nil {
			return err
		}
		if !now.equal(first) {
			return l.alive(first.both(), now)
		}
	}
	return nil
}

// alive returns the error for an image that another host is found to use: in s are other headers than those that may be there.
func (l *Lease) alive(may [2][][]byte, s sight) error {
	who := "another program or host"
	if e := stranger(may, s.raw); e != (Epoch{}) {
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

// mark puts a new epoch into the header that does not count, with a sequence number below that of the other, which stays as it is.
// So it cuts off who is in, as that finds a header that is not its own; and loses nothing of what that has written since first
// was seen, nor until it notices.
// It returns what was in the place of the mark.
func (l *Lease) mark(first sight) (replaced []byte, err error) {
	if l.o.fault == "no epoch" {
		return nil, nil
	}
	s, err := l.look()
	if err != nil {
		return nil, err
	}
	if !s.equal(first) {
		return nil, l.alive(first.both(), s)
	}
	if l.o.fault == "claim at once" {
		l.expect(s)
		return nil, l.claim(s)
	}
	h := s.header
	if h.SequenceNumber == 0 {
		return nil, errors.New("the sequence number of the header is 0; change the image once without a lease, on one host only")
	}
	h.SequenceNumber--
	h.FileWriteGUID = l.NewGUID()
	b := h.Encode()[:]
	if err := l.put(b, 1-s.slot); err != nil {
		return nil, err
	}
	l.expect(s)
	l.may[1-s.slot] = [][]byte{b}
	return s.raw[1-s.slot], nil
}

// IsMark reports whether mark is what a writer that comes in leaves beside the header other: nothing has been written by it.
func IsMark(mark, other ondisk.Header) bool {
	if e, ok := EpochOf(mark.FileWriteGUID); !ok || e.Released {
		return false
	}
	mark.SequenceNumber++
	mark.FileWriteGUID = other.FileWriteGUID
	return mark == other
}

// Replaced returns what a header held before the mark of this writer came into its place, and which that is. While the mark is
// there, Unmark puts it back.
func (f *File) Replaced() (b []byte, slot int) { return f.replaced, 1 - f.left.slot }

// Unmark takes the mark away, where nothing else was changed.
func (f *File) Unmark() error {
	b, slot := f.Replaced()
	if _, err := f.WriteAt(b, ondisk.HeaderOffsets[slot]); err != nil {
		return err
	}
	return f.Sync()
}

// settle waits, and returns what the headers are at the end. It returns an error if the mark is not there any more, since another
// one has come in, or has not noticed the mark in time. The other header must stay as it is; unless strict, the host that was in
// may change it until it has noticed the mark.
func (l *Lease) settle(first sight, wait time.Duration, strict bool) (sight, error) {
	for until := l.o.Now() + wait; ; {
		s, err := l.look()
		if err != nil {
			return s, err
		}
		if mark := 1 - first.slot; l.o.fault != "no header check" && l.o.fault != "no epoch" && l.o.fault != "claim at once" {
			if !contains(l.may[mark], s.raw[mark]) || strict && !contains(l.may[1-mark], s.raw[1-mark]) {
				return s, l.alive(l.may, s)
			}
		}
		if s.at >= until {
			l.expect(s)
			return s, nil
		}
		l.o.Sleep(min(time.Second, until-l.o.Now()))
	}
}

// expect says that the headers are as they were seen, and confirms the lease by that.
func (l *Lease) expect(s sight) {
	l.may, l.failed = s.both(), [2]int{}
	l.header, l.slot = s.header, s.slot
	l.confirmed.Store(int64(s.at))
}

// claim puts a new epoch into both headers, durably, after they were as in s, and confirms that they are there.
func (l *Lease) claim(s sight) error {
	if l.o.fault != "no epoch" {
		h := s.header
		h.FileWriteGUID = l.NewGUID()
		if err := l.writeBoth(h, s.slot); err != nil {
			return err
		}
	}
	return l.mine()
}

// mine reads the headers and returns an error unless they are this writer's.
func (l *Lease) mine() error {
	s, err := l.look()
	if err != nil {
		return err
	}
	if !l.wrote(s.raw) {
		return l.alive(l.may, s)
	}
	l.confirmed.Store(int64(s.at))
	return nil
}

// writeBoth makes h the header, first in the place of the one that does not count. As any change, each of the two begins only
// while the lease is confirmed.
func (l *Lease) writeBoth(h ondisk.Header, slot int) error {
	if h.SequenceNumber > math.MaxUint64-uint64(len(ondisk.HeaderOffsets)) {
		return errors.New("the headers have no sequence numbers left")
	}
	for range ondisk.HeaderOffsets {
		h.SequenceNumber++
		slot = 1 - slot
		if !l.Fresh() {
			if err := l.mine(); err != nil {
				return err
			}
			if !l.Fresh() {
				return errors.New("the storage answers too slowly")
			}
		}
		b := h.Encode()[:]
		if err := l.put(b, slot); err != nil {
			return err
		}
		l.may[slot], l.failed[slot], l.header, l.slot = [][]byte{b}, 0, h, slot
	}
	return nil
}

// put writes one header, durably.
func (l *Lease) put(b []byte, slot int) error {
	if _, err := l.file.WriteAt(b, ondisk.HeaderOffsets[slot]); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("sync header: %w", err)
	}
	return nil
}

// Break says in the headers of the image in f, whose locks are held, that no host is in, and returns which one was; it returns false,
// and changes nothing, where none was. It is for those who have cut the power of the other host. A host that is alive, and reaches
// the storage, is cut off before Break returns.
func Break(f imagefile.File, o Options) (Epoch, bool, error) {
	l := newLease(f, o)
	s, err := l.look()
	if err != nil {
		return Epoch{}, false, err
	}
	if s.signs() == "" {
		return Epoch{}, false, nil
	}
	e, _ := s.held()
	if _, err := l.mark(s); err != nil {
		return e, false, err
	}
	left, err := l.settle(s, l.o.Terms.Watch, false)
	if err != nil {
		return e, false, err
	}
	return e, true, l.release(left.header, left.slot)
}

// release says that no host is in.
func (l *Lease) release(h ondisk.Header, slot int) error {
	e := l.epoch
	e.Since, e.Released = time.Now(), true
	h.FileWriteGUID = e.newGUID()
	return l.writeBoth(h, slot)
}
