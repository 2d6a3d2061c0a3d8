package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/erofs"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// A Mounter does for one mount what may take privilege, so that the process that serves the mount needs none. An
// error of Mount leaves no mount behind.
type Mounter interface {
	// Mount mounts a connection, which the caller has to answer, and returns its descriptor.
	Mount(readOnly bool) (fd int, err error)
	// ControlSocket returns the descriptor of the socket by which the mount is asked, mounts.Bind.
	ControlSocket() (fd int, err error)
	// PassThrough has the kernel pass reads through to a file, and returns the number that it has given the file.
	PassThrough(k KernelFile) (id int32, err error)
	// Accepted is called when the kernel's first request is answered. It sets what could not be set before.
	Accepted()
	// Unmount is Server.Unmount.
	Unmount() error
	// MakeReadOnly makes the mount read-only. The error matches unix.EBUSY where disk.raw is open for writing.
	MakeReadOnly() error
	// DetachDead is Server.DetachDead.
	DetachDead() error
}

// A mounter is a Mounter that works in this process.
type mounter struct {
	o      Options
	device string // of the mount, major:minor, as the mount table has it; "" where unknown
	source string // likewise

	mu     sync.Mutex // one call at a time
	passed bool       // PassThrough was called
}

// NewMounter returns a Mounter that does all in this process. It uses only the options that say where and how to
// mount.
func NewMounter(o Options) Mounter { return &mounter{o: o} }

func (m *mounter) Mount(readOnly bool) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.o.CheckMountPoint(); err != nil {
		return -1, err
	}
	if m.o.Flags &^= unix.MS_RDONLY; readOnly {
		m.o.Flags |= unix.MS_RDONLY
	}
	fd, err := mountFuse(&m.o)
	if err != nil {
		return -1, err
	}
	if at, err := mounts.At(m.o.MountPoint); err == nil && at != nil {
		m.device, m.source = mounts.DeviceOf(at), at.Source
	}
	return fd, nil
}

// deviceAt returns the device of the mount at path, major:minor, and "" where it is not known.
func deviceAt(path string) string {
	if m, err := mounts.At(path); err == nil && m != nil {
		return mounts.DeviceOf(m)
	}
	return ""
}

// own returns the mount, and the other places at which it is. As soon as it is gone, the kernel gives its number to the next one,
// which may be there already: the source tells them apart.
func (m *mounter) own() ([]*mountinfo.Info, error) {
	list, err := mounts.Of(m.device)
	return slices.DeleteFunc(list, func(at *mountinfo.Info) bool { return at.Source != m.source }), err
}

func (m *mounter) ControlSocket() (int, error) { return mounts.Bind(m.device) }

// Accepted lets the kernel read ahead as much as was agreed on, in several requests: at mount it allows 128 KiB and no more. Only
// root may change that; for others reading is somewhat slower, which is no error.
func (m *mounter) Accepted() {
	name := "/sys/class/bdi/" + m.device + "/read_ahead_kb"
	if err := os.WriteFile(name, strconv.AppendInt(nil, maxRequest>>10, 10), 0); err != nil {
		m.o.Log.WithError(err).Debug("read-ahead left at the kernel's default")
	}
}

func (m *mounter) MakeReadOnly() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return unix.Mount("", m.o.MountPoint, "", unix.MS_REMOUNT|unix.MS_RDONLY|m.o.Flags, "")
}

func (m *mounter) Unmount() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.o.BeforeUnmount != nil {
		m.o.BeforeUnmount()
	}
	at, err := mounts.At(m.o.MountPoint)
	if err != nil || m.device == "" {
		return m.unmountAt(m.o.MountPoint) // without a mount table the path has to do
	}
	if at != nil && mounts.DeviceOf(at) != m.device {
		if below, err := m.mountedBelow(); err != nil || below {
			return fmt.Errorf("%s is hidden by a mount of %s; unmount that one first", m.o.MountPoint, at.Source)
		}
	}
	list, err := m.own()
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		errs = append(errs, m.unmountAt(list[i].Mountpoint))
	}
	return errors.Join(append(errs, err)...)
}

// mountedBelow reports whether the mount is at the mount point, below another.
func (m *mounter) mountedBelow() (bool, error) {
	list, err := m.own()
	for _, at := range list {
		if at.Mountpoint == m.o.MountPoint {
			return true, err
		}
	}
	return false, err
}

func (m *mounter) unmountAt(path string) error {
	err := mounts.Unmount(path, false)
	if errors.Is(err, unix.EBUSY) {
		m.o.Log.Warnf("%s is in use; the mount point is detached, and the disk is served until it is unused", path)
		err = mounts.Unmount(path, true)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil // no longer a mount point: another program was faster
	}
	return err
}

func (m *mounter) DetachDead() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	list, err := m.own()
	if err != nil {
		return nil // without a mount table nothing can be said
	}
	var cut bool
	for i := len(list) - 1; i >= 0; i-- {
		path := list[i].Mountpoint
		// The number of the device is another mount's as soon as ours is gone, so this must be seen to be dead.
		if dead, err := mounts.IsDead(path); err != nil || !dead {
			continue
		}
		cut = true
		if err := mounts.Unmount(path, true); err != nil {
			m.o.Log.WithError(err).Errorf("the dead mount at %s cannot be removed", path)
		}
	}
	if !cut {
		return nil
	}
	return fmt.Errorf("the connection of %s was aborted (umount -f); open programs got errors, and unsynced data is lost", m.o.MountPoint)
}

// fuseDevice is what fusectl calls the device behind mounts.FUSEDevice: major and minor number.
var fuseDevice = unix.Mkdev(10, 229)

// openBacking is the request FUSE_DEV_IOC_BACKING_OPEN of a FUSE connection.
const openBacking = 0x4010e501

// PassThrough does that once for each mount, so that a server that is not itself any more cannot fill the memory.
func (m *mounter) PassThrough(k KernelFile) (int32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.passed {
		return 0, unix.EALREADY
	}
	m.passed = true
	var st unix.Stat_t
	if err := unix.Fstat(k.Device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != fuseDevice {
		return 0, errors.Join(errors.New("no FUSE connection"), err)
	}
	fd, err := erofs.Open(k.Geometry, k.Devices, descriptorReader(k.Runs))
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	file := fuse.BackingMap{Fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.Device), openBacking, uintptr(unsafe.Pointer(&file)))
	if errno != 0 {
		return 0, os.NewSyscallError("FUSE passthrough", errno)
	}
	return int32(id), nil
}

// A descriptorReader reads from a descriptor.
type descriptorReader int

func (r descriptorReader) Read(p []byte) (int, error) {
	for {
		switch n, err := unix.Read(int(r), p); {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
