// Package imagefile is the interface of the engine to the operating system: an open image file, with all that is asked
// of one, the locks that keep other programs off, and what is known of the file systems on which images lie. It knows nothing of
// what is in the file.
//
// There is one interface, [File], and no optional methods beside it. A file that cannot do something says so with
// errors.ErrUnsupported, or, where the question is what it knows, answers that it knows nothing. So code that uses a File
// handles each in the same way, and a file of a test that embeds another one hides nothing of it.
//
//	Open     a regular file or a block device of the host
//	Of       one that is open already
//	Plain    the answers of a file that can do nothing special, for files in memory to embed
package imagefile

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// File is an open image file. Offsets and sizes are in bytes. Its methods may be called from several goroutines at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error // added bytes read as zero
	Sync() error               // every write that returned before the call is on stable media

	// These three fail with an error for which IsUnsupported holds where the file cannot do it, or not with this range. After
	// any other error, the range may be changed in part.
	PunchHole(off, n int64) error // the range reads as zero, the size stays, and the space is given back
	Allocate(off, n int64) error  // the range has space, and reads as zero where nothing was; the file grows to its end
	ZeroRange(off, n int64) error // the range reads as zero and keeps, or gets, its space; the size stays

	// Clone makes n bytes, from off on, share the space of those of src from srcOff on: no byte moves, and what is written to
	// either file later gets space of its own. Offsets and n are multiples of ShareUnit, both ranges lie inside their files, and
	// do not overlap. Where it fails, the bytes are old or new, as after a failed write; IsUnsupported holds where the two files
	// cannot share anything.
	Clone(off int64, src File, srcOff, n int64) error

	// NextData returns the first offset at or after off that may hold other bytes than zero, and io.EOF where none
	// follows. A file that does not know its holes has none: it returns off.
	NextData(off int64) (int64, error)
	// NextHole returns the first offset at or after off from which on some bytes are known to be zero, the end of the
	// file among them. A file that does not know its holes returns math.MaxInt64.
	NextHole(off int64) (int64, error)

	Host() Host     // of the file system
	Sparse() bool   // holes in the file do no harm
	IsDevice() bool // it is a block device, which keeps the size that it has

	// Fd returns the descriptor from which the file's bytes can be spliced, and false where there is none.
	Fd() (uintptr, bool)
	// Identity returns what os.SameFile compares, with the owner and the permissions.
	Identity() (fs.FileInfo, error)

	// PathNow returns the path of the file as the kernel knows it at this moment: another than that by which it was opened
	// where it was renamed, one with " (deleted)" behind it where it has no name, and "" where the file has no path or is
	// closed. It may be called while the file is closed.
	PathNow() string
	// Named returns another descriptor of the same open file, with its locks, whose errors name it so. Either may be
	// closed before the other.
	Named(path string) (File, error)

	// Lock takes the locks of kind k until the file is closed. It fails with ErrLocked where another program's are in
	// the way, and with ErrNoLocks where the host knows no locks, unless the mode lets it go on without.
	Lock(mode LockMode, k LockKind) error
	// Relock takes the locks of kind k again, which are held and may have been lost, and keeps them whatever it finds. It
	// reports that they were lost, where that can be seen. It fails with ErrLocked where another program's are in the way.
	Relock(k LockKind) (lost bool, err error)
	// Unlock gives all locks up.
	Unlock() error

	// ReadFresh reads what the storage holds now, as other hosts see it, and not what this one has cached. It is for small
	// reads, aligned to 4 KiB.
	ReadFresh(p []byte, off int64) (int, error)
	// Forget drops what this host has cached of the file, for other hosts may have written it. Nothing is lost that was not
	// synced, as far as the operating system can tell.
	Forget() error

	// Unshare turns the locks of Shared into those of Exclusive. Where it fails they are those of Shared.
	Unshare(mode LockMode) error
	// Share turns the locks of Exclusive into those of Shared. At no moment another program could write the file.
	Share() error
}

// Plain has the answers of a file that can do nothing special: one that has no holes and no space of its own, that no
// other program sees, and that has no descriptor.
type Plain struct{}

func (Plain) PunchHole(off, n int64) error                   { return errors.ErrUnsupported }
func (Plain) Allocate(off, n int64) error                    { return errors.ErrUnsupported }
func (Plain) ZeroRange(off, n int64) error                   { return errors.ErrUnsupported }
func (Plain) Clone(off int64, src File, from, n int64) error { return errors.ErrUnsupported }
func (Plain) NextData(off int64) (int64, error)              { return off, nil }
func (Plain) NextHole(off int64) (int64, error)              { return math.MaxInt64, nil }
func (Plain) Host() Host                                     { return Host{} }
func (Plain) Sparse() bool                                   { return false }
func (Plain) IsDevice() bool                                 { return false }
func (Plain) Fd() (uintptr, bool)                            { return 0, false }
func (Plain) Identity() (fs.FileInfo, error)                 { return nil, errors.ErrUnsupported }
func (Plain) PathNow() string                                { return "" }
func (Plain) Named(path string) (File, error)                { return nil, errors.ErrUnsupported }
func (Plain) Lock(mode LockMode, kind LockKind) error        { return errors.ErrUnsupported }
func (Plain) Unshare(mode LockMode) error                    { return errors.ErrUnsupported }
func (Plain) Share() error                                   { return errors.ErrUnsupported }
func (Plain) Relock(kind LockKind) (bool, error)             { return false, errors.ErrUnsupported }
func (Plain) Unlock() error                                  { return errors.ErrUnsupported }
func (Plain) Forget() error                                  { return nil }

func (Plain) ReadFresh(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// IsUnsupported reports whether err says that a file cannot do this at all, or not with this range.
func IsUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// Same reports whether a and b are the same file: one that may have been opened twice, or, of files without an identity,
// one value.
func Same(a, b File) bool {
	sa, aerr := a.Identity()
	sb, berr := b.Identity()
	if errors.Is(aerr, errors.ErrUnsupported) || errors.Is(berr, errors.ErrUnsupported) {
		return a == b
	}
	return aerr == nil && berr == nil && os.SameFile(sa, sb)
}
