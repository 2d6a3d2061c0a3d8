package safefile

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// aclName is the extended attribute that holds the POSIX ACL of a file.
const aclName = "system.posix_acl_access"

// An Access is who may use a file: its owner, group, permissions and ACL.
type Access struct {
	UID, GID uint32
	Perm     fs.FileMode
	acl      []byte // as the kernel stores it; nil if there is none

	stat unix.Stat_t
}

// Stat returns what fstat(2) said of the file.
func (a Access) Stat() unix.Stat_t { return a.stat }

// SameFile reports whether both are of one file.
func (a Access) SameFile(b Access) bool { return a.stat.Dev == b.stat.Dev && a.stat.Ino == b.stat.Ino }

// AccessOf returns who may use the open file.
func AccessOf(f Descriptor) (Access, error) {
	defer runtime.KeepAlive(f)
	return accessOf(int(f.Fd()))
}

// accessOf does so for a descriptor that may be one of O_PATH.
func accessOf(fd int) (Access, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Access{}, err
	}
	a := Access{UID: st.Uid, GID: st.Gid, Perm: fs.FileMode(st.Mode).Perm(), stat: st}
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	if n, err := unix.Getxattr(descriptorPath(fd), aclName, buf); err == nil && n > 0 {
		a.acl = buf[:n:n]
	}
	return a, nil
}

// Limit returns the permissions that a file of the group gid may have, at the most, so that only those can use it who can
// use each of the inputs; its owner, who has read them, always can. Members of a group that is another one than the input's
// are others to the input, and the group's bits of a file with an ACL tell nothing of its group.
func Limit(gid uint32, inputs []Access) fs.FileMode {
	limit := fs.FileMode(0o777)
	for _, in := range inputs {
		group, others := in.Perm>>3&7, in.Perm&7&in.named()
		if in.acl != nil || in.GID != gid {
			// Those whom the input's group keeps out may be others here.
			group, others = group&others, group&others
		}
		limit &= 0o700 | group<<3 | others
	}
	return limit
}

// named returns the permissions that each user and group has to whom the ACL gives some of their own, and all where there
// is no such ACL. Elsewhere they are others, or members of the group.
func (a Access) named() fs.FileMode {
	const head, size = 4, 8             // bytes: the version, and an entry of a tag, permissions and an identity, little-endian
	const user, owning, group = 2, 4, 8 // tags
	perm := fs.FileMode(7)
	for b := a.acl; len(b) >= head+size; b = b[size:] {
		e := b[head:]
		if tag := binary.LittleEndian.Uint16(e); tag == user || tag == owning || tag == group {
			perm &= fs.FileMode(binary.LittleEndian.Uint16(e[2:]))
		}
	}
	return perm
}

// LetsRead reports whether a user may read the file who is a member of these groups and no others. What an ACL allows some
// users does not count.
func (a Access) LetsRead(uid uint32, groups []uint32) bool {
	switch {
	case uid == 0:
		return true
	case a.UID == uid:
		return a.Perm&0o400 != 0
	case slices.Contains(groups, a.GID) && a.acl == nil:
		return a.Perm&0o040 != 0
	}
	return Limit(a.GID, []Access{a})&0o004 != 0
}

// Give gives f the owner, group, permissions and ACL of a, as far as the caller may and the file system has them. Where it
// cannot be given the group or the ACL, nobody gets rights instead. No permission goes beyond the limit of the inputs, and an
// owner who could not read each of them is none of f.
func (a Access) Give(f Descriptor, inputs []Access) error {
	defer runtime.KeepAlive(f)
	fd := int(f.Fd())
	owner := int(a.UID)
	if a.UID != uint32(os.Geteuid()) && slices.ContainsFunc(inputs, func(in Access) bool { return !in.LetsRead(a.UID, nil) }) {
		owner = -1
	}
	if err := unix.Fchown(fd, owner, int(a.GID)); err != nil {
		_ = unix.Fchown(fd, -1, int(a.GID)) // what was reached is looked at below
	}
	now, err := accessOf(fd)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	limit := Limit(now.GID, inputs)
	mode := a.Perm
	if now.GID != a.GID || a.acl != nil {
		mode &= Limit(now.GID, []Access{a})
	}
	keepACL := a.acl != nil && now.GID == a.GID && a.Perm&^limit == 0
	if !keepACL {
		if err := dropACL(fd, now); err != nil {
			return &fs.PathError{Op: "remove the ACL of", Path: f.Name(), Err: err}
		}
	}
	if err := ignoreMissing(unix.Fchmod(fd, uint32(mode&limit))); err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	if keepACL {
		if err := ignoreMissing(unix.Fsetxattr(fd, aclName, a.acl, 0)); err != nil {
			return &fs.PathError{Op: "set the ACL of", Path: f.Name(), Err: err}
		}
	}
	return nil
}

// Restrict takes permissions from a new file that the inputs do not give.
func Restrict(f Descriptor, inputs []Access) error {
	defer runtime.KeepAlive(f)
	fd := int(f.Fd())
	now, err := accessOf(fd)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	limit := Limit(now.GID, inputs)
	if limit == 0o777 {
		return nil
	}
	if err := dropACL(fd, now); err != nil { // one that the directory gives to all that is in it
		return &fs.PathError{Op: "remove the ACL of", Path: f.Name(), Err: err}
	}
	if now.Perm&^limit == 0 {
		return nil
	}
	if err := ignoreMissing(unix.Fchmod(fd, uint32(now.Perm&limit))); err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

func dropACL(fd int, now Access) error {
	if now.acl == nil {
		return nil
	}
	err := unix.Fremovexattr(fd, aclName)
	if errors.Is(err, unix.ENODATA) {
		err = nil
	}
	return err
}

// ignoreMissing drops errors that say that the file system has no permissions of its own, or has them for all alike.
func ignoreMissing(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// A Way is the directories from the root of the file system to a file. Each has to let a user pass who opens the file by it.
type Way []Access

// WayTo returns the way by which the open file has a name now.
func WayTo(f Descriptor) (Way, error) {
	d, _, err := DirOf(f)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var way Way
	for fd, last := d.fd, (unix.Stat_t{}); ; {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Dev == last.Dev && st.Ino == last.Ino {
			return way, nil // the root is its own parent
		}
		var a Access
		var up int
		if err == nil {
			a, err = accessOf(fd)
		}
		if err == nil {
			up, err = unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: d.path, Err: err}
		}
		way, last = append(way, a), st
		defer unix.Close(up)
		fd = up
	}
}

// LetsOthers reports whether everybody may pass.
func (w Way) LetsOthers() bool {
	for _, a := range w {
		if a.Perm&0o001 == 0 {
			return false
		}
	}
	return true
}

// LetsGroup reports whether every member of the group may pass, whoever that is.
func (w Way) LetsGroup(gid uint32) bool {
	for _, a := range w {
		if a.GID == gid && (a.acl != nil || a.Perm&0o010 == 0) || a.GID != gid && a.Perm&0o001 == 0 {
			return false
		}
	}
	return true
}

// LetsUser reports whether a user may pass who is a member of these groups and no others.
func (w Way) LetsUser(uid uint32, groups []uint32) bool {
	for _, a := range w {
		switch {
		case uid == 0:
		case a.UID == uid:
			if a.Perm&0o100 == 0 {
				return false
			}
		case slices.Contains(groups, a.GID) && a.acl == nil:
			if a.Perm&0o010 == 0 {
				return false
			}
		case a.Perm&0o001 == 0:
			return false
		}
	}
	return true
}
