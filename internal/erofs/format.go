package erofs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FileName is the name of the one file.
const FileName = "disk.raw"

// Limits of a map. The metadata stays in memory, and cannot be swapped out.
const (
	MaxChunks  = 4 << 20 // 32 MiB of metadata
	MaxDevices = 240     // as many as descriptors go in one message, with some to spare

	MinBlockBits = 9  // 512 bytes
	MaxBlockBits = 12 // 4096 bytes, the smallest page
	MaxChunkBits = 30 // 1 GiB; the format has more, the kernel's tests have not
)

// The layout of the metadata, in bytes.
const (
	superOffset = 1024
	superSize   = 128
	slotSize    = 128
	slotOffset  = superOffset + superSize
	rootNumber  = 1 // of the inode, in units of inodeUnit from metaOffset on
	fileNumber  = 2
	inodeUnit   = 32
	tableOffset = 128 // from metaOffset on
	entrySize   = 8
	pageSize    = 4096
)

// What the fields of superblock and inodes say.
const (
	magic           = 0xE0F5E1E2
	chunkedFile     = 0x4 // features that a kernel has to know
	deviceTable     = 0x8
	compactPlain    = 0 << 1     // layout of the root inode: short form, data in blocks of its own
	extendedChunks  = 1 | 4<<1   // of the file's inode: long form, data in chunks
	withIndexes     = 0x20       // the table has entries of 8 bytes
	noBlock         = 0xffffffff // of a hole
	modeDir         = 0o040000 | 0o500
	modeFile        = 0o100000 | 0o400
	kindFile        = 1 // of a directory entry
	kindDir         = 2
	direntSize      = 12
	maxFileSize     = 64 << 40 // the largest disk that there is
	inodeNumberRoot = 1
	inodeNumberFile = 2
)

var le = binary.LittleEndian

// ErrBounds says that a file cannot be mapped within the limits of this package.
var ErrBounds = errors.New("not within the limits of a kernel map")

// A Geometry describes the file and its chunks.
type Geometry struct {
	Size      int64 `json:"size"`       // of the file, bytes
	BlockBits int   `json:"block_bits"` // binary logarithm of the unit of places in devices, bytes
	ChunkBits int   `json:"chunk_bits"` // of the size of a chunk
}

// Check returns an error that matches ErrBounds where there is no such map.
func (g *Geometry) Check() error {
	switch {
	case g.Size <= 0 || g.Size > maxFileSize:
		return fmt.Errorf("%w: a file of %d bytes", ErrBounds, g.Size)
	case g.BlockBits < MinBlockBits || g.BlockBits > MaxBlockBits:
		return fmt.Errorf("%w: blocks of 2^%d bytes", ErrBounds, g.BlockBits)
	case g.ChunkBits < g.BlockBits || g.ChunkBits > MaxChunkBits:
		return fmt.Errorf("%w: chunks of 2^%d bytes", ErrBounds, g.ChunkBits)
	case g.Chunks() > MaxChunks:
		return fmt.Errorf("%w: %d chunks of %d bytes", ErrBounds, g.Chunks(), int64(1)<<g.ChunkBits)
	}
	return nil
}

// Chunks returns how many chunks the file has.
func (g *Geometry) Chunks() int64 { return (g.Size-1)>>g.ChunkBits + 1 }

func (g *Geometry) dirOffset(devices int) int64 {
	return roundUp(slotOffset+int64(devices)*slotSize, 1<<g.BlockBits)
}

func (g *Geometry) metaOffset(devices int) int64 { return g.dirOffset(devices) + 1<<g.BlockBits }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// A Run is a number of chunks that follow each other, in the file and in a device.
type Run struct {
	Chunks uint32
	Device uint16 // the first one is 1; 0 is none: the chunks are holes
	Block  uint32 // of the device, at which the first chunk begins
}

// RunSize is the length of an encoded Run in bytes.
const RunSize = 12

// Append appends the encoded run to b.
func (r Run) Append(b []byte) []byte {
	b = le.AppendUint32(b, r.Chunks)
	b = le.AppendUint32(b, r.Block)
	b = le.AppendUint16(b, r.Device)
	return le.AppendUint16(b, 0)
}

// ReadRun reads a run that Append has encoded. It returns io.EOF at the end.
func ReadRun(r io.Reader) (Run, error) {
	var b [RunSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Run{}, err
	}
	return Run{Chunks: le.Uint32(b[0:]), Block: le.Uint32(b[4:]), Device: le.Uint16(b[8:])}, nil
}

// Write writes the metadata of a file to w in one stream. The devices have the given sizes in bytes. next returns the runs
// that make up the file, in order, and io.EOF behind the last. An error matches ErrBounds where a run leads out of its
// device, or where the runs are not those of the file.
func Write(w io.Writer, g Geometry, devices []int64, next func() (Run, error)) error {
	if err := g.Check(); err != nil {
		return err
	}
	if len(devices) > MaxDevices {
		return fmt.Errorf("%w: %d devices", ErrBounds, len(devices))
	}
	out := bufio.NewWriterSize(w, 64<<10)
	if _, err := out.Write(g.head(devices)); err != nil {
		return err
	}
	if err := g.writeTable(out, devices, next); err != nil {
		return err
	}
	end := g.metaOffset(len(devices)) + tableOffset + g.Chunks()*entrySize
	if _, err := out.Write(make([]byte, roundUp(end, pageSize)-end)); err != nil {
		return err
	}
	return out.Flush()
}

