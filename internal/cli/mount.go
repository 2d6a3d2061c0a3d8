package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// minProcs is how many system threads may run Go code at the least. A thread that waits for the disk in a
// read keeps its place for a while; on a machine with few processors reads would wait for each other.
const minProcs = 8

// A mountCommand mounts an image and serves it. It is the command without a name, and what mount(8) calls.
type mountCommand struct {
	args       []string // the whole command line
	foreground bool
	readOnly   bool
	allowOther bool
	options    []string

	// What only mount(8) asks for.
	helper    bool
	sloppy    bool   // unknown options are ignored
	fake      bool   // everything but the mount
	verbose   bool   // what is done is said
	namespace string // file that stands for the mount namespace to mount in
}

func (m *mountCommand) run(cmd *cobra.Command, args []string) error {
	about := mountoption.Image | mountoption.Mount
	if m.sloppy {
		about |= mountoption.Sloppy
	}
	o, err := mountoption.Parse(m.options, about)
	if err != nil {
		return optionError(err)
	}
	o.ReadOnly = o.ReadOnly || m.readOnly
	if m.allowOther {
		o.AllowOthers()
	}
	if err := o.Check(); err != nil {
		return optionError(err)
	}
	m.verbose = m.verbose || isVerbose(cmd)
	switch {
	case m.verbose:
		o.LogLevel = max(o.LogLevel, logrus.InfoLevel)
	case isQuiet(cmd):
		o.LogLevel = min(o.LogLevel, logrus.ErrorLevel)
	}
	if m.helper {
		os.Unsetenv("NOTIFY_SOCKET") // it is for the service that has called mount(8), if there is one
	}
	switch {
	case m.namespace != "":
		return mountError(enterNamespace(m.namespace, m.args))
	case m.helper && o.NoFail && isMissing(args[0]):
		return nil // as mount(8) has it for devices
	case o.Remount:
		return mountError(remount(args[0], args[1], m.options, m.fake))
	case m.fake:
		return mountError(pretend(&mountJob{Options: o}, args, cmd.ErrOrStderr()))
	}
	ready := takeReadiness()
	if err := checkDescriptors(); err != nil {
		return mountError(err)
	}
	if ready == nil && !m.foreground && !o.Foreground && !inContainer() {
		done, err := takeTurn(cmd.Context(), args[0])
		if err != nil {
			return mountError(err)
		}
		defer done()
		if alreadyMounted(o, args[0], args[1]) != nil { // as mount -a finds it, by another name of the image
			if m.verbose {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is already mounted on %s\n", printable(args[0]), printable(args[1]))
			}
			return nil
		}
		err = startBackground(m.args, args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		if err == nil && m.verbose {
			fmt.Fprintf(cmd.OutOrStdout(), "%s mounted on %s\n", printable(args[0]), printable(args[1]))
		}
		return err
	}
	j := &mountJob{Options: o, ownProcess: isOwnProcess(m.args), attach: os.Getenv(attachVariable) != ""}
	os.Unsetenv(attachVariable)
	if err := j.locate(args, m.helper); err != nil {
		return err
	}
	log, err := newLog(o, cmd.ErrOrStderr())
	if err != nil {
		return mountError(err)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
	if !o.ReadOnly {
		j.prepareForShortMemory(log)
	}
	if err := becomeUser(o); err != nil {
		return mountError(err)
	}
	// Before the image is opened: a log is not replayed for a mount that cannot be.
	o.Mount.Log = log
	if err := o.Mount.CheckMountPoint(); err != nil {
		return mountError(err)
	}
	if err := j.makeOverlayDir(); err != nil {
		return mountError(err)
	}
	k, err := startKeeper(j, log)
	if err != nil {
		return mountError(errors.Join(err, os.RemoveAll(j.overlayDir)))
	}
	defer k.End()
	err = serve(cmd.Context(), j, log, ready, k)
	return mountError(err)
}

// A mountJob is a mount that this process makes and serves: what its options ask for, and what is made for it.
type mountJob struct {
	*mountoption.Options
	overlayDir string    // of an overlay that is gone with the mount; "" until it is made, and for any other
	notify     *notifier // nil where systemd does not wait
	ownProcess bool      // the process is that of the command line, and can give up its rights
	attach     bool      // the loop devices on disk.raw go with the mount
}

// isMissing reports whether there is no file of that name.
func isMissing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// locate makes the arguments IMAGE and MOUNTPOINT paths that hold when the working directory changes.
func (j *mountJob) locate(args []string, helper bool) (err error) {
	if j.Mount.Image, err = absPath(args[0]); err != nil {
		return err
	}
	if j.Mount.MountPoint, err = absPath(args[1]); err != nil {
		return err
	}
	if j.Mount.Source != "" {
		return nil
	}
	// mount -a recognizes what is mounted by the very name that it has handed over. From others, a path is taken
	// that still leads to the image tomorrow.
	j.Mount.Source = args[0]
	if _, err := os.Lstat(j.Mount.Image); err == nil && !helper {
		j.Mount.Source = j.Mount.Image
	}
	return nil
}

// pretend does everything but mount, and changes nothing: mount -f.
func pretend(j *mountJob, args []string, stderr io.Writer) error {
	if err := j.locate(args, true); err != nil {
		return err
	}
	log, err := newLog(&mountoption.Options{LogLevel: j.LogLevel}, stderr)
	if err != nil {
		return err
	}
	j.Mount.Log, j.Mount.KeepStale = log, true
	if err := j.Mount.CheckMountPoint(); err != nil {
		return err
	}
	j.ReadOnly, j.Mount.Overlay = true, "" // or a log would be replayed into the image, and an overlay made
	im, err := open(j, log)
	if err != nil {
		return err
	}
	return errors.Join(j.findPartition(im), im.Close())
}
