package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// notifyInvalInode is what tells the kernel that what it has cached of a file does not count any more.
const notifyInvalInode = 2

// DropCache has the kernel forget what it has cached of disk.raw, when that is not the disk's any more. It returns at once: the
// kernel waits for requests that are under way.
func (s *Server) DropCache() {
	go func() {
		defer fault.Reported(s.log)
		var b struct {
			fuse.OutHeader
			inode       uint64
			off, length int64 // all
		}
		b.OutHeader = fuse.OutHeader{Length: uint32(unsafe.Sizeof(b)), Status: notifyInvalInode}
		b.inode = diskNode
		if _, err := unix.Write(s.transport.device, unsafe.Slice((*byte)(unsafe.Pointer(&b)), unsafe.Sizeof(b))); err != nil {
			s.log.WithError(err).Debug("the kernel keeps its cache of disk.raw")
		}
	}()
}
