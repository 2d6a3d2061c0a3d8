package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// A Use is something on a disk that needs all bytes before End.
type Use struct {
	What string
	End  int64 // bytes
}

// A Layout is what is on a disk.
type Layout struct {
	Uses []Use
	GPT  *GPT // nil if there is none
}

// Beyond returns the use that reaches furthest, if it reaches beyond the given size in bytes.
func (l *Layout) Beyond(size int64) (Use, bool) {
	var last Use
	for _, u := range l.Uses {
		if u.End > last.End {
			last = u
		}
	}
	return last, last.End > size
}

// headSize is how much of a disk is looked at for file systems: up to the super block of Btrfs, in bytes.
const headSize = 68 << 10

// Find tells what is on a disk of size bytes with logical sectors of the given size. It returns an error where a GPT is
// damaged, for then it is unknown what the disk holds.
func Find(disk io.ReaderAt, size, sector int64) (*Layout, error) {
	head := make([]byte, headSize)
	if n, err := disk.ReadAt(head, 0); n < len(head) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the start of the disk: %w", err)
	}
	l := new(Layout)
	l.add(bootSectors, head, size)
	booted := len(l.Uses) > 0
	l.add(fileSystems, head, size) // which may lie below a partition table that was made later, and is the safer guess
	var err error
	if l.GPT, err = readGPT(disk, size, sector); err != nil {
		return nil, err
	}
	if l.GPT != nil {
		l.Uses = append(l.Uses, l.GPT.uses()...)
	}
	if !booted { // else there is code where an MBR has its table
		l.Uses = append(l.Uses, mbrUses(head, sector)...)
	}
	return l, nil
}

// add notes what of the kinds is there.
func (l *Layout) add(kinds []kind, head []byte, size int64) {
	for _, find := range kinds {
		if what, end := find(head, size); what != "" {
			l.Uses = append(l.Uses, Use{what, end})
		}
	}
}

// span returns n units in bytes, or the most there can be where that is too much.
func span(n, unit uint64) int64 {
	if hi, lo := bits.Mul64(n, unit); hi == 0 && lo <= math.MaxInt64 {
		return int64(lo) // #nosec G115 -- bounded above
	}
	return math.MaxInt64
}

const mbrSignature = "\x55\xaa" // at byte 510

// protective is the type of the partition of an MBR that stands for a GPT.
const protective = 0xEE

// An mbrEntry is an entry of the table of an MBR, or of that of a logical partition.
type mbrEntry struct {
	kind     byte
	first, n uint64 // sectors
}

// mbrEntries returns the four entries of the table in b, if there is one, and whether all of them are sound.
func mbrEntries(b []byte) (entries []mbrEntry, sound bool) {
	const table, entry = 446, 16
	if string(b[510:512]) != mbrSignature {
		return nil, false
	}
	entries, sound = make([]mbrEntry, 4), true
	for i := range entries {
		e := b[table+i*entry:]
		if e[0]&0x7F != 0 { // neither active nor not: there is likely code where the table would be
			sound = false
			continue
		}
		entries[i] = mbrEntry{e[4], uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))}
	}
	return entries, sound
}

func (e mbrEntry) empty() bool    { return e.kind == 0 || e.n == 0 }
func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0F || e.kind == 0x85 }

// partition returns the partition that the entry describes, counted from the sector base.
func (e mbrEntry) partition(number int, base uint64, sector int64) Partition {
	return Partition{number, span(base+e.first, uint64(sector)), span(e.n, uint64(sector))}
}

// mbrUses are the partitions of an MBR, but for the one that protects a GPT. An extended one holds its logical ones.
func mbrUses(head []byte, sector int64) (uses []Use) {
	entries, _ := mbrEntries(head)
	for i, e := range entries {
		if !e.empty() && e.kind != protective {
			uses = append(uses, Use{fmt.Sprintf("partition %d", i+1), span(e.first+e.n, uint64(sector))})
		}
	}
	return uses
}

// A kind tells a file system, or the like, that begins at the start of a disk by its first bytes, and where it ends in
// bytes. One that does not tell takes all of the disk.
type kind func(b []byte, size int64) (what string, end int64)

// bootSectors are the kinds whose first sector looks like an MBR.
var bootSectors = []kind{
	func(b []byte, _ int64) (string, int64) {
		if string(b[3:11]) != "NTFS    " {
			return "", 0
		}
		n := le.Uint64(b[40:]) // without the sector behind it, a copy of the first
		return "an NTFS file system", span(n+min(1, math.MaxUint64-n), uint64(le.Uint16(b[11:])))
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[3:11]) != "EXFAT   " {
			return "", 0
		}
		return "an exFAT file system", span(le.Uint64(b[72:]), 1<<min(b[108], 12))
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[510:512]) != mbrSignature || !bytes.HasPrefix(b[54:], []byte("FAT")) && !bytes.HasPrefix(b[82:], []byte("FAT32")) {
			return "", 0
		}
		sectors := uint64(le.Uint16(b[19:]))
		if sectors == 0 {
			sectors = uint64(le.Uint32(b[32:]))
		}
		return "a FAT file system", span(sectors, uint64(le.Uint16(b[11:])))
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[3:11]) != "ReFS\x00\x00\x00\x00" {
			return "", 0
		}
		return "a ReFS file system", span(le.Uint64(b[24:]), uint64(le.Uint32(b[32:])))
	},
	func(b []byte, size int64) (string, int64) {
		if string(b[3:11]) != "-FVE-FS-" {
			return "", 0
		}
		return "an encrypted volume (BitLocker)", size
	},
}

