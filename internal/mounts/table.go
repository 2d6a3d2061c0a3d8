package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TypeName is what the mount's type is made of: fuse.vhdxfs. mount(8) finds the helper for umount by it.
const TypeName = "vhdxfs"

// Type is the type of the program's mounts in the mount table.
const Type = "fuse." + TypeName

// FileName is the name of the one file in a mount.
const FileName = "disk.raw"

// maxLinks is how many symbolic links the last element of a path may lead through, as for the kernel.
const maxLinks = 40

// At returns the mount that is on top at path, and nil where path is no mount point. It reads the
// mount table and does not touch the path, so it cannot hang on a dead mount or set off an automount.
func At(path string) (*mountinfo.Info, error) {
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[len(list)-1], nil
}

// Of returns the mounts of a device, major:minor, wherever they are.
func Of(device string) ([]*mountinfo.Info, error) { return mountinfo.GetMounts(OnDevice(device)) }

// OnDevice leaves out all mounts but those of a device, major:minor, that is one of the program's.
func OnDevice(device string) mountinfo.FilterFunc {
	return func(m *mountinfo.Info) (skip, stop bool) { return m.FSType != Type || DeviceOf(m) != device, false }
}

// DeviceOf returns the device of a mount, major:minor.
func DeviceOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// ReadOnly reports whether nothing can be written through the mount m.
func ReadOnly(m *mountinfo.Info) bool {
	return slices.Contains(strings.Split(m.Options+","+m.VFSOptions, ","), "ro")
}

// Resolve returns path as the mount table has it: absolute and without symbolic links. It does not touch
// what is mounted there, which may be the mount of a program that hangs, or wait for an automounter.
func Resolve(path string) (string, error) {
	for range maxLinks {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", err
		}
		abs = filepath.Join(dir, filepath.Base(abs))
		if m, err := At(abs); err == nil && m != nil {
			return abs, nil // a mount point is no symbolic link
		}
		to, err := os.Readlink(abs)
		switch {
		case errors.Is(err, unix.EINVAL):
			return abs, nil
		case err != nil:
			return "", err
		case filepath.IsAbs(to):
			path = to
		default:
			path = filepath.Join(dir, to)
		}
	}
	return "", &os.PathError{Op: "readlink", Path: path, Err: unix.ELOOP}
}
