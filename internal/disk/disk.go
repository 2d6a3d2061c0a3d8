package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// Format is how the bytes of a disk lie in a file.
type Format string

// The formats. Auto finds out by the first bytes of the file.
const (
	Auto Format = ""
	Raw  Format = "raw"
	VHDX Format = "vhdx"
	VHD  Format = "vhd"
)

// Formats are those that can be given, for messages and completion.
var Formats = []string{string(VHDX), string(VHD), string(Raw)}

// ErrFormat is matched by the error for a format that is none of these.
var ErrFormat = errors.New("unknown format")

// A Disk is open for reading. Any number of goroutines may use it at once, but for Data.
type Disk struct {
	Path   string
	Format Format
	Image  *vhdx.Image // nil if it is none
	VHD    *vhd.Image  // likewise

	SectorSize int64  // of the logical sectors, in bytes; 0 where nothing tells, as of most raw files
	Warning    string // what is odd about it, for people; "" is nothing

	io.ReaderAt // bytes of the disk
	size        int64
	raw         imagefile.File
}

// Open opens the disk at path and locks it, and its parents, against writers. The options concern images, and the
// lock mode raw files too.
func Open(path string, format Format, o vhdx.Options) (*Disk, error) {
	if format == Auto {
		var err error
		if format, err = detect(path); err != nil {
			return nil, err
		}
	}
	switch format {
	case VHDX:
		return openImage(path, o)
	case VHD:
		return openVHD(path, o)
	case Raw:
		return openRaw(path, o.Lock)
	}
	return nil, UnknownFormat(format)
}

// UnknownFormat returns the error for a format that is none of these.
func UnknownFormat(format Format) error {
	return fmt.Errorf("%w %q; must be raw, vhdx or vhd", ErrFormat, format)
}

func openVHD(path string, o vhdx.Options) (*Disk, error) {
	im, err := vhd.Open(path, o)
	if err != nil {
		return nil, err
	}
	return &Disk{Path: path, Format: VHD, VHD: im, SectorSize: im.SectorSize(), ReaderAt: im, size: im.Size()}, nil
}

// An imageReader reads an image, but not what its file has as holes: of a fixed image that is hardly used, or of large
// blocks, that may be most.
type imageReader struct{ im *vhdx.Image }

func (r imageReader) ReadAt(p []byte, off int64) (int, error) {
	if n := int64(len(p)); off >= 0 && n <= r.im.Size()-off {
		if hole, err := r.im.IsHole(off, n); err == nil && hole {
			clear(p)
			return len(p), nil
		}
	}
	return r.im.ReadAt(p, off)
}

func openRaw(path string, lock vhdx.LockMode) (*Disk, error) {
	f, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(lock, imagefile.Shared); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d := &Disk{Path: path, Format: Raw, ReaderAt: f, size: size, raw: f}
	if err := d.findSectors(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// Size returns the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.size }

// Limit makes the disk end at size, where it is larger.
func (d *Disk) Limit(size int64) { d.size = min(d.size, size) }

// Damaged returns how many bytes from byte off on are unknown, because an image is damaged there; see vhdx.Image.Damaged.
func (d *Disk) Damaged(off int64) int64 {
	if d.Image == nil {
		return 0
	}
	return min(d.Image.Damaged(off), d.size-off)
}

// A Run is a run of bytes of the disk that something holds: from its first byte to the one behind its last.
type Run struct {
	From, To int64
	File     imagefile.File // where the bytes lie together
	FileOff  int64          // that of the first one
}

// Data returns the first run of bytes at or after off that something holds. All other bytes read as zero. It returns
// io.EOF when none follows.
func (d *Disk) Data(off int64) (Run, error) {
	if off >= d.size {
		return Run{}, io.EOF
	}
	for d.Image != nil {
		// Do not use SeekData here: what the image file knows of its own holes changes while it is read.
		e, err := d.Image.Extent(off)
		switch {
		case err != nil:
			return Run{}, err
		case e.DiskOff >= d.size:
			return Run{}, io.EOF
		case e.File != nil:
			return Run{e.DiskOff, min(e.End(), d.size), e.File, e.FileOff}, nil
		}
		off = e.End()
	}
	if d.VHD != nil {
		return d.dataOfVHD(off)
	}
	from, err := d.raw.NextData(off)
	to := from
	if err == nil {
		to, err = d.raw.NextHole(from)
	}
	if err == io.EOF {
		return Run{}, err
	}
	if err != nil {
		return Run{}, fmt.Errorf("find data in %s: %w", d.Path, err)
	}
	if from >= d.size {
		return Run{}, io.EOF
	}
	return Run{from, min(to, d.size), d.raw, from}, nil
}

// dataOfVHD is Data for a VHD image. What its files have as holes is left out: a fixed image may have many.
func (d *Disk) dataOfVHD(off int64) (Run, error) {
	from, err := d.VHD.SeekData(off)
	if err != nil {
		return Run{}, err
	}
	e, err := d.VHD.Extent(from)
	if err != nil {
		return Run{}, err
	}
	to := min(e.End(), d.size)
	if hole, err := e.File.NextHole(e.FileOff); err == nil && hole < e.FileOff+e.Len {
		to = min(to, from+max(hole-e.FileOff, 1))
	}
	return Run{from, to, e.File, e.FileOff}, nil
}

// Holds reports whether the file at path is the disk's, or that of one of its parents.
func (d *Disk) Holds(path string) bool {
	if d.Image != nil {
		return d.Image.Holds(path)
	}
	if d.VHD != nil {
		return d.VHD.Holds(path)
	}
	a, err := d.raw.Identity()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// Access returns the owner, permissions and ACL of each file that holds bytes of the disk.
func (d *Disk) Access() ([]safefile.Access, error) {
	if d.Image != nil {
		return d.Image.Access()
	}
	if d.VHD != nil {
		return d.VHD.Access()
	}
	return vhdx.AccessOf(d.raw, d.Path)
}

// Close releases the files and their locks.
func (d *Disk) Close() error {
	if d.Image != nil {
		return d.Image.Close()
	}
	if d.VHD != nil {
		return d.VHD.Close()
	}
	return d.raw.Close()
}
