package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A partsReply is a reply in parts, the bytes of which may lie in the buffer of the request.
type partsReply interface {
	Slices() ([][]byte, fuse.Status)
}

// read answers a READ, which lies in the worker's buffer.
func (w *worker) read(in *fuse.ReadIn) error {
	t, b, unique := w.transport, w.buf, in.Unique
	res, status := w.fs.read(in, b.data[:min(int(in.Size), len(b.data))], w.aside)
	if status != fuse.OK {
		return t.sendError(unique, status)
	}
	defer res.Done()
	if p, ok := res.(*pipeReply); ok {
		return p.send(t.device)
	}
	var parts [][]byte
	if r, ok := res.(partsReply); ok {
		parts, _ = r.Slices()
	}
	whole := b.reply(0)
	*(*fuse.OutHeader)(unsafe.Pointer(&whole[0])) = fuse.OutHeader{Length: uint32(headerSize + res.Size()), Unique: unique}
	var err error
	switch {
	case len(parts) == 0:
		_, err = unix.Write(t.device, whole)
	case len(parts) == 1 && &parts[0][0] == &b.data[0]:
		_, err = unix.Write(t.device, b.reply(len(parts[0])))
	default:
		_, err = unix.Writev(t.device, append([][]byte{whole}, parts...))
	}
	return err
}

// write answers a WRITE of data.
func (w *worker) write(in *fuse.WriteIn, data []byte) error {
	n, status := w.fs.Write(nil, in, data[:min(int(in.Size), len(data))])
	if status != fuse.OK {
		return w.sendError(in.Unique, status)
	}
	var reply struct {
		fuse.OutHeader
		fuse.WriteOut
	}
	reply.Length, reply.Unique, reply.Size = uint32(unsafe.Sizeof(reply)), in.Unique, n
	_, err := unix.Write(w.device, bytesOf(&reply))
	return err
}
