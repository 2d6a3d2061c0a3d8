package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
	sizes "vhdxfs/internal/size"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	tib = 1 << 40

	headerSectionSize = 1 * mib
	identifierSize    = 64 * kib
	creatorSize       = 512 // bytes of UTF-16
	headerSize        = 4 * kib
	headerVersion     = 1
)

// headerOffsets are the file offsets of the two headers.
var headerOffsets = [2]int64{64 * kib, 128 * kib}

const (
	identifierSignature = "vhdxfile"
	headerSignature     = "head"
)

var le = binary.LittleEndian

// A header is one copy of the header (MS-VHDX 2.2.2).
type header struct {
	SequenceNumber uint64
	FileWriteGUID  uuid.UUID // changes when any byte of the file does
	DataWriteGUID  uuid.UUID // changes when what the disk's user sees does
	LogGUID        uuid.UUID // zero when there is nothing to replay
	LogVersion     uint16
	Version        uint16
	LogLength      uint32 // bytes
	LogOffset      uint64 // file offset, bytes
}

// decodeHeader decodes the header in b, which was read from file offset off. It checks signature and
// checksum; validate checks what matters only in the current header.
func decodeHeader(b *[headerSize]byte, off int64) (header, error) {
	if sig := string(b[:4]); sig != headerSignature {
		return header{}, ondisk.Corrupt(ondisk.R3, "header", off, "signature %q", sig)
	}
	if got, want := ondisk.Checksum(b[:], 4), le.Uint32(b[4:]); got != want {
		return header{}, ondisk.Corrupt(ondisk.R3, "header", off, "checksum %#08x, stored %#08x", got, want)
	}
	return header{
		SequenceNumber: le.Uint64(b[8:]),
		FileWriteGUID:  ondisk.GUID(b[16:]),
		DataWriteGUID:  ondisk.GUID(b[32:]),
		LogGUID:        ondisk.GUID(b[48:]),
		LogVersion:     le.Uint16(b[64:]),
		Version:        le.Uint16(b[66:]),
		LogLength:      le.Uint32(b[68:]),
		LogOffset:      le.Uint64(b[72:]),
	}, nil
}

func (h header) encode() *[headerSize]byte {
	b := new([headerSize]byte)
	copy(b[:], headerSignature)
	le.PutUint64(b[8:], h.SequenceNumber)
	ondisk.PutGUID(b[16:], h.FileWriteGUID)
	ondisk.PutGUID(b[32:], h.DataWriteGUID)
	ondisk.PutGUID(b[48:], h.LogGUID)
	le.PutUint16(b[64:], h.LogVersion)
	le.PutUint16(b[66:], h.Version)
	le.PutUint32(b[68:], h.LogLength)
	le.PutUint64(b[72:], h.LogOffset)
	le.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
	return b
}

// dirty reports whether the log has to be replayed.
func (h header) dirty() bool { return h.LogGUID != uuid.Nil }

// validate checks the current header, read from file offset off, of a file of size bytes.
func (h header) validate(off, size int64) error {
	bad := func(r ondisk.Rule, format string, args ...any) error {
		return ondisk.Corrupt(r, "header", off, format, args...)
	}
	if h.Version != headerVersion {
		return bad(ondisk.R5, "version %d; only version 1 is supported", h.Version)
	}
	if h.dirty() && h.LogVersion != 0 {
		return bad(ondisk.R6, "log version %d of a log that must be replayed; only version 0 is supported", h.LogVersion)
	}
	if h.LogLength%mib != 0 {
		return bad(ondisk.R8, "log length %#x is not a multiple of 1 MiB", h.LogLength)
	}
	if h.LogLength == 0 {
		if h.dirty() {
			return bad(ondisk.R10, "LogGuid %v requires a replay, but the log has no length", h.LogGUID)
		}
		return nil // where a log of no length would be means nothing
	}
	if h.LogOffset%mib != 0 || h.LogOffset < headerSectionSize {
		return bad(ondisk.R7, "log offset %#x is not a multiple of 1 MiB beyond the header section", h.LogOffset)
	}
	if h.LogOffset > uint64(size) || uint64(h.LogLength) > uint64(size)-h.LogOffset {
		return bad(ondisk.R9, "the log (%s at %#x) ends beyond the end of the file (%#x); was the file cut off?", sizes.Text(int64(h.LogLength)), h.LogOffset, size)
	}
	return nil
}

// headers are both copies of the header, and which of them counts.
type headers struct {
	copies  [2]header
	err     [2]error // why a copy is not valid
	current int      // index
}

func (hs *headers) header() header { return hs.copies[hs.current] }

// dropLog has the current header say that there is no log.
func (hs *headers) dropLog() {
	h := &hs.copies[hs.current]
	h.LogGUID, h.LogOffset, h.LogLength = uuid.Nil, 0, 0
}

// readHeaders reads both headers and chooses the current one: the only valid one, or the one with the larger
// sequence number. Two that are alike in every byte are one (Disk2vhd writes them so). With the error that both could
// be it returns them all the same, the first as the current one, for a repair.
func readHeaders(r io.ReaderAt) (*headers, error) {
	var hs headers
	var raw [2][headerSize]byte
	for i, off := range headerOffsets {
		if err := readFull(r, raw[i][:], off, "header"); err != nil {
			return nil, err
		}
		hs.copies[i], hs.err[i] = decodeHeader(&raw[i], off)
	}
	a, b := hs.copies[0], hs.copies[1]
	switch {
	case hs.err[0] != nil && hs.err[1] != nil:
		return nil, ondisk.Corrupt(ondisk.R3, "header", headerOffsets[0], "neither header is valid: %w; %w",
			finding(hs.err[0]), finding(hs.err[1]))
	case hs.err[0] != nil:
		hs.current = 1
	case hs.err[1] != nil:
		hs.current = 0
	case a.SequenceNumber == b.SequenceNumber && raw[0] != raw[1]:
		return &hs, ondisk.Corrupt(ondisk.R4, "header", headerOffsets[1],
			"both headers have sequence number %d and differ", a.SequenceNumber)
	case b.SequenceNumber > a.SequenceNumber:
		hs.current = 1
	}
	return &hs, nil
}

// readIdentifier checks the file type identifier (MS-VHDX 2.2.1) and returns the name of the program that
// made the file, which may be empty.
func readIdentifier(r io.ReaderAt) (creator string, err error) {
	var b [len(identifierSignature) + creatorSize]byte
	if err := readFull(r, b[:], 0, "file type identifier"); err != nil {
		return "", err
	}
	if sig := string(b[:len(identifierSignature)]); sig != identifierSignature {
		return "", errNoIdentifier
	}
	return decodeCreator(b[len(identifierSignature):]), nil
}

// errNoIdentifier is what readIdentifier returns where the signature is another one. What the file holds instead is for
// the caller to find out.
var errNoIdentifier = errors.New("no file type identifier")

// readFull reads len(b) bytes at off, where the file is known to hold them.
func readFull(r io.ReaderAt, b []byte, off int64, what string) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at %#x: %w", what, off, err)
	}
	return nil
}
