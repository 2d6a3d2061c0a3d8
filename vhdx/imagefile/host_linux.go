package imagefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// A hostFile is an image file of the operating system: a regular file or a block device.
type hostFile struct {
	*os.File
	host func() Host // of its file system

	freshOnce sync.Once
	fresh     *os.File // the same file, for reads past the kernel's cache; nil where there is none
}

// Of returns f, which is a regular file or a block device, as a File. Both are closed by either's Close.
func Of(f *os.File) File {
	h := &hostFile{File: f}
	h.host = sync.OnceValue(h.findHost)
	return h
}

// Open opens the image file at path, with flags such as os.O_RDWR. It does not wait, as opening a named pipe would, and refuses what
// is neither a regular file nor a block device without opening it; see safefile.Open. It takes no locks.
func Open(path string, flags int) (File, error) {
	f, err := safefile.Open(path, flags)
	if err != nil {
		return nil, err
	}
	return Of(f), nil
}

// Named returns another descriptor of the same open file, with its locks, whose errors name it so. Either may be closed
// before the other.
func (f *hostFile) Named(path string) (File, error) {
	var fd int
	err := f.control("duplicate", func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return Of(os.NewFile(uintptr(fd), path)), nil
}

// Fd returns the file descriptor.
func (f *hostFile) Fd() (uintptr, bool) { return f.File.Fd(), true }

// Identity returns what the kernel knows of the file.
func (f *hostFile) Identity() (fs.FileInfo, error) { return f.Stat() }

// PathNow returns the path of the file as the kernel knows it now.
func (f *hostFile) PathNow() (path string) {
	c, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	// Unlike Fd, this keeps the descriptor from being closed, and its number from being that of another file, meanwhile.
	_ = c.Control(func(fd uintptr) { path, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	return path
}

// Size returns the size in bytes, of a block device too.
func (f *hostFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Mode().IsRegular() {
		return st.Size(), nil
	}
	// Nothing else uses the file's own position, so moving it does no harm.
	return f.Seek(0, io.SeekEnd)
}

// Sync waits until every write that returned before the call is on stable media. The times of the file are
// not worth a second write, so they may lag.
func (f *hostFile) Sync() error {
	return f.control("fdatasync", func(fd int) error { return unix.Fdatasync(fd) })
}

// PunchHole makes n bytes from off on read as zero and gives their space back.
func (f *hostFile) PunchHole(off, n int64) error {
	return f.control("punch a hole into", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// Allocate reserves space for n bytes from off on, which read as zero where nothing was, and grows the file.
func (f *hostFile) Allocate(off, n int64) error {
	return f.control("allocate space in", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
}

// ZeroRange makes n bytes from off on read as zero and keeps their space.
func (f *hostFile) ZeroRange(off, n int64) error {
	return f.control("zero a range of", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// Truncate changes the size of a regular file. A block device has the size that it has.
func (f *hostFile) Truncate(size int64) error {
	if f.IsDevice() {
		return &fs.PathError{Op: "resize", Path: f.Name(), Err: unix.ENOSPC}
	}
	return f.File.Truncate(size)
}

// IsDevice reports whether the file is a block device.
func (f *hostFile) IsDevice() bool {
	st, err := f.Stat()
	return err == nil && !st.Mode().IsRegular()
}

// Sparse reports whether the file may have holes.
func (f *hostFile) Sparse() bool { return f.host().Holes != No }

// Host returns what is known of the file system of the file.
func (f *hostFile) Host() Host { return f.host() }

// NextData returns the first offset at or after off that may hold other bytes than zero, and io.EOF when none
// follows. File systems that do not know their holes, or not at any moment, have none.
func (f *hostFile) NextData(off int64) (next int64, err error) {
	if f.host().FindsHoles != Yes {
		return f.noHole(off)
	}
	err = f.control("find data in", func(fd int) error {
		next, err = unix.Seek(fd, off, unix.SEEK_DATA)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, errors.ErrUnsupported):
		return off, nil
	}
	return next, err
}

// NextHole returns the first offset at or after off from which on some bytes are known to be zero, the end of the file
// among them. File systems that do not know their holes, or not at any moment, have none.
func (f *hostFile) NextHole(off int64) (next int64, err error) {
	if f.host().FindsHoles != Yes {
		return math.MaxInt64, nil
	}
	err = f.control("find a hole in", func(fd int) error {
		next, err = unix.Seek(fd, off, unix.SEEK_HOLE)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO): // off is behind the end
		return off, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, errors.ErrUnsupported):
		return math.MaxInt64, nil
	}
	return next, err
}

// noHole is NextData for a file whose holes are not known.
func (f *hostFile) noHole(off int64) (int64, error) {
	size, err := f.Size()
	if err == nil && off >= size {
		err = io.EOF
	}
	return off, err
}

// control calls do with the file descriptor, again when a signal interrupts it.
func (f *hostFile) control(what string, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	err = raw.Control(func(fd uintptr) {
		for doErr = do(int(fd)); doErr == unix.EINTR; doErr = do(int(fd)) {
		}
	})
	if err == nil && doErr != nil {
		err = &fs.PathError{Op: what, Path: f.Name(), Err: doErr}
	}
	return err
}
