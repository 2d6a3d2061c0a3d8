package imagefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// copyingServers are the file systems, by their types in the mount table, whose servers may copy a range of a file by themselves: by
// COPY of NFS 4.2, or a copychunk of SMB.
var copyingServers = []string{"nfs4", "cifs", "smb3"}

// CopiesByServer reports whether a server may copy from src to dst by itself, so that no byte goes to this host and back. Whether
// it does shows when it is asked to, see CopyByServer. Of a local file system it reports false: the kernel copies there by single
// pages in one thread, which takes longer than to read and write large pieces in several.
func CopiesByServer(dst, src File) bool {
	if dst.IsDevice() || src.IsDevice() || dst.Host().Type != src.Host().Type || !slices.Contains(copyingServers, dst.Host().Type) {
		return false
	}
	d, derr := deviceOf(dst)
	s, serr := deviceOf(src)
	return derr == nil && serr == nil && d == s
}

// deviceOf returns the device of the file system of a file.
func deviceOf(f File) (dev uint64, err error) {
	fd, ok := f.Fd()
	if !ok {
		return 0, errors.ErrUnsupported
	}
	var st unix.Stat_t
	err = unix.Fstat(int(fd), &st)
	return st.Dev, err
}

// CopyByServer copies n bytes of src, from srcOff on, to dst at off. byServer says that they did not go through the memory of this
// host. Where it is false with a nil error, the kernel has copied them by itself, since the server cannot.
func CopyByServer(dst File, off int64, src File, srcOff, n int64) (byServer bool, err error) {
	to, dok := dst.Fd()
	from, sok := src.Fd()
	if !dok || !sok {
		return false, errors.ErrUnsupported
	}
	runtime.LockOSThread() // what is counted is of a thread
	defer runtime.UnlockOSThread()
	before, known := dirtied()
	for left := n; left > 0; {
		got, err := unix.CopyFileRange(int(from), &srcOff, int(to), &off, int(left), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, &fs.PathError{Op: "copy from", Path: pathOf(src), Err: err}
		case got == 0:
			return false, &fs.PathError{Op: "copy from", Path: pathOf(src), Err: io.ErrUnexpectedEOF}
		}
		left -= int64(got)
	}
	after, _ := dirtied()
	return known && after-before < n/2, nil
}

// dirtied returns how many bytes the calling thread has written to the page cache, as the kernel counts them, and false where it
// does not. A test can put another function in its place.
var dirtied = func() (int64, bool) {
	text, err := os.ReadFile("/proc/thread-self/io")
	if err != nil {
		return 0, false
	}
	_, count, found := strings.Cut(string(text), "\nwrite_bytes: ")
	count, _, _ = strings.Cut(count, "\n")
	n, err := strconv.ParseInt(count, 10, 64)
	return n, found && err == nil
}
