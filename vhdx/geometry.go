package vhdx

import "math/bits"

const (
	minBlockSize = 1 * mib
	maxBlockSize = 256 * mib
	maxDiskSize  = 64 * tib

	bitmapBlockSize = 1 * mib // bytes of a sector bitmap block
	bitmapBits      = bitmapBlockSize * 8
	bitmapShift     = 23 // bitmapBits is 1 << bitmapShift

	batEntrySize   = 8 // bytes
	entriesPerPage = pageSize / batEntrySize
	bitsPerPage    = pageSize * 8
	pageSize       = 4 * kib
)

// A geometry says how a virtual disk is cut into blocks and chunks, and where the BAT entries of these are
// (MS-VHDX 2.5). Sizes are in bytes.
type geometry struct {
	diskSize    int64
	blockSize   int64
	sectorSize  int64 // logical
	blockShift  uint  // blockSize is 1 << blockShift
	sectorShift uint
	chunkShift  uint // the chunk ratio is 1 << chunkShift
	hasParent   bool
}

// newGeometry takes values that have passed the rules of the metadata.
func newGeometry(diskSize, blockSize, sectorSize int64, hasParent bool) geometry {
	g := geometry{
		diskSize:    diskSize,
		blockSize:   blockSize,
		sectorSize:  sectorSize,
		blockShift:  uint(bits.TrailingZeros64(uint64(blockSize))),
		sectorShift: uint(bits.TrailingZeros64(uint64(sectorSize))),
		hasParent:   hasParent,
	}
	g.chunkShift = bitmapShift + g.sectorShift - g.blockShift
	return g
}

// chunkRatio returns the number of payload blocks in a chunk.
func (g *geometry) chunkRatio() int64 { return 1 << g.chunkShift }

// payloadBlocks returns the number of payload blocks of the disk.
func (g *geometry) payloadBlocks() int64 { return (g.diskSize + g.blockSize - 1) >> g.blockShift }

// chunks returns the number of chunks of the disk, the last of which may be short.
func (g *geometry) chunks() int64 { return (g.payloadBlocks() + g.chunkRatio() - 1) >> g.chunkShift }

// batEntries returns the number of BAT entries that describe something, those between them included.
func (g *geometry) batEntries() int64 {
	if g.hasParent {
		return g.chunks() * (g.chunkRatio() + 1)
	}
	return g.payloadBlocks() + (g.payloadBlocks()-1)>>g.chunkShift
}

// batPages returns the number of pages that these entries take.
func (g *geometry) batPages() int64 { return (g.batEntries() + entriesPerPage - 1) / entriesPerPage }

// blocksOf returns how many of the first n entries of the BAT are those of payload blocks.
func (g *geometry) blocksOf(n int64) int64 {
	group := g.chunkRatio() + 1
	return n/group<<g.chunkShift + min(n%group, g.chunkRatio())
}

// payloadEntry returns the index of the BAT entry of payload block b.
func (g *geometry) payloadEntry(b int64) int64 { return b + b>>g.chunkShift }

// bitmapEntry returns the index of the BAT entry of chunk c's sector bitmap block.
func (g *geometry) bitmapEntry(c int64) int64 { return (c+1)<<g.chunkShift + c }

// entry says what BAT entry i describes: the sector bitmap block of chunk n, or payload block n.
func (g *geometry) entry(i int64) (n int64, bitmap bool) {
	group := g.chunkRatio() + 1
	c, r := i/group, i%group
	if r == g.chunkRatio() {
		return c, true
	}
	return c<<g.chunkShift + r, false
}

// sectorsPerBlock returns the number of logical sectors in a payload block.
func (g *geometry) sectorsPerBlock() int64 { return g.blockSize >> g.sectorShift }

// inBlock returns how far the byte diskOff is into its payload block.
func (g *geometry) inBlock(diskOff int64) int64 { return diskOff & (g.blockSize - 1) }

// blockEnd returns the byte of the virtual disk behind payload block b, which for the last block
// is the end of the disk.
func (g *geometry) blockEnd(b int64) int64 { return min((b+1)<<g.blockShift, g.diskSize) }
