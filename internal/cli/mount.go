package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	mount "vhdxfs/fs"
	"vhdxfs/vhdx"
)

// minProcs is how many system threads may run Go code at the least. A thread that waits for the disk in a
// read keeps its place for a while; on a machine with few processors reads would wait for each other.
const minProcs = 8

// A mountCommand mounts an image and serves it. It is the command without a name, and what mount(8) calls.
type mountCommand struct {
	args       []string // the whole command line
	foreground bool
	readOnly   bool
	options    []string

	// What only mount(8) asks for.
	helper    bool
	sloppy    bool   // unknown options are ignored
	fake      bool   // everything but the mount
	verbose   bool   // what is done is said
	namespace string // file that stands for the mount namespace to mount in
}

func (m *mountCommand) run(cmd *cobra.Command, args []string) error {
	about := aboutImage | aboutMount
	if m.sloppy {
		about |= sloppy
	}
	o, err := parseOptions(m.options, about)
	if err != nil {
		return err
	}
	o.readOnly = o.readOnly || m.readOnly
	if err := o.check(); err != nil {
		return err
	}
	if m.verbose {
		o.logLevel = max(o.logLevel, logrus.InfoLevel)
	}
	if m.helper {
		os.Unsetenv("NOTIFY_SOCKET") // it is for the service that has called mount(8), if there is one
	}
	switch {
	case m.namespace != "":
		return mountError(enterNamespace(m.namespace, m.args))
	case m.helper && o.noFail && isMissing(args[0]):
		return nil // as mount(8) has it for devices
	case o.remount:
		return mountError(remount(args[0], args[1], m.options))
	case m.fake:
		return mountError(pretend(o, args, cmd.ErrOrStderr()))
	}
	ready := takeReadiness()
	switch {
	case ready != nil: // startBackground has made it what it has to be
	case !m.foreground && !o.foreground && !inContainer():
		err := startBackground(m.args, !o.readOnly, cmd.OutOrStdout(), cmd.ErrOrStderr())
		if err == nil && m.verbose {
			fmt.Fprintf(cmd.OutOrStdout(), "%s mounted on %s\n", args[0], args[1])
		}
		return err
	case !o.readOnly:
		restart(m.args)
	}
	if err := o.locate(args, m.helper); err != nil {
		return err
	}
	log, err := newLog(o, cmd.ErrOrStderr())
	if err != nil {
		return mountError(err)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
	if !o.readOnly {
		o.prepareForShortMemory(log)
	}
	if err := o.becomeUser(); err != nil {
		return mountError(err)
	}
	err = serve(cmd.Context(), o, log, ready)
	if errors.Is(err, fs.ErrNotExist) {
		if n := nearest(args[0], commandNames(cmd)); n != "" {
			err = fmt.Errorf("%w; do you mean the command %s?", err, n)
		}
	}
	return mountError(err)
}

// isMissing reports whether there is no file of that name.
func isMissing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// locate makes the arguments IMAGE and MOUNTPOINT paths that hold when the working directory changes.
func (o *options) locate(args []string, helper bool) (err error) {
	if o.mount.Image, err = absPath(args[0]); err != nil {
		return err
	}
	if o.mount.MountPoint, err = absPath(args[1]); err != nil {
		return err
	}
	if o.mount.Source != "" {
		return nil
	}
	// mount -a recognizes what is mounted by the very name that it has handed over. From others, a path is taken
	// that still leads to the image tomorrow.
	o.mount.Source = args[0]
	if _, err := os.Lstat(o.mount.Image); err == nil && !helper {
		o.mount.Source = o.mount.Image
	}
	return nil
}

// pretend does everything but mount, and changes nothing: mount -f.
func pretend(o *options, args []string, stderr io.Writer) error {
	if err := o.locate(args, true); err != nil {
		return err
	}
	log, err := newLog(&options{logLevel: o.logLevel}, stderr)
	if err != nil {
		return err
	}
	o.mount.Log, o.mount.KeepStale = log, true
	if err := o.mount.CheckMountPoint(); err != nil {
		return err
	}
	o.readOnly = true // or a log would be replayed into the image
	im, err := open(o, log)
	if err != nil {
		return err
	}
	return im.Close()
}

func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// serve mounts an image and returns when it is unmounted and no longer used. With ready, it leaves the
// terminal as soon as it is mounted, and reports that.
func serve(ctx context.Context, o *options, log *logrus.Logger, ready *readiness) (err error) {
	o.mount.Log = log
	// Before the image is opened: a log is not replayed for a mount that cannot be.
	if err := o.mount.CheckMountPoint(); err != nil {
		return err
	}
	im, err := open(o, log)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	defer func() {
		defer signal.Stop(signals) // only now: until the image is closed, no signal may end the process
		if cerr := im.Close(); cerr != nil {
			cerr = fmt.Errorf("close %s: %w; what was synced is safe, and is restored when it is mounted again", o.mount.Image, cerr)
			if ready != nil {
				log.Error(cerr) // nobody else hears of it
			}
			err = errors.Join(err, cerr)
		}
	}()
	for _, w := range im.Info().Warnings {
		log.Infof("%s: %s", o.mount.Image, w)
	}

	// From here on a signal must not end the process: it would leave a dead mount behind.
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as by nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more is no reason to end, either

	statistics, err := newStatistician(o)
	if err != nil {
		return err
	}
	defer statistics.end()
	server, err := mount.Mount(im, o.mount)
	if err != nil {
		return err
	}
	statistics.begin(server, im, log)
	noteForUmount(server.MountPoint(), log)
	defer forgetForUmount(server.MountPoint(), log)
	if err := o.announce(server, log, ready); err != nil {
		return errors.Join(err, server.Unmount(), wait(server))
	}
	defer removePIDFile(o, log)
	warnUnseen(server.MountPoint(), log)
	stopWatchdog := notifyReady(o, server, im.Writable(), ready != nil, log)
	defer stopWatchdog()
	return serveUntilEnd(ctx, o, server, signals, log)
}

// announce tells who waits for the mount that it is there, by a file and over the pipe.
func (o *options) announce(server *mount.Server, log *logrus.Logger, ready *readiness) error {
	if err := writePIDFile(o); err != nil {
		return err
	}
	if ready == nil {
		return nil
	}
	signal.Ignore(syscall.SIGHUP) // a terminal that closes is no longer ours
	err := ready.report(o, log)
	if err != nil {
		removePIDFile(o, log)
	}
	return err
}

// serveUntilEnd returns when the disk is unmounted and no longer used. The first signal unmounts; the second ends
// the service for those who still use the disk.
func serveUntilEnd(ctx context.Context, o *options, server *mount.Server, signals <-chan os.Signal, log *logrus.Logger) error {
	for asked := false; ; {
		var s os.Signal
		select {
		case <-server.Done():
			notifyState(log, notifyStopping)
			err := server.DetachDead()
			if err != nil {
				log.Error(err)
			}
			return err
		case <-ctx.Done():
			ctx = context.WithoutCancel(ctx) // once is enough
		case s = <-signals:
			log.Infof("%v: unmounting %s", s, server.MountPoint())
		}
		notifyState(log, notifyStopping, "STATUS=Unmounting "+server.MountPoint())
		err := server.Unmount()
		if err != nil {
			log.WithError(err).Error("cannot unmount; the disk is served on")
		}
		if asked && s != nil && s != syscall.SIGHUP {
			return stop(o, server, log)
		}
		asked = asked || s == nil || s != syscall.SIGHUP
	}
}

// stop ends the service while the disk is in use. The image is clean when it returns.
func stop(o *options, server *mount.Server, log *logrus.Logger) error {
	select {
	case <-server.Done():
		return server.DetachDead()
	default:
	}
	log.Warnf("asked to end a second time: %s is written and made clean, and whoever still uses the disk gets errors", o.mount.Image)
	if err := server.Stop(); err != nil {
		return fmt.Errorf("write %s: %w; what was synced is safe, and is restored when it is mounted again", o.mount.Image, err)
	}
	log.Warnf("%s is clean", o.mount.Image)
	return nil
}

// open opens the image as the options want it.
func open(o *options, log *logrus.Logger) (*vhdx.Image, error) {
	io := o.image
	io.Log = log
	io.Writable = !o.readOnly
	if err := o.checkReplay(io); err != nil {
		return nil, err
	}
	if io.AnyParent {
		log.Warnf("whether the parents of %s are those of its disk is not checked", o.mount.Image)
	}
	im, err := vhdx.Open(o.mount.Image, io)
	var broken *vhdx.FormatError
	switch {
	case err == nil:
		return im, nil
	case errors.Is(err, unix.EISDIR):
		return nil, fmt.Errorf("%w; name the VHDX file in it", err)
	case errors.As(err, &broken) && broken.Structure == "file type identifier":
		return nil, fmt.Errorf("%w; qemu-img info may tell what it is", err)
	case errors.Is(err, vhdx.ErrCorrupt):
		return nil, fmt.Errorf("%w; vhdxfs check tells all that is wrong", err)
	case o.readOnly || !unwritable(err) && !o.roFallback:
		return nil, mayNotRead(err)
	}
	io.Writable = false
	im, roErr := vhdx.Open(o.mount.Image, io)
	switch {
	case roErr != nil:
		return nil, mayNotRead(err)
	case !o.roFallback:
		return nil, errors.Join(fmt.Errorf("%w; where reading is enough, mount it with -o ro", err), im.Close())
	}
	log.WithError(err).Warnf("%s is mounted read-only", o.mount.Image)
	return im, nil
}

// mayNotRead says what to do where it is the permission that is missing.
func mayNotRead(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; mount as root, or as a user who may open it", err)
	}
	return err
}

// checkReplay returns an error where an image needs what replay=no forbids.
func (o *options) checkReplay(io vhdx.Options) error {
	if o.replay != replayNo {
		return nil
	}
	io.Writable = false
	im, err := vhdx.Open(o.mount.Image, io)
	if err != nil {
		return nil // to be told when it is opened in earnest
	}
	state := im.Info().Log.State
	if err := im.Close(); err != nil || state == vhdx.LogClean {
		return err
	}
	return fmt.Errorf("%s was not closed cleanly: its log has to be replayed, which replay=no forbids; "+
		"replay=auto does it, in memory alone with ro", o.mount.Image)
}

// unwritable reports whether an image that could not be opened for writing may be one to read.
func unwritable(err error) bool {
	for _, e := range []error{vhdx.ErrLocked, vhdx.ErrReadOnly, fs.ErrPermission, unix.EROFS, unix.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// wait is Wait as part of an expression.
func wait(s *mount.Server) error {
	s.Wait()
	return nil
}
