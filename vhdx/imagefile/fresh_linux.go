package imagefile

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// freshAlign is what reads past the cache are aligned to, in the file and in memory: the sectors of any storage.
const freshAlign = 4 << 10 // bytes

// ReadFresh reads past the kernel's cache, with O_DIRECT by a descriptor of its own where the file system has that, and else by
// dropping what is cached first.
func (f *hostFile) ReadFresh(p []byte, off int64) (int, error) {
	f.lookUp()
	direct := f.direct()
	if direct == nil {
		if err := f.drop(off, int64(len(p))); err != nil {
			return 0, err
		}
		return f.ReadAt(p, off)
	}
	buf := aligned(len(p))
	n, err := direct.ReadAt(buf, off)
	if n == 0 && err != nil && err != io.EOF {
		if pe, ok := err.(*os.PathError); ok && pe.Err == unix.EINVAL { // sectors that are larger, or no O_DIRECT after all
			if err := f.drop(off, int64(len(p))); err != nil {
				return 0, err
			}
			return f.ReadAt(p, off)
		}
	}
	return copy(p, buf[:n]), err
}

// lookUp asks for the file by its name. Only then a storage with replicas learns which of them are current, if another host does
// not reach all of them: GlusterFS reads from one, and remembers that it was current. A failure is that of a hint.
func (f *hostFile) lookUp() {
	if h := f.host(); !h.Shared || !strings.HasPrefix(h.Type, "fuse") {
		return // the client is the kernel
	}
	var st unix.Statx_t
	_ = unix.Statx(unix.AT_FDCWD, f.PathNow(), unix.AT_STATX_FORCE_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &st)
}

// aligned returns n bytes of memory for O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+freshAlign)
	skip := freshAlign - int(uintptr(unsafe.Pointer(&b[0]))%freshAlign)
	return b[skip:][:n]
}

// direct returns the descriptor for reads past the cache, and nil where there is none. It is opened by the one that there is,
// so no name can lead to another file.
func (f *hostFile) direct() *os.File {
	f.freshOnce.Do(func() {
		_ = f.control("reopen", func(fd int) error {
			path := fmt.Sprintf("/proc/self/fd/%d", fd)
			fresh, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			if err == nil {
				f.fresh = os.NewFile(uintptr(fresh), f.Name())
			}
			return err
		})
	})
	return f.fresh
}

// Forget drops what the kernel has cached of the file.
func (f *hostFile) Forget() error {
	if err := f.drop(0, 0); err != nil {
		return err
	}
	// Attributes are cached, too, the size among them.
	return f.control("look at", func(fd int) error {
		var st unix.Statx_t
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st)
	})
}

// drop drops n bytes of the cache from off on, 0 for all up to the end of the file.
func (f *hostFile) drop(off, n int64) error {
	return f.control("drop the cache of", func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}

// Close closes the file.
func (f *hostFile) Close() error {
	f.freshOnce.Do(func() {}) // none is opened any more
	if f.fresh != nil {
		_ = f.fresh.Close() // only read
	}
	return f.File.Close()
}
