package vhd

import (
	"encoding/binary"
	"strings"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/utf16text"
)

const (
	headerSize   = 1024 // bytes
	headerCookie = "cxsparse"

	unusedEntry = 0xFFFFFFFF // of a BAT: the block is not in the file

	minBlockSize = sectorSize
	maxBlockSize = 256 << 20 // bytes
	// maxBAT bounds the BAT, which is kept in memory, in bytes: 2 TiB in blocks of 128 KiB.
	maxBAT = 64 << 20
)

// A header is the dynamic disk header.
type header struct {
	tableOffset uint64 // file offset of the BAT, bytes
	version     uint32
	entries     uint32 // of the BAT
	blockSize   uint32 // bytes
	parentID    uuid.UUID
	parentTime  uint32 // of its last change, seconds from epoch
	parentName  string
	locators    [8]locatorEntry
}

// A locatorEntry says where a path of the parent is in the file.
type locatorEntry struct {
	code           [4]byte // what kind of path it is
	space, length  uint32  // bytes; the space may be in sectors
	dataFileOffset uint64
}

// The kinds of paths that can mean something here.
const (
	locatorRelative = "W2ru" // UTF-16, little-endian, from the directory of the image
	locatorAbsolute = "W2ku"
)

// maxLocator bounds the path of a parent, in bytes; Windows has no longer ones.
const maxLocator = 64 << 10

// decodeHeader decodes the dynamic disk header in b, which is at file offset off.
func decodeHeader(b *[headerSize]byte, off int64) (header, error) {
	if string(b[:8]) != headerCookie {
		return header{}, corrupt("dynamic disk header", off, "signature %q", b[:8])
	}
	if got, want := checksum(b[:], headerChecksumAt), be.Uint32(b[headerChecksumAt:]); got != want {
		return header{}, corrupt("dynamic disk header", off, "checksum %#08x, stored %#08x", got, want)
	}
	h := header{
		tableOffset: be.Uint64(b[16:]),
		version:     be.Uint32(b[24:]),
		entries:     be.Uint32(b[28:]),
		blockSize:   be.Uint32(b[32:]),
		parentID:    uuid.UUID(b[40:56]),
		parentTime:  be.Uint32(b[56:]),
		parentName:  utf16text.UpToZero(b[64:576], be),
	}
	for i := range h.locators {
		e := b[576+24*i:]
		h.locators[i] = locatorEntry{[4]byte(e), be.Uint32(e[4:]), be.Uint32(e[8:]), be.Uint64(e[16:])}
	}
	return h, nil
}

// encode leaves out the parent: a new image has none.
func (h *header) encode() *[headerSize]byte {
	var b [headerSize]byte
	copy(b[:], headerCookie)
	be.PutUint64(b[8:], noOffset)
	be.PutUint64(b[16:], h.tableOffset)
	be.PutUint32(b[24:], h.version)
	be.PutUint32(b[28:], h.entries)
	be.PutUint32(b[32:], h.blockSize)
	be.PutUint32(b[headerChecksumAt:], checksum(b[:], headerChecksumAt))
	return &b
}

// validate checks what can be checked without the rest of the file, of a disk of the given size.
func (h *header) validate(off int64, diskSize int64) error {
	const name = "dynamic disk header"
	size := int64(h.blockSize)
	switch {
	case h.version>>16 != 1:
		return corrupt(name, off, "version %d.%d is not supported", h.version>>16, h.version&0xFFFF)
	case size < minBlockSize || size > maxBlockSize || size&(size-1) != 0:
		return corrupt(name, off, "blocks of %d bytes; it must be a power of two from 512 bytes to 256 MiB", size)
	case blocksOf(diskSize, size) > int64(h.entries):
		return corrupt(name, off, "the BAT has %d entries, but the disk has %d blocks", h.entries, blocksOf(diskSize, size))
	case blocksOf(diskSize, size) > maxBAT/4:
		return corrupt(name, off, "a BAT of more than 16 million blocks is not supported")
	}
	return nil
}

func blocksOf(diskSize, blockSize int64) int64 { return (diskSize + blockSize - 1) / blockSize }

// bitmapSize returns the size in bytes of the sector bitmap of a block: whole sectors.
func bitmapSize(blockSize int64) int64 {
	return (blockSize/sectorSize/8 + sectorSize - 1) / sectorSize * sectorSize
}

// decodePath decodes the path of a locator: UTF-16, little-endian, with slashes.
func decodePath(b []byte) string {
	return strings.ReplaceAll(utf16text.UpToZero(b, binary.LittleEndian), `\`, "/")
}
