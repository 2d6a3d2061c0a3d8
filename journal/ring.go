package journal

import (
	"fmt"
	"io"
	"math"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A Region says where in the file the log lies, and which of its entries count. All of it stands in the
// current header of the file (MS-VHDX 2.2.2).
type Region struct {
	Offset int64     // LogOffset: file offset, bytes
	Length int64     // LogLength: bytes, less than 4 GiB
	GUID   uuid.UUID // LogGuid: entries with another one are of an earlier session
}

// check guards the arithmetic of this package. The rules for both fields are the caller's business.
func (reg Region) check() error {
	if reg.Offset < 0 || reg.Length <= 0 || reg.Length%SectorSize != 0 || reg.Length > math.MaxUint32 ||
		reg.Offset > math.MaxInt64-reg.Length {
		return ondisk.Corrupt(ondisk.RuleLogSequence, "log", reg.Offset, "no log can be %d bytes long here", reg.Length)
	}
	return nil
}

// at returns the file offset of position pos, which may lie up to one round past the end of the ring.
func (reg Region) at(pos int64) int64 { return reg.Offset + pos%reg.Length }

// overlaps reports whether the range off to end of the file, which is not empty, touches the log.
func (reg Region) overlaps(off, end int64) bool {
	return off < reg.Offset+reg.Length && end > reg.Offset
}

// ringBuffer is how much of the log a ringReader reads at once, in bytes.
const ringBuffer = 256 << 10

// A ringReader reads the sectors of a log, fastest in rising order.
type ringReader struct {
	r     io.ReaderAt
	reg   Region
	buf   []byte
	start int64 // position of buf[0]
}

func newRingReader(r io.ReaderAt, reg Region) *ringReader {
	return &ringReader{r: r, reg: reg, buf: make([]byte, 0, min(ringBuffer, reg.Length))}
}

// sector returns the log sector at position pos, which may lie up to one round past the end of the ring.
// The sector is valid until the next call.
func (g *ringReader) sector(pos int64) (*[SectorSize]byte, error) {
	pos %= g.reg.Length
	if pos < g.start || pos >= g.start+int64(len(g.buf)) {
		g.start, g.buf = pos, g.buf[:min(int64(cap(g.buf)), g.reg.Length-pos)]
		if err := readFull(g.r, g.buf, g.reg.at(pos)); err != nil {
			g.buf = g.buf[:0]
			return nil, fmt.Errorf("journal: read the log at %#x: %w", g.reg.at(pos), err)
		}
	}
	return (*[SectorSize]byte)(g.buf[pos-g.start:]), nil
}

// readFull reads all of p from offset off. That the file ends before is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}
