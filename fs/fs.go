package fs

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The two nodes. Their numbers are their inode numbers, too.
const (
	rootNode = fuse.FUSE_ROOT_ID
	diskNode = 2
)

// cacheTimeout is how long the kernel may keep names and attributes: in effect for ever. Nothing else changes the
// image while it is mounted, and after a write the kernel asks by itself for what that changes of a file. How much is
// allocated may be known only later; see attrTimeout.
const cacheTimeout = 365 * 24 * time.Hour

// A Disk is the virtual disk that is served; *vhdx.Image is one. Offsets and lengths are in bytes. Its
// methods are called from many goroutines at once.
type Disk interface {
	Content
	Control
}

// A Content is what requests read and write.
type Content interface {
	Size() int64
	AllocatedBytes() int64
	Counted() bool // AllocatedBytes is no bound, but what there is

	// Resolve appends to dst the extents of n bytes from off, all of them inside the disk. They follow
	// each other without gaps.
	Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error)

	// InMemory reports whether Resolve needs no metadata that has to be read first.
	InMemory(off, n int64) bool

	// SeekData and SeekHole find the next byte at or after off that is held in a file, or is not.
	// SeekData returns io.EOF when none follows.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)

	// BeginRead announces a Resolve, and EndRead, with what BeginRead returned, that nothing is read any more
	// from the extents that it found: their space may then be used for other blocks.
	BeginRead() uint64
	EndRead(epoch uint64)

	// Writable reports whether the methods below change anything. They fail with vhdx.ErrReadOnly otherwise.
	Writable() bool

	// WriteAt, Zero, Discard and Allocate change what lies wholly inside the disk. They have written p, or
	// forgotten it, when they return. What they did is durable after the next Sync.
	WriteAt(p []byte, off int64) (int, error)
	Zero(off, n int64) error
	Discard(off, n int64) error
	Allocate(off, n int64) error

	// Sync does nothing, without an error, where there is nothing to be made durable.
	Sync() error
}

// A Control tells about the image and changes it as a whole.
type Control interface {
	Path() string // of the image; it takes no lock

	// File returns the open file of the image, with level 0, or of its parent of that level, and Way the way to it.
	File(level int) (*vhdx.ImageFile, error)
	Way(level int) (safefile.Way, error)
	Access() ([]safefile.Access, error) // to the file of the image, and to those of its parents
	SectorSize() int64                  // of a logical sector
	Validated() error                   // waits until all of the image was looked at
	Info() *vhdx.Info
	Stats() vhdx.Stats

	// Clean is Sync, and leaves the image as a close would.
	Clean() error

	// Grow makes the disk larger, durably, while it is in use. The error matches vhdx.ErrSize where it cannot have
	// that size.
	Grow(ctx context.Context, size int64) error

	// Compact makes the image file smaller, in small steps, until it is done or ctx ends.
	Compact(ctx context.Context, o vhdx.CompactOptions) (*vhdx.CompactResult, error)

	// Snapshot freezes the image while it is in use, and goes on in a child of it.
	Snapshot(ctx context.Context, name string, o vhdx.SnapshotOptions) (*vhdx.SnapshotResult, error)

	// Merge writes what the image at the path child holds, which is part of the chain, into one that it is based on.
	Merge(ctx context.Context, child string, o vhdx.MergeOptions) (*vhdx.MergeResult, error)
}

var _ Disk = (*vhdx.Image)(nil)

// fileSystem answers the kernel's requests. Its fields are set before the first one and not changed later, but for
// those that say so, so the handlers need no lock.
type fileSystem struct {
	fuse.RawFileSystem // ENOSYS for requests that this mount does not serve

	disk     Disk
	writable bool
	sync     bool // every change is durable when it is answered
	directIO bool // nothing is cached by the kernel
	unsent   bool // the kernel may hold writes that were not sent yet
	root     fuse.Attr
	file     fuse.Attr
	statfs   fuse.StatfsOut
	xattrs   []xattrGroup              // of both nodes
	access   func(*fuse.InHeader) bool // whether the caller may use the mount
	failures *failureLog
	kernel   kernelReads
	failed   *failedMount // nil where a failure leaves the mount writable

	compactor   compactor
	snapshotter snapshotter
	merger      merger
	name        nameWatcher

	writers  atomic.Int64 // handles open for writing
	times    times        // of disk.raw
	counters counters
}

var _ fuse.RawFileSystem = (*fileSystem)(nil)

func newFileSystem(disk Disk, o *Options, im imageAttr) *fileSystem {
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		disk:          disk,
		writable:      disk.Writable(),
		sync:          o.Flags&unix.MS_SYNCHRONOUS != 0,
		directIO:      o.DirectIO,
		unsent:        o.WritebackCache && disk.Writable(),
		access:        o.callerAllowed(),
		failures:      newFailureLog(o.Log),
		compactor:     compactor{disk: disk},
		snapshotter:   snapshotter{disk: disk},
		merger:        merger{disk: disk, check: o.CheckMerge, job: job[vhdx.MergeResult]{patience: mergePatience}},
		name:          nameWatcher{file: o.File, log: o.Log},
	}
	if o.ReadOnlyOnError {
		f.failed = &failedMount{log: o.Log, remount: o.Mounter.MakeReadOnly}
	}
	f.root, f.file = o.attributes(disk, im)
	f.times.set(im.atime, im.mtime, im.ctime)
	f.statfs = diskStatfs(disk)
	f.xattrs = f.xattrGroups(o)
	return f
}

func (f *fileSystem) String() string { return mounts.TypeName }
