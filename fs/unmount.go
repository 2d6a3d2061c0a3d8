package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Unmount takes the mount away. While something still uses it, only its name goes: who has disk.raw open,
// as a loop device does, is served until the last of them lets go, and then Wait returns.
func (s *Server) Unmount() error {
	s.unmountMu.Lock()
	defer s.unmountMu.Unlock()
	select {
	case <-s.done:
		return nil
	default:
	}
	m, err := mountedAt(s.mountPoint)
	switch {
	case err != nil: // without a mount table the path has to do
	case m == nil:
		return nil // somebody was faster; what is left are users of a mount without a name
	case s.device != "" && s.device != fmt.Sprintf("%d:%d", m.Major, m.Minor):
		return fmt.Errorf("%s is hidden by a mount of %s; unmount that first", s.mountPoint, m.Source)
	}
	err = unmount(s.mountPoint, 0)
	if errors.Is(err, unix.EBUSY) {
		s.log.Warnf("%s is in use; it is detached, and served until its last user is gone", s.mountPoint)
		err = unmount(s.mountPoint, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil // no longer a mount point
	}
	return err
}

// unmount unmounts a path, as an ordinary user by fusermount3. It returns EBUSY for a mount in use.
func unmount(path string, flags int) error {
	err := unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("umount", err)
	}
	bin, lookErr := fusermountPath()
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
		return fusermountError(&stderr, err)
	}
	return nil
}

// mountedAt returns the mount that is on top at path, and nil where path is no mount point. It reads the
// mount table and does not touch the path, so it cannot hang on a dead mount or set off an automount.
func mountedAt(path string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(mounts) == 0 {
		return nil, err
	}
	return mounts[len(mounts)-1], nil
}

// setReadAhead lets the kernel read ahead as much as one request can carry: at mount it allows 128 KiB and
// no more. Only root may change that; for others reading is somewhat slower, which is no error.
func (s *Server) setReadAhead() {
	name := "/sys/class/bdi/" + s.device + "/read_ahead_kb"
	if err := os.WriteFile(name, strconv.AppendInt(nil, maxRequest>>10, 10), 0); err != nil {
		s.log.WithError(err).Debug("read-ahead left at the kernel's default")
	}
}
