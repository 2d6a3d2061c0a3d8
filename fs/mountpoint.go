package fs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// CheckMountPoint makes o.MountPoint what the mount table will have, and returns an error where nothing can be
// mounted there. Mount does so by itself; an earlier call returns the error before the image is touched.
//
// The dead mount of a program that was killed is taken away, unless o.KeepStale is set.
func (o *Options) CheckMountPoint() error {
	path, err := mounts.Resolve(o.MountPoint)
	if err != nil {
		return mountPointError(o.MountPoint, err)
	}
	o.MountPoint = path
	for {
		m, err := mounts.At(path)
		if err != nil || m == nil || m.FSType != mounts.Type {
			break // nothing of ours: the directory decides. An automounter's mount is there to be covered.
		}
		dead, err := mounts.IsDead(path)
		switch {
		case err != nil:
			return fmt.Errorf("%s is already mounted on %s, and %w; unmount it with: umount -l %[4]s", m.Source, path, err, terminal.Shell(path))
		case dead && !o.KeepStale:
			if err := o.clearStale(m.Source); err != nil {
				return err
			}
			continue // another may be below
		case dead:
			return mountPointError(path, unix.ENOTCONN)
		case !o.NonEmpty || m.Source == o.source():
			return fmt.Errorf("%s is already mounted on %s; unmount it first, or choose another mount point", m.Source, path)
		}
		break
	}
	return checkDirectory(path, o.NonEmpty)
}

// clearStale takes away the dead mount at the mount point.
func (o *Options) clearStale(source string) error {
	err := mounts.Unmount(o.MountPoint, false)
	if errors.Is(err, unix.EBUSY) { // programs that have it open get nothing but errors from it
		err = mounts.Unmount(o.MountPoint, true)
	}
	if err != nil {
		return fmt.Errorf("%w, and it could not be removed now: %w", mountPointError(o.MountPoint, unix.ENOTCONN), err)
	}
	o.Log.Warnf("%s: removed the dead mount of %s", o.MountPoint, source)
	return nil
}

// kernelFileSystems are those that show what the kernel has to tell, by their numbers for statfs(2). A mount on one of
// their directories would hide that from all programs, and from this one, which reads the mount table there.
var kernelFileSystems = map[int64]string{
	unix.PROC_SUPER_MAGIC:    "proc",
	unix.SYSFS_MAGIC:         "sysfs",
	unix.CGROUP_SUPER_MAGIC:  "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2",
	unix.DEBUGFS_MAGIC:       "debugfs",
	unix.TRACEFS_MAGIC:       "tracefs",
	unix.SECURITYFS_MAGIC:    "securityfs",
	unix.SELINUX_MAGIC:       "selinuxfs",
	unix.BPF_FS_MAGIC:        "bpf",
	unix.PSTOREFS_MAGIC:      "pstore",
	unix.EFIVARFS_MAGIC:      "efivarfs",
	unix.DEVPTS_SUPER_MAGIC:  "devpts",
	unix.BINFMTFS_MAGIC:      "binfmt_misc",
}

// checkDirectory returns an error where path is no directory, one of the kernel's or, unless nonEmpty allows it, not an
// empty one.
func checkDirectory(path string, nonEmpty bool) error {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, unix.EACCES): // fusermount3 and mount(2) need no read permission
		return nil
	case err != nil:
		return mountPointError(path, err)
	}
	defer d.Close()
	var on unix.Statfs_t
	err = unix.Fstatfs(int(d.Fd()), &on) // which those of the kernel know, if not all others
	if name, ok := kernelFileSystems[int64(on.Type)]; ok && err == nil {
		return fmt.Errorf("mount point %s is in %s, a file system of the kernel; choose another directory", path, name)
	}
	if nonEmpty {
		return nil
	}
	switch _, err := d.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return mountPointError(path, err)
	}
	return fmt.Errorf("mount point %s is not empty; choose an empty directory, or hide its files with -o nonempty", path)
}

// mountPointError says what is the matter with a mount point that cannot be looked at.
func mountPointError(path string, err error) error {
	switch {
	case mounts.LacksProc(err): // the mount table is not there
		return err
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount point %s does not exist; create it with: mkdir -p %s", path, path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s is not a directory; the mount point must be one", path)
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
		return fmt.Errorf("mount point %s holds a dead FUSE mount; remove it with: umount %s", path, terminal.Shell(path))
	}
	return fmt.Errorf("mount point: %w", err)
}
