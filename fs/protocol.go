package fs

import (
	"fmt"
	"log"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// The requests that the transport does not leave to go-fuse, by their numbers in the kernel's protocol.
const (
	opRead      = 15
	opWrite     = 16
	opInterrupt = 36
)

// A protocol decodes requests, calls the file system and encodes its replies. It is the only place that uses go-fuse's
// ProtocolServer, whose interface may change with any version. What is relied on, and what TestProtocol holds:
//
//   - A call takes one whole request in one piece. The reply, or nothing, lies at the beginning of out when it returns.
//   - A reply begins with its length, which is the one that is returned, and with the number of the request.
//   - An error of the file system, and a request that is not known, is a reply of a header alone. A request that is too short,
//     or a reply that out has no room for, is a status and no reply.
//   - INIT is decoded like all requests. It settles the version and the sizes that the options name, and no request before
//     it is needed.
//   - FORGET and BATCH_FORGET have no reply.
//   - Neither request nor out is used after the return, and calls from several goroutines do not wait for each other.
type protocol struct {
	server *fuse.ProtocolServer
}

func newProtocol(fs *fileSystem, o *Options) *protocol {
	return &protocol{fuse.NewProtocolServer(fs, &fuse.MountOptions{
		Name:                     mounts.TypeName,
		MaxWrite:                 maxRequest,
		MaxReadAhead:             maxRequest,
		MaxBackground:            maxBackground,
		ExtraCapabilities:        o.capabilities(),
		ExplicitDataCacheControl: true, // else a new mtime, after each write, makes the kernel drop what it has cached
		Logger:                   log.New(logWriter{o.Log}, "", 0),
	})}
}

// handle has a request decoded and answered, and returns the reply, which lies in out. It has no bytes if there is none.
func (p *protocol) handle(req, out []byte) ([]byte, fuse.Status) {
	n, status := p.server.HandleRequest([][]byte{req}, [][]byte{out})
	return out[:n], status
}

// initialize answers INIT, the kernel's first request, in which both sides say what they can do. It returns the reply, which
// lies in out.
func (p *protocol) initialize(req, out []byte) ([]byte, error) {
	reply, status := p.handle(req, out)
	if status != fuse.OK {
		return nil, fmt.Errorf("INIT: %w", syscall.Errno(status))
	}
	if head := (*fuse.OutHeader)(unsafe.Pointer(unsafe.SliceData(out))); len(reply) < headerSize || head.Status != 0 {
		return nil, fmt.Errorf("INIT was answered with the error %d", -head.Status)
	}
	return reply, nil
}
