package fs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Fallocate serves fallocate(2), by which a loop device passes on discards (PUNCH_HOLE) and zeroes (ZERO_RANGE).
//
// What reads as zero beyond the end needs no zeroing, so where the size is to be kept such ranges are cut off at
// the end. Space beyond the end cannot be had, and the disk does not grow: that is EFBIG.
func (f *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	switch {
	case !f.writable:
		return fuse.EROFS
	case in.NodeId != diskNode:
		return fuse.EISDIR
	case in.Length == 0:
		return fuse.EINVAL
	case in.Offset > math.MaxInt64 || in.Length > math.MaxInt64:
		return fuse.Status(unix.EFBIG)
	}
	size := f.disk.Size()
	off := int64(min(in.Offset, uint64(size)))
	n := int64(min(in.Length, uint64(size-off)))
	cut := in.Offset+in.Length > uint64(size)
	var do func(off, n int64) error
	requests, bytes := &f.counters.zeroings, &f.counters.zeroedBytes
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		do, cut = f.disk.Discard, false
		requests, bytes = &f.counters.discards, &f.counters.discardedBytes
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		do, cut = f.disk.Zero, false
	case unix.FALLOC_FL_ZERO_RANGE:
		do = f.disk.Zero
	case 0, unix.FALLOC_FL_KEEP_SIZE:
		do = f.disk.Allocate
		requests, bytes = &f.counters.allocations, nil
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if cut {
		return fuse.Status(unix.EFBIG)
	}
	if n == 0 {
		return fuse.OK
	}
	defer f.times.modified()
	err := do(off, n)
	if err == nil && f.sync {
		err = f.disk.Sync()
	}
	if err != nil {
		return f.errno("fallocate", off, err)
	}
	requests.Inc()
	if bytes != nil {
		bytes.Add(n)
	}
	return fuse.OK
}