// head returns all that lies before the table.
func (g *Geometry) head(devices []int64) []byte {
	dir, meta := g.dirOffset(len(devices)), g.metaOffset(len(devices))
	end := roundUp(meta+tableOffset+g.Chunks()*entrySize, pageSize)
	b := make([]byte, meta+tableOffset)

	s := b[superOffset:]
	le.PutUint32(s[0:], magic)
	s[12] = byte(g.BlockBits)
	le.PutUint16(s[14:], rootNumber)
	le.PutUint64(s[16:], 2) // inodes
	le.PutUint32(s[36:], uint32(end>>g.BlockBits))
	le.PutUint32(s[40:], uint32(meta>>g.BlockBits))
	le.PutUint32(s[80:], chunkedFile)
	if len(devices) > 0 { // an empty disk has none
		le.PutUint32(s[80:], chunkedFile|deviceTable)
		le.PutUint16(s[86:], uint16(len(devices)))
		le.PutUint16(s[88:], slotOffset/slotSize)
	}

	for i, size := range devices {
		slot := b[slotOffset+i*slotSize:]
		copy(slot, fmt.Sprintf("layer%d", i))
		le.PutUint32(slot[64:], uint32(min(size>>g.BlockBits, noBlock-1)))
	}
	g.putDir(b[dir:meta])
	g.putInodes(b[meta:], dir)
	return b
}

// putDir fills in the root directory.
func (g *Geometry) putDir(b []byte) {
	entries := []struct {
		name   string
		number uint64
		kind   byte
	}{{".", rootNumber, kindDir}, {"..", rootNumber, kindDir}, {FileName, fileNumber, kindFile}}
	at := len(entries) * direntSize
	for i, e := range entries {
		d := b[i*direntSize:]
		le.PutUint64(d, e.number)
		le.PutUint16(d[8:], uint16(at))
		d[10] = e.kind
		at += copy(b[at:], e.name)
	}
}

// putInodes fills in the inodes of the root directory, which lies at byte dir, and of the file.
func (g *Geometry) putInodes(b []byte, dir int64) {
	root := b[rootNumber*inodeUnit:]
	le.PutUint16(root[0:], compactPlain)
	le.PutUint16(root[4:], modeDir)
	le.PutUint16(root[6:], 2) // links
	le.PutUint32(root[8:], 1<<g.BlockBits)
	le.PutUint32(root[16:], uint32(dir>>g.BlockBits))
	le.PutUint32(root[20:], inodeNumberRoot)

	file := b[fileNumber*inodeUnit:]
	le.PutUint16(file[0:], extendedChunks)
	le.PutUint16(file[4:], modeFile)
	le.PutUint64(file[8:], uint64(g.Size))
	le.PutUint16(file[16:], uint16(g.ChunkBits-g.BlockBits)|withIndexes)
	le.PutUint32(file[20:], inodeNumberFile)
	le.PutUint32(file[44:], 1) // links
}

// writeTable writes the entries of all chunks.
func (g *Geometry) writeTable(w io.Writer, devices []int64, next func() (Run, error)) error {
	var entry [entrySize]byte
	step := uint32(1) << (g.ChunkBits - g.BlockBits)
	for chunk := int64(0); chunk < g.Chunks(); {
		r, err := next()
		if err == io.EOF {
			return fmt.Errorf("%w: the runs end at chunk %d of %d", ErrBounds, chunk, g.Chunks())
		}
		if err != nil {
			return err
		}
		if err := g.check(r, chunk, devices); err != nil {
			return err
		}
		le.PutUint16(entry[2:], r.Device)
		block := r.Block
		for range r.Chunks {
			if r.Device == 0 {
				block = noBlock
			}
			le.PutUint32(entry[4:], block)
			if _, err := w.Write(entry[:]); err != nil {
				return err
			}
			block += step
		}
		chunk += int64(r.Chunks)
	}
	if _, err := next(); err != io.EOF {
		return fmt.Errorf("%w: the runs go on behind the last chunk (%v)", ErrBounds, err)
	}
	return nil
}

// check returns an error where run r, which begins with the given chunk, is not all inside the file and its device.
func (g *Geometry) check(r Run, chunk int64, devices []int64) error {
	n := int64(r.Chunks)
	switch {
	case n == 0 || n > g.Chunks()-chunk:
		return fmt.Errorf("%w: a run of %d chunks at %d of %d", ErrBounds, n, chunk, g.Chunks())
	case int(r.Device) > len(devices):
		return fmt.Errorf("%w: device %d of %d", ErrBounds, r.Device, len(devices))
	case r.Device == 0 && r.Block != 0:
		return fmt.Errorf("%w: a hole at block %d", ErrBounds, r.Block)
	case r.Device == 0:
		return nil
	}
	last := int64(r.Block) + (n-1)<<(g.ChunkBits-g.BlockBits) // where the last chunk begins
	bytes := min(n<<g.ChunkBits, g.Size-chunk<<g.ChunkBits)   // the file may end inside of the last chunk
	if size := devices[r.Device-1]; last >= noBlock || int64(r.Block)<<g.BlockBits > size-bytes {
		return fmt.Errorf("%w: %d bytes at block %d of a device of %d bytes", ErrBounds, bytes, r.Block, size)
	}
	return nil
}
