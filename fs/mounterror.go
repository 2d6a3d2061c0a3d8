package fs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// mountError says what to do about an error of mount(2) or of opening the FUSE device.
func mountError(o *Options, err error) error {
	var device *os.PathError
	switch {
	case errors.As(err, &device) && errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; give this user read and write access to the device, or mount as root", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("mount on %s: %w; a security module denies it: in a container on a host with AppArmor, "+
			"start the container with --security-opt apparmor:unconfined", o.MountPoint, err)
	case errors.As(err, &device), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w; load the module (modprobe fuse), or start the container with --device %s", mounts.ErrNoFUSE, err, mounts.FUSEDevice)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return mountPointError(o.MountPoint, err)
	}
	return fmt.Errorf("mount on %s: %w", o.MountPoint, err)
}
