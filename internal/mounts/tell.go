package mounts

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	XAttrPrefix  = "user.vhdx." // of the names of a mount's attributes
	MaxXAttrSize = 64 << 10     // bytes: XATTR_SIZE_MAX, a longer value cannot be read
)

// tell sets an attribute of the mount at mountPoint.
func tell(mountPoint, name string, value []byte) error {
	// A mount that hangs would take the caller with it; one that has just answered will take this, too.
	if _, err := Attribute(mountPoint, "pid"); err != nil {
		return err
	}
	// Of the directory only root may set one, since nobody may write to it.
	disk := filepath.Join(mountPoint, FileName)
	if err := unix.Lsetxattr(disk, XAttrPrefix+name, value, 0); err != nil {
		return &os.PathError{Op: name, Path: disk, Err: err}
	}
	return nil
}
