package vhd

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

const (
	// newBlockSize is the block size of new images in bytes, the one that all programs write.
	newBlockSize = 2 << 20
	newHeaderOff = footerSize
	newTableOff  = newHeaderOff + headerSize
	// dataAlign is what the sectors of a block are aligned to in the file, in bytes, for the sake of the host.
	dataAlign = 4 << 10
)

// A Builder writes a new fixed or dynamic image of known content into an empty file.
//
//	NewBuilder → WriteAt, as often as wanted → Finish
//
// Several goroutines may call Reserve, WriteAt and Place at once, for ranges that do not overlap.
type Builder struct {
	f     imagefile.File
	fixed bool

	mu  sync.Mutex // guards bat and end
	bat []uint32
	end int64 // of the file: where the next block is going to be
}

// NewBuilder begins an image of a disk of size bytes, 0 where only Finish tells.
func NewBuilder(f imagefile.File, size int64, fixed bool) *Builder {
	b := &Builder{f: f, fixed: fixed}
	if fixed {
		return b
	}
	if size == 0 {
		size = MaxSize
	}
	b.bat = make([]uint32, blocksOf(min(size, MaxSize), newBlockSize))
	for i := range b.bat {
		b.bat[i] = unusedEntry
	}
	b.end = newTableOff + roundUp(int64(len(b.bat))*4, sectorSize)
	return b
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// PaddedSize returns the size in bytes of a new disk that holds n bytes: a whole number of MiB, as Azure takes it. It fails
// for more than an image can hold.
func PaddedSize(n int64) (int64, error) {
	if n <= 0 || n > MaxSize {
		return 0, fmt.Errorf("a VHD image cannot hold a disk of %s, only up to %s", sizes.Exact(n), sizes.Exact(MaxSize))
	}
	return roundUp(n, SizeUnit), nil
}

// Reserve gives places in the file to the blocks of the n bytes of the disk from byte off on, in the order in which it is
// called.
func (b *Builder) Reserve(off, n int64) error {
	for end := off + n; off < end; off = (off/newBlockSize + 1) * newBlockSize {
		if _, err := b.place(off / newBlockSize); err != nil {
			return err
		}
	}
	return nil
}

// WriteAt writes p at byte off of the disk.
func (b *Builder) WriteAt(p []byte, off int64) (int, error) {
	written := 0
	for written < len(p) {
		at, n, err := b.Place(off, int64(len(p)-written))
		if err != nil {
			return written, err
		}
		if _, err := b.f.WriteAt(p[written:][:n], at); err != nil {
			return written, err
		}
		imagefile.StartWriteback(b.f, at, n)
		written, off = written+int(n), off+n
	}
	return written, nil
}

// Place returns where in the file the bytes of the disk from byte off on are, and how many of the n bytes lie together there.
func (b *Builder) Place(off, n int64) (fileOff, together int64, err error) {
	if off < 0 || n <= 0 || n > MaxSize-off {
		return 0, 0, fmt.Errorf("%d bytes at %d are not inside a disk of a VHD image", n, off)
	}
	if b.fixed {
		return off, n, nil
	}
	at, err := b.place(off / newBlockSize)
	in := off % newBlockSize
	return at + in, min(n, newBlockSize-in), err
}

// place returns where the sectors of block n are in the file, after giving it a place if it has none.
func (b *Builder) place(n int64) (int64, error) {
	if b.fixed {
		return n * newBlockSize, nil
	}
	bitmap := bitmapSize(newBlockSize)
	b.mu.Lock()
	defer b.mu.Unlock()
	if n >= int64(len(b.bat)) {
		return 0, errors.New("the disk is larger than was said")
	}
	if e := b.bat[n]; e != unusedEntry {
		return int64(e)*sectorSize + bitmap, nil
	}
	data := roundUp(b.end+bitmap, dataAlign)
	if data/sectorSize >= unusedEntry {
		return 0, errors.New("the file would be larger than 2 TiB")
	}
	bits := make([]byte, bitmap) // all sectors are in the file
	for i := range bits {
		bits[i] = 0xFF
	}
	if _, err := b.f.WriteAt(bits, data-bitmap); err != nil {
		return 0, err
	}
	b.bat[n] = uint32((data - bitmap) / sectorSize)
	b.end = data + newBlockSize
	return data, nil
}

// Finish completes the image of a disk of size bytes, which PaddedSize has returned.
func (b *Builder) Finish(size int64) error {
	f := newFooter(size, b.fixed)
	if b.fixed {
		b.end = size
	} else if err := b.writeTables(f, size); err != nil {
		return err
	}
	if err := b.f.Truncate(b.end + footerSize); err != nil {
		return err
	}
	_, err := b.f.WriteAt(f.encode()[:], b.end)
	return err
}

// writeTables writes what is before the blocks of a dynamic image.
func (b *Builder) writeTables(f *footer, size int64) error {
	h := header{tableOffset: newTableOff, version: 1 << 16, entries: uint32(blocksOf(size, newBlockSize)), blockSize: newBlockSize}
	raw := make([]byte, 0, 4*len(b.bat))
	for _, e := range b.bat[:min(int64(len(b.bat)), int64(h.entries))] {
		raw = be.AppendUint32(raw, e)
	}
	for len(raw)%sectorSize != 0 { // the rest of the last sector is unused as well
		raw = be.AppendUint32(raw, unusedEntry)
	}
	for _, part := range []struct {
		b   []byte
		off int64
	}{{f.encode()[:], 0}, {h.encode()[:], newHeaderOff}, {raw, newTableOff}} {
		if _, err := b.f.WriteAt(part.b, part.off); err != nil {
			return err
		}
	}
	return nil
}

// newFooter returns the footer of a new image.
func newFooter(size int64, fixed bool) *footer {
	f := &footer{
		features: 2,                                                                                 // a bit that is always set
		version:  1 << 16, dataOffset: noOffset, timeStamp: uint32(time.Since(epoch) / time.Second), // #nosec G115 -- until 2136
		creator: [4]byte([]byte("vhfs")), creatorVersion: 1 << 16, creatorHost: [4]byte([]byte("Wi2k")),
		originalSize: uint64(size), currentSize: uint64(size), geometry: geometryOf(size), // #nosec G115 -- PaddedSize has returned it
		diskType: typeFixed, id: uuid.New(),
	}
	if !fixed {
		f.dataOffset, f.diskType = newHeaderOff, typeDynamic
	}
	return f
}

// FixedFooter returns what follows the bytes of a disk in a fixed image. The size is one that PaddedSize has returned.
func FixedFooter(size int64) []byte { return newFooter(size, true).encode()[:] }

// geometryOf returns the geometry of a disk by the appendix of the specification, if it describes exactly the size, and the
// largest otherwise: programs that believe a geometry more than the size would cut the disk off.
func geometryOf(size int64) geometry {
	total := size / sectorSize
	if total > 65535*16*255 {
		return maxGeometry
	}
	var perTrack, heads, cylinderHeads int64
	if total >= 65535*16*63 {
		perTrack, heads = 255, 16
		cylinderHeads = total / perTrack
	} else {
		perTrack = 17
		cylinderHeads = total / perTrack
		heads = max((cylinderHeads+1023)/1024, 4)
		if cylinderHeads >= heads*1024 || heads > 16 {
			perTrack, heads = 31, 16
			cylinderHeads = total / perTrack
		}
		if cylinderHeads >= heads*1024 {
			perTrack, heads = 63, 16
			cylinderHeads = total / perTrack
		}
	}
	g := geometry{uint16(cylinderHeads / heads), uint8(heads), uint8(perTrack)} // #nosec G115 -- below 65536, 17 and 256
	if g.size() != size {
		return maxGeometry
	}
	return g
}
