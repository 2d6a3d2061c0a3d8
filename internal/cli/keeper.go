package cli

import (
	"path/filepath"
	"sync"

	"github.com/sirupsen/logrus"

	mount "vhdxfs/fs"
	"vhdxfs/internal/mounts"
)

// A keeper does for a mount what the process that serves it may not do itself once it is confined: all that takes
// privilege, or a path that has nothing to do with the image.
type keeper interface {
	mount.Mounter

	// Announce makes the mount known: by the pidfile and in the table of mount(8). With background, a keeper that is
	// a process leaves the session of the caller.
	Announce(background bool) error
	// End takes away what is not needed any more: the pidfile, the entry in the table, the mount point of attach.
	End()
	// Gone is closed when there is no keeper any more, and nothing can be unmounted.
	Gone() <-chan struct{}
}

// startKeeper starts the keeper of a mount.
func startKeeper(o *options, log *logrus.Logger) (keeper, error) { return startMonitor(o, log) }

// A localKeeper is a keeper that works in this process.
type localKeeper struct {
	mount.Mounter
	o      *options
	log    logrus.FieldLogger
	pid    int         // of the process that serves the mount
	folder *keptRunDir // of the mount point, if attach has made it

	dir       string // the mount point, as the mount table has it; "" until something is mounted
	announced bool
	end       sync.Once
}

func newLocalKeeper(o *options, pid int, log logrus.FieldLogger) *localKeeper {
	mo := o.mount
	mo.Log = log
	if o.attach {
		mo.BeforeUnmount = func() { releaseDevices(filepath.Join(mo.MountPoint, mounts.FileName), log) }
	}
	return &localKeeper{Mounter: mount.NewMounter(mo), o: o, log: log, pid: pid, folder: keepRunDir(o.mount.MountPoint)}
}

func (k *localKeeper) Mount(readOnly bool) (int, error) {
	fd, err := k.Mounter.Mount(readOnly || k.o.readOnly)
	if err != nil {
		return -1, err
	}
	if k.dir, err = mounts.Resolve(k.o.mount.MountPoint); err != nil {
		k.dir = k.o.mount.MountPoint
	}
	return fd, nil
}

func (k *localKeeper) Announce(bool) error {
	noteForUmount(k.dir, k.log)
	err := writePIDFile(k.o.pidFile, k.pid)
	k.announced = err == nil
	return err
}

func (k *localKeeper) End() { k.end.Do(k.takeAway) }

func (k *localKeeper) takeAway() {
	if k.announced {
		removePIDFile(k.o.pidFile, k.log)
	}
	if k.dir != "" {
		forgetForUmount(k.dir, k.log)
	}
	if k.o.metrics != "" {
		_ = removeStaleSocket(k.o.metrics)
	}
	k.folder.end()
}

func (k *localKeeper) Gone() <-chan struct{} { return nil }
