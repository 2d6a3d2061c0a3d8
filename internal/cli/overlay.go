package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// openOverlay opens the differencing child of the image that takes what is written in its place: the file that the
// option names, which is made if there is none, or one without a name.
func openOverlay(j *mountJob, io vhdx.Options) (*vhdx.Image, error) {
	path, parent := j.Mount.Overlay, j.Mount.Image
	child := io
	child.Writable = true
	child.Parents = append([]string{j.Mount.Image}, io.Parents...)
	if path == mountoption.OverlayTmp {
		path, parent = filepath.Join(j.overlayDir, "overlay.vhdx"), j.overlayParent()
		child.Commit, child.IdleClean = 0, 0 // it is never opened again
	}
	// As any child, it is never more open than the image, since both hold parts of the same disk.
	switch err := vhdx.Create(path, vhdx.CreateOptions{Parent: parent, Open: io}); {
	case err == nil:
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("overlay: %w", err)
	case j.Replay == mountoption.ReplayNo:
		if err := checkReplay(path, child); err != nil {
			return nil, err
		}
	}
	im, err := openLocked(path, child, os.Stderr)
	var broken *vhdx.FormatError
	switch {
	case errors.As(err, &broken) && broken.Structure == "parent locator": // and the image was found good just now
		return nil, fmt.Errorf("overlay %s does not fit %s, which has changed since or is another disk; give a new file", path, j.Mount.Image)
	case err != nil:
		return nil, fmt.Errorf("overlay: %w", err)
	case im.Type() != vhdx.Differencing:
		return nil, errors.Join(fmt.Errorf("%s is not an overlay: it has no parent; give a new file", path), im.Close())
	}
	return im, nil
}

// makeOverlayDir makes the directory for an overlay that is gone with the mount. The keeper of the mount removes it; the
// file itself goes when it is closed.
func (j *mountJob) makeOverlayDir() error {
	if j.Mount.Overlay != mountoption.OverlayTmp {
		return nil
	}
	dir, err := os.MkdirTemp(overlayDir(), "vhdxfs-overlay-")
	if err != nil {
		return fmt.Errorf("cannot create a temporary file; choose another directory with TMPDIR: %w", err)
	}
	j.overlayDir = dir
	// A name for the image beside it, since not every path can stand in an image, and no program ever follows this one.
	if err := os.Symlink(j.Mount.Image, j.overlayParent()); err != nil {
		return errors.Join(fmt.Errorf("overlay: %w", err), os.RemoveAll(dir))
	}
	return nil
}

// overlayParent is the image's name in the directory of an overlay that is gone with the mount.
func (j *mountJob) overlayParent() string { return filepath.Join(j.overlayDir, "image.vhdx") }

// overlayDir is where temporary overlays are. They may be large, and /tmp is often held in memory.
func overlayDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}
