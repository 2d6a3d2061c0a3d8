package erofs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// minKernel is the oldest kernel on which this was tried. Files as devices are there from 6.12 on, but what the first of those
// kernels show of a device that was made shorter meanwhile is not known.
var minKernel = [2]int{6, 18}

// hosts are the file systems that may hold devices, by their magic numbers: those on local disks, on which this was tried.
// On others, such as one of FUSE or of a network, the kernel would wait for a program or another machine in the middle
// of a page.
var hosts = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC}

// Open returns a descriptor of the file that a geometry and encoded runs describe, as the kernel reads it from devices. Those
// are descriptors of regular files that are open for reading; they need not stay open. The file stays while it is open or
// mapped, and what it needs of memory, the size of the metadata, goes with it.
//
// It takes CAP_SYS_ADMIN and /proc. Every error means that this kernel, or these files, cannot be used so.
func Open(g Geometry, devices []int, runs io.Reader) (fd int, err error) {
	if err := checkKernel(); err != nil {
		return -1, err
	}
	sizes := make([]int64, len(devices))
	for i, d := range devices {
		if sizes[i], err = deviceSize(d); err != nil {
			return -1, err
		}
	}
	meta, err := memoryFile()
	if err != nil {
		return -1, err
	}
	defer meta.Close()
	in := bufio.NewReaderSize(runs, 64<<10)
	if err := Write(meta, g, sizes, func() (Run, error) { return ReadRun(in) }); err != nil {
		return -1, err
	}
	return mount(meta, devices)
}

// checkKernel returns an error where the kernel is older than minKernel.
func checkKernel() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return os.NewSyscallError("uname", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var have [2]int
	_, _ = fmt.Sscanf(release, "%d.%d", &have[0], &have[1]) // what it cannot read is old
	if slices.Compare(have[:], minKernel[:]) < 0 {
		return fmt.Errorf("the kernel, %s, is older than %d.%d", release, minKernel[0], minKernel[1])
	}
	return nil
}

// deviceSize returns the size of a file that can be a device. The descriptor must let its holder read the file: by one
// that only names it (O_PATH) another process could have this one open what it may not open itself.
func deviceSize(fd int) (int64, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, os.NewSyscallError("fcntl", err)
	}
	if flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return 0, fmt.Errorf("a layer is not open for reading: %w", unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, errors.New("the image or a parent is a block device")
	}
	var host unix.Statfs_t
	if err := unix.Fstatfs(fd, &host); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	if !slices.Contains(hosts, int64(host.Type)) {
		return 0, fmt.Errorf("the image or a parent is on a file system of type %#x", host.Type)
	}
	return st.Size, nil
}

// memoryFile returns a new file without a name in memory. It is on a ramfs, since the kernel can read the metadata page by
// page from there; from a tmpfs or a memfd it cannot.
func memoryFile() (*os.File, error) {
	dir, err := newMount("ramfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, nil)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, "map", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), "map"), nil
}

// mount mounts the metadata, and returns a descriptor of the file in it.
func mount(meta *os.File, devices []int) (int, error) {
	settings := [][2]string{{"source", ownPath(int(meta.Fd()))}}
	for _, d := range devices {
		settings = append(settings, [2]string{"device", ownPath(d)})
	}
	dir, err := newMount("erofs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, settings)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, FileName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("openat", err)
}

// ownPath returns the path that leads to an open file of this process.
func ownPath(fd int) string { return filepath.Join("/proc/self/fd", strconv.Itoa(fd)) }

// newMount mounts a file system of the given type nowhere, and returns a descriptor of its root directory. It is unmounted
// when nothing in it is open any more.
func newMount(kind string, attributes int, settings [][2]string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	switch {
	case err == unix.ENODEV:
		return -1, fmt.Errorf("the kernel has no %s: %w", kind, err)
	case err == unix.EPERM:
		return -1, fmt.Errorf("only root can have the kernel do it: %w", err)
	case err != nil:
		return -1, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, s := range settings {
		if err := unix.FsconfigSetString(fs, s[0], s[1]); err != nil {
			return -1, fmt.Errorf("fsconfig %s %s: %w", kind, s[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount %s: %w", kind, err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return dir, nil
}
