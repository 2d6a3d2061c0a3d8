package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// read answers a READ, which lies in the worker's buffer.
func (w *worker) read(in *fuse.ReadIn) error {
	b, unique := w.buf, in.Unique // the reply may overwrite the request
	r, status := w.fs.read(in, b.data[:min(int(in.Size), len(b.data))], w.aside)
	if status != fuse.OK {
		return w.sendError(unique, status)
	}
	defer r.Done()
	return r.send(w.device, unique, b)
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
