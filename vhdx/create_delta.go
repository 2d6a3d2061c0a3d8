package vhdx

import (
	"fmt"
	"io"
	"math/bits"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A delta is a differencing image that is made after the fact: it says what has to change in its parent to get another disk.
// It is like any child, but for two things. Its DataWriteGuid is that of the other disk, where that is an image, since it
// shows the same disk; so whatever is based on the other disk accepts the parent once the delta was merged into it. And it
// has the digest of its content as an item of its metadata, which other programs skip.

// deltaDigestGUID is the id of that metadata item: a SHA-256, 32 bytes.
var deltaDigestGUID = uuid.MustParse("5d7a3b62-0c1f-4a53-9d0e-6b1f2f7c8e94")

// DigestSize is the size of the digest of a delta in bytes.
const DigestSize = 32

// deltaBlockSize is the block size of a delta, in bytes: the smallest, since a block takes its whole size in a stream.
const deltaBlockSize = ondisk.MinBlockSize

// DeltaOptions describes a delta.
type DeltaOptions struct {
	Path          string    // where the image is going to be; "" where that is not known, as of a stream
	Size          int64     // of the disk, bytes: a multiple of the parent's logical sector size
	DataWriteGUID uuid.UUID // of the disk that the delta leads to; zero is a new one
}

// NewDeltaWriter begins a delta of the parent, an image with a DataWriteGuid. Instead of Hold, HoldSectors says what it is
// going to hold, and SetDigest has to be called before the first WriteAt.
func NewDeltaWriter(w io.Writer, parent *Image, d DeltaOptions) (*StreamWriter, error) {
	like, err := parent.Like()
	if err != nil {
		return nil, err
	}
	from := parent.DataWriteGUID()
	if from == uuid.Nil {
		return nil, fmt.Errorf("%s has no DataWriteGuid to identify it", parent.Path())
	}
	o := CreateOptions{Type: Differencing, Size: d.Size, BlockSize: deltaBlockSize, Parent: parent.Path(), dataWrite: d.DataWriteGUID}.Inherit(like)
	if o, err = o.withDefaults(); err != nil {
		return nil, optionsError{err}
	}
	if d.Path == "" {
		d.Path = filepath.Join(filepath.Dir(parent.Path()), "delta.avhdx") // as if it were beside its parent
	}
	if o.locator, err = parentKeys(d.Path, parent.Path(), nil, from); err != nil {
		return nil, optionsError{err}
	}
	o.items = append(o.items, diskItem{deltaDigestGUID, ondisk.ItemIsUser, make([]byte, DigestSize)})
	s := newStreamWriter(w, o)
	s.delta = &delta{
		sectors: s.o.BlockSize >> s.l.geo.SectorShift, partial: make(map[int64][]uint64),
		zero: make([]uint64, len(s.held)), chunks: make(map[int64]bool),
	}
	return s, nil
}

// DataWriteGUID returns the identity of the disk's content (MS-VHDX 2.2.2): it is another after each session in which
// something was written.
func (im *Image) DataWriteGUID() uuid.UUID { return im.current().dataWriteGUID() }

// Linkage returns the DataWriteGuid that the parent must have, and false where the image has no parent.
func (im *Image) Linkage() (uuid.UUID, bool) {
	l := im.current()
	if l.meta.locator == nil || !l.geo.HasParent {
		return uuid.Nil, false
	}
	return l.meta.locator.Linkage, true
}

// DeltaDigest returns the digest that a delta has, and false for any other image.
func (im *Image) DeltaDigest() (d [DigestSize]byte, ok bool, err error) {
	l := im.current()
	for _, m := range l.items {
		if m.ID == deltaDigestGUID && m.Flags&ondisk.ItemIsUser != 0 && m.Length == DigestSize {
			err = readFull(l.src, d[:], l.metadataOffset()+int64(m.Offset), "metadata item")
			return d, err == nil, err
		}
	}
	return d, false, nil
}

// SetDigest sets the digest that DeltaDigest returns.
func (s *StreamWriter) SetDigest(d [DigestSize]byte) {
	copy(s.o.items[len(s.o.items)-1].data, d[:])
}

// HoldSectors says that the delta holds whole sectors: the n bytes from byte off on, as data, or as zeros. It is called
// in the order of the disk. The last of them may be cut by the end of the disk.
func (s *StreamWriter) HoldSectors(off, n int64, zero bool) {
	d := s.delta
	for end := off + n; off < end; {
		block := off >> s.l.geo.BlockShift
		start, next := block<<s.l.geo.BlockShift, min(end, s.l.geo.BlockEnd(block))
		if zero && off == start && next == min(start+s.o.BlockSize, s.o.Size) {
			d.zero[block/64] |= 1 << (block % 64)
			off = next
			continue
		}
		s.held[block/64] |= 1 << (block % 64)
		b := d.partial[block]
		if b == nil {
			b = make([]uint64, (d.sectors+63)/64)
			d.partial[block] = b
		}
		from := (off - start) >> s.l.geo.SectorShift
		to := (next - start + s.l.geo.SectorSize - 1) >> s.l.geo.SectorShift
		for i := from; i < to; i++ {
			b[i/64] |= 1 << (i % 64)
		}
		off = next
	}
}

// A delta is what a StreamWriter knows of sectors. Its methods can be called for nil.
type delta struct {
	sectors int64              // in a block
	partial map[int64][]uint64 // sectors of the blocks that are held in part
	zero    []uint64           // a bit for each block that is zero as a whole
	chunks  map[int64]bool     // that have a sector bitmap block
}

// settle makes blocks fully present of which each sector is held, when all is said.
func (s *StreamWriter) settle() {
	d := s.delta
	if d == nil {
		return
	}
	for n, b := range d.partial {
		count := int64(0)
		for _, w := range b {
			count += int64(bits.OnesCount64(w))
		}
		inside := min(s.o.BlockSize, s.o.Size-n<<s.l.geo.BlockShift)
		if count == (inside+s.l.geo.SectorSize-1)>>s.l.geo.SectorShift {
			delete(d.partial, n)
		} else {
			d.chunks[n>>s.l.geo.ChunkShift] = true
		}
	}
}

func (d *delta) hasBitmap(chunk int64) bool { return d != nil && d.chunks[chunk] }

func (d *delta) isZero(n int64) bool { return d != nil && d.zero[n/64]&(1<<(n%64)) != 0 }

func (d *delta) state(n int64) ondisk.BlockState {
	if d != nil && d.partial[n] != nil {
		return ondisk.PartiallyPresent
	}
	return ondisk.FullyPresent
}

func (s *StreamWriter) beginsChunk(n int64) bool { return n&(1<<s.l.geo.ChunkShift-1) == 0 }

// enterChunk writes the sector bitmap block of the chunk that the block begins, if it has one.
func (s *StreamWriter) enterChunk() error {
	chunk := s.block >> s.l.geo.ChunkShift
	if !s.beginsChunk(s.block) || !s.delta.hasBitmap(chunk) {
		return nil
	}
	b := make([]byte, ondisk.BitmapBlockSize)
	for i := range int64(1) << s.l.geo.ChunkShift {
		words, at := s.delta.partial[s.block+i], i*s.delta.sectors/8
		for _, w := range words {
			// A block has a multiple of 64 sectors: 1 MiB in sectors of 4096 bytes are 256.
			ondisk.LE.PutUint64(b[at:], w)
			at += 8
		}
	}
	if err := s.zerosTo(s.blockOff); err != nil {
		return err
	}
	s.blockOff += ondisk.BitmapBlockSize
	return s.write(b)
}
