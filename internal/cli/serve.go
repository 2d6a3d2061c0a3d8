package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// serve mounts an image and returns when it is unmounted and no longer used. With ready, it leaves the
// terminal as soon as it is mounted, and reports that.
func serve(ctx context.Context, j *mountJob, log *logrus.Logger, ready *readiness, k monitor.Keeper) (err error) {
	j.Mount.Mounter = k
	statistics, err := newStatsReporter(j.Metrics)
	if err != nil {
		return err
	}
	defer statistics.end()
	if j.notify, err = newNotifier(); err != nil {
		log.WithError(err).Debug("systemd is not told")
	}
	if ready != nil {
		if err := ready.prepare(j, k); err != nil {
			return err
		}
	}
	if err := j.confine(k); err != nil {
		return err
	}
	im, err := open(j, log)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	defer func() {
		defer signal.Stop(signals) // only now: until the image is closed, no signal may end the process
		if cerr := im.Close(); cerr != nil {
			if !errors.Is(cerr, vhdx.ErrTakenOver) { // which says all that there is to say
				cerr = fmt.Errorf("close %s: %w; synced data is safe and is restored by the next mount", im.Path(), cerr)
			}
			if ready != nil {
				log.Error(cerr) // the log is the only place that shows it
			}
			err = errors.Join(err, cerr)
		}
		// It was logged when it was found, long after the mount was told to be there.
		if damage := im.Validated(); errors.Is(damage, vhdx.ErrCorrupt) {
			err = errors.Join(err, damage)
		}
	}()
	if err := j.findPartition(im); err != nil {
		return err
	}
	for _, w := range im.Warnings() {
		log.Infof("%s: %s", j.Mount.Image, w)
	}

	// From here on a signal must not end the process: it would leave a dead mount behind.
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as by nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE) // a log that has lost its reader is no reason to end, either

	defer statistics.end()
	j.Mount.File = func() (*vhdx.ImageFile, error) { return im.File(0) }
	if j.Mount.Overlay != "" { // the image is the parent of what is served, also when a snapshot has made that a parent itself
		base, err := im.File(1)
		j.Mount.File = func() (*vhdx.ImageFile, error) { return base, err }
	}
	j.Mount.CheckMerge = func(r mounts.MergeRequest) error { return checkMerge(im.Info(), r, j.Open) }
	j.confineOpened(log)
	server, err := mount.Mount(im, j.Mount)
	if err != nil {
		return err
	}
	im.WhenTakenOver(server.DropCache)
	statistics.begin(server, im, log)
	if err := j.announce(k, log, ready); err != nil {
		return errors.Join(err, server.Unmount(), wait(server))
	}
	warnUnseen(server.MountPoint(), log)
	stopWatchdog := notifyReady(j, server, im.Writable(), ready != nil, log)
	defer stopWatchdog()
	if served != nil {
		served(j, log)
	}
	return serveUntilEnd(ctx, j, server, k, signals, log)
}

// served, where it is not nil, is called when a mount is served. Builds for tests have one.
var served func(j *mountJob, log *logrus.Logger)

// announce tells the programs that wait for the mount that it is there, by a file and over the pipe.
func (j *mountJob) announce(k monitor.Keeper, log *logrus.Logger, ready *readiness) error {
	if err := k.Announce(ready != nil); err != nil || ready == nil {
		return err
	}
	signal.Ignore(syscall.SIGHUP) // a terminal that closes is no longer ours
	return ready.report(j, log)
}

// serveUntilEnd returns when the disk is unmounted and no longer used. The first signal unmounts; the second ends
// the service for programs that still use the disk.
func serveUntilEnd(ctx context.Context, j *mountJob, server *mount.Server, k monitor.Keeper, signals <-chan os.Signal, log *logrus.Logger) error {
	for asked := false; ; {
		var s os.Signal
		select {
		case <-server.Done():
			j.notify.tell(log, notifyStopping)
			err := server.DetachDead()
			if err != nil {
				log.Error(err)
			}
			return err
		case <-k.Gone():
			return abandon(server, log)
		case <-ctx.Done():
			ctx = context.WithoutCancel(ctx) // once is enough
		case s = <-signals:
			log.Infof("%v: unmounting %s", s, server.MountPoint())
		}
		j.notify.tell(log, notifyStopping, notifyStatus("Unmounting %s", server.MountPoint()))
		err := server.Unmount()
		if err != nil {
			log.WithError(err).Error("cannot unmount; the mount continues")
		}
		if asked && s != nil && s != syscall.SIGHUP {
			return stop(server, log)
		}
		asked = asked || s == nil || s != syscall.SIGHUP
	}
}

// stop ends the service while the disk is in use. The image is clean when it returns.
func stop(server *mount.Server, log *logrus.Logger) error {
	select {
	case <-server.Done():
		return server.DetachDead()
	default:
	}
	log.Warnf("second signal: closing %s cleanly; programs still using the disk get errors", server.Image())
	if err := server.Stop(); err != nil {
		return fmt.Errorf("write %s: %w; synced data is safe and is restored by the next mount", server.Image(), err)
	}
	log.Warnf("%s is clean", server.Image())
	return nil
}

// abandon ends the service of a mount that cannot be taken away any more, and leaves it dead. The image is clean when
// it returns.
func abandon(server *mount.Server, log *logrus.Logger) error {
	log.Error("the monitor process has ended, so the disk cannot be unmounted; the service ends")
	if err := server.Stop(); err != nil {
		return fmt.Errorf("write %s: %w; synced data is safe and is restored by the next mount", server.Image(), err)
	}
	return fmt.Errorf("the monitor process has ended; %s is clean; remove the dead mount with: umount %s", server.Image(), terminal.Shell(server.MountPoint()))
}

// wait is Wait as part of an expression.
func wait(s *mount.Server) error {
	s.Wait()
	return nil
}
