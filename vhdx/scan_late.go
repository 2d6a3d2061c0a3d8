package vhdx

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// promptScan is how many bytes of a BAT are validated before the image is open, under all options. It is the BAT of
// 1 TiB in blocks of 1 MiB, and of 64 TiB, the largest disk there is, in blocks of 64 MiB, which is what other programs
// make of such disks.
const promptScan = 8 * ondisk.MiB

// A lateScan validates what is left of a large BAT while the disk is read already. To read such a BAT may take a second,
// and QEMU writes all 512 MiB of one even if no block is there. Meanwhile each entry is validated when it is used, which
// finds all that is wrong with it by itself; that two blocks overlap is seen by the end, so nothing is written before.
type lateScan struct {
	scan    *batScan
	started bool          // before any other goroutine has the image
	warned  int           // how many warnings there were before
	stop    atomic.Bool   // nothing waits for it any more
	done    chan struct{} // closed when it has ended
	err     error         // why the BAT is not valid, or is not known to be; to be read when done is closed
}

var errScanStopped = errors.New("the image was closed before its BAT was checked")

// scanBAT validates the BAT, or leaves what it may to a late scan. Only what was not replayed and has no parent may be
// scanned late: a log goes into the file only if all of the image is valid, and sector bitmap blocks are found by the scan.
// A parent must not be scanned late either: what is wrong with files decides which of several is taken, and its children may
// be written.
func (l *layer) scanBAT(s *batScan) error {
	limit := int64(math.MaxInt64)
	if l.mayLate && !l.geo.HasParent && l.replay == nil {
		limit = promptScan
	}
	done, err := s.run(limit)
	if err == nil && !done {
		l.late = &lateScan{scan: s, done: make(chan struct{})}
		l.wary.Store(true)
	}
	return err
}

// startLateScan begins what was left to do when the image was loaded.
func (im *Image) startLateScan(log logrus.FieldLogger) {
	l := im.current()
	if l.late == nil {
		return
	}
	l.late.started = true
	l.late.warned = len(l.warningTexts())
	if log == nil {
		log = nowhere()
	}
	go l.late.run(l, im.Writable(), log)
}

// run validates what is left, and logs what it finds, since there may be no caller that waits for it.
func (s *lateScan) run(l *layer, writable bool, log logrus.FieldLogger) {
	defer close(s.done)
	defer fault.Then(func(err error) { s.fail(l, err, log) })
	for done := false; !done && s.err == nil; {
		if s.stop.Load() {
			s.err = errScanStopped
			return
		}
		done, s.err = s.scan.run(1 * ondisk.MiB)
	}
	s.scan = nil
	for _, w := range l.warningTexts()[s.warned:] {
		log.Infof("%s: %s", l.path, w)
	}
	if s.err != nil {
		s.fail(l, s.err, log)
		return
	}
	l.wary.Store(false)
	if err := l.mayGrow(); err != nil && writable {
		log.Errorf("%s: nothing is written: %v", l.path, err)
	}
}

// fail notes why the BAT is not valid, or not known to be.
func (s *lateScan) fail(l *layer, err error, log logrus.FieldLogger) {
	what := "its BAT cannot be read; the image is read-only until it is opened again"
	if errors.Is(err, ErrCorrupt) {
		what = "the image is damaged; it is read-only, and parts may be unreadable. Run vhdxfs check"
	}
	s.err = fmt.Errorf("%s: %w", l.path, err)
	log.WithError(s.err).Error(what)
}

// endLateScan stops a scan that is under way, before the file is closed.
func (l *layer) endLateScan() {
	if s := l.late; s != nil && s.started {
		s.stop.Store(true)
		<-s.done
	}
}

// wasValidated reports whether the whole BAT has been looked at, and nothing was wrong.
func (l *layer) wasValidated() bool {
	if l.late == nil {
		return true
	}
	select {
	case <-l.late.done:
		return l.late.err == nil
	default:
		return false
	}
}

// Validated waits until the BAT of the image is validated as a whole. With Options.LateScan that may be some time after
// Open; until then changes wait, and if it fails they do, too, for good, with the error that it returns. So do reads where
// an entry of the BAT is wrong by itself.
func (im *Image) Validated() error {
	return im.current().validated()
}

func (l *layer) validated() error {
	if l.late == nil {
		return nil
	}
	<-l.late.done
	return l.late.err
}
