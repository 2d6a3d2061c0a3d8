package fs

import (
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// minSplice is the shortest read, in bytes, that is answered through a pipe, which saves copying it to user space. For a
// shorter one the extra system calls cost more than the copy (even at 64 KiB, a fifth less CPU time at 256 KiB, as
// measured on Linux 6.18).
const minSplice = 128 << 10

// maxRead is the longest read that the kernel may ask for, in bytes; of a longer one by a program it makes several. A pipe
// holds 1 MiB at most (fs.pipe-max-size), and with it the reply's header, so a read of 1 MiB would have to be copied.
const maxRead = 512 << 10

func spliceable(n int) bool {
	return n >= minSplice && splice.Resizable() && n <= splice.MaxPipeSize()-2*os.Getpagesize()
}

// prepareSplice lets go-fuse open what it opens at the first use of a pipe: /dev/null, into which one is emptied. Where it
// cannot, it panics, so that has to be before reads under way have taken all descriptors there are.
func prepareSplice() error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	null.Close()
	pipe, err := splice.Get()
	if err != nil {
		return err
	}
	splice.Done(pipe)
	return nil
}

// loadPipe returns a pipe with the reply's header and n bytes of e, and nil where they must be read otherwise: then
// the caller reads them, and learns of the error, if it was one.
func loadPipe(e vhdx.Extent, n int, unique uint64) *splice.Pair {
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
	head := fuse.OutHeader{Length: uint32(headerSize + n), Unique: unique}
	err = pipe.Grow(n + 2*os.Getpagesize()) // one page for the header, one for a range that does not begin at a page
	if err == nil {
		if _, err = pipe.Write(bytesOf(&head)); err == nil {
			if got, err := pipe.LoadFromAt(fd, n, e.FileOff); err == nil && got == n {
				return pipe
			}
		}
	}
	splice.Drop(pipe)
	return nil
}

// sendPipe hands the kernel the reply that the pipe holds.
func (r *reply) sendPipe(device int) error {
	n, err := r.pipe.WriteTo(uintptr(device), headerSize+r.size)
	switch {
	case err != nil:
		return err
	case n != headerSize+r.size:
		return fmt.Errorf("the kernel took %d bytes of a reply of %d", n, headerSize+r.size)
	}
	r.sent = true
	return nil
}

// pipeBytes takes the data out of the pipe.
func (r *reply) pipeBytes(buf []byte) ([]byte, error) {
	var head fuse.OutHeader
	if _, err := r.pipe.Read(bytesOf(&head)); err != nil {
		return nil, err
	}
	n, err := r.pipe.Read(buf[:r.size])
	return buf[:max(n, 0)], err
}

// endPipe lets the pipe be used again, unless it was not emptied.
func (r *reply) endPipe() {
	if r.sent {
		splice.Done(r.pipe)
	} else {
		splice.Drop(r.pipe)
	}
}
