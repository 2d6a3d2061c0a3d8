package mounts

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// What became of the name by which a mount's image was opened, as the attribute image_state says it.
const (
	StateDeleted = "deleted" // the file has no name any more, and its data goes with the mount
	StateRenamed = "renamed" // another file, or none, has the name
)

// FileID returns what no other image of this system has, under any name: the device and the inode of a file, or
// the number of a block device.
func FileID(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return fmt.Sprintf("device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return fmt.Sprintf("file %d:%d %d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
}

// NameOf is FileID of a file that is open.
func NameOf(f imagefile.FileID) string {
	if f.Inode == 0 {
		return fmt.Sprintf("device %d:%d", f.Major, f.Minor)
	}
	return fmt.Sprintf("file %d:%d %d", f.Major, f.Minor, f.Inode)
}

// FileState returns what became of the name of an open file.
func FileState(path string, open fs.FileInfo) string {
	if st, ok := open.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
		return StateDeleted
	}
	now, err := os.Stat(path)
	if err != nil || FileID(now) != FileID(open) {
		return StateRenamed
	}
	return ""
}
