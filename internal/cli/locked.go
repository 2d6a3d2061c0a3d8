package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// explainLock says of an error that matches vhdx.ErrLocked which mount of this program holds the image, if one does. It
// waits for no other mount: its server may hang.
func explainLock(err error) error {
	if errors.Is(err, imagefile.ErrNoLocks) {
		return fmt.Errorf("%w; -o lock=try uses the image anyway", err)
	}
	var locked *vhdx.LockedError
	if !errors.As(err, &locked) {
		return err
	}
	m := servedBy(locked.Holders)
	if m == nil {
		return err
	}
	st, serr := os.Stat(locked.Path)
	if m.ImageID != "" && (serr != nil || mounts.FileID(st) != m.ImageID) {
		return &lockError{fmt.Sprintf("%s: in use by the mount of %s on %s (process %d); unmount it with: vhdxfs detach %s",
			locked.Path, m.Image, m.MountPoint, m.PID, terminal.Shell(m.Image)), err}
	}
	return alreadyMountedError(locked.Path, m, err)
}

// alreadyMountedError says where an image is mounted that cannot be opened because of that.
func alreadyMountedError(path string, m *active.Mount, err error) error {
	how := "read/write"
	if m.Mode == "ro" {
		how = "read-only"
	}
	return &lockError{fmt.Sprintf("%s: already mounted %s on %s (process %d); unmount it with: vhdxfs detach %s", path, how, m.MountPoint, m.PID, terminal.Shell(path)), err}
}

// A lockError says in other words what err is.
type lockError struct {
	text string
	err  error
}

func (e *lockError) Error() string { return e.text }
func (e *lockError) Unwrap() error { return e.err }

// servedBy is active.ServedBy. A process that is confined asks one that is not.
var servedBy = active.ServedBy

func init() { imagefile.Writers = active.Writers }

// openLocked opens an image as the options want it locked. A second program that writes an image destroys it, so with
// lock=off none of this host is let in beside another, and with lock=try one is told of on warn.
func openLocked(path string, o vhdx.Options, warn io.Writer) (*vhdx.Image, error) {
	if !o.Writable || o.Lock != vhdx.LockTry && o.Lock != vhdx.LockOff {
		im, err := openUnlocked(path, o)
		return im, explainLock(err)
	}
	if o.Lock == vhdx.LockTry {
		o.Lock = vhdx.LockOn
		im, err := openUnlocked(path, o)
		locked, ok := errors.AsType[*vhdx.LockedError](err)
		unknown := errors.Is(err, imagefile.ErrNoLocks)
		if !unknown && (!ok || locked.Writes) {
			return im, explainLock(err)
		}
		fmt.Fprintf(warn, "vhdxfs: warning: %s; opening it for writing because of lock=try; two programs that write an image destroy it\n", oneLine(terminal.Text(err)))
		o.Lock = vhdx.LockTry
	}
	im, err := vhdx.Open(path, o)
	return im, explainLock(err)
}
