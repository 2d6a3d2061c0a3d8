package fs

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

const (
	maxRequest = 1 << 20 // bytes: the largest request that Linux makes without being tuned
	minZeroRun = 4 << 10 // bytes: shorter zeros are cleared in the buffer, which keeps the parts of a reply few
)

// zeros answers for what nothing holds. No code writes to it, so all of it is the kernel's one page of zeros.
var zeros [maxRequest]byte

// A reply answers a READ with parts that lie in the request's buffer or in zeros, or with a pipe. Done is called when the
// kernel has it. Replies are reused.
type reply struct {
	disk    Content
	aside   func() // called before anything that may take long
	epoch   uint64 // what EndRead wants
	extents []vhdx.Extent
	parts   [][]byte
	size    int // bytes of data

	// pipe holds the header and the data, and is nil for a reply in parts. The data are still pages of the image file, so the
	// read lasts until the kernel has taken them.
	pipe *splice.Pair
	sent bool // the pipe is empty again
}

var replies = sync.Pool{New: func() any { return new(reply) }}

// newReply begins to read from disk. Done ends it.
func newReply(disk Content, aside func()) *reply {
	r := replies.Get().(*reply)
	r.disk, r.aside, r.epoch = disk, aside, disk.BeginRead()
	return r
}

// fill reads the reply's extents, which begin at byte off of the disk, into buf.
func (r *reply) fill(buf []byte, off int64) error {
	pending := 0 // buf[pending:pos] is ready, and not yet a part
	pos := 0
	for _, e := range r.extents {
		if e.DiskOff != off+int64(pos) || e.Len <= 0 || e.Len > int64(len(buf)-pos) {
			return fmt.Errorf("extent of %d bytes at %d does not continue the read at %d", e.Len, e.DiskOff, off+int64(pos))
		}
		p := buf[pos : pos+int(e.Len)]
		switch {
		case e.File != nil:
			if err := r.readExtent(p, e); err != nil {
				return err
			}
		case len(p) < minZeroRun || len(p) > len(zeros):
			clear(p)
		default:
			r.add(buf[pending:pos])
			r.add(zeros[:len(p)])
			pending = pos + len(p)
		}
		pos += len(p)
	}
	r.add(buf[pending:pos])
	if r.size != len(buf) {
		return fmt.Errorf("extents hold %d of %d bytes at %d", r.size, len(buf), off)
	}
	return nil
}

// zero reports whether no file holds any of the reply.
func (r *reply) zero() bool {
	for _, e := range r.extents {
		if e.File != nil {
			return false
		}
	}
	return true
}

func (r *reply) add(part []byte) {
	if len(part) > 0 {
		r.parts = append(r.parts, part)
		r.size += len(part)
	}
}

// send hands the reply to the request with the number unique to the kernel. b is the request's buffer.
func (r *reply) send(device int, unique uint64, b *buffer) error {
	if r.pipe != nil {
		return r.sendPipe(device)
	}
	whole := b.reply(0)
	*(*fuse.OutHeader)(unsafe.Pointer(&whole[0])) = fuse.OutHeader{Length: uint32(headerSize + r.size), Unique: unique}
	var err error
	switch {
	case len(r.parts) == 0:
		_, err = unix.Write(device, whole)
	case len(r.parts) == 1 && &r.parts[0][0] == &b.data[0]: // it lies behind the header
		_, err = unix.Write(device, b.reply(r.size))
	default:
		_, err = unix.Writev(device, append([][]byte{whole}, r.parts...))
	}
	return err
}

// bytes returns the data in one piece. A part that lies in buf is already at its place there.
func (r *reply) bytes(buf []byte) ([]byte, error) {
	if r.pipe != nil {
		return r.pipeBytes(buf)
	}
	n := 0
	for _, p := range r.parts {
		n += copy(buf[n:], p)
	}
	return buf[:n], nil
}

// Done makes the reply available for another request. The slices keep their room, but no file or buffer.
func (r *reply) Done() {
	if r.pipe != nil {
		r.endPipe()
	}
	r.disk.EndRead(r.epoch)
	clear(r.extents)
	clear(r.parts)
	*r = reply{extents: r.extents[:0], parts: r.parts[:0]}
	replies.Put(r)
}
