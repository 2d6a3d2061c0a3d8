package fs

import (
	"bytes"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The numbers of requests in the kernel's protocol.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opStatFs      = 17
	opInit        = 26
	opBatchForget = 42
)

// request returns the bytes of a request with the given body, for the disk.
func request[T any](opcode uint32, node uint64, in *T, name string) []byte {
	b := append(bytes.Clone(bytesOf(in)), name...)
	h := (*fuse.InHeader)(unsafe.Pointer(&b[0]))
	h.Length, h.Opcode, h.Unique, h.NodeId = uint32(len(b)), opcode, 77, node
	return b
}

// TestProtocol holds what protocol says that it relies on. A new version of go-fuse that breaks it must not be taken.
func TestProtocol(t *testing.T) {
	fsys := newTestFileSystem(t, newFakeDisk(t), Options{})
	header := func(b []byte) *fuse.OutHeader { return (*fuse.OutHeader)(unsafe.Pointer(&b[0])) }
	for _, tc := range []struct {
		name    string
		request []byte
		size    int // bytes of the reply
		errno   unix.Errno
	}{
		{"LOOKUP", request(opLookup, rootNode, &fuse.InHeader{}, "disk.raw\x00"), headerSize + int(unsafe.Sizeof(fuse.EntryOut{})), 0},
		{"GETATTR", request(opGetAttr, diskNode, &fuse.GetAttrIn{}, ""), headerSize + int(unsafe.Sizeof(fuse.AttrOut{})), 0},
		{"STATFS", request(opStatFs, diskNode, &fuse.InHeader{}, ""), headerSize + int(unsafe.Sizeof(fuse.StatfsOut{})), 0},
		{"an error", request(opLseek, rootNode, &fuse.LseekIn{}, ""), headerSize, unix.EINVAL},
		{"an unknown request", request(4000, diskNode, &fuse.InHeader{}, "body"), headerSize, unix.ENOSYS},
		{"FORGET", request(opForget, diskNode, &fuse.ForgetIn{}, ""), 0, 0},
		{"BATCH_FORGET", request(opBatchForget, diskNode, &fuse.InHeader{}, "\x00\x00\x00\x00\x00\x00\x00\x00"), 0, 0},
	} {
		p := newProtocol(fsys, &Options{Log: quiet()}) // which has seen no INIT
		out := bytes.Repeat([]byte{0xA5}, pageSize)
		req := bytes.Clone(tc.request)
		reply, status := p.handle(req, out)
		if status != fuse.OK || len(reply) != tc.size {
			t.Errorf("%s: status %v, a reply of %d bytes; want %d", tc.name, status, len(reply), tc.size)
			continue
		}
		if !bytes.Equal(req, tc.request) {
			t.Errorf("%s: the request was changed", tc.name)
		}
		if tc.size == 0 {
			continue
		}
		if h := header(reply); &reply[0] != &out[0] || int(h.Length) != tc.size || h.Unique != 77 || h.Status != -int32(tc.errno) {
			t.Errorf("%s: reply %+v; want %d bytes, request 77, error %d", tc.name, *h, tc.size, tc.errno)
		}
		if rest := out[tc.size:]; bytes.Count(rest, []byte{0xA5}) != len(rest) {
			t.Errorf("%s: what lies behind the reply was changed", tc.name)
		}
	}

	p := newProtocol(fsys, &Options{Log: quiet()})
	attr := request(opGetAttr, diskNode, &fuse.GetAttrIn{}, "")
	for name, c := range map[string]struct{ req, out []byte }{
		"a request that is too short":        {attr[:20], make([]byte, pageSize)},
		"a reply for which there is no room": {attr, make([]byte, headerSize+8)},
	} {
		if reply, status := p.handle(c.req, c.out); status == fuse.OK || len(reply) != 0 {
			t.Errorf("%s: status %v, a reply of %d bytes", name, status, len(reply))
		}
	}
}

