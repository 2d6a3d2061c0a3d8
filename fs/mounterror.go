package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoFUSE says that this system, or this container, has no FUSE to offer.
var ErrNoFUSE = errors.New("FUSE is not available")

// mountError says what to do about an error of mount(2) or of opening the FUSE device.
func mountError(o *Options, err error) error {
	var device *os.PathError
	switch {
	case errors.As(err, &device) && errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; give this user read and write access to the device, or mount as root", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("mount on %s: %w; a security module forbids it: in a container on a host with AppArmor, "+
			"start the container with --security-opt apparmor:unconfined", o.MountPoint, err)
	case errors.As(err, &device), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w; load the module (modprobe fuse), or start the container with --device %s", ErrNoFUSE, err, fuseDevice)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return mountPointError(o.MountPoint, err)
	}
	return fmt.Errorf("mount on %s: %w", o.MountPoint, err)
}

// fusermountError turns what fusermount3 printed into an error.
func fusermountError(stderr *bytes.Buffer, err error) error {
	said := strings.Join(strings.Fields(stderr.String()), " ")
	if i := strings.LastIndex(said, "fusermount3: "); i >= 0 { // it begins with the path by which it was called
		said = said[i+len("fusermount3: "):]
	}
	switch {
	case said == "":
		return fmt.Errorf("fusermount3: %w", err)
	case strings.Contains(said, "user_allow_other"):
		return fmt.Errorf("%w: allow_other and allow_root are refused to ordinary users here; "+
			"put the line user_allow_other into /etc/fuse.conf, or leave the option out", os.ErrPermission)
	case strings.Contains(said, fuseDevice) || strings.Contains(said, "fuse device not found"):
		return fmt.Errorf("%w: %s", ErrNoFUSE, said)
	}
	if strings.Contains(said, "mount failed: Operation not permitted") {
		said += "; a container needs --cap-add SYS_ADMIN"
	}
	if strings.Contains(said, "mount failed: Permission denied") {
		said += "; a container on a host with AppArmor needs --security-opt apparmor:unconfined"
	}
	return fmt.Errorf("fusermount3: %s", said)
}
