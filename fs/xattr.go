package fs

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdxfs/vhdx"
)

const (
	xattrPrefix  = "user.vhdx."
	maxXAttrSize = 64 << 10 // bytes: XATTR_SIZE_MAX, a longer value cannot be read
)

// xattrs are the extended attributes of disk.raw and of the directory, the same for both: a caller who has only the
// mount point, or who must not touch disk.raw, learns as much.
type xattrs struct {
	values map[string][]byte
	list   []byte // the names in order, each with a zero byte behind it, as LISTXATTR wants them
}

// diskXAttrs tells what a program that has only the mount may want to know: of the image, and who serves it how.
func diskXAttrs(info *vhdx.Info, writable bool) xattrs {
	mode := "ro"
	if writable {
		mode = "rw"
	}
	values := map[string]string{
		"pid":                  strconv.Itoa(os.Getpid()),
		"mode":                 mode,
		"path":                 info.Path,
		"creator":              info.Creator,
		"type":                 string(info.Type),
		"disk_size":            strconv.FormatInt(info.DiskSize, 10),
		"block_size":           strconv.FormatInt(info.BlockSize, 10),
		"logical_sector_size":  strconv.FormatInt(info.LogicalSectorSize, 10),
		"physical_sector_size": strconv.FormatInt(info.PhysicalSectorSize, 10),
		"log_state":            string(info.Log.State),
	}
	if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil { // the number of a process means nothing in another
		values["pid_namespace"] = ns
	}
	if info.DiskID != (uuid.UUID{}) {
		values["disk_id"] = info.DiskID.String()
	}
	if n := info.CurrentHeader; n >= 1 && n <= len(info.Headers) {
		values["file_write_guid"] = info.Headers[n-1].FileWriteGUID.String()
		values["data_write_guid"] = info.Headers[n-1].DataWriteGUID.String()
	}
	if info.Parent != nil {
		values["parent_chain"] = strings.Join(parentChain(info), "\n")
	}
	if b, err := json.Marshal(info); err == nil && len(b) <= maxXAttrSize {
		values["json"] = string(b)
	}
	var x xattrs
	x.values = make(map[string][]byte, len(values))
	var names []string
	for name, v := range values {
		if len(v) > maxXAttrSize {
			continue
		}
		x.values[xattrPrefix+name] = []byte(v)
		names = append(names, xattrPrefix+name)
	}
	slices.Sort(names)
	for _, name := range names {
		x.list = append(append(x.list, name...), 0)
	}
	return x
}

// parentChain returns the paths of an image's parents, the nearest first.
func parentChain(info *vhdx.Info) []string {
	var paths []string
	for p := info.Parent; p != nil && p.Image != nil; p = p.Image.Parent {
		paths = append(paths, p.Image.Path)
	}
	return paths
}

func (f *fileSystem) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !f.access(h) {
		return 0, fuse.EACCES
	}
	if !strings.HasPrefix(name, xattrPrefix) { // as the kernel asks for security.* by itself
		return 0, fuse.ENOATTR
	}
	v, ok := f.xattrs().values[name]
	if !ok {
		return 0, fuse.ENOATTR
	}
	return copyXAttr(dest, v)
}

func (f *fileSystem) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !f.access(h) {
		return 0, fuse.EACCES
	}
	return copyXAttr(dest, f.xattrs().list)
}

// copyXAttr returns the size of v, and ERANGE where dest has no room for it. A caller that asks for the
// size passes an empty dest; go-fuse knows that ERANGE is no error then.
func copyXAttr(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}
