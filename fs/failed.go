package fs

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// A failedMount makes a mount read-only when the disk refuses all further changes after a failed sync, as
// errors=remount-ro wants it. The kernel does so only while no program has disk.raw open for writing; until then each
// refused change asks again.
type failedMount struct {
	log     logrus.FieldLogger
	remount func() error

	busy atomic.Bool // a goroutine is asking, or need not ask again
}

// The close of the last writer arrives a moment before the kernel counts it.
const (
	remountTries = 3
	remountPause = 100 * time.Millisecond
)

// refused is called for a change that was refused. It does not wait: the kernel may, for the answer to this change.
func (m *failedMount) refused() {
	if m == nil || !m.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer fault.Reported(m.log)
		var err error
		for range remountTries {
			if err = m.remount(); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(remountPause)
		}
		switch {
		case err == nil:
			m.log.Warn("the mount is now read-only after a failed sync; unmount and mount it again")
		case errors.Is(err, unix.EBUSY):
			m.busy.Store(false)
		default: // not root, say; asking again would not help
			m.log.WithError(err).Warn("cannot make the mount read-only; changes fail")
		}
	}()
}
