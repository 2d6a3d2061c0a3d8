package vhdx

import "io"

// File is an open image file: the one seam between the engine and the operating system. Offsets and
// sizes are in bytes. Its methods may be called from several goroutines at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error    // added bytes read as zero
	Sync() error                  // every write that returned before the call is on stable media
	PunchHole(off, n int64) error // the range reads as zero, the size stays; errors.ErrUnsupported where it cannot
}

// A holeSeeker is a File that knows its holes. The scan of a BAT skips them.
type holeSeeker interface {
	// NextData returns the first offset at or after off that may hold other bytes than zero,
	// and io.EOF when none follows.
	NextData(off int64) (int64, error)
}
