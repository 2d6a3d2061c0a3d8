package imagefile

import (
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A Fact is what is known of a file system.
type Fact int8

// What a Fact may be.
const (
	Unknown Fact = iota
	No
	Yes
)

func (f Fact) String() string { return [...]string{"unknown", "no", "yes"}[f] }

// A Host is what has to be known of the file system on which an image lies. The zero Host is one of which nothing is known.
type Host struct {
	Type string // as the mount table has it
	// Other hosts may have the same file: it is a network file system, or one by FUSE, which may be a way to one.
	Shared bool
	// Holes in a file are harmless. Where they are not, Windows refuses the file, or it may be so: NTFS marks it as sparse for
	// good, and the file system may be a way to such a one.
	Holes Fact
	// SEEK_DATA and SEEK_HOLE know of what was written and is not on the disk yet. A hole that is none costs data, where a
	// block is given up, or not copied, because it lies in one.
	FindsHoles Fact

	// OwnLocks is the mount option by which locks are not sent to the server, so that they keep only the programs of this host
	// out; "" where there is none.
	OwnLocks string

	Locks   Fact // a lock that one host takes is seen by the others; of a file system that is not shared, by all its programs
	TmpFile Fact // files without a name can be made, and get one when they are complete
	Copies  Fact // the server, or the file system, copies or shares a range by itself
	// Part of what two files share is free at once when nothing uses it any more. Where it is not, the whole of what was written
	// at one time stays until no part of it is used.
	FreesParts Fact
}

// knownHosts are the file systems by their types in the mount table. docs/cluster.md shows those that are shared; a test
// compares the two. What is said here was found by vhdxfs probe, or is documented by those who make the file system; the rest is
// left unknown.
var knownHosts = []Host{
	{Type: "ext4", Holes: Yes, FindsHoles: Yes, Locks: Yes, TmpFile: Yes, Copies: No}, // ext2 and ext3, too
	{Type: "xfs", Holes: Yes, FindsHoles: Yes, Locks: Yes, TmpFile: Yes, Copies: Yes, FreesParts: Yes},
	{Type: "btrfs", Holes: Yes, FindsHoles: Yes, Locks: Yes, TmpFile: Yes, Copies: Yes, FreesParts: No},
	{Type: "tmpfs", Holes: Yes, FindsHoles: Yes, Locks: Yes, TmpFile: Yes, Copies: No}, // and that of devices, which have no holes
	{Type: "zfs", Holes: Yes, Locks: Yes, TmpFile: Yes},                                // its SEEK_HOLE has given wrong answers
	{Type: "overlay", Holes: Yes, Locks: Yes},                                          // the rest is that of another one
	{Type: "exfat", Holes: No, Locks: Yes},
	{Type: "vfat", Holes: No, Locks: Yes},
	{Type: "msdos", Holes: No, Locks: Yes},
	{Type: "ntfs3", Holes: No, Locks: Yes},
	{Type: "ntfs", Holes: No, Locks: Yes},
	{Type: "fuseblk", Holes: No, Locks: Yes}, // ntfs-3g

	{Type: "nfs4", Shared: true, Holes: Yes, FindsHoles: No, Locks: Yes, TmpFile: No},
	{Type: "nfs", Shared: true, Holes: Yes, FindsHoles: No, TmpFile: No}, // version 3, whose locks are another server's
	{Type: "cifs", Shared: true, Holes: No, FindsHoles: No, Locks: Yes, TmpFile: No},
	{Type: "smb3", Shared: true, Holes: No, FindsHoles: No, Locks: Yes, TmpFile: No},
	{Type: "9p", Shared: true, Holes: No, FindsHoles: No},
	{Type: "virtiofs", Shared: true, Holes: No, FindsHoles: No},
	{Type: "ceph", Shared: true, Holes: Yes, FindsHoles: No, Locks: Yes},
	{Type: "gfs2", Shared: true, Holes: Yes, Locks: Yes},
	{Type: "ocfs2", Shared: true, Holes: Yes, Locks: Yes},
	{Type: "lustre", Shared: true, Holes: Yes, FindsHoles: No},
	{Type: "fuse.glusterfs", Shared: true, Holes: Yes, Locks: Yes, TmpFile: No, Copies: No},
	{Type: "fuse.sshfs", Shared: true, Holes: No, FindsHoles: No, Locks: No, TmpFile: No},
	{Type: "fuse.mfs", Shared: true, Holes: Unknown, FindsHoles: No, Locks: Yes},
}

// hostTypes are the types by the number that statfs(2) gives: those that a number tells apart for certain, and what to take for
// the type where the mount table cannot be read.
var hostTypes = map[int64]struct {
	name    string
	certain bool
}{
	unix.EXT4_SUPER_MAGIC:  {"ext4", true},
	unix.XFS_SUPER_MAGIC:   {"xfs", true},
	unix.BTRFS_SUPER_MAGIC: {"btrfs", true},
	unix.TMPFS_MAGIC:       {"tmpfs", true},

	unix.EXFAT_SUPER_MAGIC: {"exfat", false},
	unix.MSDOS_SUPER_MAGIC: {"vfat", false},
	0x5346544e:             {"ntfs", false},
	0x7366746e:             {"ntfs3", false},
	unix.NFS_SUPER_MAGIC:   {"nfs", false},
	unix.CIFS_SUPER_MAGIC:  {"cifs", false},
	unix.SMB2_SUPER_MAGIC:  {"smb3", false},
	unix.SMB_SUPER_MAGIC:   {"cifs", false},
	unix.V9FS_MAGIC:        {"9p", false},
	unix.FUSE_SUPER_MAGIC:  {"fuse", false},
	unix.CEPH_SUPER_MAGIC:  {"ceph", false},
}

// KnownHosts returns what is known, for a page of the documentation and for those who probe.
func KnownHosts() []Host { return append([]Host(nil), knownHosts...) }

// HostOfType returns what is known of a type of file system, as the mount table names it. Of an unknown type of FUSE, other hosts
// may share the files.
func HostOfType(name string) Host {
	for _, h := range knownHosts {
		if h.Type == name {
			return h
		}
	}
	h := Host{Type: name}
	if name == "fuse" || strings.HasPrefix(name, "fuse.") {
		h.Shared, h.Holes = true, No // it may be anything
	}
	return h
}

func (f *hostFile) findHost() (h Host) {
	err := f.control("look at the file system of", func(fd int) error {
		var err error
		h, err = hostOf(fd)
		return err
	})
	if err != nil {
		return Host{Holes: No}
	}
	return h
}

// hostOf returns what is known of the file system of an open file or directory.
func hostOf(fd int) (Host, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return Host{}, err
	}
	t := hostTypes[int64(st.Type)]
	if t.certain {
		return HostOfType(t.name), nil
	}
	name, options := mounted(fd)
	if name == "" {
		return HostOfType(t.name), nil
	}
	h := HostOfType(name)
	if h.OwnLocks = ownLocks(name, options); h.OwnLocks != "" {
		h.Locks = No
	}
	return h, nil
}

// ownLocks returns the option, of those that a file system is mounted with, by which locks stay on this host.
func ownLocks(name, options string) string {
	may := map[string][]string{
		"nfs":  {"nolock", "local_lock=all", "local_lock=posix"},
		"nfs4": {"nolock", "local_lock=all", "local_lock=posix"},
		"cifs": {"nobrl"},
		"smb3": {"nobrl"},
	}[name]
	for option := range strings.SplitSeq(options, ",") {
		if slices.Contains(may, option) {
			return option
		}
	}
	return ""
}

// mounted returns the type and the options that the mount table has for the mount of an open file, and "" where that cannot be
// told. Only there it says which file system a FUSE server serves.
func mounted(fd int) (name, options string) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return "", ""
	}
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if m.ID < 0 || uint64(m.ID) != st.Mnt_id { // #nosec G115 -- not negative
			return true, false
		}
		return false, true
	})
	if err != nil || len(list) == 0 {
		return "", ""
	}
	return list[0].FSType, list[0].VFSOptions
}
