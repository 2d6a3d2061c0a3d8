package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A fakeKernel is the other end of a transport: it sends requests, and receives their replies, as the device does,
// one in each packet.
type fakeKernel struct {
	t         *testing.T
	transport *transport
	socket    int
	unique    uint64
	log       *strings.Builder
}

func newFakeKernel(t *testing.T, d *fakeDisk) *fakeKernel {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &fakeKernel{t: t, socket: pair[0], log: new(strings.Builder)}
	log := logrus.New()
	log.SetOutput(k.log)
	k.transport = newTransport(pair[1], newTestFileSystem(t, d, Options{}), &Options{Log: log})
	k.transport.start()
	t.Cleanup(func() {
		unix.Close(k.socket) // workers read an empty packet, and end
		k.transport.wait()
	})
	return k
}

// send sends a request for the disk without a body of its own, and returns its number.
func (k *fakeKernel) send(opcode uint32, request []byte) uint64 {
	k.t.Helper()
	k.unique++
	h := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	h.Length, h.Opcode, h.Unique, h.NodeId = uint32(len(request)), opcode, k.unique, diskNode
	if _, err := unix.Write(k.socket, request); err != nil {
		k.t.Fatal(err)
	}
	return k.unique
}

func (k *fakeKernel) read(off uint64, n uint32) uint64 {
	return k.send(opRead, bytesOf(&fuse.ReadIn{Offset: off, Size: n}))
}

// receive returns the header of the next reply, and what follows it.
func (k *fakeKernel) receive() (fuse.OutHeader, []byte) {
	k.t.Helper()
	b := make([]byte, 256<<10)
	n, err := unix.Read(k.socket, b)
	if err != nil || n < headerSize {
		k.t.Fatalf("a reply of %d bytes, %v", n, err)
	}
	head := *(*fuse.OutHeader)(unsafe.Pointer(&b[0]))
	if int(head.Length) != n {
		k.t.Fatalf("a reply of %d bytes says that it has %d", n, head.Length)
	}
	return head, b[headerSize:n]
}

func (k *fakeKernel) expect(unique uint64, errno unix.Errno) []byte {
	k.t.Helper()
	head, body := k.receive()
	if head.Unique != unique || head.Status != -int32(errno) {
		k.t.Fatalf("reply %d with status %d; want reply %d with %d", head.Unique, head.Status, unique, -int32(errno))
	}
	return body
}

// A WRITE reaches the disk with its data, and is answered with their length; one that is cut off reaches nothing.
func TestWriteOverTheDevice(t *testing.T) {
	d := newWritable(nil)
	k := newFakeKernel(t, d)
	request := append(bytesOf(&fuse.WriteIn{Offset: 5, Size: 3}), "abc"...)
	body := k.expect(k.send(opWrite, request), 0)
	if got := (*fuse.WriteOut)(unsafe.Pointer(&body[0])).Size; got != 3 || d.take() != "write[5 abc]" {
		t.Errorf("%d bytes are written", got)
	}
	for _, n := range []int{writeHeaderSize - 1, int(unsafe.Sizeof(fuse.InHeader{}))} {
		head, _ := func() (fuse.OutHeader, []byte) { k.send(opWrite, request[:n]); return k.receive() }()
		if head.Status == 0 || d.take() != "" {
			t.Errorf("a request of %d bytes has the status %d", n, head.Status)
		}
	}
}

// halfZeros is a disk of which f holds the first MiB, and nothing the second.
func halfZeros(f imagefile.File) *fakeDisk {
	return &fakeDisk{
		extents: []vhdx.Extent{{Len: 1 << 20, File: f}, {DiskOff: 1 << 20, Len: 1 << 20}},
		want:    make([]byte, 2<<20),
	}
}

// slowFile is a file in which every read waits to be let go, and says that it does.
type slowFile struct {
	memory
	began chan struct{}
	letGo chan struct{}
}

func newSlowFile(room int) slowFile {
	return slowFile{began: make(chan struct{}, room), letGo: make(chan struct{})}
}

func (f slowFile) ReadAt(p []byte, off int64) (int, error) {
	f.began <- struct{}{}
	<-f.letGo
	return len(p), nil
}

// However many reads wait for the disk, others are answered, up to the number that bounds the memory.
func TestReadsThatWaitDoNotHoldUpOthers(t *testing.T) {
	slow := newSlowFile(maxWorkers)
	release := sync.OnceFunc(func() { close(slow.letGo) })
	d := halfZeros(slow)
	k := newFakeKernel(t, d)
	t.Cleanup(release)
	for i := range maxWorkers - 1 {
		k.read(0, 4096)
		<-slow.began
		if got := k.expect(k.read(1<<20, 4096), 0); len(got) != 4096 {
			t.Fatalf("with %d reads that wait: %d bytes", i+1, len(got))
		}
	}
	k.read(0, 4096)
	<-slow.began
	late := k.read(1<<20, 4096)
	release()
	seen := map[uint64]bool{}
	for range maxWorkers + 1 {
		head, _ := k.receive()
		if head.Status != 0 || seen[head.Unique] {
			t.Errorf("reply %d: status %d, seen before: %v", head.Unique, head.Status, seen[head.Unique])
		}
		seen[head.Unique] = true
	}
	if !seen[late] {
		t.Error("the request that had to wait for a worker was not answered")
	}
}

