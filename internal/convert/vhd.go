package convert

import (
	"errors"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// vhdFile is a new VHD image as a target.
type vhdFile struct {
	*rawFile
	b     *vhd.Builder
	fixed bool
	size  int64 // of the disk, bytes; 0 as long as that is not known
}

// NewVHD makes a target of a new VHD image at path, fixed or dynamic, of a disk of size bytes, 0 where only the end of a
// stream tells. The disk is rounded up to whole MiB.
func NewVHD(path string, size int64, fixed bool, o newfile.Options) (Target, error) {
	if size != 0 {
		var err error
		if size, err = vhd.PaddedSize(size); err != nil {
			return nil, err
		}
	}
	if IsDevice(path) {
		return nil, errors.New("a VHD image must be a file")
	}
	t, err := NewRaw(path, 0, o)
	if err != nil {
		return nil, err
	}
	f := t.(*rawFile) // it is no device
	return &vhdFile{f, vhd.NewBuilder(f.file, size, fixed), fixed, size}, nil
}

func (t *vhdFile) Reserve(off, n int64) error               { return t.b.Reserve(off, n) }
func (t *vhdFile) WriteAt(p []byte, off int64) (int, error) { return t.b.WriteAt(p, off) }

// Shares returns the file also for a fixed image: it is sparse, so it has no space of its own.
func (t *vhdFile) Shares(Reflink) imagefile.File { return t.file }

func (t *vhdFile) Place(off, n int64) (fileOff, together int64, err error) { return t.b.Place(off, n) }

func (t *vhdFile) SetSize(size int64) (int64, error) {
	size, err := vhd.PaddedSize(size)
	t.size = size
	return size, err
}

func (t *vhdFile) Finish() error {
	if err := t.b.Finish(t.size); err != nil {
		return err
	}
	return t.Sync()
}

func (t *vhdFile) Open() (*disk.Disk, error) {
	if err := dropCache(t.TempPath()); err != nil {
		return nil, err
	}
	return disk.Open(t.TempPath(), disk.VHD, vhdx.Options{Lock: vhdx.LockOff}) // no other program knows the name
}

// NewVHDStream makes a target that writes a fixed VHD image of a disk of size bytes to w.
func NewVHDStream(w Output, size int64) (Target, error) {
	size, err := vhd.PaddedSize(size)
	if err != nil {
		return nil, err
	}
	return &stream{&rawStream{w: w, size: size, behind: vhd.FixedFooter(size)}, w, size}, nil
}
