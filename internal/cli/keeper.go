package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"

	"github.com/sirupsen/logrus"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// startKeeper starts the keeper of a mount.
func startKeeper(j *mountJob, log *logrus.Logger) (monitor.Keeper, error) {
	if j.Sandbox == mountoption.SandboxOff {
		k := newLocalKeeper(j, os.Getpid(), log)
		k.directory = keepRunDir(j.Mount.MountPoint)
		return k, nil
	}
	program, err := selfPath()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(newMonitorConfig(j))
	if err != nil {
		return nil, err
	}
	c, err := monitor.Start(program, config, log)
	if err != nil {
		return nil, err
	}
	return &remoteKeeper{c, keepRunDir(j.Mount.MountPoint)}, nil
}

// A remoteKeeper is a keeper that is another process.
type remoteKeeper struct {
	*monitor.Client
	directory *os.File // the lock of the mount point, if attach has made it
}

// End has the monitor take everything away, and returns when it has ended.
func (k *remoteKeeper) End() {
	if k.directory != nil {
		k.directory.Close() // so that the monitor can remove the mount point
	}
	k.Client.End()
}

// A localKeeper is a keeper that works in this process.
type localKeeper struct {
	mount.Mounter
	j         *mountJob
	log       logrus.FieldLogger
	pid       int      // of the process that serves the mount
	directory *os.File // the lock of the mount point, if attach has made it, and this is the process that serves

	dir     string   // the mount point, as the mount table has it; "" until something is mounted
	pidFile *pidFile // nil where none was written
	end     sync.Once
}

func newLocalKeeper(j *mountJob, pid int, log logrus.FieldLogger) *localKeeper {
	mo := j.Mount
	mo.Log = log
	if j.attach {
		mo.BeforeUnmount = func() { releaseDevices(filepath.Join(mo.MountPoint, mounts.FileName), log) }
	}
	return &localKeeper{Mounter: mount.NewMounter(mo), j: j, log: log, pid: pid}
}

func (k *localKeeper) Mount(readOnly bool) (int, error) {
	k.removeOverlayDir()
	dir, err := mounts.Resolve(k.j.Mount.MountPoint) // before there is a mount, which answers nothing yet
	if err != nil {
		dir = k.j.Mount.MountPoint
	}
	fd, err := k.Mounter.Mount(readOnly || k.j.ReadOnly)
	if err == nil {
		k.dir = dir
	}
	return fd, err
}

// removeOverlayDir removes the directory of an overlay that is gone with the mount, as soon as that is open, or was not
// opened.
func (k *localKeeper) removeOverlayDir() {
	if k.j.overlayDir == "" {
		return
	}
	if err := os.RemoveAll(k.j.overlayDir); err != nil {
		k.log.WithError(err).Warn("cannot remove the directory of the overlay")
	}
}

func (k *localKeeper) Announce(bool) error {
	noteForUmount(k.dir, k.log)
	f, err := writePIDFile(k.j.PIDFile, k.pid)
	if err == nil {
		k.pidFile = f
	}
	return err
}

func (k *localKeeper) End() {
	k.end.Do(func() {
		k.takeAway()
		if k.j.Metrics != "" {
			_ = removeStaleSocket(k.j.Metrics)
		}
		if k.directory != nil {
			k.directory.Close()
		}
		if inRunDir(k.j.Mount.MountPoint) {
			sweepRunDir(filepath.Dir(k.j.Mount.MountPoint))
		}
	})
}

// Killed is End for a process that serves and was killed. What the next mount takes over stays: the dead mount, the
// mount point, the socket of the metrics.
func (k *localKeeper) Killed() { k.end.Do(k.takeAway) }

func (k *localKeeper) takeAway() {
	k.removeOverlayDir()
	k.pidFile.remove(k.log)
	if k.dir != "" {
		forgetForUmount(k.dir, k.log)
	}
}

func (k *localKeeper) LockHolders(f imagefile.FileID) (names string, pids []int) {
	return imagefile.FindLockHolders(f)
}

func (k *localKeeper) Writers(f imagefile.FileID) (names string, pids []int) {
	return active.Writers(f)
}

func (k *localKeeper) MountServedBy(pids []int) *active.Mount { return active.ServedBy(pids) }
func (k *localKeeper) DialSyslog() (int, error)               { return dialSyslog() }

func (k *localKeeper) Socket() int { return -1 }

func (k *localKeeper) Gone() <-chan struct{} { return nil }
