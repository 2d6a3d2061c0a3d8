package fs

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// After a failed sync, each change that is refused asks for a read-only mount, a few times, until it is one, or cannot be.
func TestReadOnlyAfterAFailure(t *testing.T) {
	for name, c := range map[string]struct {
		remount func(n int) error // the nth time
		want    []int             // how often it was asked for after each change
		log     string
	}{
		"at once":       {func(int) error { return nil }, []int{1, 1, 1}, "the mount is now read-only"},
		"a moment late": {func(n int) error { return busyUntil(n, 3) }, []int{3, 3, 3}, "the mount is now read-only"},
		"in use":        {func(n int) error { return busyUntil(n, 5) }, []int{3, 5, 5}, "the mount is now read-only"},
		"not root":      {func(int) error { return unix.EPERM }, []int{1, 1, 1}, "cannot make the mount read-only; changes fail"},
		"a panic":       {func(int) error { panic("odd") }, []int{1, 1, 1}, "odd"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var text strings.Builder
				log := logrus.New()
				log.SetOutput(&text)
				var asked atomic.Int64
				f := newTestFileSystem(t, newWritable(map[string]error{"write": vhdx.ErrFailed, "sync": vhdx.ErrFailed}), Options{})
				f.failed = &failedMount{log: log, remount: func() error { return c.remount(int(asked.Add(1))) }}
				for i, want := range c.want {
					if _, s := f.Write(nil, &fuse.WriteIn{InHeader: onDisk}, []byte("a")); s != fuse.EROFS {
						t.Errorf("write %d: %v", i, s)
					}
					time.Sleep(time.Minute)
					if got := int(asked.Load()); got != want {
						t.Errorf("after write %d it was asked for %d times; want %d", i, got, want)
					}
				}
				if s := f.Fsync(nil, &fuse.FsyncIn{InHeader: onDisk}); s != fuse.EIO {
					t.Errorf("fsync: %v", s)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := strings.Count(text.String(), c.log); n != 1 {
					t.Errorf("%q is logged %d times: %q", c.log, n, &text)
				}
			})
		})
	}
}

func busyUntil(n, last int) error {
	if n < last {
		return unix.EBUSY
	}
	return nil
}

// What another host has taken over is no failure of this one, and no change makes the mount read-only.
func TestTakenOverIsNoFailure(t *testing.T) {
	f := newTestFileSystem(t, newWritable(map[string]error{"write": vhdx.ErrTakenOver}), Options{})
	f.failed = &failedMount{log: quiet(), remount: func() error { t.Error("it is made read-only"); return nil }}
	if _, s := f.Write(nil, &fuse.WriteIn{InHeader: onDisk}, []byte("a")); s != fuse.EIO {
		t.Errorf("write: %v", s)
	}
	if s := f.errno("write", 0, errors.Join(vhdx.ErrTakenOver, unix.ENOSPC)); s != fuse.EIO {
		t.Errorf("with another error: %v", s)
	}
}
