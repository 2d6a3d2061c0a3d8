package journal

import (
	"encoding/binary"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

var le = binary.LittleEndian

// SectorSize is the unit of the log and of the updates in it, in bytes.
const SectorSize = 4 << 10

const (
	entryHeaderSize = 64 // bytes
	descriptorSize  = 32 // bytes
	checksumField   = 4  // offset in the entry

	leadingSize   = 8              // bytes of a page that its descriptor holds in LeadingBytes
	trailingStart = SectorSize - 4 // offset of those that it holds in TrailingBytes
)

// An EntryHeader begins each log entry (MS-VHDX 2.3.1.1).
type EntryHeader struct {
	EntryLength       uint32 // bytes, a multiple of SectorSize
	Tail              uint32 // position of the oldest entry to be replayed
	SequenceNumber    uint64 // never 0
	DescriptorCount   uint32
	LogGUID           uuid.UUID
	FlushedFileOffset uint64 // the file is at least so long, in bytes
	LastFileOffset    uint64 // all structures lie below it, in bytes
}

// An Entry is what AppendEntry encodes. Its length and number of descriptors follow from its updates.
type Entry struct {
	LogGUID           uuid.UUID
	SequenceNumber    uint64 // not 0
	Tail              uint32 // position in the ring, multiple of SectorSize
	FlushedFileOffset uint64 // bytes
	LastFileOffset    uint64 // bytes
	Updates           []Update
}

// An Update gives a page of the file new bytes or, where Data is nil, makes a range read as zero.
type Update struct {
	FileOffset uint64 // bytes, multiple of SectorSize
	ZeroLength uint64 // bytes, multiple of SectorSize; for zeros only
	Data       *[SectorSize]byte
}

// A descriptor is the decoded form of both kinds.
type descriptor struct {
	zero           bool
	fileOffset     uint64 // bytes
	zeroLength     uint64 // bytes; zero descriptors only
	sequenceNumber uint64
	leading        [leadingSize]byte                // data descriptors only
	trailing       [SectorSize - trailingStart]byte // data descriptors only
}

// descriptorSectors returns the log sectors that a header and n descriptors take. The header leaves room
// for 126 descriptors in the first one.
func descriptorSectors(n int64) int64 {
	return (entryHeaderSize + n*descriptorSize + SectorSize - 1) / SectorSize
}

// decodeEntryHeader decodes the header of the log entry at file offset off, and its checksum, which covers
// the whole entry and so is left to the caller. The reserved field is ignored: an entry with a good checksum
// was meant to be replayed, and skipping it would silently show older data.
func decodeEntryHeader(b *[entryHeaderSize]byte, off int64) (h EntryHeader, checksum uint32, err error) {
	if sig := string(b[:4]); sig != "loge" {
		return EntryHeader{}, 0, invalid(off, "signature %q", sig)
	}
	return EntryHeader{
		EntryLength:       le.Uint32(b[8:]),
		Tail:              le.Uint32(b[12:]),
		SequenceNumber:    le.Uint64(b[16:]),
		DescriptorCount:   le.Uint32(b[24:]),
		LogGUID:           ondisk.GUID(b[32:]),
		FlushedFileOffset: le.Uint64(b[48:]),
		LastFileOffset:    le.Uint64(b[56:]),
	}, le.Uint32(b[checksumField:]), nil
}

// encode mirrors decodeEntryHeader. The checksum stays zero.
func (h *EntryHeader) encode(b *[entryHeaderSize]byte) {
	clear(b[:])
	copy(b[:4], "loge")
	le.PutUint32(b[8:], h.EntryLength)
	le.PutUint32(b[12:], h.Tail)
	le.PutUint64(b[16:], h.SequenceNumber)
	le.PutUint32(b[24:], h.DescriptorCount)
	ondisk.PutGUID(b[32:], h.LogGUID)
	le.PutUint64(b[48:], h.FlushedFileOffset)
	le.PutUint64(b[56:], h.LastFileOffset)
}

// check checks all that the header by itself can break in the log reg. FlushedFileOffset and
// LastFileOffset need not be multiples of 1 MiB, although MS-VHDX says so: QEMU writes the plain length of
// the file, and Windows sometimes 0.
func (h *EntryHeader) check(reg Region, off int64) error {
	switch {
	case h.LogGUID != reg.GUID:
		return invalid(off, "LogGuid %v, the header of the file has %v", h.LogGUID, reg.GUID)
	case h.EntryLength == 0 || h.EntryLength%SectorSize != 0 || int64(h.EntryLength) > reg.Length:
		return invalid(off, "EntryLength %d in a log of %d bytes", h.EntryLength, reg.Length)
	case h.Tail%SectorSize != 0 || int64(h.Tail) >= reg.Length:
		return invalid(off, "Tail %d in a log of %d bytes", h.Tail, reg.Length)
	case h.SequenceNumber == 0:
		return invalid(off, "SequenceNumber 0")
	case descriptorSectors(int64(h.DescriptorCount)) > int64(h.EntryLength)/SectorSize:
		return invalid(off, "%d descriptors do not fit into %d bytes", h.DescriptorCount, h.EntryLength)
	}
	return nil
}

// decodeDescriptor decodes the descriptor at file offset off (MS-VHDX 2.3.1.2 and 2.3.1.3) of an entry with
// sequence number seq.
func decodeDescriptor(b *[descriptorSize]byte, seq uint64, off int64) (descriptor, error) {
	d := descriptor{fileOffset: le.Uint64(b[16:]), sequenceNumber: le.Uint64(b[24:])}
	switch sig := string(b[:4]); sig {
	case "desc":
		copy(d.trailing[:], b[4:])
		copy(d.leading[:], b[8:])
	case "zero":
		d.zero = true
		d.zeroLength = le.Uint64(b[8:])
	default:
		return descriptor{}, invalid(off, "descriptor with signature %q", sig)
	}
	switch {
	case d.sequenceNumber != seq:
		return descriptor{}, invalid(off, "descriptor with SequenceNumber %d in entry %d", d.sequenceNumber, seq)
	case d.fileOffset%SectorSize != 0:
		return descriptor{}, invalid(off, "descriptor with FileOffset %#x", d.fileOffset)
	case d.zeroLength%SectorSize != 0:
		return descriptor{}, invalid(off, "descriptor with ZeroLength %#x", d.zeroLength)
	}
	return d, nil
}

// encode mirrors decodeDescriptor.
func (d *descriptor) encode(b *[descriptorSize]byte) {
	clear(b[:])
	if d.zero {
		copy(b[:4], "zero")
		le.PutUint64(b[8:], d.zeroLength)
	} else {
		copy(b[:4], "desc")
		copy(b[4:8], d.trailing[:])
		copy(b[8:16], d.leading[:])
	}
	le.PutUint64(b[16:], d.fileOffset)
	le.PutUint64(b[24:], d.sequenceNumber)
}

// checkDataSector checks the data sector at file offset off (MS-VHDX 2.3.1.4) of an entry with sequence
// number seq. A sector left over from an older entry betrays itself here.
func checkDataSector(b *[SectorSize]byte, seq uint64, off int64) error {
	if sig := string(b[:4]); sig != "data" {
		return invalid(off, "data sector with signature %q", sig)
	}
	if got := uint64(le.Uint32(b[4:]))<<32 | uint64(le.Uint32(b[trailingStart:])); got != seq {
		return invalid(off, "data sector with SequenceNumber %d in entry %d", got, seq)
	}
	return nil
}

// encodeDataSector stores in b the part of page that does not go into its descriptor.
func encodeDataSector(b, page *[SectorSize]byte, seq uint64) {
	*b = *page
	copy(b[:4], "data")
	le.PutUint32(b[4:], uint32(seq>>32))         // #nosec G115 -- one of the two halves that the format has
	le.PutUint32(b[trailingStart:], uint32(seq)) // #nosec G115 -- one of the two halves that the format has
}

// Length returns the bytes that e takes in the log. It has to be at most the length of the log.
func (e *Entry) Length() int64 {
	sectors := descriptorSectors(int64(len(e.Updates)))
	for i := range e.Updates {
		if e.Updates[i].Data != nil {
			sectors++
		}
	}
	return sectors * SectorSize
}

// AppendEntry appends the Length bytes of e, as they follow each other in the ring, to dst. It stores the
// fields as they are: that they make a valid entry is the caller's business.
func AppendEntry(dst []byte, e *Entry) []byte {
	start, n := len(dst), int(e.Length())
	dst = slices.Grow(dst, n)[:start+n]
	b := dst[start:]
	data := b[descriptorSectors(int64(len(e.Updates)))*SectorSize:]
	clear(b[:n-len(data)])

	h := EntryHeader{
		EntryLength:       uint32(n),
		Tail:              e.Tail,
		SequenceNumber:    e.SequenceNumber,
		DescriptorCount:   uint32(len(e.Updates)),
		LogGUID:           e.LogGUID,
		FlushedFileOffset: e.FlushedFileOffset,
		LastFileOffset:    e.LastFileOffset,
	}
	h.encode((*[entryHeaderSize]byte)(b))
	at := b[entryHeaderSize:]
	for _, u := range e.Updates {
		d := descriptor{zero: u.Data == nil, fileOffset: u.FileOffset, sequenceNumber: e.SequenceNumber}
		if d.zero {
			d.zeroLength = u.ZeroLength
		} else {
			copy(d.leading[:], u.Data[:])
			copy(d.trailing[:], u.Data[trailingStart:])
			encodeDataSector((*[SectorSize]byte)(data), u.Data, e.SequenceNumber)
			data = data[SectorSize:]
		}
		d.encode((*[descriptorSize]byte)(at))
		at = at[descriptorSize:]
	}
	le.PutUint32(b[checksumField:], ondisk.Checksum(b, checksumField))
	return dst
}

// invalid says why the bytes at file offset off are no part of a valid log entry.
func invalid(off int64, format string, args ...any) error {
	return ondisk.Corrupt(ondisk.RuleLogSequence, "log entry", off, format, args...)
}
