package content

import "hash/crc32"

// SectorSize returns the size of the sectors, in bytes, that the GPT of a disk counts in, whose first 8 KiB head are, and
// 0 where there is none. The header is in sector 1 and says so (UEFI 5.3.2). Where sectors of both sizes have one, as after
// a copy onto a disk of the other kind, the one whose checksum is right counts, and the first of two.
func SectorSize(head []byte) int64 {
	signed := int64(0)
	for _, sector := range []int64{512, 4096} {
		if int64(len(head)) < sector+512 {
			continue
		}
		h := head[sector : sector+512]
		if string(h[:8]) != "EFI PART" {
			continue
		}
		if n := le.Uint32(h[12:]); n >= 92 && n <= 512 && le.Uint64(h[24:]) == 1 {
			b := append([]byte(nil), h[:n]...)
			clear(b[16:20])
			if crc32.ChecksumIEEE(b) == le.Uint32(h[16:]) {
				return sector
			}
		}
		if signed == 0 {
			signed = sector
		}
	}
	return signed
}
