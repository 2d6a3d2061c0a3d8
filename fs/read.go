package fs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/tally"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

func (f *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	switch {
	case !f.access(&in.InHeader):
		return fuse.EACCES
	case in.NodeId != diskNode:
		return fuse.EISDIR
	}
	// The image cannot change beneath the mount, so what the kernel has cached of it stays right.
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	if f.directIO {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	if f.kernel.id != 0 {
		return f.openPassed(in, out)
	}
	switch write := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY; {
	case (write || in.Flags&syscall.O_TRUNC != 0) && !f.writable:
		return fuse.EROFS
	case in.Flags&syscall.O_TRUNC != 0: // the kernel asks SetAttr instead
		return fuse.EPERM
	case write:
		out.Fh = writeHandle
		f.writers.Add(1)
	default:
		out.OpenFlags |= fuse.FOPEN_NOFLUSH // where nothing was written, a close has nothing to report
	}
	return fuse.OK
}

// openPassed opens disk.raw for reads that the kernel answers.
func (f *fileSystem) openPassed(in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	switch {
	case in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY || in.Flags&syscall.O_TRUNC != 0:
		return fuse.EROFS
	case in.Flags&unix.O_DIRECT != 0: // as of any file that knows none; programs have another way then, or say what is wrong
		return fuse.EINVAL
	}
	out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH|fuse.FOPEN_NOFLUSH, f.kernel.id
	f.counters.passedOpens.Inc()
	return fuse.OK
}

// maxQuick is the longest read, in bytes, that is answered from memory at once: to copy a longer one takes as
// long as another thread needs to wake up.
const maxQuick = 64 << 10

// read answers a READ with all of the bytes asked for that the disk has, or with an error. It must not answer with fewer: the
// kernel takes a short reply for the end of the file and shortens the file to it. What is read may lie in buf. It calls aside
// before anything that may take long.
func (f *fileSystem) read(in *fuse.ReadIn, buf []byte, aside func()) (*reply, fuse.Status) {
	if in.NodeId != diskNode {
		return nil, fuse.EISDIR
	}
	off, size := int64(0), f.disk.Size()
	if in.Offset < uint64(size) {
		off = int64(in.Offset)
		buf = buf[:min(int64(len(buf)), size-off)]
	} else {
		buf = nil
	}
	if len(buf) > maxQuick || len(buf) > 0 && !f.disk.InMemory(off, int64(len(buf))) {
		aside()
	}
	r := newReply(f.disk, aside)
	answered := false
	defer func() { // also where a fault of this program ends it: space that a read may look at is never used again
		if !answered {
			r.Done()
		}
	}()
	if len(buf) > 0 {
		if status := f.readInto(r, buf, off, in.Unique); status != fuse.OK {
			return nil, status
		}
	}
	answered = true
	return r, fuse.OK
}

// readInto lets r answer the request with the number unique with the bytes from off, as many as buf has room for.
func (f *fileSystem) readInto(r *reply, buf []byte, off int64, unique uint64) fuse.Status {
	var err error
	if r.extents, err = f.disk.Resolve(r.extents, off, int64(len(buf))); err != nil {
		return f.errno("resolve", off, err)
	}
	if len(r.extents) == 1 && spliceable(len(buf)) {
		if r.pipe = loadPipe(r.extents[0], len(buf), unique); r.pipe != nil {
			r.size = len(buf)
			f.countRead(len(buf), &f.counters.splicedReads)
			return fuse.OK
		}
	}
	if err := r.fill(buf, off); err != nil {
		return f.errno("read", off, err)
	}
	if r.zero() {
		f.countRead(len(buf), &f.counters.zeroReads)
	} else {
		f.countRead(len(buf), nil)
	}
	return fuse.OK
}

// countRead counts a read of n bytes, and that it was of the kind that another counter counts.
func (f *fileSystem) countRead(n int, kind *tally.Counter) {
	f.counters.reads.Inc()
	f.counters.readBytes.Add(int64(n))
	if kind != nil {
		kind.Inc()
	}
}

// readExtent fills p, which is the extent's length, from the file that holds the extent.
func (r *reply) readExtent(p []byte, e vhdx.Extent) error {
	if readCached(p, e) {
		return nil
	}
	r.aside()
	n, err := e.File.ReadAt(p, e.FileOff)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("layer %d at %#x of the image file: %w", e.Layer, e.FileOff+int64(n), err)
}

// readCached is readExtent for what the kernel has in its cache. It fails, for any reason, rather than wait.
func readCached(p []byte, e vhdx.Extent) bool {
	if len(p) > maxQuick {
		return false
	}
	fd, ok := e.Fd()
	if !ok {
		return false
	}
	n, err := unix.Preadv2(int(fd), [][]byte{p}, e.FileOff, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// Lseek serves SEEK_DATA and SEEK_HOLE; the kernel does the rest itself. While the kernel may hold writes that were not sent
// yet, all is data: it does not send them before it asks.
func (f *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.NodeId != diskNode {
		return fuse.EINVAL
	}
	if in.Offset > math.MaxInt64 || int64(in.Offset) >= f.disk.Size() {
		return fuse.Status(syscall.ENXIO)
	}
	off := int64(in.Offset)
	var to int64
	var err error
	switch {
	case in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE:
		return fuse.EINVAL
	case f.unsent && in.Whence == unix.SEEK_DATA:
		to = off
	case f.unsent:
		to = f.disk.Size()
	case in.Whence == unix.SEEK_DATA:
		to, err = f.disk.SeekData(off)
	default:
		to, err = f.disk.SeekHole(off)
	}
	switch {
	case errors.Is(err, io.EOF): // no data follows; no error either, so it is not logged
		return fuse.Status(syscall.ENXIO)
	case err != nil:
		return f.errno("seek", off, err)
	}
	f.counters.seeks.Inc()
	out.Offset = uint64(to)
	return fuse.OK
}