// What INIT settles: the sizes for which the buffers are made, and what the kernel is told that the file system can do.
func TestProtocolInit(t *testing.T) {
	const offered = 1<<64 - 1 - uint64(fuse.CAP_INIT_EXT) // all that a kernel can say, in both words
	for _, writeback := range []bool{false, true} {
		o := &Options{Log: quiet(), WritebackCache: writeback}
		p := newProtocol(newTestFileSystem(t, newFakeDisk(t), Options{}), o)
		in := fuse.InitIn{Major: 7, Minor: 45, MaxReadAhead: 64 << 20, Flags: uint32(offered&(1<<32-1)) | fuse.CAP_INIT_EXT, Flags2: uint32(offered >> 32)}
		buf := make([]byte, pageSize)
		reply, err := p.initialize(request(opInit, 0, &in, ""), buf)
		if err != nil {
			t.Fatal(err)
		}
		const size = 64 // of fuse_init_out in the kernel, bytes
		if len(reply) != headerSize+size || unsafe.Sizeof(fuse.InitOut{}) != size {
			t.Fatalf("a reply of %d bytes, for a structure of %d", len(reply), unsafe.Sizeof(fuse.InitOut{}))
		}
		out := (*fuse.InitOut)(unsafe.Pointer(&reply[headerSize]))
		if out.Major != 7 || out.Minor < 28 {
			t.Errorf("version %d.%d", out.Major, out.Minor)
		}
		if out.MaxWrite != maxRequest || out.MaxPages != maxRequest/pageSize || out.MaxReadAhead != maxRequest || out.MaxBackground != maxBackground {
			t.Errorf("sizes %+v; want requests of %d bytes, and %d in the background", *out, maxRequest, maxBackground)
		}
		want := o.capabilities()
		if got := out.Flags64(); got&want != want {
			t.Errorf("capabilities %#x lack %#x", got, want&^got)
		}
		if got := out.Flags64()&fuse.CAP_WRITEBACK_CACHE != 0; got != writeback {
			t.Errorf("a writeback cache: %v, want %v", got, writeback)
		}
		if out.Flags64()&fuse.CAP_AUTO_INVAL_DATA != 0 || out.Flags64()&fuse.CAP_EXPLICIT_INVAL_DATA == 0 {
			t.Errorf("capabilities %#x let the kernel drop what it has cached of the disk", out.Flags64())
		}
	}
}

// slowSeek is a disk whose SeekData waits to be let go, and says that it does.
type slowSeek struct {
	*fakeDisk
	began, letGo chan struct{}
}

func (d slowSeek) SeekData(off int64) (int64, error) {
	close(d.began)
	<-d.letGo
	return off, nil
}

// Requests from many workers are decoded at the same time, also while one of them takes long.
func TestProtocolDoesNotSerialize(t *testing.T) {
	d := slowSeek{newFakeDisk(t), make(chan struct{}), make(chan struct{})}
	p := newProtocol(newTestFileSystem(t, d, Options{}), &Options{Log: quiet()})
	var wg sync.WaitGroup
	wg.Go(func() {
		p.handle(request(opLseek, diskNode, &fuse.LseekIn{Whence: unix.SEEK_DATA}, ""), make([]byte, pageSize))
	})
	<-d.began
	for range 10 {
		if _, status := p.handle(request(opGetAttr, diskNode, &fuse.GetAttrIn{}, ""), make([]byte, pageSize)); status != fuse.OK {
			t.Error(status)
		}
	}
	close(d.letGo)
	wg.Wait()
}

// A line of go-fuse's log is one of ours, with any number of line feeds at its end.
func TestLogOfTheProtocol(t *testing.T) {
	for text, want := range map[string]string{"": "", "\n": "", "\n\n": "", "a": "a", "a\n": "a", "a\nb\n\n": "a\nb"} {
		if got := trimNewline([]byte(text)); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}
