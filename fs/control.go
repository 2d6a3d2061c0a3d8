package fs

import (
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// A control answers questions over the socket of a mount as its attributes do.
type control struct {
	s      *Server
	device int // another descriptor of the connection
}

var _ mounts.Handler = (*control)(nil)

func (c *control) Get(name string) (string, bool) { return c.s.fs.xattr(name) }

func (c *control) Set(name string, value []byte) syscall.Errno {
	if c.s.readOnly() { // which the kernel says of an attribute that is set
		return unix.EROFS
	}
	if name == mounts.CleanOrder {
		if c.s.fs.disk.Clean() != nil {
			return unix.EIO
		}
		return 0
	}
	return syscall.Errno(c.s.fs.order(name, value))
}

// holdPatience is how long it is tried to find a moment without changes.
const holdPatience = time.Second

// Hold finds a moment in which nothing changes the disk, and keeps changes waiting from then on until release.
func (c *control) Hold() (release func(), held bool) {
	for end := time.Now().Add(holdPatience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c.s.disk.mu.TryLock() { // and not Lock: what goes on may take long, and later changes would wait for it, too
			return c.s.disk.mu.Unlock, true
		}
	}
	return func() {}, false
}

// Alive reports whether the mount is still there. When it has gone, another may have the number of its device.
func (c *control) Alive() bool {
	poll := []unix.PollFd{{Fd: int32(c.device)}}
	_, err := unix.Poll(poll, 0)
	return err == nil && poll[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

// serveControl answers over a socket, until end is called. Where that is not possible the attributes do.
func (s *Server) serveControl(device int) (end func()) {
	fd, err := unix.FcntlInt(uintptr(device), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil || s.device == "" {
		return func() {}
	}
	var socket io.Closer
	bound, err := s.mounter.ControlSocket()
	if err == nil {
		socket, err = mounts.Serve(bound, &control{s, fd}, s.log)
	}
	if err != nil {
		s.log.WithError(err).Debug("no socket; the mount is asked by its attributes")
		unix.Close(fd)
		return func() {}
	}
	return func() {
		socket.Close()
		unix.Close(fd)
	}
}
