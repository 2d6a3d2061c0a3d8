package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// mountFuse mounts a FUSE connection at o.MountPoint and returns its descriptor. With the privilege to
// mount it calls mount(2); without it, as an ordinary user, fusermount3, which has that privilege.
func mountFuse(o *Options) (int, error) {
	fd, err := mountDirect(o)
	if err == nil {
		return fd, nil
	}
	if !errors.Is(err, unix.EPERM) {
		return -1, mountError(o, err)
	}
	if unix.Geteuid() == 0 { // fusermount3 could do no more than this
		return -1, fmt.Errorf("mount on %s: %w; the capability CAP_SYS_ADMIN is missing: start the container with --cap-add SYS_ADMIN", o.MountPoint, err)
	}
	bin, lookErr := mounts.FusermountPath()
	if lookErr != nil {
		return -1, fmt.Errorf("mount on %s needs root, or the program fusermount3 for ordinary users; install the package fuse3: %w", o.MountPoint, err)
	}
	return mountHelped(o, bin)
}

// mountDirect opens the device and mounts it.
func mountDirect(o *Options) (fd int, err error) {
	fd, err = unix.Open(mounts.FUSEDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: mounts.FUSEDevice, Err: err}
	}
	data := append(o.kernelOptions(),
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", unix.S_IFDIR),
		fmt.Sprintf("user_id=%d", unix.Geteuid()),
		fmt.Sprintf("group_id=%d", unix.Getegid()))
	err = unix.Mount(o.source(), o.MountPoint, mounts.Type, o.Flags, strings.Join(data, ","))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// kernelOptions are the options of the kernel's FUSE that do not depend on how it is mounted.
func (o *Options) kernelOptions() []string {
	list := []string{fmt.Sprintf("max_read=%d", maxRead)}
	if o.AllowOther || o.AllowRoot {
		list = append(list, "allow_other")
	}
	if o.DefaultPermissions {
		list = append(list, "default_permissions")
	}
	return list
}

// mountHelped has fusermount3 mount, and receives the descriptor from it over a socket.
func mountHelped(o *Options, bin string) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount socket")
	defer theirs.Close()

	list := append(o.kernelOptions(), "fsname="+escapeOption(o.source()), "subtype="+mounts.TypeName)
	for _, f := range []struct {
		flag uintptr
		name string
	}{
		{unix.MS_RDONLY, "ro"},
		{unix.MS_NOEXEC, "noexec"},
		{unix.MS_NOATIME, "noatime"},
		{unix.MS_SYNCHRONOUS, "sync"},
		{unix.MS_DIRSYNC, "dirsync"},
	} { // all that it knows; nosuid and nodev it adds by itself
		if o.Flags&f.flag != 0 {
			list = append(list, f.name)
		}
	}
	var stderr bytes.Buffer
	cmd := exec.Command(bin, "-o", strings.Join(list, ","), "--", o.MountPoint)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs} // becomes descriptor 3
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return -1, mounts.FusermountError(&stderr, err)
	}
	theirs.Close() // so that the receive below ends if nothing was sent
	return receiveDescriptor(pair[0])
}

// receiveDescriptor takes the one descriptor that arrives on a socket.
func receiveDescriptor(socket int) (int, error) {
	var data [1]byte
	var control [64]byte // room for one descriptor, and more than that is not sent
	_, n, _, _, err := unix.Recvmsg(socket, data[:], control[:], unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return -1, fmt.Errorf("unexpected answer from fusermount3: %w", err)
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("fusermount3 ended without a mount")
}

// escapeOption protects what fusermount3 would take for the end of an option or for an escape.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}
