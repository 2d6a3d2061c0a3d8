package fs

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

const (
	ioBlockSize = 4096 // bytes: st_blksize, what small reads are best rounded to
	statUnit    = 512  // bytes: the unit of st_blocks
)

// imageAttr is what the mount shows of the image file: its owner, its permissions, and its times.
type imageAttr struct {
	uid, gid            uint32
	perm                uint32
	atime, mtime, ctime time.Time
}

// statImage returns the attributes of the open file of the image: its name may be that of another one by now.
func (o *Options) statImage(disk Disk) (imageAttr, error) {
	level := 0
	if o.Overlay != "" {
		level = 1
	}
	f, err := disk.File(level)
	if err != nil {
		return imageAttr{}, fmt.Errorf("stat %s: %w", o.Image, err)
	}
	fi := f.Info
	a := imageAttr{perm: uint32(fi.Mode().Perm()), mtime: fi.ModTime()}
	a.atime, a.ctime = a.mtime, a.mtime
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		a.uid, a.gid = st.Uid, st.Gid
		a.atime = time.Unix(st.Atim.Unix())
		a.ctime = time.Unix(st.Ctim.Unix())
	}
	if o.AllowOther && o.Umask == nil && o.Mode == nil {
		sources, err := sourcesOf(disk, level)
		if err != nil {
			return imageAttr{}, err
		}
		a.closeOff(o, sources)
	}
	return a, nil
}

// A source is a file of which disk.raw shows something: who may use it, and the way to it.
type source struct {
	safefile.Access
	way   safefile.Way
	known bool // the way
}

// sourcesOf returns the files of the image, from a level on, and its parents.
func sourcesOf(disk Disk, level int) (sources []source, err error) {
	list, err := disk.Access()
	if err != nil {
		return nil, err
	}
	for l := level; l == level || l < len(list); l++ {
		var s source
		if l < len(list) {
			s.Access = list[l]
		}
		s.way, err = disk.Way(l)
		s.known = err == nil
		sources = append(sources, s)
	}
	return sources, nil
}

// closeOff takes the permissions away from users that could not open the image, or one of its parents: its own permissions do
// not let them, or a directory on the way to it does not let them pass. Where the way is not known, only the owner keeps them.
// A mounting user other than root keeps the access to the image, as the owner of disk.raw.
func (a *imageAttr) closeOff(o *Options, sources []source) {
	perm := a.perm
	for i, s := range sources {
		perm &= s.lets(o, a, i > 0)
	}
	if me := uint32(os.Geteuid()); me != 0 && a.uid != me && perm != a.perm && o.UID == nil && o.Overlay == "" {
		perm = perm&0o007 | 0o600
		a.uid, a.gid = me, uint32(os.Getegid())
	}
	a.perm = perm
}

// lets returns the permissions that disk.raw may have for what it shows of this file. A parent is only read. To whom the
// mounting user gives disk.raw is that user's choice.
func (s *source) lets(o *Options, a *imageAttr, parent bool) uint32 {
	gid := a.gid
	if o.GID != nil {
		gid = *o.GID
	}
	perm := uint32(safefile.Limit(gid, []safefile.Access{s.Access}))
	for _, class := range []uint32{0o070, 0o007} {
		if parent && perm&class&0o444 != 0 {
			perm |= class
		} else if parent {
			perm &^= class
		}
	}
	if !s.known || !s.way.LetsOthers() {
		perm &^= 0o007
	}
	if o.GID != nil {
		perm |= 0o070
	} else if !s.known || !s.way.LetsGroup(a.gid) {
		perm &^= 0o070
	}
	if groups := groupsOf(a.uid); o.UID == nil && (s.known && !s.way.LetsUser(a.uid, groups) || parent && a.uid != uint32(os.Geteuid()) && !s.LetsRead(a.uid, groups)) {
		perm &^= 0o700
	}
	return perm
}

