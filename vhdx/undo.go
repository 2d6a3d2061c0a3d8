package vhdx

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"vhdxfs/vhdx/ondisk"
)

// An undo file holds what the bytes of an image were before a repair changed them, and how to know the image as the
// repair left it. It is written once, from front to end, and all numbers in it are little-endian:
//
//	header | "vhdxundo" | version 4 | CRC-32C 4 | old size 8 | new size 8 | FileWriteGuid 16 | time 8 | n 4 | reserved 4 | path n |
//	record | file offset 8 | n 4 | states 4 | CRC-32C 4 | reserved 4 | states x CRC-32C 4 of each 512 bytes | old bytes n |
//	...
//	end    | records 8     | 0   | 0        | CRC-32C 4 | reserved 4 |
//
// The sizes are those of the image file, in bytes, the FileWriteGuid is the one that the repair gave it, the time is
// in nanoseconds since 1970, the path is the image's. A state is what the repair puts in the place of the old bytes:
// one, or two where it does so in two steps. Each checksum covers the header or record that it is in, itself as zeros.
const (
	undoSignature    = "vhdxundo"
	undoVersion      = 1
	undoHeaderSize   = 64
	undoRecordSize   = 24
	undoHeaderSum    = 12 // offset of the checksum in the header
	undoRecordSum    = 16 // and in a record
	maxUndoPath      = 4 * ondisk.KiB
	maxUndoRecord    = 1 * ondisk.MiB // old bytes in a record
	maxUndoStates    = 2
	undoSector       = 512 // bytes that a disk writes as a whole, and that are old or new after a power cut
	sumSize          = 4   // bytes of a checksum
	undoSectorsInAll = maxUndoRecord / undoSector
)

// An undoHeader says to which image an undo file belongs.
type undoHeader struct {
	oldSize, newSize int64     // of the image file, bytes
	fileWrite        uuid.UUID // of the repaired image
	made             time.Time
	path             string // of the image, absolute
}

func (h *undoHeader) encode() []byte {
	b := make([]byte, undoHeaderSize, undoHeaderSize+len(h.path))
	copy(b, undoSignature)
	ondisk.LE.PutUint32(b[8:], undoVersion)
	ondisk.LE.PutUint64(b[16:], uint64(h.oldSize))
	ondisk.LE.PutUint64(b[24:], uint64(h.newSize))
	ondisk.PutGUID(b[32:], h.fileWrite)
	ondisk.LE.PutUint64(b[48:], uint64(h.made.UnixNano()))
	ondisk.LE.PutUint32(b[56:], uint32(len(h.path)))
	b = append(b, h.path...)
	ondisk.LE.PutUint32(b[undoHeaderSum:], ondisk.Checksum(b, undoHeaderSum))
	return b
}

// An undoRecord is a range of the image that the repair changes.
type undoRecord struct {
	off  int64
	old  []byte
	news [][]byte // checksums of the sectors of each state, sumSize bytes each
}

func (rec *undoRecord) encode() []byte {
	b := make([]byte, undoRecordSize, undoRecordSize+len(rec.news)*undoSectorsInAll*sumSize+len(rec.old))
	ondisk.LE.PutUint64(b, uint64(rec.off))
	ondisk.LE.PutUint32(b[8:], uint32(len(rec.old)))
	ondisk.LE.PutUint32(b[12:], uint32(len(rec.news)))
	for _, sums := range rec.news {
		b = append(b, sums...)
	}
	b = append(b, rec.old...)
	ondisk.LE.PutUint32(b[undoRecordSum:], ondisk.Checksum(b, undoRecordSum))
	return b
}

// sectorSums returns the checksums of the sectors of b, the last of which may be short.
func sectorSums(b []byte) []byte {
	var sums []byte
	for len(b) > 0 {
		n := min(undoSector, len(b))
		sums = ondisk.LE.AppendUint32(sums, ondisk.Update(0, b[:n]))
		b = b[n:]
	}
	return sums
}

// knows reports whether the sector i, which holds now, is one that the repair has found or made.
func (rec *undoRecord) knows(i int, now []byte) bool {
	if bytes.Equal(now, rec.old[i*undoSector:][:len(now)]) {
		return true
	}
	sum := ondisk.Update(0, now)
	for _, sums := range rec.news {
		if ondisk.LE.Uint32(sums[i*sumSize:]) == sum {
			return true
		}
	}
	return false
}

// An undoWriter writes an undo file.
type undoWriter struct {
	w       io.Writer
	records int64
	size    int64 // bytes written
}

func (u *undoWriter) write(b []byte) error {
	_, err := u.w.Write(b)
	u.size += int64(len(b))
	return err
}

func (u *undoWriter) record(off int64, old []byte, news ...[]byte) error {
	u.records++
	return u.write((&undoRecord{off: off, old: old, news: news}).encode())
}

