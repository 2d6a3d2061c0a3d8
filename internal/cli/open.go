package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/delta"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An openDisk is an image that is open for a mount: a *vhdx.Image or a *vhd.Image.
type openDisk interface {
	mount.Disk
	io.ReaderAt
	Type() vhdx.DiskType
	Warnings() []string
	WhenTakenOver(do func()) // another host writes the image
	Close() error
}

// open opens the image as the options want it.
func open(j *mountJob, log *logrus.Logger) (openDisk, error) {
	if disk.IsVHD(j.Mount.Image) {
		return openVHD(j, log)
	}
	return openImage(j, log)
}

// openVHD opens an old image, which can only be read.
func openVHD(j *mountJob, log *logrus.Logger) (openDisk, error) {
	path := j.Mount.Image
	switch {
	case j.Mount.Overlay != "":
		return nil, fmt.Errorf("%s is an old VHD image, which cannot have an overlay; convert it first: vhdxfs convert %s disk.vhdx", path, terminal.Shell(path))
	case !j.ReadOnly && !j.ROFallback:
		return nil, fmt.Errorf("%s is an old VHD image, which can only be mounted read-only; use -o ro, or convert it first: vhdxfs convert %s disk.vhdx", path, terminal.Shell(path))
	case !j.ReadOnly:
		log.Warnf("%s is an old VHD image; it is mounted read-only", path)
	}
	im, err := vhd.Open(path, j.Open)
	if err != nil { // not a nil *vhd.Image in an interface
		return nil, mayNotRead(explainLock(err))
	}
	return im, nil
}

// openImage opens a VHDX image.
func openImage(j *mountJob, log *logrus.Logger) (openDisk, error) {
	im, err := openForMount(j, log)
	if err != nil { // likewise
		return nil, err
	}
	return im, nil
}

func openForMount(j *mountJob, log *logrus.Logger) (*vhdx.Image, error) {
	how := j.Open
	how.Log = log
	how.Writable = !j.ReadOnly
	how.Mixed = j.ReadOnly || j.OrphanChildren || j.Mount.Overlay != "" // a warning will say it
	if j.Log == "" || j.Log == mountoption.LogStderr {
		vhdx.TellWait = nil // the log is read where the command was given
	}
	// A program that waits for the mount need not wait for 512 MiB of BAT, unless what is found there says how to mount.
	how.LateScan = j.Mount.Overlay == "" && !j.ROFallback
	if j.Replay == mountoption.ReplayNo {
		if err := checkReplay(j.Mount.Image, how); err != nil {
			return nil, err
		}
	}
	if how.AnyParent {
		log.Warnf("the parents of %s are not checked", j.Mount.Image)
	}
	im, err := j.openOnce(how, log)
	switch {
	case err == nil:
		return im, nil
	case errors.Is(err, unix.EISDIR):
		return nil, fmt.Errorf("%w; give the VHDX file in it", err)
	case errors.Is(err, vhdx.ErrCorrupt):
		return nil, withAdvice(err)
	case j.ReadOnly || j.Mount.Overlay != "" || !unwritable(err) && !j.ROFallback:
		return nil, mayNotRead(err)
	}
	how.Writable, how.Mixed = false, true
	im, roErr := vhdx.Open(j.Mount.Image, how)
	switch {
	case roErr != nil:
		return nil, mayNotRead(err)
	case !j.ROFallback:
		return nil, errors.Join(fmt.Errorf("%w; to only read it, use -o ro", err), im.Close())
	}
	log.WithError(err).Warnf("%s is mounted read-only", j.Mount.Image)
	return im, nil
}

// withAdvice says what to do next where an image was found to break a rule.
func withAdvice(err error) error {
	var broken *vhdx.FormatError
	// A parent locator has told where a parent was looked for; what has no identifier, what it is.
	if !errors.As(err, &broken) || broken.Structure == "parent locator" || broken.Structure == "file type identifier" || broken.Structure == "file" {
		return err
	}
	return fmt.Errorf("%w; run vhdxfs check for details", err)
}

