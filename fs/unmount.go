package fs

import (
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Unmount takes the mount away, also one that was moved or is bound to other places. While something still uses
// it, only its name goes. Programs and loop devices that have disk.raw open are served until the last of them closes it,
// and then Wait returns.
func (s *Server) Unmount() error {
	if s.ended() {
		return nil
	}
	return s.mounter.Unmount()
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

// Stop ends the service for programs that still use the disk after Unmount: changes under way are finished, later ones
// fail, and the image is left clean. The process is to end then; until it does, reads are answered.
func (s *Server) Stop() error {
	s.fs.compactor.end()
	s.fs.merger.end()
	s.disk.close()
	return s.disk.Clean()
}

// Check reads from the disk as a request of the kernel would, and returns an error where that fails.
func (s *Server) Check() error {
	buf := make([]byte, statUnit)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: diskNode}, Size: uint32(len(buf))}
	r, status := s.fs.read(in, buf, func() {})
	if !status.Ok() {
		return fmt.Errorf("read of the disk: %w", syscall.Errno(status))
	}
	defer r.Done()
	if _, err := r.bytes(buf); err != nil {
		return fmt.Errorf("read of the disk: %w", err)
	}
	return nil
}

// DetachDead is for when Wait has returned. It takes away the mount if that is still there, because the
// connection was cut below it, and returns an error that says so.
func (s *Server) DetachDead() error { return s.mounter.DetachDead() }
