package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// attachVariable is the environment variable by which the process that serves the mount learns that it is for attach: the
// loop device is then a part of it, and goes with it.
const attachVariable = "_VHDXFS_ATTACH"

// An attachCommand mounts an image and attaches its disk.raw to a loop device, or leaves nothing behind.
type attachCommand struct {
	options  []string
	readOnly bool
	json     bool

	allowOther bool
}

func newAttach() *cobra.Command {
	var a attachCommand
	cmd := &cobra.Command{
		Use:   "attach [flags] IMAGE [MOUNTPOINT]",
		Short: "Mount an image and attach it to a loop device",
		Long: `Mount the VHDX file IMAGE, attach its disk.raw to a loop device with the sector size of the disk, and make its
partitions available. The command prints the devices, one in a line: first the whole disk, then each partition. If a step
fails, everything is undone.

Without MOUNTPOINT, the mount point is a new directory in ` + rootRunDir + `, named like the image. vhdxfs detach removes
it. If a killed program left a dead mount there, attach removes that first, with its loop device, unless the device is
in use or noclean_stale is given.

If the server of the mount is told to end (SIGTERM), the loop device is detached as soon as it is unused.

The loop device bypasses the page cache of disk.raw (losetup --direct-io=on). This is faster and saves memory. With
-o kernel=on it cannot, and is slower where the image is not in memory.`,
		Example: `  vhdxfs attach data.vhdx
  mount /dev/loop0p1 /mnt/data
  umount /mnt/data
  vhdxfs detach data.vhdx`,
		Args:              imageAndMountPoint,
		ValidArgsFunction: completeMount,
		RunE:              a.run,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVarP(&a.readOnly, "read-only", "r", false, "same as -o ro: image and device are read-only")
	cmd.Flags().BoolVar(&a.allowOther, "allow-other", false, "same as -o allow_other")
	cmd.Flags().StringArrayVarP(&a.options, "options", "o", nil, "mount options, a `LIST` separated by commas; see vhdxfs help options")
	addJSON(cmd, &a.json)
	completeOptions(cmd, mountoption.Mount|mountoption.Image)
	return cmd
}

// imageAndMountPoint wants one argument or two.
func imageAndMountPoint(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		return exactArgs("IMAGE", "MOUNTPOINT")(cmd, args)
	}
	return exactArgs("IMAGE")(cmd, args)
}

func (a *attachCommand) run(cmd *cobra.Command, args []string) error {
	o, err := a.parse()
	if err != nil {
		return err
	}
	// A signal must not end this process with half of the work done.
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	err = a.attach(ctx, o, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
	if ctx.Err() != nil {
		return interruptedAttach(err)
	}
	return mountError(err)
}

// interruptedAttach says what is left of an interrupted command that undoes what it did.
func interruptedAttach(err error) error {
	left := "nothing is left attached or mounted"
	if undo, ok := errors.AsType[*undoError](err); ok {
		left = undo.Error()
	}
	return interrupted(errInterrupted, left)
}

// parse returns the options, if this process can attach an image with them.
func (a *attachCommand) parse() (*mountoption.Options, error) {
	o, err := mountoption.Parse(a.options, mountoption.Image|mountoption.Mount)
	if err == nil {
		err = o.Check()
	}
	if err != nil {
		return nil, optionError(err)
	}
	if o.Remount || o.Foreground {
		return nil, usageError("options remount and foreground do not apply to attach")
	}
	o.ReadOnly = o.ReadOnly || a.readOnly
	if err := checkDescriptors(); err != nil {
		return nil, mountError(err)
	}
	return o, loop.CanAttach()
}

// print writes what was attached.
func (a *attachCommand) print(out io.Writer, m *active.Mount) error {
	if a.json {
		return writeJSON(out, m)
	}
	return printDevices(out, m.Devices)
}

func (a *attachCommand) attach(ctx context.Context, o *mountoption.Options, args []string, stdout, stderr io.Writer) error {
	done, err := takeTurn(ctx, args[0])
	if err != nil {
		return err
	}
	defer done()
	m, undo, err := a.bring(ctx, o, args, stdout, stderr)
	if err != nil {
		return err
	}
	err = a.print(stdout, m) // a caller that does not learn of the device cannot use it
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		err = errors.Join(err, undo.run())
	}
	return err
}

