package active

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// ErrNotMounted says that a name is of nothing that is mounted.
var ErrNotMounted = errors.New("not mounted")

// Find returns the mount that is named by its image, its mount point, its file, a device on which its file is
// attached, or where such a device is mounted. The error matches ErrNotMounted where there is none.
//
// An image is known by its file, as the server has it open, and not by a path: another file may have that now.
func Find(name string) (*Mount, error) {
	at, err := mounts.Locate(name)
	switch {
	case err == nil && at.Mount != nil && at.Mount.FSType == mounts.Type:
		if at.Rest != "" && at.Rest != mounts.FileName {
			return nil, notMounted(name, nil)
		}
		return Describe(at.Mount)
	case err == nil:
		name = at.Path
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return nil, err
	}
	list, err := List()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(m *Mount) bool { return m.State == Hidden })
	found, err := byFile(name, at, list)
	if err != nil {
		return nil, err
	}
	switch found = oncePerDevice(found); len(found) {
	case 0:
		return nil, notMounted(name, list)
	case 1:
		return found[0], nil
	}
	var points []string
	for _, m := range found {
		points = append(points, m.MountPoint)
	}
	return nil, fmt.Errorf("%s is mounted more than once; name one of the mount points: %s", name, strings.Join(points, ", "))
}

// Describe describes the mount that a path has led to. That may be one of its file alone, bound to another place.
func Describe(m *mountinfo.Info) (*Mount, error) {
	if m.Root != "/" {
		same, err := mounts.Of(mounts.DeviceOf(m))
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(same, func(m *mountinfo.Info) bool { return m.Root == "/" }); i >= 0 {
			m = same[i]
		}
	}
	table, err := readLoops()
	if err != nil {
		return nil, err
	}
	return describe(m, table)
}

// Holding returns the mounts of images that hold the mounted file systems of table, each once.
func Holding(table []*mountinfo.Info) (found []*Mount, err error) {
	list, err := List()
	if err != nil {
		return nil, err
	}
	for _, m := range table {
		found = append(found, byLoops(devicesOf(m), list)...)
	}
	return oncePerDevice(found), nil
}

// oncePerDevice leaves out further places at which the same mount is.
func oncePerDevice(list []*Mount) (once []*Mount) {
	for _, m := range list {
		if !slices.ContainsFunc(once, func(o *Mount) bool { return o.Device == m.Device }) {
			once = append(once, m)
		}
	}
	return once
}

// byFile finds the mounts that the file, the device or the directory at path stands for.
func byFile(path string, at *mounts.Location, list []*Mount) ([]*Mount, error) {
	st, err := os.Stat(path)
	if err != nil {
		// Nothing can be asked what it is but its name.
		return byPath(path, list), nil
	}
	switch {
	case st.IsDir():
		if at == nil || at.Mount == nil {
			return nil, nil
		}
		return byLoops(devicesOf(at.Mount), list), nil
	case st.Mode()&os.ModeDevice != 0:
		if found := byIdentity(st, list); len(found) > 0 {
			return found, nil
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && st.Mode()&os.ModeCharDevice == 0 {
			return byLoops(loop.Below(unix.Major(sys.Rdev), unix.Minor(sys.Rdev)), list), nil
		}
		return nil, nil
	}
	if found := byIdentity(st, list); len(found) > 0 {
		return found, nil
	}
	return byPath(path, list), nil
}

// byIdentity finds the mounts of the image with the same file, or the same device.
func byIdentity(st os.FileInfo, list []*Mount) (found []*Mount) {
	id := mounts.FileID(st)
	for _, m := range list {
		if m.ImageID != "" && m.ImageID == id {
			found = append(found, m)
		}
	}
	return found
}

// byPath finds the mounts whose servers cannot be asked which file they have open, by the path of the image.
func byPath(path string, list []*Mount) (found []*Mount) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	for _, m := range list {
		if m.ImageID == "" && m.trusted && m.Image == abs {
			found = append(found, m)
		}
	}
	return found
}

// byLoops finds the mounts on whose files one of the loop devices is attached.
func byLoops(paths []string, list []*Mount) (found []*Mount) {
	for _, m := range list {
		if slices.ContainsFunc(m.Devices, func(d loop.Device) bool { return slices.Contains(paths, d.Path) }) {
			found = append(found, m)
		}
	}
	return found
}

// devicesOf returns the loop devices on which a file system lies that is mounted.
func devicesOf(m *mountinfo.Info) []string {
	if m.Major != 0 {
		return loop.Below(uint32(m.Major), uint32(m.Minor))
	}
	// btrfs and the like give the mount a number of their own.
	if !strings.HasPrefix(m.Source, "/dev/") {
		return nil
	}
	var st unix.Stat_t
	if unix.Stat(m.Source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil
	}
	return loop.Below(unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

var errByAnother = errors.New("by another user")

// notMounted is the error for a name of nothing that is mounted. Where a mount has once been made by that name, it says so.
func notMounted(name string, list []*Mount) error {
	if abs, err := filepath.Abs(name); err == nil {
		for _, m := range list {
			switch {
			case m.Image != abs:
			case !m.trusted: // by its own account, which is no reason to act on it
				return fmt.Errorf("%s is %w by root or by you, but %w; to unmount that mount, name its mount point: vhdxfs umount %s", name, ErrNotMounted, errByAnother, terminal.Shell(m.MountPoint))
			case m.ImageState != "":
				return fmt.Errorf("%s is %w: the image that is mounted at %s had this name and was %s; name the mount point to mean that one", name, ErrNotMounted, m.MountPoint, m.ImageState)
			}
		}
	}
	if isDirectory(name) {
		return fmt.Errorf("%s is %w: no VHDX image is mounted on this directory; vhdxfs list shows what is mounted", name, ErrNotMounted)
	}
	return fmt.Errorf("%s is %w; vhdxfs list shows what is mounted", name, ErrNotMounted)
}

func isDirectory(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// A loopTable is all loop devices on files that are named as those of mounts are, and where those files are.
type loopTable struct {
	devices []loop.Device
	on      map[string]string // by the path of the device, the device of the mount, major:minor; missing where unknown
}

func readLoops() (t loopTable, err error) {
	if t.devices, err = loop.Named(mounts.FileName); err != nil {
		return t, err
	}
	// A device that is going serves no mount any more, and is not opened to ask where its file is.
	t.devices = slices.DeleteFunc(t.devices, func(d loop.Device) bool { return d.Going() })
	if len(t.devices) == 0 {
		return t, nil
	}
	var paths []string
	for _, d := range t.devices {
		paths = append(paths, d.Path)
	}
	t.on = mounts.Backings(paths)
	return t, nil
}

// of returns the loop devices on the file of a mount. The path of the file is the same in each mount namespace, so it
// decides only where the kernel does not tell on which mount it is.
func (t loopTable) of(m *mountinfo.Info) []loop.Device {
	var list []loop.Device
	for _, d := range t.devices {
		on, known := t.on[d.Path]
		if known && on == mounts.DeviceOf(m) || !known && d.File == filepath.Join(m.Mountpoint, mounts.FileName) {
			list = append(list, d)
		}
	}
	return list
}

// Devices returns the loop devices on the file of the mount at a directory.
func Devices(dir string) ([]loop.Device, error) {
	m, err := mounts.ImageAt(dir)
	if err != nil || m == nil {
		return nil, err
	}
	t, err := readLoops()
	return t.of(m), err
}
