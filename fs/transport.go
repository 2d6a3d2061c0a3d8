package fs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// maxWorkers bounds the requests that are served at once, and with them the memory for their data. More of them wait
// in the kernel: memory that the system is short of may be waiting for these very writes.
const maxWorkers = 64

// A transport takes the kernel's requests from the FUSE device, and brings back the replies. READ and WRITE, which
// are nearly all of them, it hands to the file system as they are; go-fuse decodes the others. Its workers do that.
type transport struct {
	device   int // descriptor of the connection
	fs       *fileSystem
	protocol *protocol
	log      logrus.FieldLogger
	buffers  sync.Pool // of *buffer

	workers atomic.Int32   // all there are
	waiting atomic.Int32   // those that wait for a request, or will again in a moment
	running sync.WaitGroup // of workers
}

func newTransport(device int, fs *fileSystem, o *Options) *transport {
	return &transport{
		device:   device,
		fs:       fs,
		protocol: newProtocol(fs, o),
		log:      o.Log,
		buffers:  sync.Pool{New: func() any { return newBuffer() }},
	}
}

// initialize answers INIT. Until it is answered, the kernel sends no other request.
func (t *transport) initialize() error {
	b := t.buffers.Get().(*buffer)
	defer t.buffers.Put(b)
	req, err := t.receive(b)
	if err != nil {
		return err
	}
	reply, err := t.protocol.initialize(req, b.spare[:])
	if err != nil {
		return err
	}
	_, err = unix.Write(t.device, reply)
	return err
}

// start begins to serve requests.
func (t *transport) start() { t.startWorker() }

// wait returns when the connection has ended and every request is answered, and closes the device.
func (t *transport) wait() {
	t.running.Wait()
	unix.Close(t.device)
}

// receive returns the next request, which lies in b.
func (t *transport) receive(b *buffer) ([]byte, error) {
	p := b.request()
	for {
		n, err := unix.Read(t.device, p)
		switch {
		case err == nil && n >= int(unsafe.Sizeof(fuse.InHeader{})):
			return p[:n], nil
		case err == nil:
			return nil, fmt.Errorf("a request of %d bytes", n)
		case !passing(err):
			return nil, err
		}
	}
}

// passing reports whether the device can be read again after an error: nothing has happened, or the request was taken back
// (ENOENT), or the kernel had no memory to hand it over and has answered it (ENOMEM).
func passing(err error) bool {
	return err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT || err == unix.ENOMEM
}

// serve answers the request req, which lies in the worker's buffer.
func (w *worker) serve(req []byte) {
	t := w.transport
	h := (*fuse.InHeader)(unsafe.Pointer(&req[0]))
	unique, kind := h.Unique, h.Opcode // the reply may overwrite the request
	err := w.answer(req, h)
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
	case errors.Is(err, unix.ENOENT): // the request was aborted, or it was an INTERRUPT that came too late
	default:
		fault.Report(t.log, err)
		t.log.WithError(err).Errorf("cannot answer request %d of kind %d", unique, kind)
		t.sendError(unique, fuse.EIO) // else the caller would never get an answer
	}
}

// answer answers the request req, whose header is h. A panic is an error of the request: the others, and what was written,
// depend on this process.
func (w *worker) answer(req []byte, h *fuse.InHeader) (err error) {
	t, unique := w.transport, h.Unique
	defer fault.Catch(&err)
	switch {
	case h.Opcode == opRead && len(req) >= int(unsafe.Sizeof(fuse.ReadIn{})):
		err = w.read((*fuse.ReadIn)(unsafe.Pointer(h)))
	case h.Opcode == opWrite && len(req) >= writeHeaderSize:
		w.stepAside()
		err = w.write((*fuse.WriteIn)(unsafe.Pointer(h)), req[writeHeaderSize:])
	case h.Opcode == opInterrupt:
		err = t.sendError(unique, fuse.ENOSYS) // no request can be interrupted, and the kernel need not ask again
	default:
		w.stepAside()
		err = t.other(req, unique)
	}
	return err
}

// other answers all that is rare.
func (t *transport) other(req []byte, unique uint64) error {
	b := t.buffers.Get().(*buffer)
	defer t.buffers.Put(b)
	reply, status := t.protocol.handle(req, b.all())
	switch {
	case status != fuse.OK:
		return t.sendError(unique, status)
	case len(reply) == 0: // as for FORGET
		return nil
	}
	_, err := unix.Write(t.device, reply)
	return err
}

func (t *transport) sendError(unique uint64, status fuse.Status) error {
	head := fuse.OutHeader{Length: uint32(headerSize), Status: -int32(status), Unique: unique}
	_, err := unix.Write(t.device, bytesOf(&head))
	return err
}
