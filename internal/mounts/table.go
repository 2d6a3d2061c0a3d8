package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// TypeName is what the mount's type is made of: fuse.vhdxfs. mount(8) finds the helper for umount by it.
const TypeName = "vhdxfs"

// Type is the type of the program's mounts in the mount table.
const Type = "fuse." + TypeName

// FileName is the name of the one file in a mount.
const FileName = "disk.raw"

// At returns the mount that is on top at path, and nil where path is no mount point. It reads the
// mount table and does not touch the path, so it cannot hang on a dead mount or set off an automount.
func At(path string) (*mountinfo.Info, error) {
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[len(list)-1], nil
}

// ImageAt returns the mount that is on top at a directory, and nil where that is none of an image.
func ImageAt(dir string) (*mountinfo.Info, error) {
	m, err := At(dir)
	if err != nil || m == nil || m.FSType != Type {
		return nil, err
	}
	return m, nil
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

// LacksProc reports whether err says that a file in /proc is missing, such as the mount table, and that is so because /proc
// is not mounted.
func LacksProc(err error) bool {
	path, ok := errors.AsType[*fs.PathError](err)
	if !ok || !strings.HasPrefix(path.Path, "/proc/") || !errors.Is(path, fs.ErrNotExist) {
		return false
	}
	_, serr := os.Lstat("/proc/self")
	return errors.Is(serr, fs.ErrNotExist)
}
