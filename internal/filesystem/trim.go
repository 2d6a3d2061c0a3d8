package filesystem

import (
	"context"
	"errors"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trimStep is how much of a file system is trimmed before the caller may interrupt it, in bytes.
const trimStep = 16 << 30

// fitrim is FITRIM, _IOWR('X', 121, struct fstrim_range), the same on all architectures.
const fitrim = 0xC0185879

// A trimRange is struct fstrim_range of the kernel. All are in bytes.
type trimRange struct{ start, length, minimum uint64 }

// Trim tells the device of all space that the file system does not use, and returns how much that is, in bytes. The error
// matches errors.ErrUnsupported where file system or device do not support it.
func (t *Tree) Trim(ctx context.Context) (int64, error) {
	root, err := unix.Openat(t.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: "the root directory", Err: err}
	}
	defer unix.Close(root)
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	size, step := st.Blocks*uint64(st.Bsize), uint64(trimStep) // #nosec G115 -- a size
	if t.Type == "btrfs" || t.Type == "fuseblk" || st.Bsize <= 0 {
		step = math.MaxUint64 // addresses are not those of the device, or the program takes no part
	}
	total := int64(0)
	for start := uint64(0); ; start += step {
		last := start+step < start || start+step >= size
		r := trimRange{start: start, length: step}
		if last {
			r.length = math.MaxUint64 - start
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(root), fitrim, uintptr(unsafe.Pointer(&r))); errno != 0 {
			if errno == unix.ENOTTY {
				return total, errors.ErrUnsupported
			}
			return total, os.NewSyscallError("trim", errno)
		}
		total += int64(min(r.length, math.MaxInt64/2)) // #nosec G115 -- bounded
		switch {
		case last:
			return total, nil
		case ctx.Err() != nil:
			return total, context.Cause(ctx)
		}
	}
}
