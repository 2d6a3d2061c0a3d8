package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The requests that would change more than the bytes of disk.raw. A kernel that was told the mount is read-only
// sends none of them; they are still answered.

// refusal is why nothing can be made, removed or renamed here.
func (f *fileSystem) refusal() fuse.Status {
	if !f.writable {
		return fuse.EROFS
	}
	return fuse.EPERM
}

func (f *fileSystem) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return f.refusal() }

func (f *fileSystem) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return f.refusal() }

func (f *fileSystem) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return f.refusal()
}

func (f *fileSystem) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return f.noXAttr()
}

func (f *fileSystem) noXAttr() fuse.Status {
	if !f.writable {
		return fuse.EROFS
	}
	return fuse.Status(unix.EOPNOTSUPP)
}

// CopyFileRange has the kernel copy by reading and writing, and not ask again.
func (f *fileSystem) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if !f.writable {
		return 0, fuse.EROFS
	}
	return 0, fuse.ENOSYS
}
