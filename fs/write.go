package fs

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// writeHandle is the file handle of programs that opened disk.raw for writing; all others have 0.
const writeHandle = 1

// Writev serves WRITE. The data is the kernel's again when it returns. A write that begins inside the disk and
// ends beyond it is short, or EFBIG if the kernel had collected it, for that takes a short write for a complete one; one
// that begins at the end or beyond is EFBIG, since the disk does not grow.
//
// A write of which a part fails, as where space has run out, fails as a whole: a loop device and the writeback of
// mapped pages take a short write for a complete one, and would silently lose the rest. To write the part
// that did succeed once more does no harm.
func (f *fileSystem) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	switch {
	case !f.writable:
		return 0, fuse.EROFS
	case in.NodeId != diskNode:
		return 0, fuse.EISDIR
	case in.Offset >= uint64(f.disk.Size()):
		return 0, f.tooLong(in)
	}
	defer f.times.modified()
	off, size := int64(in.Offset), f.disk.Size()
	pos := off
	cut := false
	for _, p := range data {
		if room := size - pos; room < int64(len(p)) {
			p, cut = p[:room], true
		}
		if len(p) == 0 {
			continue
		}
		if _, err := f.disk.WriteAt(p, pos); err != nil {
			return 0, f.errno("write", pos, err)
		}
		pos += int64(len(p))
	}
	// Most kernels sync after such a write by themselves, but not in every way of writing. The second sync finds
	// nothing to do. O_SYNC includes O_DSYNC.
	if f.sync || in.Flags&unix.O_DSYNC != 0 {
		if err := f.disk.Sync(); err != nil {
			return 0, f.errno("sync", off, err)
		}
	}
	f.counters.writes.Inc()
	f.counters.writtenBytes.Add(pos - off)
	if cut && in.WriteFlags&fuse.WRITE_CACHE != 0 {
		return 0, f.tooLong(in)
	}
	return uint32(pos - off), fuse.OK
}

// tooLong answers a write that ends beyond the disk. Where the kernel has collected it, the program that made it has
// heard of no error, and the kernel takes disk.raw to be longer than the disk, for any answer to the write.
func (f *fileSystem) tooLong(in *fuse.WriteIn) fuse.Status {
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		err := fmt.Errorf("a program wrote beyond the end of the disk; disk.raw shows the wrong size until truncate -s %d corrects it", f.disk.Size())
		f.failures.log(logrus.WarnLevel, "write", int64(in.Offset), unix.EFBIG, err)
	}
	return fuse.Status(unix.EFBIG)
}

// Write is Writev for data in one piece.
func (f *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

// Fsync makes everything durable that was written before. Whether times are asked for makes no difference: the
// disk has none. Without changes there is nothing to do, so a read-only disk can be synced, too: a loop device
// syncs what it is attached to.
func (f *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if err := f.disk.Sync(); err != nil {
		return f.errno("fsync", 0, err)
	}
	f.counters.syncs.Inc()
	return fuse.OK
}

// FsyncDir has nothing to sync: the directory never changes.
func (f *fileSystem) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Flush makes durable what was written, at each close of a disk.raw that was open for writing. It is the last chance to tell
// a program that does not sync of an error. It also leaves little to do to a mount that is taken away next: the kernel lets no
// program wait for the end of that. It costs nothing after a sync.
func (f *fileSystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if in.NodeId != diskNode || in.Fh != writeHandle {
		return fuse.OK // only kernels before 5.18 send a FLUSH for readers
	}
	if err := f.disk.Sync(); err != nil {
		return f.errno("sync at close", 0, err)
	}
	return fuse.OK
}

// Release makes the image clean when no program has disk.raw open for writing any more. It is all that is heard when
// a loop device is detached, which neither syncs nor closes as a program does.
func (f *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if in.NodeId != diskNode || in.Fh != writeHandle || f.writers.Add(-1) > 0 {
		return
	}
	if err := f.disk.Clean(); err != nil {
		f.errno("make the image clean at close", 0, err)
	}
}
