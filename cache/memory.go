package cache

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frame is the memory of one page.
type frame [PageWords]atomic.Uint64

// decode fills a frame that belongs to no page. Those who read one that had it before may still do so, and find that out.
func (f *frame) decode(b *[PageSize]byte) {
	for i := range f {
		f[i].Store(binary.LittleEndian.Uint64(b[8*i:]))
	}
}

// clear makes such a frame zero.
func (f *frame) clear() {
	for i := range f {
		f[i].Store(0)
	}
}

// chunkFrames is how many frames come from the operating system at once: 1 MiB. It gives each page of them when that is first
// used.
const chunkFrames = 256

// memory is what the pages of a cache lie in, outside of the Go heap. In the heap the collector would let as much again be used
// before it frees anything. Each page refers to it, and the operating system gets it back when nothing does any more.
type memory struct {
	chunks *[]unsafe.Pointer // each of chunkFrames; apart from memory, for the cleanup
	left   []frame           // of the last chunk
}

func newMemory() *memory {
	m := &memory{chunks: new([]unsafe.Pointer)}
	runtime.AddCleanup(m, func(chunks *[]unsafe.Pointer) {
		for _, c := range *chunks {
			_ = unix.MunmapPtr(c, uintptr(chunkFrames*PageSize))
		}
	}, m.chunks)
	return m
}

// frame returns a frame that was not used before, and is zero.
func (m *memory) frame() *frame {
	if len(m.left) == 0 {
		m.left = m.chunk()
	}
	f := &m.left[0]
	m.left = m.left[1:]
	return f
}

// chunk returns memory for frames. Where the operating system gives no mapping, as with a limit of them, it is of the heap.
func (m *memory) chunk() []frame {
	const size = chunkFrames * PageSize
	p, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]frame, chunkFrames)
	}
	b := unsafe.Slice((*byte)(p), size)
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // one page that is used would take the memory of many
	*m.chunks = append(*m.chunks, p)
	return unsafe.Slice((*frame)(p), chunkFrames)
}
