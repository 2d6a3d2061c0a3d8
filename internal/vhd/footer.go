package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

var be = binary.BigEndian

const (
	sectorSize = 512 // bytes
	footerSize = 512 // bytes
	// oldFooterSize is that of programs before Virtual PC 2004: the last byte, which is reserved, is missing.
	oldFooterSize = 511

	footerCookie = "conectix"
	noOffset     = 1<<64 - 1 // where a data offset refers to nothing

	// MaxSize is the size in bytes of the largest disk, as Windows and Azure have it: 2040 GiB.
	MaxSize = 2040 << 30
	// SizeUnit is what the size of a new disk is a multiple of, in bytes: Azure takes nothing else.
	SizeUnit = 1 << 20
)

// The disk types.
const (
	typeFixed        = 2
	typeDynamic      = 3
	typeDifferencing = 4
)

// epoch is where time stamps count from, in seconds.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// A footer says what the file is. A dynamic or differencing image has a copy at its begin.
type footer struct {
	features, version uint32
	dataOffset        uint64 // file offset of the dynamic disk header; noOffset in a fixed image
	timeStamp         uint32 // seconds from epoch
	creator           [4]byte
	creatorVersion    uint32
	creatorHost       [4]byte
	originalSize      uint64 // of the disk when it was made, bytes
	currentSize       uint64 // of the disk, bytes
	geometry          geometry
	diskType          uint32
	id                uuid.UUID
	savedState        uint8
}

// A geometry is what old programs see of a disk.
type geometry struct {
	cylinders      uint16
	heads, sectors uint8
}

// size returns the size in bytes that the geometry describes.
func (g geometry) size() int64 {
	return int64(g.cylinders) * int64(g.heads) * int64(g.sectors) * sectorSize
}

// maxGeometry is the largest. Programs that count by it, as QEMU does for images of some creators, use the size itself where
// they find this one; it is what qemu-img writes with force_size.
var maxGeometry = geometry{65535, 16, 255}

// A FormatError says which structure is wrong. It matches vhdx.ErrCorrupt.
type FormatError struct {
	Structure string // as the specification calls it
	Offset    int64  // in the file, bytes
	Err       error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%v (VHD %s, offset %#x)", e.Err, e.Structure, e.Offset)
}

func (e *FormatError) Unwrap() []error { return []error{vhdx.ErrCorrupt, e.Err} }

func corrupt(structure string, off int64, format string, args ...any) *FormatError {
	return &FormatError{structure, off, fmt.Errorf(format, args...)}
}

// checksum returns the ones' complement of the sum of all bytes but the four at the given place.
func checksum(b []byte, at int) uint32 {
	sum := uint32(0)
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

const (
	footerChecksumAt = 64
	headerChecksumAt = 36
)

// errNoFooter is the cause of the error for a footer without its cookie.
var errNoFooter = errors.New("its signature is missing")

// decodeFooter decodes the footer in b, which is at file offset off.
func decodeFooter(b *[footerSize]byte, off int64) (footer, error) {
	if string(b[:8]) != footerCookie {
		return footer{}, &FormatError{"footer", off, errNoFooter}
	}
	if got, want := checksum(b[:], footerChecksumAt), be.Uint32(b[footerChecksumAt:]); got != want {
		return footer{}, corrupt("footer", off, "checksum %#08x, stored %#08x", got, want)
	}
	return footer{
		features:       be.Uint32(b[8:]),
		version:        be.Uint32(b[12:]),
		dataOffset:     be.Uint64(b[16:]),
		timeStamp:      be.Uint32(b[24:]),
		creator:        [4]byte(b[28:]),
		creatorVersion: be.Uint32(b[32:]),
		creatorHost:    [4]byte(b[36:]),
		originalSize:   be.Uint64(b[40:]),
		currentSize:    be.Uint64(b[48:]),
		geometry:       geometry{be.Uint16(b[56:]), b[58], b[59]},
		diskType:       be.Uint32(b[60:]),
		id:             uuid.UUID(b[68:84]),
		savedState:     b[84],
	}, nil
}

func (f *footer) encode() *[footerSize]byte {
	var b [footerSize]byte
	copy(b[:], footerCookie)
	be.PutUint32(b[8:], f.features)
	be.PutUint32(b[12:], f.version)
	be.PutUint64(b[16:], f.dataOffset)
	be.PutUint32(b[24:], f.timeStamp)
	copy(b[28:], f.creator[:])
	be.PutUint32(b[32:], f.creatorVersion)
	copy(b[36:], f.creatorHost[:])
	be.PutUint64(b[40:], f.originalSize)
	be.PutUint64(b[48:], f.currentSize)
	be.PutUint16(b[56:], f.geometry.cylinders)
	b[58], b[59] = f.geometry.heads, f.geometry.sectors
	be.PutUint32(b[60:], f.diskType)
	copy(b[68:], f.id[:])
	b[84] = f.savedState
	be.PutUint32(b[footerChecksumAt:], checksum(b[:], footerChecksumAt))
	return &b
}

// validate checks what can be checked without the rest of the file.
func (f *footer) validate(off int64) error {
	switch {
	case f.version>>16 != 1:
		return corrupt("footer", off, "version %d.%d of the format is not supported", f.version>>16, f.version&0xFFFF)
	case f.diskType != typeFixed && f.diskType != typeDynamic && f.diskType != typeDifferencing:
		return corrupt("footer", off, "disk type %d is not known", f.diskType)
	case f.currentSize == 0 || f.currentSize%sectorSize != 0 || f.currentSize > 1<<41:
		return corrupt("footer", off, "the disk has %d bytes; it must be a multiple of 512 and at most 2 TiB", f.currentSize)
	}
	return nil
}
