package journal

import (
	"fmt"
	"io"
)

// File is what the journal needs of the image file. Offsets and sizes are in bytes.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Truncate(size int64) error // added bytes read as zero
	Sync() error               // every write that returned before the call is on stable media

	// NextData returns the first offset at or after off that may hold other bytes than zero, and io.EOF where none
	// follows. A file that does not know its holes returns off.
	NextData(off int64) (int64, error)
}

// Apply replays s into f, the file in which it was found, and syncs it. It fails before the first change
// where Check does. It writes the outcome of all updates rather than one update after the other; should the
// power fail meanwhile, the headers still name the log and the next replay ends the same way.
//
// The caller has to give the headers a new FileWriteGuid before, and a LogGuid of zero afterwards
// (MS-VHDX 2.3.3).
func Apply(f File, s *Sequence) error {
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("journal: size of the file: %w", err)
	}
	o, err := s.replayed(size)
	if err != nil {
		return err
	}
	if o.size > size { // first, since it is the likeliest to fail
		if err := f.Truncate(o.size); err != nil {
			return fmt.Errorf("journal: grow the file to %d bytes: %w", o.size, err)
		}
	}
	for _, z := range o.zeros {
		if err := wipe(f, z.off, min(z.end, size)); err != nil { // what was added is zero already
			return fmt.Errorf("journal: replay zeros at %#x: %w", z.off, err)
		}
	}
	var b [SectorSize]byte
	for i := range o.pages {
		pg := &o.pages[i]
		if err := pg.read(s, b[:], 0); err != nil {
			return err
		}
		if _, err := f.WriteAt(b[:], pg.off); err != nil {
			return fmt.Errorf("journal: replay at %#x: %w", pg.off, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("journal: sync after replay: %w", err)
	}
	return nil
}

var zeros [256 << 10]byte

// wipe makes the range off to end, which lies inside f, read as zero. It writes zeros rather than punch a
// hole, because Windows refuses an image that became sparse.
func wipe(f File, off, end int64) error {
	for off < end {
		next, err := f.NextData(off)
		if err == io.EOF || err == nil && next >= end {
			return nil
		}
		if err != nil {
			return err
		}
		off = max(off, next)
		n := min(end-off, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}
