package fs

import (
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"

	"vhdxfs/vhdx"
)

// Reads of these lengths, in bytes, are answered through a pipe, which saves copying them to user space.
// For a shorter one the extra system calls cost more than the copy (even at 64 KiB, a fifth less CPU time
// at 256 KiB, as measured on Linux 6.18); a longer one does not fit into a pipe together with the reply's
// header, since a pipe holds 1 MiB at most (fs.pipe-max-size).
const (
	minSplice = 128 << 10
	maxSplice = 1<<20 - 2*4096
)

func spliceable(n int) bool {
	return n >= minSplice && n <= maxSplice && splice.Resizable() && n <= splice.MaxPipeSize()-2*os.Getpagesize()
}

// A pipeReply answers a READ with bytes in a pipe. They are still pages of the image file, so the read lasts until
// the kernel has taken them. It is what fuse.ReadResultPipe returns, with that added.
type pipeReply struct {
	reply *reply
	pipe  *splice.Pair
	size  int // bytes
}

// loadPipe returns a pipe with n bytes of e, and nil where they must be read otherwise. fuse.ReadResultFd would fill
// the pipe only when the reply is sent, and answer with fewer bytes where the file cannot be read; here the caller
// then reads again, and learns the error.
func loadPipe(e vhdx.Extent, n int) *splice.Pair {
	if e.File == nil || e.Len != int64(n) {
		return nil
	}
	fd, ok := e.Fd()
	if !ok {
		return nil
	}
	pipe, err := splice.Get()
	if err != nil {
		return nil
	}
	err = pipe.Grow(n + os.Getpagesize()) // a page more, for a range that does not begin at a page
	if err == nil {
		if got, err := pipe.LoadFromAt(fd, n, e.FileOff); err == nil && got == n {
			return pipe
		}
	}
	splice.Done(pipe)
	return nil
}

// Size returns the length of the reply in bytes.
func (r *pipeReply) Size() int { return r.size }

// Stateful makes go-fuse splice the bytes from the pipe to the kernel.
func (r *pipeReply) Stateful() (fd uintptr, n int) { return r.pipe.ReadFd(), r.size }

// Bytes takes the bytes out of the pipe, for a server that cannot splice them.
func (r *pipeReply) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := r.pipe.Read(buf[:r.size])
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return buf[:n], fuse.OK
}

// Done ends the read.
func (r *pipeReply) Done() {
	splice.Done(r.pipe)
	r.reply.Done()
}
