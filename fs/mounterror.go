package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
	case errors.As(err, &device), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w; load the module (modprobe fuse), or start the container with --device %s", ErrNoFUSE, err, fuseDevice)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return mountPointError(o.MountPoint, err)
	}
	return fmt.Errorf("mount on %s: %w", o.MountPoint, err)
}

// mountPointError says what is the matter with a mount point that cannot be looked at.
func mountPointError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount point %s does not exist; make it with: mkdir -p %s", path, path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("mount point %s is not a directory; name one", path)
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("mount point %s holds the mount of a FUSE program that has died; remove it with: umount %s", path, path)
	}
	return fmt.Errorf("mount point: %w", err)
}

// checkDirectory returns an error where path is no directory or, unless nonEmpty allows it, not an empty
// one. That includes a mount point which is in use already.
func checkDirectory(path string, nonEmpty bool) error {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, unix.EACCES): // fusermount3 and mount(2) need no read permission
		return nil
	case err != nil:
		return mountPointError(path, err)
	}
	defer d.Close()
	if nonEmpty {
		return nil
	}
	switch _, err := d.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return mountPointError(path, err)
	}
	if m, err := mountedAt(path); err == nil && m != nil && m.FSType == "fuse."+typeName {
		return fmt.Errorf("on %s %s is mounted already; unmount it first, or choose another mount point", path, m.Source)
	}
	return fmt.Errorf("mount point %s is not empty; choose an empty directory, or hide what it holds with -o nonempty", path)
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
	return fmt.Errorf("fusermount3: %s", said)
}