// openOnce opens what the options name, which is the image or an overlay of it.
func (j *mountJob) openOnce(io vhdx.Options, log *logrus.Logger) (*vhdx.Image, error) {
	if j.Mount.Overlay != "" {
		im, err := openOverlay(j, io)
		if err == nil {
			if werr := checkWhole(j.Mount.Image, io); werr != nil {
				log.Warn(werr)
			}
		}
		return im, err
	}
	im, err := openLocked(j.Mount.Image, io, os.Stderr)
	if errors.Is(err, vhdx.ErrMixed) {
		if werr := checkWhole(j.Mount.Image, io); werr != nil { // it knows the command
			return nil, werr
		}
		return nil, fmt.Errorf("%w; -o ro reads it as it is, and -o orphan_children allows writing", err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkWhole(j.Mount.Image, io); err != nil {
		if io.Writable && !j.OrphanChildren {
			return nil, errors.Join(err, im.Close())
		}
		log.Warn(err)
	}
	if !io.Writable || j.OrphanChildren {
		return im, nil
	}
	if err := checkChildless(j.Mount.Image, io, log); err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return im, nil
}

// checkWhole returns an error where the image is a mix of two disks. If it was opened without Options.Mixed, it is known to be none
// but for what an interrupted apply may have left beside it.
func checkWhole(path string, io vhdx.Options) error {
	if delta.Interrupted(path, io) != "" {
		return fmt.Errorf("%s is a mix of two disks, since vhdxfs apply was interrupted; finish that first: %s", path, new(delta.ApplyOptions).FinishCommand(path))
	}
	if !io.Mixed {
		return nil
	}
	io.Parents, io.Lock = nil, vhdx.LockOff
	if k, err := vhdx.ParentLink(path, io); err == nil && vhdx.IsMixed(k.DataWriteGUID) {
		return fmt.Errorf("%s: %w", path, vhdx.ErrMixed)
	}
	return nil
}

// checkChildless returns an error where an image in the directory of the image at path is its child: with the first write to
// the parent the child would not accept it any more, and all that it holds would be lost.
func checkChildless(path string, io vhdx.Options, log *logrus.Logger) error {
	children, err := childrenBeside(path, io)
	if err != nil {
		log.WithError(err).Debugf("cannot determine whether %s has children", path)
		return nil // there are none that could be seen
	}
	if len(children) == 0 {
		return nil
	}
	if left := leftOver([]string{path}, io); len(left) == len(children) {
		return fmt.Errorf("%s is the parent of %s, which shows the same disk, as after a merge; remove that file, or mount with "+
			"-o orphan_children", path, strings.Join(left, ", "))
	}
	return fmt.Errorf("%s is the parent of %s, which writing would make unusable; mount the child, or this image with "+
		"-o ro or -o overlay=tmp; -o orphan_children allows writing", path, children[0])
}

// Two programs that lock an image at the same moment may each find the other and both give up, as when mount -a runs
// twice. So it is tried again, after times that are not the same for both.
const (
	lockTries = 3
	lockPause = 100 * time.Millisecond // at the most
)

// openUnlocked opens an image that no other program keeps locked.
func openUnlocked(path string, io vhdx.Options) (im *vhdx.Image, err error) {
	for try := range lockTries {
		if try > 0 {
			time.Sleep(rand.N(lockPause))
		}
		im, err = vhdx.Open(path, io)
		if _, alive := errors.AsType[*vhdx.InUseError](err); alive || !errors.Is(err, vhdx.ErrLocked) {
			break
		}
	}
	return im, err
}

// mayNotRead says what to do where it is the permission that is missing.
func mayNotRead(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; mount as root, or as a user with access", err)
	}
	return err
}

// checkReplay returns an error where the image at path needs what replay=no forbids.
func checkReplay(path string, io vhdx.Options) error {
	io.Writable = false
	im, err := vhdx.Open(path, io)
	if err != nil {
		return nil // to be told when it is opened in earnest
	}
	replayed := im.Replayed()
	if err := im.Close(); err != nil || !replayed {
		return err
	}
	return fmt.Errorf("%s was not closed cleanly: its log must be replayed, but replay=no forbids that; "+
		"use replay=auto (with ro, it replays in memory)", path)
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
