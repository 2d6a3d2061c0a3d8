package undofile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Sizes and bounds of the format; see the package.
const (
	HeaderSize = 64 // bytes, without the path
	HeaderSum  = 12 // offset of the checksum in the header
	RecordSize = 24 // bytes, without the checksums and the old bytes
	RecordSum  = 16 // offset of the checksum in a record

	MaxPath    = 4 * ondisk.KiB // bytes of the path
	MaxRecord  = 1 * ondisk.MiB // old bytes in a record
	MaxStates  = 2
	SectorSize = 512 // bytes that a disk writes as a whole, and that are old or new after a power cut
	SumSize    = 4   // bytes of a checksum

	signature    = "vhdxundo"
	version      = 1
	sectorsInAll = MaxRecord / SectorSize
)

// A Header says to which image an undo file belongs.
type Header struct {
	OldSize, NewSize int64     // of the image file, bytes
	FileWriteGUID    uuid.UUID // of the repaired image
	Made             time.Time
	Path             string // of the image, absolute; at most MaxPath bytes
}

func (h *Header) encode() []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(h.Path))
	copy(b, signature)
	ondisk.LE.PutUint32(b[8:], version)
	ondisk.LE.PutUint64(b[16:], uint64(h.OldSize))
	ondisk.LE.PutUint64(b[24:], uint64(h.NewSize))
	ondisk.PutGUID(b[32:], h.FileWriteGUID)
	ondisk.LE.PutUint64(b[48:], uint64(h.Made.UnixNano()))
	ondisk.LE.PutUint32(b[56:], uint32(len(h.Path)))
	b = append(b, h.Path...)
	ondisk.LE.PutUint32(b[HeaderSum:], ondisk.Checksum(b, HeaderSum))
	return b
}

// A Record is a range of the image that the repair changes.
type Record struct {
	Off  int64    // of the range in the image file
	Old  []byte   // what it held
	News [][]byte // checksums of the sectors of each state that the repair gives it, SumSize bytes each
}

func (rec *Record) encode() []byte {
	b := make([]byte, RecordSize, RecordSize+len(rec.News)*sectorsInAll*SumSize+len(rec.Old))
	ondisk.LE.PutUint64(b, uint64(rec.Off))
	ondisk.LE.PutUint32(b[8:], uint32(len(rec.Old)))
	ondisk.LE.PutUint32(b[12:], uint32(len(rec.News)))
	for _, sums := range rec.News {
		b = append(b, sums...)
	}
	b = append(b, rec.Old...)
	ondisk.LE.PutUint32(b[RecordSum:], ondisk.Checksum(b, RecordSum))
	return b
}

// SectorSums returns the checksums of the sectors of b, the last of which may be short.
func SectorSums(b []byte) []byte {
	var sums []byte
	for len(b) > 0 {
		n := min(SectorSize, len(b))
		sums = ondisk.LE.AppendUint32(sums, ondisk.Update(0, b[:n]))
		b = b[n:]
	}
	return sums
}

// Knows reports whether the sector i, which holds now, is one that the repair has found or made.
func (rec *Record) Knows(i int, now []byte) bool {
	if bytes.Equal(now, rec.Old[i*SectorSize:][:len(now)]) {
		return true
	}
	sum := ondisk.Update(0, now)
	for _, sums := range rec.News {
		if ondisk.LE.Uint32(sums[i*SumSize:]) == sum {
			return true
		}
	}
	return false
}

// A Writer writes an undo file, from front to end. It is for one goroutine.
type Writer struct {
	w       io.Writer
	records int64
	size    int64
}

// NewWriter writes the header of an undo file to w.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	u := &Writer{w: w}
	return u, u.write(h.encode())
}

func (u *Writer) write(b []byte) error {
	_, err := u.w.Write(b)
	u.size += int64(len(b))
	return err
}

// Record writes a record of the old bytes at file offset off, at most MaxRecord, and of what the repair makes of them: at most
// MaxStates results of SectorSums.
func (u *Writer) Record(off int64, old []byte, news ...[]byte) error {
	u.records++
	return u.write((&Record{Off: off, Old: old, News: news}).encode())
}

// End writes the end. The file is complete then, but not durable.
func (u *Writer) End() error { return u.write((&Record{Off: u.records}).encode()) }

// Size returns how many bytes were written.
func (u *Writer) Size() int64 { return u.size }

