package content

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

var le = binary.LittleEndian

// What a VHDX image has at places that never change (MS-VHDX 2.2): two headers and two region tables, with checksums.
var vhdxParts = []struct {
	off, size int64
	signature string
}{
	{64 << 10, 4 << 10, "head"},
	{128 << 10, 4 << 10, "head"},
	{192 << 10, 64 << 10, "regi"},
	{256 << 10, 64 << 10, "regi"},
}

// metadataSearch is how far from the begin of the file the metadata region is looked for, in bytes. All programs put it
// near the begin, at a multiple of 1 MiB as 2.2.3.2 demands.
const metadataSearch = 64 << 20

// fileParameters is the id of a metadata item that all images have (MS-VHDX 2.6.2.1), as it is stored.
var fileParameters = [16]byte{0x37, 0x67, 0xA1, 0xCA, 0x36, 0xFA, 0x43, 0x4D, 0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// damagedVHDX reports whether r, of size bytes, has parts of a VHDX image: one with a good checksum, two that have their
// signature alone, or the metadata.
func damagedVHDX(r io.ReaderAt, size int64) (bool, error) {
	signed := 0
	for _, p := range vhdxParts {
		if p.off+p.size > size {
			break
		}
		b := make([]byte, p.size)
		if err := read(r, b, p.off); err != nil {
			return false, err
		}
		if string(b[:4]) != p.signature {
			continue
		}
		want := le.Uint32(b[4:])
		clear(b[4:8])
		if signed++; signed == 2 || crc32.Checksum(b, castagnoli) == want {
			return true, nil
		}
	}
	off, err := FindMetadata(r, size)
	return off > 0, err
}

// FindMetadata returns the offset of the metadata region of a VHDX image of which nothing says where it is, and 0 where
// none is found. A disk that begins with a boot sector or a partition table is none: there may be images inside it.
func FindMetadata(r io.ReaderAt, size int64) (int64, error) {
	const mib = 1 << 20
	head := make([]byte, min(size, headSize))
	if err := read(r, head, 0); err != nil {
		return 0, err
	}
	if SectorSize(head) != 0 || len(head) >= 512 && string(head[510:512]) == "\x55\xaa" {
		return 0, nil
	}
	for off := int64(mib); off < min(size, metadataSearch); off += mib {
		var b [4 << 10]byte
		if err := read(r, b[:], off); err != nil {
			return 0, err
		}
		if string(b[:8]) != "metadata" {
			continue
		}
		for i := 0; i < int(le.Uint16(b[10:])) && 32*(i+2) <= len(b); i++ {
			if [16]byte(b[32*(i+1):]) == fileParameters {
				return off, nil
			}
		}
	}
	return 0, nil
}
