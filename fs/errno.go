package fs

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// errno picks the number that answers a request which failed at byte off of the disk, and logs what the
// number cannot say.
func (f *fileSystem) errno(op string, off int64, err error) fuse.Status {
	var e syscall.Errno
	level := logrus.ErrorLevel
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, vhdx.ErrReadOnly):
		e = syscall.EROFS
	case errors.Is(err, vhdx.ErrTakenOver): // which has been logged
		e, level = syscall.EIO, logrus.DebugLevel
	case errors.Is(err, vhdx.ErrFailed): // comes before what it wraps; the failure itself has been logged
		e, level = syscall.EIO, logrus.DebugLevel
		if f.failed != nil && op != "fsync" { // what was written before is lost, which only EIO tells
			e = syscall.EROFS
		}
		f.failed.refused()
	case errors.Is(err, vhdx.ErrBeyondEnd): // the caller's error, as is the next
		e, level = syscall.EFBIG, logrus.DebugLevel
	case errors.Is(err, vhdx.ErrSize):
		e = syscall.EINVAL
	case errors.Is(err, vhdx.ErrReshaping):
		e = syscall.EBUSY
	case errors.Is(err, vhdx.ErrNoDiscard):
		e, level = syscall.EOPNOTSUPP, logrus.DebugLevel
	case errors.As(err, &e) && e != 0: // from the image file, such as ENOSPC or ESTALE
	default:
		e = syscall.EIO
	}
	f.counters.errors.Inc()
	f.failures.log(level, op, off, e, err)
	return fuse.Status(e)
}

// failureInterval is how often the same failure is logged at most. A disk without space can fail thousands of
// requests in a second.
const failureInterval = time.Second

// A failureLog logs failed requests, and counts those of a kind that follow too closely.
type failureLog struct {
	to logrus.FieldLogger

	mu    sync.Mutex // guards kinds
	kinds map[failure]*failureCount
}

// A failure is what makes two failed requests alike. There are few, so none is forgotten.
type failure struct {
	op    string
	errno syscall.Errno
}

type failureCount struct {
	logged  time.Time
	skipped int // since then
}

func newFailureLog(to logrus.FieldLogger) *failureLog {
	return &failureLog{to: to, kinds: make(map[failure]*failureCount)}
}

func (l *failureLog) log(level logrus.Level, op string, off int64, e syscall.Errno, err error) {
	skipped, ok := l.due(failure{op, e}, time.Now())
	if !ok {
		return
	}
	entry := l.to.WithError(err).WithFields(logrus.Fields{"op": op, "offset": off, "errno": e})
	if skipped > 0 {
		entry = entry.WithField("unlogged_before", skipped)
	}
	entry.Log(level, "request failed")
}

// due reports whether a failure is to be logged now, and how many like it were not.
func (l *failureLog) due(kind failure, now time.Time) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.kinds[kind]
	if c == nil {
		c = &failureCount{}
		l.kinds[kind] = c
	} else if now.Sub(c.logged) < failureInterval {
		c.skipped++
		return 0, false
	}
	skipped, c.skipped, c.logged = c.skipped, 0, now
	return skipped, true
}