func (u *undoWriter) end() error { return u.write((&undoRecord{off: u.records}).encode()) }

// errUndoDamaged is matched by the errors about an undo file that cannot be used.
var errUndoDamaged = errors.New("not an undo file of vhdxfs, or damaged")

// An undoReader reads an undo file. What it returns has been checked.
type undoReader struct {
	undoHeader
	r     io.ReaderAt
	size  int64
	start int64 // of the records

	phase    func(name string, total int64) // as in UndoOptions, but never nil
	progress func(n int64)
}

func newUndoReader(r io.ReaderAt, size int64) (*undoReader, error) {
	u := &undoReader{r: r, size: size}
	withoutNil(&u.phase, &u.progress)
	b := make([]byte, min(size, undoHeaderSize+maxUndoPath))
	if err := readFull(r, b, 0, "undo file"); err != nil {
		return nil, err
	}
	if len(b) < undoHeaderSize || string(b[:len(undoSignature)]) != undoSignature {
		return nil, fmt.Errorf("%w: wrong signature", errUndoDamaged)
	}
	if v := ondisk.LE.Uint32(b[8:]); v != undoVersion {
		return nil, fmt.Errorf("the undo file is of version %d; only version %d is known", v, undoVersion)
	}
	n := ondisk.LE.Uint32(b[56:])
	if n > maxUndoPath || undoHeaderSize+int(n) > len(b) {
		return nil, fmt.Errorf("%w: it ends within its header", errUndoDamaged)
	}
	b = b[:undoHeaderSize+int(n)]
	if ondisk.Checksum(b, undoHeaderSum) != ondisk.LE.Uint32(b[undoHeaderSum:]) {
		return nil, fmt.Errorf("%w: the checksum of its header is wrong", errUndoDamaged)
	}
	u.oldSize, u.newSize = int64(ondisk.LE.Uint64(b[16:])), int64(ondisk.LE.Uint64(b[24:])) // #nosec G115 -- checked below
	if u.oldSize < 0 || u.newSize < 0 || u.oldSize > ondisk.MaxFileSize || u.newSize > ondisk.MaxFileSize {
		return nil, fmt.Errorf("%w: sizes %d and %d", errUndoDamaged, u.oldSize, u.newSize)
	}
	u.fileWrite = ondisk.GUID(b[32:])
	u.made = time.Unix(0, int64(ondisk.LE.Uint64(b[48:]))) // #nosec G115 -- only shown
	u.path = string(b[undoHeaderSize:])
	u.start = int64(len(b))
	return u, nil
}

// each calls do for every record. The record is do's until it returns. A caller that relies on the file being complete
// runs each to its end once before.
func (u *undoReader) each(do func(rec *undoRecord) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(u.r, u.start, u.size-u.start), ondisk.MiB)
	fill := func(b []byte) error {
		if _, err := io.ReadFull(in, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%w: it is not complete. A repair changes nothing before its undo file is complete", errUndoDamaged)
		} else if err != nil {
			return fmt.Errorf("read the undo file: %w", err)
		}
		return nil
	}
	buf := make([]byte, undoRecordSize+maxUndoStates*undoSectorsInAll*sumSize+maxUndoRecord)
	for records := int64(0); ; records++ {
		head := buf[:undoRecordSize]
		if err := fill(head); err != nil {
			return err
		}
		off, n, states := int64(ondisk.LE.Uint64(head)), int64(ondisk.LE.Uint32(head[8:])), int(ondisk.LE.Uint32(head[12:])) // #nosec G115 -- checked below
		if n > maxUndoRecord || states > maxUndoStates {
			return fmt.Errorf("%w: record %d of %d bytes with %d states", errUndoDamaged, records, n, states)
		}
		sums := int(n+undoSector-1) / undoSector * sumSize
		b := buf[:undoRecordSize+states*sums+int(n)]
		if err := fill(b[undoRecordSize:]); err != nil {
			return err
		}
		switch {
		case ondisk.Checksum(b, undoRecordSum) != ondisk.LE.Uint32(b[undoRecordSum:]):
			return fmt.Errorf("%w: the checksum of record %d is wrong", errUndoDamaged, records)
		case n == 0 && off == records:
			return nil
		case n == 0, off < 0, off > u.oldSize-n:
			return fmt.Errorf("%w: record %d has %d bytes at %#x of a file of %#x bytes", errUndoDamaged, records, n, off, u.oldSize)
		}
		rec := undoRecord{off: off, old: b[len(b)-int(n):]}
		for i := range states {
			rec.news = append(rec.news, b[undoRecordSize+i*sums:][:sums])
		}
		if err := do(&rec); err != nil {
			return err
		}
	}
}
