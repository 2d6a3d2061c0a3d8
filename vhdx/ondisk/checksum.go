package ondisk

import "hash/crc32"

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroField  [4]byte
)

// Checksum returns the CRC-32C of b, in which the four bytes of the checksum field at offset field count as zero (MS-VHDX 2.2.2,
// 2.2.3.1 and 2.3.1.1).
func Checksum(b []byte, field int) uint32 {
	c := Update(0, b[:field])
	c = Update(c, zeroField[:])
	return Update(c, b[field+len(zeroField):])
}

// Update adds b to the CRC-32C c of the bytes before it. It serves structures, such as log entries, that
// are too large to be held in memory at once.
func Update(c uint32, b []byte) uint32 {
	return crc32.Update(c, castagnoli, b)
}
