package imagefile

import "golang.org/x/sys/unix"

// writebackUnit is of how many bytes the disk is given at once: less makes more and smaller extents.
const writebackUnit = 8 << 20

// StartWriteback tells the kernel that n bytes of a new file were written from off on, and has it begin to write them to the
// disk, in large units, so that little is left for the sync at the end. It is a hint: it waits for nothing, and what fails shows
// at the sync.
func StartWriteback(f File, off, n int64) {
	from, to := off/writebackUnit*writebackUnit, (off+n)/writebackUnit*writebackUnit
	if to <= off {
		return // inside a unit
	}
	if fd, ok := f.Fd(); ok {
		_ = unix.SyncFileRange(int(fd), from, to-from, unix.SYNC_FILE_RANGE_WRITE)
	}
}
