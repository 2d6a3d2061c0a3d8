package fs

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vhdxfs/internal/mounts"
	"vhdxfs/vhdx"
)

// An xattrGroup returns extended attributes, by their names without the prefix. Both nodes have the same ones: a
// caller who has only the mount point, or who must not touch disk.raw, learns as much.
type xattrGroup func() map[string]string

// xattrGroups returns the groups in the order in which a name is looked for. Who serves the mount comes first: that
// can be asked while a write hangs, and with it what else there is to know of the image.
func (f *fileSystem) xattrGroups(o *Options) []xattrGroup {
	served := servedXAttrs(o, f.writable)
	path := func() map[string]string { return map[string]string{"path": f.disk.Path()} } // which a snapshot may change
	if o.Overlay != "" {
		path = func() map[string]string { return map[string]string{"path": o.Image} }
	}
	image := func() map[string]string { return imageXAttrs(f.disk.Info()) }
	if !f.writable {
		image = sync.OnceValue(image)
	}
	return []xattrGroup{func() map[string]string { return served }, path, f.name.look, f.compactor.xattrs, f.snapshotter.xattrs, f.statXAttrs, image}
}

// servedXAttrs tell which process serves which image, and how. With an overlay, all others tell of the child.
func servedXAttrs(o *Options, writable bool) map[string]string {
	mode := "ro"
	if writable {
		mode = "rw"
	}
	values := map[string]string{"pid": strconv.Itoa(os.Getpid()), "mode": mode}
	if o.Sandbox != "" {
		values["sandbox"] = o.Sandbox
	}
	if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil { // the number of a process means nothing in another
		values["pid_namespace"] = ns
	}
	if o.Overlay != "" {
		values["overlay"] = o.Overlay
	}
	if w := o.Window; w != nil {
		values["partition"] = strconv.Itoa(w.Partition)
		values["partition_offset"] = strconv.FormatInt(w.Off, 10)
	}
	return values
}

// imageXAttrs tell of an image what a program that has only the mount may want to know.
func imageXAttrs(info *vhdx.Info) map[string]string {
	values := map[string]string{
		"creator":              info.Creator,
		"type":                 string(info.Type),
		"disk_size":            strconv.FormatInt(info.DiskSize, 10),
		"block_size":           strconv.FormatInt(info.BlockSize, 10),
		"logical_sector_size":  strconv.FormatInt(info.LogicalSectorSize, 10),
		"physical_sector_size": strconv.FormatInt(info.PhysicalSectorSize, 10),
		"log_state":            string(info.Log.State),
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
	if b, err := json.Marshal(info); err == nil {
		values["json"] = string(b)
	}
	return values
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
	name, ours := strings.CutPrefix(name, mounts.XAttrPrefix)
	if !ours { // as the kernel asks for security.* by itself
		return 0, fuse.ENOATTR
	}
	if v, ok := f.xattr(name); ok && len(v) <= mounts.MaxXAttrSize {
		return copyXAttr(dest, v)
	}
	return 0, fuse.ENOATTR
}

// xattr returns the attribute with a name, without the prefix.
func (f *fileSystem) xattr(name string) (string, bool) {
	for i, group := range f.xattrs {
		if i == len(f.xattrs)-1 && !imageNames[name] {
			break // a name that nobody knows is not worth a look at the whole chain
		}
		if v, ok := group()[name]; ok {
			return v, true
		}
	}
	return "", false
}

// imageNames are the names that imageXAttrs returns.
var imageNames = map[string]bool{
	"creator": true, "type": true, "disk_size": true, "block_size": true, "logical_sector_size": true, "physical_sector_size": true,
	"log_state": true, "disk_id": true, "file_write_guid": true, "data_write_guid": true, "parent_chain": true, "json": true,
}

// ListXAttr lists the names in order, each with a zero byte behind it.
func (f *fileSystem) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !f.access(h) {
		return 0, fuse.EACCES
	}
	var names []string
	for _, group := range f.xattrs {
		for name, v := range group() {
			if len(v) <= mounts.MaxXAttrSize {
				names = append(names, mounts.XAttrPrefix+name+"\x00")
			}
		}
	}
	slices.Sort(names)
	return copyXAttr(dest, strings.Join(names, ""))
}

// SetXAttr takes what a mount is told to do, and no other attribute.
func (f *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	name, ours := strings.CutPrefix(name, mounts.XAttrPrefix)
	switch {
	case !f.writable:
		return fuse.EROFS
	case !ours || f.setter(name) == nil:
		return f.noXAttr()
	case in.Uid != 0 && in.Uid != uint32(os.Geteuid()):
		return fuse.EPERM
	}
	return f.order(name, data)
}

// setter returns what sets the attribute with a name, without the prefix, and nil for one that cannot be set.
func (f *fileSystem) setter(name string) func([]byte) fuse.Status {
	switch name {
	case mounts.CompactXAttr:
		return f.compactor.set
	case mounts.SnapshotXAttr:
		return f.snapshotter.set
	}
	return nil
}

// order sets an attribute for a program that may do that.
func (f *fileSystem) order(name string, data []byte) fuse.Status {
	set := f.setter(name)
	switch {
	case !f.writable:
		return fuse.EROFS
	case set == nil:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return set(data)
}

// copyXAttr returns the size of v, and ERANGE where dest has no room for it. A caller that asks for the
// size passes an empty dest; go-fuse knows that ERANGE is no error then.
func copyXAttr(dest []byte, v string) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}
