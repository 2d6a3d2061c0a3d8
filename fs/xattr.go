package fs

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An xattrGroup is extended attributes, by their names without the prefix. Both nodes have the same ones: a caller that has
// only the mount point, or that must not touch disk.raw, learns as much.
type xattrGroup struct {
	has  func(name string) bool // whether look may return an attribute of that name; it costs nothing
	look func() map[string]string
}

// named returns a check for one of the names.
func named(names ...string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

// xattrGroups returns all groups.
func (f *fileSystem) xattrGroups(o *Options) []xattrGroup {
	served := servedXAttrs(o, f.writable)
	path := f.disk.Path // which a snapshot may change
	if o.Overlay != "" {
		path = func() string { return o.Image }
	}
	image := (&imageTeller{disk: f.disk}).xattrs
	if !f.writable {
		image = sync.OnceValue(image)
	}
	return []xattrGroup{
		{func(name string) bool { _, ok := served[name]; return ok }, func() map[string]string { return served }},
		{named("kernel"), func() map[string]string { return map[string]string{"kernel": f.kernel.String()} }},
		{named("path"), func() map[string]string { return map[string]string{"path": path()} }},
		{named(nameXAttrs...), f.name.look},
		{named(mounts.CompactXAttr), f.compactor.xattrs},
		{named(mounts.SnapshotXAttr), f.snapshotter.xattrs},
		{named(mounts.MergeXAttr), f.merger.xattrs},
		{func(name string) bool { return name == "stats" || strings.HasPrefix(name, statPrefix) }, f.statXAttrs},
		{named(imageNames...), image},
	}
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

// An imageTeller describes an image. It gives the same answer again while the image is the same. It describes the parents
// once, since they do not change.
type imageTeller struct {
	disk Disk

	mu      sync.Mutex // guards what follows
	told    vhdx.Info
	values  map[string]string // nil before the first time
	parents parentsText
}

// parentsText is what is told of the parents of an image.
type parentsText struct {
	of    *vhdx.Info
	chain string
	json  int // bytes
}

func (t *imageTeller) xattrs() map[string]string {
	info := t.disk.Info()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.values != nil && reflect.DeepEqual(t.told, *info) { // parents are the same where they are at the same address
		return t.values
	}
	var nearest *vhdx.Info
	if info.Parent != nil {
		nearest = info.Parent.Image
	}
	if t.parents.of != nearest {
		b, _ := json.Marshal(nearest) // it fails for no Info
		t.parents = parentsText{nearest, strings.Join(parentChain(info), "\n"), len(b)}
	}
	t.told, t.values = *info, imageXAttrs(info, t.parents)
	return t.values
}

// imageXAttrs tell of an image what a program that has only the mount may want to know.
func imageXAttrs(info *vhdx.Info, parents parentsText) map[string]string {
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
	if l := info.Lease; l != nil {
		who := vhdx.HostText(l.Host, l.Since)
		if l.State == vhdx.LeaseTakenOver {
			values["taken_over"] = who
		}
		values["lease"] = string(l.State) + ": " + who
	}
	if info.Parent != nil {
		values["parent_chain"] = parents.chain
	}
	if parents.json > mounts.MaxXAttrSize {
		return values // there is no room for the whole
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

// xattr returns the attribute with a name, without the prefix. It looks at nothing for a name that there cannot be.
func (f *fileSystem) xattr(name string) (string, bool) {
	for _, group := range f.xattrs {
		if group.has(name) {
			v, ok := group.look()[name]
			return v, ok
		}
	}
	return "", false
}

// imageNames are the names that imageXAttrs returns.
var imageNames = []string{
	"creator", "type", "disk_size", "block_size", "logical_sector_size", "physical_sector_size",
	"log_state", "disk_id", "file_write_guid", "data_write_guid", "parent_chain", "json", "lease", "taken_over",
}

// mayRead reports whether the caller may read disk.raw. The kernel checks that when a program reads an attribute, and
// nothing when it lists their names.
func (f *fileSystem) mayRead(h *fuse.InHeader) bool {
	perm := f.file.Mode
	switch {
	case h.Uid == 0:
		return true
	case h.Uid == f.file.Uid:
		return perm&0o400 != 0
	case perm&0o040 == perm<<3&0o040: // it is the same for the group and for others
		return perm&0o004 != 0
	case h.Gid == f.file.Gid:
		return perm&0o040 != 0
	}
	member, known := inGroup(h.Pid, f.file.Gid)
	if member || !known && perm&0o040 != 0 { // the names are no secret that would be worth to keep the members out
		return perm&0o040 != 0
	}
	return perm&0o004 != 0
}

// inGroup reports whether a process is in a group besides its own, if that can be known: not from within the sandbox.
func inGroup(pid, gid uint32) (member, known bool) {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(status)) {
		if groups, ok := strings.CutPrefix(line, "Groups:"); ok {
			return slices.Contains(strings.Fields(groups), strconv.FormatUint(uint64(gid), 10)), true
		}
	}
	return false, false
}

// ListXAttr lists the names in order, each with a zero byte behind it.
func (f *fileSystem) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !f.access(h) || !f.mayRead(h) {
		return 0, fuse.EACCES
	}
	var names []string
	for _, group := range f.xattrs {
		for name, v := range group.look() {
			if len(v) <= mounts.MaxXAttrSize {
				names = append(names, mounts.XAttrPrefix+name+"\x00")
			}
		}
	}
	slices.Sort(names)
	return copyXAttr(dest, strings.Join(names, ""))
}

// SetXAttr accepts only attributes that tell the mount what to do.
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
	case mounts.MergeXAttr:
		return f.merger.set
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