// groupsOf returns the groups of a user.
func groupsOf(uid uint32) []uint32 {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return nil
	}
	ids, _ := u.GroupIds()
	var groups []uint32
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// attributes returns what stat(2) says of the directory and of the file. Without options of its own the file can be
// read by users that can read the image, and written by users that can write it: a mount by root, open to all users,
// must not show them a disk whose image is closed to them, by its own permissions or by those of a directory. With an overlay
// the mounter owns the file.
func (o *Options) attributes(disk Disk, im imageAttr) (root, file fuse.Attr) {
	possible := uint32(0o444)
	if disk.Writable() {
		possible = 0o666
	}
	if o.Overlay != "" { // what is written belongs to the mounting user, who need not own the image or be able to write it
		im.uid, im.gid, im.perm = uint32(os.Geteuid()), uint32(os.Getegid()), im.perm|0o600
	}
	file = fuse.Attr{Ino: diskNode, Mode: syscall.S_IFREG | im.perm&possible, Nlink: 1}
	file.Size = uint64(disk.Size())
	if o.Umask != nil {
		file.Mode = syscall.S_IFREG | possible&^*o.Umask
	}
	if o.Mode != nil {
		file.Mode = syscall.S_IFREG | *o.Mode&0o777
	}
	// The extended attributes of the directory tell of the image what those of disk.raw tell. The kernel lets users
	// read them that may read the directory.
	root = fuse.Attr{Ino: rootNode, Mode: syscall.S_IFDIR | 0o111 | file.Mode&0o444, Nlink: 2}
	if o.Umask != nil {
		root.Mode &^= *o.Umask
	}
	for _, a := range []*fuse.Attr{&root, &file} {
		a.Blksize = ioBlockSize
		a.Owner = fuse.Owner{Uid: im.uid, Gid: im.gid}
		if o.UID != nil {
			a.Uid = *o.UID
		}
		if o.GID != nil {
			a.Gid = *o.GID
		}
		a.SetTimes(&im.atime, &im.mtime, &im.ctime)
	}
	return root, file
}

// diskStatfs describes the mount as a file system of the disk's size, counted in logical sectors.
func diskStatfs(disk Disk) fuse.StatfsOut {
	unit := uint64(disk.SectorSize())
	if unit == 0 {
		unit = statUnit
	}
	return fuse.StatfsOut{
		Blocks:  uint64(disk.Size()) / unit,
		Files:   2,
		Bsize:   ioBlockSize,
		Frsize:  uint32(unit),
		NameLen: 255,
	}
}

// attr returns the attributes of a node as they are now, and nil where there is no such node.
func (f *fileSystem) attr(node uint64) *fuse.Attr {
	switch node {
	case rootNode:
		return &f.root
	case diskNode:
		a := f.file
		a.Size = uint64(f.disk.Size())
		a.Blocks = (uint64(f.disk.AllocatedBytes()) + statUnit - 1) / statUnit
		f.times.fill(&a)
		return &a
	}
	return nil
}

// attrTimeout returns how long the kernel may keep what attr returns after the call.
func (f *fileSystem) attrTimeout() time.Duration {
	if !f.disk.Counted() {
		return 0
	}
	return cacheTimeout
}

func (f *fileSystem) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case !f.access(h):
		return fuse.EACCES
	case h.NodeId != rootNode:
		return fuse.ENOTDIR
	}
	out.SetEntryTimeout(cacheTimeout)
	if name != mounts.FileName {
		return fuse.OK // node 0: there is no such name, and the kernel may remember that
	}
	f.fillEntry(out)
	return fuse.OK
}

// fillEntry describes disk.raw, as LOOKUP and READDIRPLUS want it.
func (f *fileSystem) fillEntry(out *fuse.EntryOut) {
	out.NodeId = diskNode
	out.Generation = 1
	out.SetAttrTimeout(f.attrTimeout())
	out.Attr = *f.attr(diskNode)
	out.SetEntryTimeout(cacheTimeout)
}

func (f *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !f.access(&in.InHeader) {
		return fuse.EACCES
	}
	out.SetTimeout(f.attrTimeout())
	a := f.attr(in.NodeId)
	if a == nil {
		return fuse.ENOENT
	}
	out.Attr = *a
	return fuse.OK
}

// Access is asked only where the kernel does not check permissions itself (default_permissions).
func (f *fileSystem) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	const writeOK = 2 // W_OK of access(2)
	switch {
	case !f.access(&in.InHeader):
		return fuse.EACCES
	case in.Mask&writeOK != 0 && !f.writable:
		return fuse.EROFS
	}
	return fuse.OK
}

// minFreeShare is the least part of the disk, one in that many, that StatFs shows as free.
const minFreeShare = 4

func (f *fileSystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = f.statfs
	size := f.disk.Size()
	out.Blocks = uint64(size) / uint64(out.Frsize)
	// Unallocated space counts as free. The disk itself is never full: a disk whose blocks are all allocated can still be
	// written. So at least a quarter is shown as free, or monitors would warn of it.
	out.Bfree = uint64(max(size-f.disk.AllocatedBytes(), size/minFreeShare)) / uint64(out.Frsize)
	out.Bavail = out.Bfree
	return fuse.OK
}
