package partition

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/utf16text"
)

// A Volume is what is on a disk, or in a partition of it.
type Volume struct {
	Number     int    `json:"partition,omitempty"` // 0 is the whole disk, without a partition table
	Off        int64  `json:"offset"`              // bytes
	Len        int64  `json:"size"`                // bytes
	FileSystem string `json:"filesystem,omitempty"`
	Label      string `json:"label,omitempty"`
}

// A Content is what is on a disk, for people.
type Content struct {
	Table   string   `json:"partition_table,omitempty"` // gpt, mbr or "" where there is none
	Volumes []Volume `json:"volumes"`
}

// Inside looks for partitions and file systems on a disk of size bytes with logical sectors of the given size. What cannot
// be read or is not known is left out.
func Inside(disk io.ReaderAt, size, sector int64) Content {
	c := Content{Volumes: []Volume{}}
	parts, err := list(disk, size, sector)
	if err != nil || len(parts) == 0 {
		if v := volume(disk, Partition{0, 0, size}); v.FileSystem != "" {
			c.Volumes = append(c.Volumes, v)
		}
		return c
	}
	c.Table = "mbr"
	if g, err := readGPT(disk, size, sector); err == nil && g != nil {
		c.Table = "gpt"
	}
	for _, p := range parts {
		if p.Len <= 0 || p.Off >= size || p.Len > size-p.Off {
			p.Len = max(min(p.Len, size-p.Off), 0)
		}
		c.Volumes = append(c.Volumes, volume(disk, p))
	}
	return c
}

// shortNames are what list and info call what Find describes.
var shortNames = strings.NewReplacer("an ", "", "a ", "", "ext2, ext3 or ext4", "ext4", " file system", "", "swap space", "swap",
	"encrypted volume (BitLocker)", "BitLocker", "encrypted volume (LUKS)", "LUKS", "physical volume of LVM", "LVM", "part of a RAID (md)", "RAID")

func volume(disk io.ReaderAt, p Partition) Volume {
	v := Volume{Number: p.Number, Off: p.Off, Len: p.Len}
	part := io.NewSectionReader(disk, p.Off, p.Len)
	head := make([]byte, headSize)
	if n, err := part.ReadAt(head, 0); n < len(head) && !errors.Is(err, io.EOF) {
		return v
	}
	l := new(Layout)
	l.add(bootSectors, head, p.Len)
	l.add(fileSystems, head, p.Len)
	if len(l.Uses) > 0 {
		v.FileSystem = shortNames.Replace(l.Uses[0].What)
		v.Label = label(part, head, v.FileSystem)
	}
	return v
}

// label returns the name that a file system has, "" for none, or for one that is stored in a way that is not known here.
func label(part io.ReaderAt, head []byte, fileSystem string) string {
	text := func(off, n int) string {
		s, _, _ := bytes.Cut(head[off:off+n], []byte{0})
		return strings.ToValidUTF8(strings.TrimRight(string(s), " "), "\uFFFD")
	}
	switch fileSystem {
	case "ext4":
		return text(1024+120, 16)
	case "XFS":
		return text(108, 12)
	case "Btrfs":
		return text(64<<10+0x12B, 256)
	case "F2FS":
		return utf16text.UpToZero(head[1024+0x7C:][:1024], le)
	case "swap":
		return text(1052, 16)
	case "LUKS":
		if head[7] == 2 {
			return text(24, 48)
		}
	case "FAT":
		at := 43
		if bytes.HasPrefix(head[82:], []byte("FAT32")) {
			at = 71
		}
		if s := text(at, 11); s != "NO NAME" {
			return s
		}
	case "NTFS":
		return ntfsLabel(part, head)
	case "exFAT":
		return exfatLabel(part, head)
	case "ISO 9660":
		return text(isoVolumes+40, 32)
	case "EROFS":
		return text(1024+64, 16)
	}
	return ""
}

// ntfsLabel reads the name from the record of $Volume, the fourth of the master file table.
func ntfsLabel(part io.ReaderAt, head []byte) string {
	const volumeRecord, nameAttribute, end = 3, 0x60, 0xFFFFFFFF
	cluster := int64(le.Uint16(head[11:])) * int64(head[13])
	record := int64(head[64]) * cluster
	if n := int8(head[64]); n < 0 {
		record = 1 << min(uint(-int(n)), 16)
	}
	mft := le.Uint64(head[48:])
	if cluster == 0 || record < 512 || record > 64<<10 || mft > 1<<40 {
		return ""
	}
	b := make([]byte, record)
	if readAt(part, b, int64(mft)*cluster+volumeRecord*record) != nil || string(b[:4]) != "FILE" { // #nosec G115 -- at most 2^40
		return ""
	}
	for at := int64(le.Uint16(b[20:])); at+24 <= record && le.Uint32(b[at:]) != end; {
		n := int64(le.Uint32(b[at+4:]))
		if n < 24 || at+n > record {
			return ""
		}
		if value, size := at+int64(le.Uint16(b[at+20:])), int64(le.Uint32(b[at+16:])); le.Uint32(b[at:]) == nameAttribute && value+size <= at+n {
			return utf16text.UpToZero(b[value:value+size], le)
		}
		at += n
	}
	return ""
}

// exfatLabel reads the name from the first cluster of the root directory.
func exfatLabel(part io.ReaderAt, head []byte) string {
	const entry, labelEntry, firstCluster = 32, 0x83, 2
	sector, perCluster := int64(1)<<min(head[108], 12), int64(1)<<min(head[109], 25)
	root := int64(le.Uint32(head[96:])) - firstCluster
	b := make([]byte, 4096)
	if root < 0 || readAt(part, b, (int64(le.Uint32(head[88:]))+root*perCluster)*sector) != nil {
		return ""
	}
	for at := 0; at < len(b) && b[at] != 0; at += entry {
		if b[at] == labelEntry {
			return utf16text.UpToZero(b[at+2:][:2*min(b[at+1], 11)], le)
		}
	}
	return ""
}
