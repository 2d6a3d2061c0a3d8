package vhdx

import (
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// headers are both copies of the header, and which of them counts.
type headers struct {
	copies  [2]ondisk.Header
	err     [2]error // why a copy is not valid
	current int      // index
}

func (hs *headers) header() ondisk.Header { return hs.copies[hs.current] }

// dropLog has the current header say that there is no log.
func (hs *headers) dropLog() {
	h := &hs.copies[hs.current]
	h.LogGUID, h.LogOffset, h.LogLength = uuid.Nil, 0, 0
}

// readHeaders reads both headers and chooses the current one: the only valid one, or the one with the larger
// sequence number. Two that are alike in every byte are one (Disk2vhd writes them so). Where either
// could be the current one, it returns an error, and also both headers, the first as the current one, for a repair.
func readHeaders(r io.ReaderAt) (*headers, error) {
	var hs headers
	var raw [2][ondisk.HeaderSize]byte
	for i, off := range ondisk.HeaderOffsets {
		if err := readFull(r, raw[i][:], off, "header"); err != nil {
			return nil, err
		}
		hs.copies[i], hs.err[i] = ondisk.DecodeHeader(&raw[i], off)
	}
	a, b := hs.copies[0], hs.copies[1]
	switch {
	case hs.err[0] != nil && hs.err[1] != nil:
		return nil, ondisk.Corrupt(ondisk.RuleNoValidHeader, "header", ondisk.HeaderOffsets[0], "neither header is valid: the first has %w, the second %w",
			ondisk.Finding(hs.err[0]), ondisk.Finding(hs.err[1]))
	case hs.err[0] != nil:
		hs.current = 1
	case hs.err[1] != nil:
		hs.current = 0
	case a.SequenceNumber == b.SequenceNumber && raw[0] != raw[1]:
		return &hs, ondisk.Corrupt(ondisk.RuleHeadersAmbiguous, "header", ondisk.HeaderOffsets[1],
			"both headers have sequence number %d and differ", a.SequenceNumber)
	case b.SequenceNumber > a.SequenceNumber:
		hs.current = 1
	}
	return &hs, nil
}

// readIdentifier checks the file type identifier (MS-VHDX 2.2.1) and returns the name of the program that
// made the file, which may be empty.
func readIdentifier(r io.ReaderAt) (creator string, err error) {
	var b [len(ondisk.IdentifierSignature) + ondisk.CreatorSize]byte
	if err := readFull(r, b[:], 0, "file type identifier"); err != nil {
		return "", err
	}
	if sig := string(b[:len(ondisk.IdentifierSignature)]); sig != ondisk.IdentifierSignature {
		return "", ondisk.ErrNoIdentifier
	}
	return ondisk.DecodeCreator(b[len(ondisk.IdentifierSignature):]), nil
}

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
