package convert

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/content"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// NewRaw makes a target of a raw file at path, of size bytes. A block device there is overwritten if replace is
// set, and has to be large enough; a regular file is replaced when the new one is complete.
func NewRaw(path string, size int64, o newfile.Options) (Target, error) {
	if IsDevice(path) {
		return newDevice(path, size, o)
	}
	f, err := newfile.Create(path, o)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	return &rawFile{File: f, file: imagefile.Of(f.File)}, nil
}

// rawFile is a new raw file.
type rawFile struct {
	*newfile.File
	file imagefile.File // the same
}

func (t *rawFile) Reserve(int64, int64) error { return nil }
func (t *rawFile) Zero(int64, int64) error    { return nil } // as a new file reads
func (t *rawFile) Finish() error              { return t.Sync() }

func (t *rawFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.File.WriteAt(p, off)
	imagefile.StartWriteback(t.file, off, int64(n))
	return n, err
}

func (t *rawFile) Shares(Reflink) imagefile.File { return t.file }

func (t *rawFile) Place(off, n int64) (fileOff, together int64, err error) { return off, n, nil }

func (t *rawFile) SetSize(size int64) (int64, error) { return size, t.Truncate(size) }

func (t *rawFile) Open() (*disk.Disk, error) {
	if err := dropCache(t.TempPath()); err != nil {
		return nil, err
	}
	return disk.Open(t.TempPath(), disk.Raw, vhdx.Options{Lock: vhdx.LockOff}) // no other program knows the name
}

// A deviceError says that a block device would be overwritten. It matches fs.ErrExist.
type deviceError struct{ path string }

func (e deviceError) Error() string {
	return e.path + " is a block device; --force overwrites everything on it"
}
func (deviceError) Is(target error) bool { return target == fs.ErrExist }

// device is a block device that is overwritten.
type device struct {
	*os.File
	path string
	size int64 // of the disk
}

func newDevice(path string, size int64, o newfile.Options) (Target, error) {
	if !o.Replace {
		return nil, deviceError{path}
	}
	// Exclusive, so that the kernel refuses a device that is mounted or part of another one.
	f, err := safefile.Open(path, os.O_RDWR|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	if !isDevice(f) { // another user may have exchanged it
		err = fmt.Errorf("%s is no longer a block device", path)
	}
	if err == nil {
		err = apart(f, path, o.Inputs)
	}
	if err == nil {
		if err = imagefile.Of(f).Lock(imagefile.LockOn, imagefile.Exclusive); errors.Is(err, imagefile.ErrNoLocks) {
			err = nil
		}
	}
	has := int64(0)
	if err == nil {
		has, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil && has < size {
		err = fmt.Errorf("%s is too small: it has %s, the disk %s", path, sizes.Exact(has), sizes.Exact(size))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &device{File: f, path: path, size: size}, nil
}

// An overlapError says that a device shares bytes with an input. It matches fs.ErrExist, as the error for a file does.
type overlapError struct{ path string }

func (e overlapError) Error() string {
	return e.path + " is also an input, a part of one, or holds one"
}
func (overlapError) Is(target error) bool { return target == fs.ErrExist }

// apart returns an error where the open device at path shares bytes with an input: the copy would overwrite what it is to read.
func apart(f *os.File, path string, inputs []safefile.Access) error {
	out, err := safefile.AccessOf(f)
	if err != nil {
		return err
	}
	for _, in := range inputs {
		if loop.Overlap(out.Stat(), in.Stat()) {
			return overlapError{path}
		}
	}
	return nil
}

// IsDevice reports whether there is a block device at path.
func IsDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == fs.ModeDevice
}

func isDevice(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode().Type() == fs.ModeDevice
}

func (t *device) Reserve(int64, int64) error { return nil }

// Zero discards the range where the device then reads zeros for sure, and writes zeros where it does not.
func (t *device) Zero(off, n int64) error {
	const unit = 4 << 10 // what all devices can do
	from, to := (off+unit-1)/unit*unit, (off+n)/unit*unit
	if to > from {
		for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
			if err := unix.Fallocate(int(t.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err == nil {
				return errors.Join(t.writeZeros(off, from-off), t.writeZeros(to, off+n-to))
			}
		}
	}
	return t.writeZeros(off, n)
}

func (t *device) writeZeros(off, n int64) error {
	for n > 0 {
		step := min(n, pieceSize)
		if _, err := t.WriteAt(zeros[:step], off); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

func (t *device) Shares(Reflink) imagefile.File { return nil }

func (t *device) Place(int64, int64) (fileOff, together int64, err error) {
	return 0, 0, errors.ErrUnsupported
}

// SetSize is late for a stream that is too long: its end was not written, and that was an error.
func (t *device) SetSize(size int64) (int64, error) {
	t.size = size
	return size, nil
}

func (t *device) Finish() error { return t.Sync() }

func (t *device) Open() (*disk.Disk, error) {
	path, ok := safefile.Path(t.File)
	if !ok { // there is no /proc
		path = t.path
	}
	if err := dropCache(path); err != nil {
		return nil, err
	}
	d, err := disk.Open(path, disk.Raw, vhdx.Options{Lock: vhdx.LockOff}) // it is locked
	if err == nil {
		d.Limit(t.size)
	}
	return d, err
}

func (t *device) Commit() error { return t.Close() }

// Discard leaves the device as it is: what it held before is gone.
func (t *device) Discard() error {
	if err := t.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// dropCache has the kernel forget what it has in memory of a file that is durable, so that it is read from the disk.
func dropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// Overwritten returns what a copy of size bytes to path would overwrite, and "" where it would make a new file. It returns an
// error where that is refused, or a device is in use, too small or an input.
func Overwritten(path string, size int64, o newfile.Options) (string, error) {
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return "", newfile.RefuseDevice(path)
	case err != nil:
		return "", err
	case !o.Replace:
		return "", fmt.Errorf("%s: %w; --force replaces it", path, fs.ErrExist)
	}
	f, err := safefile.Open(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	device := isDevice(f)
	if at, ok := safefile.Path(f); ok && device { // once more, which fails where it is mounted or part of another one
		used, err := safefile.Open(at, os.O_RDONLY|unix.O_EXCL)
		if err != nil {
			if e, ok := errors.AsType[unix.Errno](err); ok {
				err = &fs.PathError{Op: "open", Path: path, Err: e}
			}
			return "", errors.Join(err, f.Close())
		}
		defer used.Close()
	}
	defer f.Close()
	if device {
		if err := apart(f, path, o.Inputs); err != nil {
			return "", err
		}
	}
	has, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	if device && has < size {
		return "", fmt.Errorf("%s is too small: it has %s, the disk %s", path, sizes.Exact(has), sizes.Exact(size))
	}
	kind, err := content.Identify(f, has)
	if err != nil {
		return "", err
	}
	return kind.String(), nil
}
