package fs

import (
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdxfs/vhdx"
)

const (
	maxRequest = 1 << 20 // bytes: the largest request that Linux makes without being tuned
	minZeroRun = 4 << 10 // bytes: shorter zeros are cleared in the buffer, which keeps the parts of a reply few
)

// zeros answers for what nothing holds. No code writes to it, so all of it is the kernel's one page of zeros.
var zeros [maxRequest]byte

// endOfFile is the reply to a read at or behind the end of the disk.
var endOfFile = fuse.ReadResultData(nil)

// A reply answers a READ with parts that lie in the request's buffer or in zeros. The transport hands them to
// writev(2) as they are, and calls Done when the kernel has them. Replies are reused.
type reply struct {
	disk    Disk
	epoch   uint64 // what EndRead wants
	extents []vhdx.Extent
	parts   [][]byte
	size    int // bytes in parts
}

var replies = sync.Pool{New: func() any { return new(reply) }}

// newReply begins to read from disk. Done ends it.
func newReply(disk Disk) *reply {
	r := replies.Get().(*reply)
	r.disk, r.epoch = disk, disk.BeginRead()
	return r
}

// fill reads the reply's extents, which begin at byte off of the disk, into buf. It calls slow before it waits.
func (r *reply) fill(buf []byte, off int64, slow func()) error {
	pending := 0 // buf[pending:pos] is ready, and not yet a part
	pos := 0
	for _, e := range r.extents {
		if e.DiskOff != off+int64(pos) || e.Len <= 0 || e.Len > int64(len(buf)-pos) {
			return fmt.Errorf("extent of %d bytes at %d does not continue the read at %d", e.Len, e.DiskOff, off+int64(pos))
		}
		p := buf[pos : pos+int(e.Len)]
		switch {
		case e.File != nil:
			if err := readExtent(p, e, slow); err != nil {
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

// Size returns the length of the reply in bytes.
func (r *reply) Size() int { return r.size }

// Slices returns the parts.
func (r *reply) Slices() ([][]byte, fuse.Status) { return r.parts, fuse.OK }

// Bytes returns the parts in one piece, for a server that cannot send them one by one. A part that lies
// in buf is already at its place there.
func (r *reply) Bytes(buf []byte) ([]byte, fuse.Status) {
	n := 0
	for _, p := range r.parts {
		n += copy(buf[n:], p)
	}
	return buf[:n], fuse.OK
}

// Done makes the reply available for another request. The slices keep their room, but no file or buffer.
func (r *reply) Done() {
	r.disk.EndRead(r.epoch)
	r.disk = nil
	clear(r.extents)
	clear(r.parts)
	r.extents, r.parts, r.size = r.extents[:0], r.parts[:0], 0
	replies.Put(r)
}