// ErrDamaged is matched by the errors about an undo file that cannot be used.
var ErrDamaged = errors.New("not an undo file of vhdxfs, or damaged")

// A Reader reads an undo file. What it returns has been checked. It is for one goroutine.
type Reader struct {
	Header
	Size int64 // of the undo file, bytes

	r     io.ReaderAt
	start int64 // of the records
}

// NewReader begins to read the undo file r of size bytes. An error that matches ErrDamaged says that it cannot be used.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	u := &Reader{r: r, Size: size}
	b := make([]byte, min(size, HeaderSize+MaxPath))
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read undo file at 0x0: %w", err)
	}
	if len(b) < HeaderSize || string(b[:len(signature)]) != signature {
		return nil, fmt.Errorf("%w: wrong signature", ErrDamaged)
	}
	if v := ondisk.LE.Uint32(b[8:]); v != version {
		return nil, fmt.Errorf("the undo file is of version %d; only version %d is known", v, version)
	}
	n := ondisk.LE.Uint32(b[56:])
	if n > MaxPath || HeaderSize+int(n) > len(b) {
		return nil, fmt.Errorf("%w: it ends within its header", ErrDamaged)
	}
	b = b[:HeaderSize+int(n)]
	if ondisk.Checksum(b, HeaderSum) != ondisk.LE.Uint32(b[HeaderSum:]) {
		return nil, fmt.Errorf("%w: the checksum of its header is wrong", ErrDamaged)
	}
	u.OldSize, u.NewSize = int64(ondisk.LE.Uint64(b[16:])), int64(ondisk.LE.Uint64(b[24:])) // #nosec G115 -- checked below
	if u.OldSize < 0 || u.NewSize < 0 || u.OldSize > ondisk.MaxFileSize || u.NewSize > ondisk.MaxFileSize {
		return nil, fmt.Errorf("%w: sizes %d and %d", ErrDamaged, u.OldSize, u.NewSize)
	}
	u.FileWriteGUID = ondisk.GUID(b[32:])
	u.Made = time.Unix(0, int64(ondisk.LE.Uint64(b[48:]))) // #nosec G115 -- only shown
	u.Path = string(b[HeaderSize:])
	u.start = int64(len(b))
	return u, nil
}

// Each calls do for every record. The record is do's until it returns. A caller that relies on the file being complete
// runs Each to its end once before.
func (u *Reader) Each(do func(rec *Record) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(u.r, u.start, u.Size-u.start), ondisk.MiB)
	fill := func(b []byte) error {
		if _, err := io.ReadFull(in, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%w: it is not complete. A repair changes nothing before its undo file is complete", ErrDamaged)
		} else if err != nil {
			return fmt.Errorf("read the undo file: %w", err)
		}
		return nil
	}
	buf := make([]byte, RecordSize+MaxStates*sectorsInAll*SumSize+MaxRecord)
	for records := int64(0); ; records++ {
		head := buf[:RecordSize]
		if err := fill(head); err != nil {
			return err
		}
		off, n, states := int64(ondisk.LE.Uint64(head)), int64(ondisk.LE.Uint32(head[8:])), int(ondisk.LE.Uint32(head[12:])) // #nosec G115 -- checked below
		if n > MaxRecord || states > MaxStates {
			return fmt.Errorf("%w: record %d of %d bytes with %d states", ErrDamaged, records, n, states)
		}
		sums := int(n+SectorSize-1) / SectorSize * SumSize
		b := buf[:RecordSize+states*sums+int(n)]
		if err := fill(b[RecordSize:]); err != nil {
			return err
		}
		switch {
		case ondisk.Checksum(b, RecordSum) != ondisk.LE.Uint32(b[RecordSum:]):
			return fmt.Errorf("%w: the checksum of record %d is wrong", ErrDamaged, records)
		case n == 0 && off == records:
			return nil
		case n == 0, off < 0, off > u.OldSize-n:
			return fmt.Errorf("%w: record %d has %d bytes at %#x of a file of %#x bytes", ErrDamaged, records, n, off, u.OldSize)
		}
		rec := Record{Off: off, Old: b[len(b)-int(n):]}
		for i := range states {
			rec.News = append(rec.News, b[RecordSize+i*sums:][:sums])
		}
		if err := do(&rec); err != nil {
			return err
		}
	}
}