var fileSystems = []kind{
	func(b []byte, _ int64) (string, int64) { // its super block is at 1024
		s := b[1024:]
		if le.Uint16(s[56:]) != 0xEF53 {
			return "", 0
		}
		blocks := uint64(le.Uint32(s[4:]))
		const has64Bit = 0x80
		if le.Uint32(s[96:])&has64Bit != 0 {
			blocks |= uint64(le.Uint32(s[0x150:])) << 32
		}
		return "an ext2, ext3 or ext4 file system", span(blocks, 1024<<min(le.Uint32(s[24:]), 20))
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[:4]) != "XFSB" {
			return "", 0
		}
		return "an XFS file system", span(be.Uint64(b[8:]), uint64(be.Uint32(b[4:])))
	},
	func(b []byte, _ int64) (string, int64) {
		s := b[64<<10:]
		if string(s[0x40:0x48]) != "_BHRfS_M" {
			return "", 0
		}
		const deviceItem = 0xC9
		return "a Btrfs file system", span(le.Uint64(s[deviceItem+8:]), 1)
	},
	func(b []byte, _ int64) (string, int64) {
		s := b[1024:]
		if le.Uint32(s) != 0xF2F52010 {
			return "", 0
		}
		return "an F2FS file system", span(le.Uint64(s[36:]), 1<<min(le.Uint32(s[16:]), 16))
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[4086:4096]) != "SWAPSPACE2" {
			return "", 0
		}
		return "swap space", span(uint64(le.Uint32(b[1028:]))+1, 4096)
	},
	func(b []byte, _ int64) (string, int64) {
		if s := b[512:]; string(s[:8]) == "LABELONE" && string(s[24:32]) == "LVM2 001" {
			return "a physical volume of LVM", span(le.Uint64(s[min(le.Uint32(s[20:]), 480)+32:]), 1)
		}
		return "", 0
	},
	func(b []byte, size int64) (string, int64) {
		if string(b[:6]) != "LUKS\xba\xbe" {
			return "", 0
		}
		return "an encrypted volume (LUKS)", size
	},
	func(b []byte, size int64) (string, int64) {
		const magic = 0xA92B4EFC // at the begin, or behind the first 4 KiB; those at the end are data there
		if le.Uint32(b) != magic && le.Uint32(b[4096:]) != magic {
			return "", 0
		}
		return "a part of a RAID (md)", size
	},
	func(b []byte, size int64) (string, int64) {
		if !hasVolume(b, "NSR02") && !hasVolume(b, "NSR03") {
			return "", 0
		}
		return "a UDF file system", size
	},
	func(b []byte, _ int64) (string, int64) {
		if s := b[isoVolumes:]; s[0] == 1 && string(s[1:6]) == "CD001" {
			return "an ISO 9660 file system", span(uint64(le.Uint32(s[80:])), uint64(le.Uint16(s[128:])))
		}
		return "", 0
	},
	func(b []byte, _ int64) (string, int64) {
		if string(b[:4]) != "hsqs" {
			return "", 0
		}
		return "a SquashFS file system", span(le.Uint64(b[40:]), 1)
	},
	func(b []byte, _ int64) (string, int64) {
		s := b[1024:]
		if le.Uint32(s) != 0xE0F5E1E2 {
			return "", 0
		}
		return "an EROFS file system", span(uint64(le.Uint32(s[36:])), 1<<min(s[12], 16))
	},
}

// isoVolumes is where the descriptors of ISO 9660 and UDF begin, one in each sector (ECMA-167 2/8.3), in bytes.
const isoVolumes = 32 << 10

// hasVolume reports whether one of the descriptors has the identifier.
func hasVolume(b []byte, id string) bool {
	const sector = 2048
	for at := isoVolumes; at+sector <= headSize; at += sector {
		if string(b[at+1:at+6]) == id {
			return true
		}
	}
	return false
}

// MBRSectorSize returns the size of the sectors, in bytes, in which an MBR counts, by where the file systems begin, and 0
// where there is no MBR, or none that tells.
func MBRSectorSize(disk io.ReaderAt, size int64) int64 {
	b := make([]byte, 512)
	if size < int64(len(b)) || readAt(disk, b, 0) != nil {
		return 0
	}
	entries, sound := mbrEntries(b)
	if !sound {
		return 0
	}
	found := map[int64]int{}
	for _, sector := range []int64{512, 4096} {
		for _, e := range entries {
			off := span(e.first, uint64(sector))
			if e.empty() || e.first == 0 || e.kind == protective || off >= size {
				continue
			}
			head := make([]byte, headSize)
			if _, err := disk.ReadAt(head, off); err != nil && !errors.Is(err, io.EOF) {
				continue
			}
			l := new(Layout)
			l.add(bootSectors, head, size-off)
			l.add(fileSystems, head, size-off)
			found[sector] += min(len(l.Uses), 1)
		}
	}
	switch {
	case found[512] > found[4096]:
		return 512
	case found[4096] > found[512]:
		return 4096
	}
	return 0
}
