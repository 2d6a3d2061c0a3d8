package imagefile

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// A Reflink says whether a copy shares space with what is copied, as cp has it. What is shared is not read, so zeros in it are
// not found.
type Reflink string

// The ways to share.
const (
	ReflinkAuto   Reflink = "auto"   // where the host can, but no file that keeps space of its own; "" means it too
	ReflinkAlways Reflink = "always" // all but parts of blocks of the host, or it is an error
	ReflinkNever  Reflink = "never"
)

// MinShare is how many bytes are shared at least with ReflinkAuto: to copy less takes no longer.
const MinShare = 64 << 10

// ErrReflink is matched by the error for what cannot be shared though it has to.
var ErrReflink = errors.New("the output cannot share space with the input; use --reflink=auto to copy it")

// Clone shares space by FICLONERANGE.
func (f *hostFile) Clone(off int64, src File, srcOff, n int64) error {
	from, ok := src.Fd()
	if !ok {
		return errors.ErrUnsupported
	}
	r := unix.FileCloneRange{Src_fd: int64(from), Src_offset: uint64(srcOff), Src_length: uint64(n), Dest_offset: uint64(off)}
	fd, _ := f.Fd()
	err := unix.IoctlFileCloneRange(int(fd), &r)
	for err == unix.EINTR {
		err = unix.IoctlFileCloneRange(int(fd), &r)
	}
	if err != nil {
		return &fs.PathError{Op: "share space with", Path: pathOf(src), Err: err}
	}
	return nil
}

func pathOf(f File) string {
	if named, ok := f.(interface{ Name() string }); ok {
		return named.Name()
	}
	return "a file"
}

// CanClone returns an error if dst cannot share space with src, as where they are on two file systems or their file system
// shares none. It changes nothing. That it returns nil promises nothing for a range.
func CanClone(dst, src File) error {
	if dst.IsDevice() || src.IsDevice() {
		return errors.ErrUnsupported
	}
	size, err := src.Size()
	if err != nil {
		return err
	}
	// A range behind the end, and in the middle of a block, is invalid for each file system that could share it.
	err = dst.Clone(0, src, size|1, 1)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// ShareUnit returns the size in bytes of the blocks of which the host of f can share whole ones: a power of two from 4 KiB
// to 64 KiB.
func ShareUnit(f File) int64 {
	const least, most = 4 << 10, 64 << 10
	fd, ok := f.Fd()
	if !ok {
		return least
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(fd), &st); err != nil || st.Bsize&(st.Bsize-1) != 0 {
		return least
	}
	return min(max(st.Bsize, least), most) // a network file system says how much it transfers at once
}
