package convert

import (
	"context"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A Target is where a disk is copied to. WriteAt and Zero may be called by several goroutines at once, for ranges
// that do not overlap.
type Target interface {
	// Reserve takes room for n bytes from off on, all of which are going to be written or zeroed. It is called in
	// the order of the disk.
	Reserve(off, n int64) error
	WriteAt(p []byte, off int64) (int, error)
	// Zero makes n bytes from off on read as zero.
	Zero(off, n int64) error
	// Shares returns the file in which the disk lies, and nil where it is not to share space with the input.
	Shares(mode Reflink) imagefile.File
	// Place returns where in that file the bytes from off on lie for which room was reserved, and how many of those n lie
	// there together.
	Place(off, n int64) (fileOff, together int64, err error)
	// SetSize says how large the disk was in the end, and returns how large it is in the target.
	SetSize(size int64) (int64, error)

	Finish() error             // all is durable and can be read
	Open() (*disk.Disk, error) // what was finished, to read it
	Commit() error             // it gets its name
	Discard() error            // it goes, unless it was committed
}

// nothing is a target for work that only reads.
type nothing struct{ Target }

func (nothing) Reserve(int64, int64) error             { return nil }
func (nothing) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nothing) Zero(int64, int64) error                { return nil }

// image is a new VHDX image as a target.
type image struct {
	*vhdx.Builder
	o vhdx.CreateOptions
}

// NewImage makes a target of a new VHDX image at path. A size that is no multiple of the logical sector size is
// rounded up to one.
func NewImage(ctx context.Context, path string, o vhdx.CreateOptions) (Target, error) {
	o.LogicalSectorSize = max(o.LogicalSectorSize, 512)
	o.Size = padded(o.Size, o.LogicalSectorSize)
	b, err := vhdx.NewBuilder(ctx, path, o)
	if err != nil {
		return nil, err
	}
	return image{b, o}, nil
}

func padded(size, sector int64) int64 { return (size + sector - 1) / sector * sector }

func (t image) Zero(int64, int64) error { return nil } // as a new image reads

func (t image) Shares(mode Reflink) imagefile.File {
	if t.o.Type == vhdx.Fixed && mode != ReflinkAlways {
		return nil // an overwrite of what is shared may find no space
	}
	return t.File()
}

func (t image) SetSize(size int64) (int64, error) {
	if !t.o.SizeLater {
		return t.o.Size, nil
	}
	size = padded(size, t.o.LogicalSectorSize)
	return size, t.Builder.SetSize(size)
}

func (t image) Open() (*disk.Disk, error) {
	if err := dropCache(t.TempPath()); err != nil {
		return nil, err
	}
	return disk.Open(t.TempPath(), disk.VHDX, vhdx.Options{Lock: vhdx.LockOff}) // no other program knows the name
}
