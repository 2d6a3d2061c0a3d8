package mounts

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	XAttrPrefix  = "user.vhdx." // of the names of a mount's attributes
	MaxXAttrSize = 64 << 10     // bytes: XATTR_SIZE_MAX, a longer value cannot be read
)

// tell sets an attribute of the mount on top at mountPoint. Only a mount that is Trusted is told anything.
func tell(mountPoint, name string, value []byte) error {
	m, err := At(mountPoint)
	switch {
	case err != nil:
		return err
	case m == nil || m.FSType != Type:
		return &os.PathError{Op: name, Path: mountPoint, Err: unix.ENODATA}
	case !Trusted(m):
		return ErrForeign
	}
	a, err := askServer(m, request{Set: name, Value: value})
	if errors.Is(err, errNoServer) {
		if a, err = runHidden(nil, tellCommand, mountPoint, name, string(value)); err == nil {
			err = pathError(name, mountPoint, a.Errno)
		}
	}
	return err
}
