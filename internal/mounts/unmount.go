package mounts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// FUSEDevice is the device by which a program serves a mount.
const FUSEDevice = "/dev/fuse"

// ErrNoFUSE says that this system, or this container, has no FUSE to offer.
var ErrNoFUSE = errors.New("FUSE is not available")

// Unmount unmounts path, as an ordinary user by fusermount3. The error matches unix.EBUSY for a mount in use; with
// lazy that is no error, and only the name of the mount goes.
func Unmount(path string, lazy bool) error {
	if lazy {
		return unmount(path, unix.MNT_DETACH)
	}
	return unmount(path, 0)
}

// unmount unmounts a path, as an ordinary user by fusermount3. It returns EBUSY for a mount in use.
func unmount(path string, flags int) error {
	err := unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("umount", err)
	}
	bin, lookErr := FusermountPath()
	if lookErr != nil {
		return os.NewSyscallError("umount", err)
	}
	args := "-u"
	if flags&unix.MNT_DETACH != 0 {
		args = "-uz"
	}
	var stderr bytes.Buffer
	cmd := exec.Command(bin, args, "--", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C") // its message is the only sign of what went wrong
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if bytes.Contains(stderr.Bytes(), []byte("busy")) {
			return unix.EBUSY
		}
		return FusermountError(&stderr, err)
	}
	return nil
}

// FusermountError turns what fusermount3 printed into an error.
func FusermountError(stderr *bytes.Buffer, err error) error {
	said := strings.Join(strings.Fields(stderr.String()), " ")
	if i := strings.LastIndex(said, "fusermount3: "); i >= 0 { // it begins with the path by which it was called
		said = said[i+len("fusermount3: "):]
	}
	switch {
	case said == "":
		return fmt.Errorf("fusermount3: %w", err)
	case strings.Contains(said, "user_allow_other"):
		return fmt.Errorf("%w: ordinary users may not use allow_other and allow_root here; "+
			"add the line user_allow_other to /etc/fuse.conf, or omit the option", os.ErrPermission)
	case strings.Contains(said, FUSEDevice) || strings.Contains(said, "fuse device not found"):
		return fmt.Errorf("%w: %s", ErrNoFUSE, said)
	}
	if strings.Contains(said, "mount failed: Operation not permitted") {
		said += "; a container needs --cap-add SYS_ADMIN"
	}
	if strings.Contains(said, "mount failed: Permission denied") {
		said += "; a container on a host with AppArmor needs --security-opt apparmor:unconfined"
	}
	return fmt.Errorf("fusermount3: %s", said)
}

// FusermountPath finds fusermount3 even where mount(8) was called with an empty environment.
func FusermountPath() (string, error) {
	path, err := exec.LookPath("fusermount3")
	for _, p := range []string{"/usr/bin/fusermount3", "/bin/fusermount3"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(p)
	}
	return path, err
}
