package partition

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
)

const (
	gptSignature  = "EFI PART"
	gptHeaderSize = 92      // bytes, of version 1.0
	maxGPTEntries = 1 << 20 // bytes: 8192 partitions, and 128 are usual
	gptEntrySize  = 128     // bytes at least

	primaryLBA = 1
)

// A GPT is the primary partition table of a disk (UEFI 5.3), whose checksums are right. Sectors are logical ones.
type GPT struct {
	sector  int64
	header  []byte // one sector
	entries []byte
}

// backup returns the sector in which the header says that its backup is.
func (g *GPT) backup() uint64 { return le.Uint64(g.header[32:]) }

// BackupAtEnd reports whether the backup is where it belongs on a disk of size bytes.
func (g *GPT) BackupAtEnd(size int64) bool { return g.backup() == uint64(size/g.sector-1) }

// BackupWithin reports whether a disk of size bytes has all of the backup, at its end or before.
func (g *GPT) BackupWithin(size int64) bool { return g.backup() < uint64(size/g.sector) }

// ErrDamagedGPT is matched where a disk has a GPT that cannot be used.
var ErrDamagedGPT = errors.New("the GPT is damaged; repair it first, such as with sgdisk")

// readGPT reads the primary GPT of a disk of size bytes. It returns nil where there is none.
func readGPT(disk io.ReaderAt, size, sector int64) (*GPT, error) {
	g := &GPT{sector: sector, header: make([]byte, sector)}
	if size < 3*sector {
		return nil, nil
	}
	if err := readAt(disk, g.header, primaryLBA*sector); err != nil {
		return nil, err
	}
	if string(g.header[:8]) != gptSignature {
		last := make([]byte, sector)
		if err := readAt(disk, last, (size/sector-1)*sector); err != nil {
			return nil, err
		}
		if string(last[:8]) == gptSignature {
			return nil, fmt.Errorf("%w: only its backup exists", ErrDamagedGPT)
		}
		return nil, nil
	}
	if n := le.Uint32(g.header[12:]); n < gptHeaderSize || int64(n) > sector || le.Uint32(g.header[16:]) != g.headerSum() {
		return nil, fmt.Errorf("%w: the checksum of its header is wrong", ErrDamagedGPT)
	}
	count, each, at := uint64(le.Uint32(g.header[80:])), uint64(le.Uint32(g.header[84:])), le.Uint64(g.header[72:])
	if each < gptEntrySize || count*each > maxGPTEntries || at < primaryLBA+1 || at > uint64(size/sector) {
		return nil, fmt.Errorf("%w: %d entries of %d bytes in sector %d", ErrDamagedGPT, count, each, at)
	}
	g.entries = make([]byte, count*each)
	if err := readAt(disk, g.entries, int64(at)*sector); err != nil { // #nosec G115 -- smaller than the disk
		return nil, err
	}
	if crc32.ChecksumIEEE(g.entries) != le.Uint32(g.header[88:]) {
		return nil, fmt.Errorf("%w: the checksum of its entries is wrong", ErrDamagedGPT)
	}
	return g, nil
}

func readAt(disk io.ReaderAt, b []byte, off int64) error {
	if n, err := disk.ReadAt(b, off); n < len(b) {
		return fmt.Errorf("read %d bytes of the disk at %d: %w", len(b), off, err)
	}
	return nil
}

// headerSum returns the checksum of the header, in which its own field counts as zero.
func (g *GPT) headerSum() uint32 {
	b := bytes.Clone(g.header[:le.Uint32(g.header[12:])])
	clear(b[16:20])
	return crc32.ChecksumIEEE(b)
}

// uses are the partitions, and the table itself.
func (g *GPT) uses() (uses []Use) {
	each := int(le.Uint32(g.header[84:]))
	for i := 0; i+each <= len(g.entries); i += each {
		e := g.entries[i:]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		last := le.Uint64(e[40:])
		uses = append(uses, Use{fmt.Sprintf("partition %d", i/each+1), span(last+min(1, math.MaxUint64-last), uint64(g.sector))})
	}
	return uses
}

// tableSectors returns how many sectors the entries take.
func (g *GPT) tableSectors() int64 { return (int64(len(g.entries)) + g.sector - 1) / g.sector }

// Fits says why the partitions and the backup have no room on a disk of size bytes.
func (g *GPT) Fits(size int64) error {
	end := (size/g.sector - 1 - g.tableSectors()) * g.sector
	if u, beyond := (&Layout{Uses: g.uses()}).Beyond(end); beyond {
		return fmt.Errorf("%s ends at %s, but with the backup of the GPT there is room up to %s only", u.What, sizes.Text(u.End), sizes.Text(max(end, 0)))
	}
	if first := le.Uint64(g.header[40:]); end < span(first, uint64(g.sector)) {
		return fmt.Errorf("a GPT needs more than %s", sizes.Text(size))
	}
	return nil
}

// A Disk is what MoveBackup changes.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// MoveBackup puts the backup of the GPT at the end of a disk of size bytes: a new one, and when that is durable the
// primary table names it. So one of both is good at any moment. The old backup stays where it is, and means nothing.
func (g *GPT) MoveBackup(disk Disk, size int64) error {
	if err := g.Fits(size); err != nil {
		return err
	}
	last := size/g.sector - 1
	table := last - g.tableSectors()
	primary := bytes.Clone(g.header)
	le.PutUint64(g.header[32:], uint64(last))
	le.PutUint64(g.header[48:], uint64(table-1))
	le.PutUint32(g.header[16:], g.headerSum())

	backup := &GPT{sector: g.sector, header: bytes.Clone(g.header)}
	le.PutUint64(backup.header[24:], uint64(last))
	le.PutUint64(backup.header[32:], primaryLBA)
	le.PutUint64(backup.header[72:], uint64(table))
	le.PutUint32(backup.header[16:], backup.headerSum())
	entries := make([]byte, g.tableSectors()*g.sector)
	copy(entries, g.entries)
	for _, w := range []struct {
		b   []byte
		off int64
	}{
		{append(entries, backup.header...), table * g.sector},
		{g.header, primaryLBA * g.sector},
	} {
		_, err := disk.WriteAt(w.b, w.off)
		if err == nil {
			err = disk.Sync()
		}
		if err != nil {
			g.header = primary
			return fmt.Errorf("move the backup of the GPT: %w", err)
		}
	}
	return protect(disk, last)
}

// protect gives the partition of the MBR that stands for the GPT its new size.
func protect(disk Disk, last int64) error {
	const entry = 446
	b := make([]byte, 512)
	if err := readAt(disk, b, 0); err != nil {
		return err
	}
	if string(b[510:]) != mbrSignature || b[entry+4] != protective || le.Uint32(b[entry+8:]) != primaryLBA {
		return nil
	}
	le.PutUint32(b[entry+12:], uint32(min(last, math.MaxUint32)))
	if _, err := disk.WriteAt(b, 0); err != nil {
		return fmt.Errorf("change the protective MBR: %w", err)
	}
	return disk.Sync()
}
