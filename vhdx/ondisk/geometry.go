package ondisk

import "math/bits"

// The limits of a disk, and the units of the BAT and of sector bitmaps (MS-VHDX 2.4, 2.5 and 2.6.2).
const (
	MinBlockSize = 1 * MiB   // bytes of a payload block
	MaxBlockSize = 256 * MiB // likewise
	MaxDiskSize  = 64 * TiB  // bytes

	BitmapBlockSize = 1 * MiB             // bytes of a sector bitmap block
	BitmapBits      = BitmapBlockSize * 8 // logical sectors of a chunk
	BitmapShift     = 23                  // BitmapBits is 1 << BitmapShift

	BATEntrySize   = 8                       // bytes
	EntriesPerPage = PageSize / BATEntrySize // BAT entries
	BitsPerPage    = PageSize * 8            // bits of a sector bitmap
	PageSize       = 4 * KiB                 // bytes, in which the log carries metadata
)

// A Geometry says how a virtual disk is cut into blocks and chunks, and where the BAT entries of these are
// (MS-VHDX 2.4 and 2.5). Sizes are in bytes. Its methods change nothing, and check no bounds: n, b, c and i are inside the disk.
type Geometry struct {
	DiskSize    int64
	BlockSize   int64
	SectorSize  int64 // logical
	BlockShift  uint  // BlockSize is 1 << BlockShift
	SectorShift uint
	ChunkShift  uint // the chunk ratio is 1 << ChunkShift
	HasParent   bool
}

// NewGeometry takes values that have passed the rules of the metadata.
func NewGeometry(diskSize, blockSize, sectorSize int64, hasParent bool) Geometry {
	g := Geometry{
		DiskSize:    diskSize,
		BlockSize:   blockSize,
		SectorSize:  sectorSize,
		BlockShift:  uint(bits.TrailingZeros64(uint64(blockSize))),
		SectorShift: uint(bits.TrailingZeros64(uint64(sectorSize))),
		HasParent:   hasParent,
	}
	g.ChunkShift = BitmapShift + g.SectorShift - g.BlockShift
	return g
}

// ChunkRatio returns the number of payload blocks in a chunk.
func (g *Geometry) ChunkRatio() int64 { return 1 << g.ChunkShift }

// PayloadBlocks returns the number of payload blocks of the disk.
func (g *Geometry) PayloadBlocks() int64 { return (g.DiskSize + g.BlockSize - 1) >> g.BlockShift }

// Chunks returns the number of chunks of the disk, the last of which may be short.
func (g *Geometry) Chunks() int64 { return (g.PayloadBlocks() + g.ChunkRatio() - 1) >> g.ChunkShift }

// BATEntries returns the number of BAT entries that describe something, those between them included.
func (g *Geometry) BATEntries() int64 {
	if g.HasParent {
		return g.Chunks() * (g.ChunkRatio() + 1)
	}
	return g.PayloadBlocks() + (g.PayloadBlocks()-1)>>g.ChunkShift
}

// BATPages returns the number of pages that these entries take.
func (g *Geometry) BATPages() int64 { return (g.BATEntries() + EntriesPerPage - 1) / EntriesPerPage }

// BlocksOf returns how many of the first n entries of the BAT are those of payload blocks.
func (g *Geometry) BlocksOf(n int64) int64 {
	group := g.ChunkRatio() + 1
	return n/group<<g.ChunkShift + n%group
}

// PayloadEntry returns the index of the BAT entry of payload block b.
func (g *Geometry) PayloadEntry(b int64) int64 { return b + b>>g.ChunkShift }

// BitmapEntry returns the index of the BAT entry of chunk c's sector bitmap block.
func (g *Geometry) BitmapEntry(c int64) int64 { return (c+1)<<g.ChunkShift + c }

// Entry says what BAT entry i describes: the sector bitmap block of chunk n, or payload block n.
func (g *Geometry) Entry(i int64) (n int64, bitmap bool) {
	group := g.ChunkRatio() + 1
	c, r := i/group, i%group
	if r == g.ChunkRatio() {
		return c, true
	}
	return c<<g.ChunkShift + r, false
}

// SectorsPerBlock returns the number of logical sectors in a payload block.
func (g *Geometry) SectorsPerBlock() int64 { return g.BlockSize >> g.SectorShift }

// InBlock returns how far the byte diskOff is into its payload block.
func (g *Geometry) InBlock(diskOff int64) int64 { return diskOff & (g.BlockSize - 1) }

// BlockEnd returns the byte of the virtual disk behind payload block b, which for the last block
// is the end of the disk.
func (g *Geometry) BlockEnd(b int64) int64 { return min((b+1)<<g.BlockShift, g.DiskSize) }

// MaxFileSize is the size in bytes of the largest image file that is read. It bounds the space map: 256 TiB of file take 32 MiB of
// address space, of which only what the file uses is ever touched.
const MaxFileSize = 256 * TiB

// BATLength returns how long the region of the BAT has to be, in bytes.
func (g *Geometry) BATLength() int64 { return RoundUp(g.BATEntries()*BATEntrySize, MiB) }

// Describes reports whether BAT entry i describes something.
func (g *Geometry) Describes(i int64) bool {
	n, bitmap := g.Entry(i)
	if bitmap {
		return g.HasParent && n < g.Chunks()
	}
	return n < g.PayloadBlocks()
}

// RoundUp returns the smallest multiple of unit that is not below n, which is not negative.
func RoundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