// bring mounts and attaches the image, or finds it attached. It returns what is there, and how to undo what it did. With an
// error it has undone it.
func (a *attachCommand) bring(ctx context.Context, o *mountoption.Options, args []string, stdout, stderr io.Writer) (m *active.Mount, undo undoList, err error) {
	image, err := absPath(args[0])
	if err != nil {
		return nil, nil, err
	}
	mountPoint := ""
	if len(args) > 1 {
		mountPoint = args[1]
	}
	if m := alreadyAttached(o, image, mountPoint); m != nil {
		return m, nil, nil
	}
	defer func() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	dir, err := a.mountPoint(image, mountPoint, o.Mount.KeepStale, &undo)
	if err != nil {
		return nil, undo, err
	}
	os.Setenv(attachVariable, "1")
	if err := startBackground(a.mountArgs(image, dir), dir, stdout, stderr); err != nil {
		return nil, undo, err
	}
	if dir, err = mounts.Resolve(dir); err != nil {
		return nil, undo, err
	}
	undo.add(func() error {
		u := umountCommand{name: "vhdxfs attach", patience: releasePatience}
		return u.unmount(dir, io.Discard, stderr)
	})
	if m, err = mountedNow(dir); err != nil {
		return nil, undo, err
	}
	sector, err := mounts.Attribute(dir, "logical_sector_size")
	if err != nil {
		return nil, undo, err
	}
	how := loop.Options{ReadOnly: m.Mode == "ro", Buffered: m.Kernel == mountoption.KernelOn}
	if how.SectorSize, err = strconv.ParseInt(sector, 10, 64); err != nil {
		return nil, undo, fmt.Errorf("sector size of %s: %w", image, err)
	}
	// A device attached to a file that was not there before is ours, also where losetup was interrupted.
	undo.add(func() error {
		devices, err := active.Devices(dir)
		return errors.Join(err, detachAll(devices))
	})
	device, err := loop.Attach(ctx, m.Disk(), how)
	if err != nil {
		return nil, undo, fmt.Errorf("%s: %w", m.Image, err)
	}
	m.Devices = append(m.Devices, *device)
	return m, undo, nil
}

// mountPoint returns the mount point for an image: the one that was named, or a new one.
func (a *attachCommand) mountPoint(image, named string, keepStale bool, undo *undoList) (string, error) {
	if named == "" {
		dir, lock, err := makeRunDir(image, keepStale)
		if err == nil {
			// It stays locked until this process ends, or undoes all of this.
			undo.add(func() error {
				lock.Close()
				return removeRunDir(dir)
			})
		}
		return dir, err
	}
	dir, err := absPath(named)
	if err == nil && !keepStale {
		// The mount itself takes away what is dead at its mount point, and knows nothing of devices.
		if d, err := detachDead(dir); d != nil && err != nil {
			logrus.StandardLogger().Warnf("the server of %s on %s has died; its device is kept: %v", d.Image, dir, err)
		}
	}
	return dir, err
}

// mountArgs are the arguments with which the program mounts the image for this command.
func (a *attachCommand) mountArgs(image, dir string) []string {
	var args []string
	for _, list := range a.options {
		args = append(args, "-o", list)
	}
	if a.readOnly {
		args = append(args, "-r")
	}
	if a.json {
		args = append(args, "--json")
	}
	if a.allowOther {
		args = append(args, "--allow-other")
	}
	return append(args, "--", image, dir)
}

// mountedNow describes the mount at dir, which is there.
func mountedNow(dir string) (*active.Mount, error) {
	m, err := active.At(dir)
	if err == nil && m == nil {
		err = fmt.Errorf("another program has unmounted %s", dir)
	}
	return m, err
}

// printDevices writes the path of each device and, behind it, those of its partitions.
func printDevices(out io.Writer, devices []loop.Device) error {
	var b strings.Builder
	for _, d := range devices {
		fmt.Fprintln(&b, d.Path)
		for _, p := range d.Partitions {
			fmt.Fprintln(&b, p.Path)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// An undoList takes back what was done, the last first.
type undoList []func() error

func (u *undoList) add(f func() error) { *u = append(*u, f) }

func (u *undoList) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	if err := errors.Join(errs...); err != nil {
		return &undoError{err}
	}
	return nil
}

// An undoError says what could not be undone.
type undoError struct{ error }

func (e *undoError) Unwrap() error { return e.error }

// releasePatience is how long programs may take that have something open for a moment only: those that look at each
// new device, and the kernel, which lets go of a file somewhat after the device.
const releasePatience = 5 * time.Second

// releaseDevices detaches the loop devices on a mount's file whose program is about to end. One that is in use is
// detached when that use ends; a message says so.
func releaseDevices(file string, log logrus.FieldLogger) {
	ctx, cancel := context.WithTimeout(context.Background(), releasePatience)
	defer cancel()
	devices, err := active.Devices(filepath.Dir(file))
	for _, d := range devices {
		free, derr := loop.DetachUnused(ctx, d.Path)
		if derr == nil && !free {
			uses := lastingUses(d)
			if len(uses) == 0 {
				uses = inUse(d.Path, []string{"open in another program"})
			}
			log.Warnf("%s; the disk is served until then; then the device is detached", strings.Join(uses, "; "))
		}
		err = errors.Join(err, derr)
	}
	if err != nil {
		log.WithError(err).Warnf("a loop device on %s is kept; detach it with losetup -d", file)
	}
}

// detachAll detaches loop devices.
func detachAll(devices []loop.Device) error {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), releasePatience)
	defer cancel()
	for _, d := range devices {
		errs = append(errs, loop.Detach(ctx, d.Path))
	}
	return errors.Join(errs...)
}
