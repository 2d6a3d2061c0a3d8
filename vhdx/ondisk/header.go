package ondisk

import (
	"encoding/binary"
	"errors"

	"github.com/google/uuid"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
)

// Sizes of the header section and its parts, in bytes (MS-VHDX 2.2).
const (
	KiB = 1 << 10
	MiB = 1 << 20
	TiB = 1 << 40

	HeaderSectionSize = 1 * MiB // everything else in the file lies behind it
	identifierSize    = 64 * KiB
	CreatorSize       = 512 // bytes of UTF-16
	HeaderSize        = 4 * KiB
	HeaderVersion     = 1 // no size: the only version of the format
)

// HeaderOffsets are the file offsets of the two headers.
var HeaderOffsets = [2]int64{64 * KiB, 128 * KiB}

// The first bytes of the file type identifier (MS-VHDX 2.2.1) and of a header (2.2.2).
const (
	IdentifierSignature = "vhdxfile"
	HeaderSignature     = "head"
)

// LE is the byte order of all integers of the format.
var LE = binary.LittleEndian

// A Header is one copy of the header (MS-VHDX 2.2.2).
type Header struct {
	SequenceNumber uint64
	FileWriteGUID  uuid.UUID // changes when any byte of the file does
	DataWriteGUID  uuid.UUID // changes when what the disk's user sees does
	LogGUID        uuid.UUID // zero when there is nothing to replay
	LogVersion     uint16
	Version        uint16
	LogLength      uint32 // bytes
	LogOffset      uint64 // file offset, bytes
}

// DecodeHeader decodes the header in b, which was read from file offset off. It checks signature and
// checksum, and an error names RuleNoValidHeader. Validate checks what matters only in the current header.
func DecodeHeader(b *[HeaderSize]byte, off int64) (Header, error) {
	if sig := string(b[:4]); sig != HeaderSignature {
		return Header{}, Corrupt(RuleNoValidHeader, "header", off, "signature %q", sig)
	}
	if got, want := Checksum(b[:], 4), LE.Uint32(b[4:]); got != want {
		return Header{}, Corrupt(RuleNoValidHeader, "header", off, "checksum %#08x, stored %#08x", got, want)
	}
	return Header{
		SequenceNumber: LE.Uint64(b[8:]),
		FileWriteGUID:  GUID(b[16:]),
		DataWriteGUID:  GUID(b[32:]),
		LogGUID:        GUID(b[48:]),
		LogVersion:     LE.Uint16(b[64:]),
		Version:        LE.Uint16(b[66:]),
		LogLength:      LE.Uint32(b[68:]),
		LogOffset:      LE.Uint64(b[72:]),
	}, nil
}

// Encode returns the header as it is in the file, with its checksum.
func (h Header) Encode() *[HeaderSize]byte {
	b := new([HeaderSize]byte)
	copy(b[:], HeaderSignature)
	LE.PutUint64(b[8:], h.SequenceNumber)
	PutGUID(b[16:], h.FileWriteGUID)
	PutGUID(b[32:], h.DataWriteGUID)
	PutGUID(b[48:], h.LogGUID)
	LE.PutUint16(b[64:], h.LogVersion)
	LE.PutUint16(b[66:], h.Version)
	LE.PutUint32(b[68:], h.LogLength)
	LE.PutUint64(b[72:], h.LogOffset)
	LE.PutUint32(b[4:], Checksum(b[:], 4))
	return b
}

// Dirty reports whether the log has to be replayed.
func (h Header) Dirty() bool { return h.LogGUID != uuid.Nil }

// Validate checks the current header, read from file offset off, of a file of size bytes: its version, and where the log is. The
// error is a *FormatError.
func (h Header) Validate(off, size int64) error {
	bad := func(r Rule, format string, args ...any) error {
		return Corrupt(r, "header", off, format, args...)
	}
	if h.Version != HeaderVersion {
		return bad(RuleHeaderVersion, "version %d; only version 1 is supported", h.Version)
	}
	if h.Dirty() && h.LogVersion != 0 {
		return bad(RuleLogVersion, "log version %d of a log that must be replayed; only version 0 is supported", h.LogVersion)
	}
	if h.LogLength%MiB != 0 {
		return bad(RuleLogLength, "log length %#x is not a multiple of 1 MiB", h.LogLength)
	}
	if h.LogLength == 0 {
		if h.Dirty() {
			return bad(RuleLogEmpty, "LogGuid %v requires a replay, but the log has no length", h.LogGUID)
		}
		return nil // where a log of no length would be means nothing
	}
	if h.LogOffset%MiB != 0 || h.LogOffset < HeaderSectionSize {
		return bad(RuleLogOffset, "log offset %#x is not a multiple of 1 MiB beyond the header section", h.LogOffset)
	}
	if h.LogOffset > uint64(size) || uint64(h.LogLength) > uint64(size)-h.LogOffset {
		return bad(RuleLogBeyondFile, "the log (%s at %#x) ends beyond the end of the file (%#x); was the file cut off?", sizes.Text(int64(h.LogLength)), h.LogOffset, size)
	}
	return nil
}

// ErrNoIdentifier says that a file does not begin with IdentifierSignature. What it holds instead is for the caller to find out.
var ErrNoIdentifier = errors.New("no file type identifier")
