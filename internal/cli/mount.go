package cli

import (
	"context"
	"errors"
	"fmt"
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

// A mountCommand is the command without a name: it mounts an image and serves it.
type mountCommand struct {
	args       []string // the whole command line
	foreground bool
	readOnly   bool
	options    []string
}

func (m *mountCommand) run(cmd *cobra.Command, args []string) error {
	o, err := parseOptions(m.options, aboutImage|aboutMount)
	if err != nil {
		return err
	}
	o.readOnly = o.readOnly || m.readOnly
	if o.remount {
		return mountError(errors.New("remount is not supported; unmount, then mount with the new options"))
	}
	ready := takeReadiness()
	switch {
	case ready != nil: // startBackground has made it what it has to be
	case !m.foreground && !o.foreground:
		return startBackground(m.args, !o.readOnly, cmd.OutOrStdout(), cmd.ErrOrStderr())
	case !o.readOnly:
		restart(m.args)
	}
	if o.mount.Source == "" {
		o.mount.Source = args[0] // as given: mount -a recognizes what is mounted by it
	}
	if o.mount.Image, err = absPath(args[0]); err != nil {
		return err
	}
	if o.mount.MountPoint, err = absPath(args[1]); err != nil {
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
	err = serve(cmd.Context(), o, log, ready)
	if errors.Is(err, fs.ErrNotExist) {
		if n := nearest(args[0], commandNames(cmd)); n != "" {
			err = fmt.Errorf("%w; do you mean the command %s?", err, n)
		}
	}
	return mountError(err)
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
	im, err := open(o, log)
	if err != nil {
		return err
	}
	defer func() {
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
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more is no reason to end, either

	statistics, err := newStatistician(o)
	if err != nil {
		return err
	}
	defer statistics.end()
	o.mount.Log = log
	server, err := mount.Mount(im, o.mount)
	if err != nil {
		return err
	}
	statistics.begin(server, im, log)
	if ready != nil {
		signal.Ignore(syscall.SIGHUP) // a terminal that closes is no longer ours
		if err := ready.report(o, log); err != nil {
			return errors.Join(err, server.Unmount(), wait(server))
		}
	}
	for {
		select {
		case <-server.Done():
			return nil
		case <-ctx.Done():
			ctx = context.WithoutCancel(ctx) // once is enough
		case s := <-signals:
			log.Infof("%v: unmounting %s", s, server.MountPoint())
		}
		if err := server.Unmount(); err != nil {
			log.WithError(err).Error("cannot unmount; the disk is served on")
		}
	}
}

// open opens the image as the options want it.
func open(o *options, log *logrus.Logger) (*vhdx.Image, error) {
	io := o.image
	io.Log = log
	io.Writable = !o.readOnly
	im, err := vhdx.Open(o.mount.Image, io)
	switch {
	case err == nil:
		return im, nil
	case errors.Is(err, vhdx.ErrCorrupt):
		return nil, fmt.Errorf("%w; vhdxfs check tells all that is wrong", err)
	case o.readOnly:
		return nil, err
	}
	if !o.roFallback {
		if unwritable(err) {
			err = fmt.Errorf("%w; where reading is enough, mount it with -o ro", err)
		}
		return nil, err
	}
	io.Writable = false
	im, roErr := vhdx.Open(o.mount.Image, io)
	if roErr != nil {
		return nil, err
	}
	log.WithError(err).Warnf("%s is mounted read-only", o.mount.Image)
	return im, nil
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