// One worker is enough for what is answered from memory, and for one request that waits a second one.
func TestWorkersAreFew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, randomBytes(1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cached, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer cached.Close()
	k := newFakeKernel(t, halfZeros(cached))
	for i := range 4 * maxStreak {
		k.expect(k.read(uint64(i%2)<<20, 4096), 0)
		if n := k.transport.workers.Load(); n != 1 {
			t.Fatalf("%d workers after %d reads from memory", n, i+1)
		}
	}
	// Each read that is too long for that has a worker stand in. None of them goes on to be there for nothing.
	for range 100 {
		k.expect(k.read(0, 96<<10), 0)
	}
	for range (int(enoughWaiting) + 1) * maxStreak {
		k.expect(k.read(0, 4096), 0)
	}
	if n := k.transport.waiting.Load(); n > enoughWaiting {
		t.Errorf("%d workers wait", n)
	}
}

// A worker that steps aside while another is about to leave, and so finds no room, has another worker wait in its place.
func TestWorkerLeavesRoom(t *testing.T) {
	slow := newSlowFile(1)
	k := newFakeKernel(t, halfZeros(slow))
	t.Cleanup(sync.OnceFunc(func() { close(slow.letGo) }))
	k.transport.workers.Store(maxWorkers)
	k.read(0, 4096)
	<-slow.began
	if n := k.transport.waiting.Load(); n != 0 {
		t.Fatalf("%d workers wait; there was no room for any", n)
	}
	k.transport.leave()
	if n := k.transport.waiting.Load(); n != 1 {
		t.Fatalf("%d workers wait when one has left", n)
	}
	k.expect(k.read(1<<20, 4096), 0)
}

// panickyFile is a fault of the program.
type panickyFile struct{ memory }

func (panickyFile) ReadAt([]byte, int64) (int, error) { panic("out of order") }

// A read that panics still ends, or the space that blocks give up would never be used again.
func TestReadThatPanicsEnds(t *testing.T) {
	d := halfZeros(panickyFile{})
	k := newFakeKernel(t, d)
	k.expect(k.read(0, 4096), unix.EIO)
	if n := d.reading.Load(); n != 0 {
		t.Errorf("%d reads are still under way", n)
	}
}

const opLseek = 46

func TestOddRequests(t *testing.T) {
	d := halfZeros(panickyFile{})
	d.seekFault = true
	k := newFakeKernel(t, d)
	for _, tc := range []struct {
		name    string
		opcode  uint32
		request []byte
		errno   unix.Errno
	}{
		{"a read that panics", opRead, bytesOf(&fuse.ReadIn{Size: 4096}), unix.EIO},
		{"a request that go-fuse decodes, and that panics", opLseek, bytesOf(&fuse.LseekIn{Whence: unix.SEEK_DATA}), unix.EIO},
		{"INTERRUPT", opInterrupt, bytesOf(&fuse.InterruptIn{}), unix.ENOSYS},
		{"a number that nobody knows", 4000, make([]byte, 64), unix.ENOSYS},
		{"READ cut short", opRead, make([]byte, 48), unix.EIO},
		{"WRITE cut short", opWrite, make([]byte, 48), unix.EIO},
	} {
		head := func() fuse.OutHeader {
			unique := k.send(tc.opcode, tc.request)
			head, _ := k.receive()
			if head.Unique != unique {
				t.Fatalf("%s: reply to %d, want %d", tc.name, head.Unique, unique)
			}
			return head
		}()
		if head.Status != -int32(tc.errno) {
			t.Errorf("%s: status %d, want %d", tc.name, head.Status, -int32(tc.errno))
		}
		k.expect(k.read(1<<20, 512), 0)
	}
}

// The callers of a read that fails, and of many at once, each get their own answer.
func TestRepliesBelongToTheirRequests(t *testing.T) {
	d := newFakeDisk(t)
	k := newFakeKernel(t, d)
	const requests = 400
	var sent sync.Map
	go func() {
		for i := range requests {
			off := uint64(i*12345) % uint64(len(d.want)-64<<10)
			k.unique = uint64(i)
			sent.Store(uint64(i)+1, off)
			k.read(off, uint32(1+i*97%(64<<10)))
		}
	}()
	for range requests {
		head, body := k.receive()
		off, ok := sent.LoadAndDelete(head.Unique)
		if !ok || head.Status != 0 {
			t.Fatalf("reply %d: known %v, status %d", head.Unique, ok, head.Status)
		}
		at := off.(uint64)
		if string(body) != string(d.want[at:at+uint64(len(body))]) {
			t.Fatalf("the reply to the read at %d holds other bytes", at)
		}
	}
}

func TestInitRefused(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	tr := newTransport(pair[1], newTestFileSystem(t, &fakeDisk{extents: []vhdx.Extent{}}, Options{}), &Options{Log: quiet()})
	in := fuse.InitIn{Major: 6}
	in.Length, in.Opcode, in.Unique = uint32(unsafe.Sizeof(in)), 26, 1
	if _, err := unix.Write(pair[0], bytesOf(&in)); err != nil {
		t.Fatal(err)
	}
	if err := tr.initialize(); err == nil || errors.Is(err, unix.ENODEV) {
		t.Errorf("a protocol of version 6: %v", err)
	}
}

// A request that the kernel took back, or could not hand over, does not end the service; an unmount does.
func TestErrorsOfTheDevice(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EINTR: true, unix.EAGAIN: true, unix.ENOENT: true, unix.ENOMEM: true,
		unix.ENODEV: false, unix.EBADF: false, unix.EIO: false, unix.EPERM: false,
	} {
		if got := passing(err); got != want {
			t.Errorf("%v passes: %v, want %v", err, got, want)
		}
	}
}
