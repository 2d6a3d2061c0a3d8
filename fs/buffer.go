package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	pageSize        = 4096 // bytes
	headerSize      = int(unsafe.Sizeof(fuse.OutHeader{}))
	writeHeaderSize = int(unsafe.Sizeof(fuse.WriteIn{}))
)

// A buffer holds a request, and then its reply. What is to be written begins at the page data, with the header of the
// request before it; what was read begins there, too, with the header of the reply before it.
type buffer struct {
	spare [pageSize]byte
	data  [maxRequest]byte
}

// newBuffer returns a buffer that begins at a page: the kernel copies whole pages faster.
func newBuffer() *buffer {
	room := make([]byte, unsafe.Sizeof(buffer{})+pageSize)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(room))) % pageSize
	return (*buffer)(unsafe.Pointer(&room[skip]))
}

// all is the whole buffer.
func (b *buffer) all() []byte { return unsafe.Slice(&b.spare[0], unsafe.Sizeof(*b)) }

// request is where a request belongs.
func (b *buffer) request() []byte { return b.all()[pageSize-writeHeaderSize:] }

// reply is where the reply with n bytes of data belongs, the first headerSize bytes of which are the header's.
func (b *buffer) reply(n int) []byte { return b.all()[pageSize-headerSize : pageSize+n] }

// bytesOf returns the memory of a value without pointers.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
