package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unmount takes the mount away, also one that was moved or is bound to other places. While something still uses
// it, only its name goes: who has disk.raw open, as a loop device does, is served until the last of them lets go,
// and then Wait returns.
func (s *Server) Unmount() error {
	s.unmountMu.Lock()
	defer s.unmountMu.Unlock()
	if s.ended() {
		return nil
	}
	if s.beforeUnmount != nil {
		s.beforeUnmount()
	}
	m, err := MountAt(s.mountPoint)
	if err != nil || s.device == "" {
		return s.unmountAt(s.mountPoint) // without a mount table the path has to do
	}
	if m != nil && DeviceOf(m) != s.device {
		if below, err := s.mountedBelow(); err != nil || below {
			return fmt.Errorf("%s is hidden by a mount of %s; unmount that first", s.mountPoint, m.Source)
		}
	}
	mounts, err := mountsOf(s.device)
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		errs = append(errs, s.unmountAt(mounts[i].Mountpoint))
	}
	return errors.Join(append(errs, err)...)
}

// ended reports whether the last request was answered.
func (s *Server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// mountedBelow reports whether the mount is at the mount point, below another.
func (s *Server) mountedBelow() (bool, error) {
	mounts, err := mountsOf(s.device)
	for _, m := range mounts {
		if m.Mountpoint == s.mountPoint {
			return true, err
		}
	}
	return false, err
}

func (s *Server) unmountAt(path string) error {
	err := unmount(path, 0)
	if errors.Is(err, unix.EBUSY) {
		s.log.Warnf("%s is in use; it is detached, and served until its last user is gone", path)
		err = unmount(path, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil // no longer a mount point: somebody was faster
	}
	return err
}

// Stop ends the service for who still uses the disk after Unmount: changes under way are finished, later ones
// fail, and the image is left clean. The process is to end then; until it does, reads are answered.
func (s *Server) Stop() error {
	s.fs.compactor.end()
	s.disk.close()
	return s.disk.Clean()
}

// Check reads from the disk as a request of the kernel would, and returns an error where that fails.
func (s *Server) Check() error {
	buf := make([]byte, statUnit)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}, Size: uint32(len(buf))}
	result, status := s.fs.Read(nil, in, buf)
	if !status.Ok() {
		return fmt.Errorf("read of the disk: %w", syscall.Errno(status))
	}
	_, status = result.Bytes(buf)
	result.Done()
	if !status.Ok() {
		return fmt.Errorf("read of the disk: %w", syscall.Errno(status))
	}
	return nil
}

// DetachDead is for when Wait has returned. It takes away the mount if that is still there, because the
// connection was cut below it, and returns an error that says so.
func (s *Server) DetachDead() error {
	mounts, err := mountsOf(s.device)
	if err != nil {
		return nil // without a mount table nothing can be said
	}
	var cut bool
	for i := len(mounts) - 1; i >= 0; i-- {
		path := mounts[i].Mountpoint
		// The number of the device is another mount's as soon as ours is gone, so this must be seen to be dead.
		if dead, err := isDead(path); err != nil || !dead {
			continue
		}
		cut = true
		if err := unmount(path, unix.MNT_DETACH); err != nil {
			s.log.WithError(err).Errorf("the dead mount at %s cannot be removed", path)
		}
	}
	if !cut {
		return nil
	}
	return fmt.Errorf("the connection of %s was cut, as by umount -f; who used the disk has got errors, and lost what was not synced", s.mountPoint)
}

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

// setReadAhead lets the kernel read ahead as much as one request can carry: at mount it allows 128 KiB and
// no more. Only root may change that; for others reading is somewhat slower, which is no error.
func (s *Server) setReadAhead() {
	name := "/sys/class/bdi/" + s.device + "/read_ahead_kb"
	if err := os.WriteFile(name, strconv.AppendInt(nil, maxRequest>>10, 10), 0); err != nil {
		s.log.WithError(err).Debug("read-ahead left at the kernel's default")
	}
}
