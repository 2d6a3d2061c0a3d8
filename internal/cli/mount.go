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
	options    []string
}

func (m *mountCommand) run(cmd *cobra.Command, args []string) error {
	o, err := parseOptions(m.options, aboutImage|aboutMount)
	if err != nil {
		return err
	}
	switch {
	case o.remount:
		return mountError(errors.New("remount is not supported; unmount, then mount with the new options"))
	case o.rw:
		return mountError(errors.New("writing is not supported yet; mount with -o ro"))
	}
	ready := takeReadiness()
	if ready == nil && !m.foreground && !o.foreground {
		return startBackground(m.args, cmd.OutOrStdout(), cmd.ErrOrStderr())
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
	im, err := vhdx.Open(o.mount.Image, o.image)
	if err != nil {
		if errors.Is(err, vhdx.ErrCorrupt) {
			err = fmt.Errorf("%w; vhdxfs check tells all that is wrong", err)
		}
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	for _, w := range im.Info().Warnings {
		log.Infof("%s: %s", o.mount.Image, w)
	}

	// From here on a signal must not end the process: it would leave a dead mount behind.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more is no reason to end, either

	o.mount.Log = log
	server, err := mount.Mount(im, o.mount)
	if err != nil {
		return err
	}
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

// wait is Wait as part of an expression.
func wait(s *mount.Server) error {
	s.Wait()
	return nil
}
