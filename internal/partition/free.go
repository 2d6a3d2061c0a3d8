package partition

import (
	"errors"
	"io"
)

// Unused returns how many bytes the file systems on a disk of size bytes, with logical sectors of the given size, say they
// do not use. It knows ext2 to ext4, XFS, Btrfs, FAT32 and exFAT; of others it counts none.
func Unused(disk io.ReaderAt, size, sector int64) (unused int64) {
	if n := unusedOf(disk, size); n > 0 {
		return n
	}
	partitions, err := list(disk, size, sector)
	if err != nil {
		return 0
	}
	for _, p := range partitions {
		if p.Len > 0 && p.Off < size && p.Len <= size-p.Off {
			unused += unusedOf(io.NewSectionReader(disk, p.Off, p.Len), p.Len)
		}
	}
	return unused
}

// unusedOf returns how many bytes the file system says it does not use that takes all of the disk.
func unusedOf(disk io.ReaderAt, size int64) int64 {
	b := make([]byte, headSize)
	if _, err := disk.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	n := int64(0)
	switch ext, btrfs := b[1024:], b[64<<10:]; {
	case le.Uint16(ext[56:]) == 0xEF53:
		free := uint64(le.Uint32(ext[12:]))
		const has64Bit = 0x80
		if le.Uint32(ext[96:])&has64Bit != 0 {
			free |= uint64(le.Uint32(ext[0x158:])) << 32
		}
		n = span(free, 1024<<min(le.Uint32(ext[24:]), 20))
	case string(b[:4]) == "XFSB":
		n = span(be.Uint64(b[144:]), uint64(be.Uint32(b[4:])))
	case string(btrfs[0x40:0x48]) == "_BHRfS_M":
		if total, used := le.Uint64(btrfs[0x70:]), le.Uint64(btrfs[0x78:]); used <= total {
			n = span(total-used, 1)
		}
	case string(b[3:11]) == "EXFAT   " && b[112] <= 100:
		n = size / 100 * int64(100-b[112])
	case string(b[82:87]) == "FAT32":
		at, cluster := int64(le.Uint16(b[48:]))*int64(le.Uint16(b[11:])), uint64(le.Uint16(b[11:]))*uint64(b[13])
		if at+512 <= int64(len(b)) && string(b[at:at+4]) == "RRaA" && le.Uint32(b[at+488:]) != 0xFFFFFFFF {
			n = span(uint64(le.Uint32(b[at+488:])), cluster)
		}
	}
	if n > size { // it cannot be
		return 0
	}
	return n
}
