package mounts

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

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

// Hold keeps changes of the disk of the mount at mountPoint waiting, for some seconds at the most, until release is called.
// Where that is not possible, it does nothing.
func Hold(mountPoint string) (release func()) {
	m, err := At(mountPoint)
	if err != nil || m == nil || m.FSType != Type || !Trusted(m) {
		return func() {}
	}
	c, _, err := dial(m)
	if err != nil {
		return func() {}
	}
	var a answer
	err = c.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = json.NewEncoder(c).Encode(request{Hold: true})
	}
	if err == nil {
		_ = json.NewDecoder(io.LimitReader(c, maxAnswer)).Decode(&a) // where it fails nothing is held
	}
	return func() { c.Close() }
}

// CleanOrder is the name by which a server is told over its socket to make the image clean.
const CleanOrder = "clean"

// Clean has the server of the mount at mountPoint leave the image as a close would, with nothing in its log.
func Clean(mountPoint string) error {
	m, err := At(mountPoint)
	if err != nil || m == nil || m.FSType != Type || !Trusted(m) {
		return err
	}
	_, err = askServer(m, request{Set: CleanOrder})
	return err
}
