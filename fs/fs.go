package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"vhdxfs/vhdx"
)

// FileName is the name of the one file in the mount.
const FileName = "disk.raw"

// The two nodes. Their numbers are their inode numbers, too.
const (
	rootNode = fuse.FUSE_ROOT_ID
	diskNode = 2
)

// cacheTimeout is how long the kernel may keep names and attributes: in effect for ever, since nothing
// changes while an image is mounted read-only.
const cacheTimeout = 365 * 24 * time.Hour

// A Disk is the virtual disk that is served; *vhdx.Image is one. Offsets and lengths are in bytes. Its
// methods are called from many goroutines at once.
type Disk interface {
	Size() int64
	AllocatedBytes() int64
	Info() *vhdx.Info

	// Resolve appends to dst the extents of n bytes from off, all of them inside the disk. They follow
	// each other without gaps.
	Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error)

	// SeekData and SeekHole find the next byte at or after off that is held in a file, or is not.
	// SeekData returns io.EOF when none follows.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
}

var _ Disk = (*vhdx.Image)(nil)

// fileSystem answers the kernel's requests. Its fields are set before the first one and not changed
// later, so the handlers need no lock.
type fileSystem struct {
	fuse.RawFileSystem // ENOSYS for what this mount has no use for

	disk   Disk
	size   int64 // of the disk, in bytes
	root   fuse.Attr
	file   fuse.Attr
	statfs fuse.StatfsOut
	xattrs xattrs
	access func(*fuse.InHeader) bool // whether the caller may use the mount
	log    logrus.FieldLogger
}

var _ fuse.RawFileSystem = (*fileSystem)(nil)

func newFileSystem(disk Disk, o *Options, im imageAttr) *fileSystem {
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		disk:          disk,
		size:          disk.Size(),
		access:        o.callerAllowed(),
		log:           o.Log,
	}
	f.root, f.file = o.attributes(disk, im)
	f.statfs = diskStatfs(disk)
	f.xattrs = diskXAttrs(disk.Info())
	return f
}

func (f *fileSystem) String() string { return typeName }
