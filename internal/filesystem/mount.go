package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Request says what to mount.
type Request struct {
	Device   string // its path
	Kind     string // as package partition names it, or a type of the kernel
	ReadOnly bool
	Options  []string // such as noexec or uid=1000
}

// A Tree is a mounted file system without a place. Closing it before Place unmounts it.
type Tree struct {
	Type     string // of the file system in the mount table, such as ext4
	ReadOnly bool
	Note     string // what its user should know about the way it is mounted; "" for nothing

	fd int
}

// ErrNoDriver says that neither the kernel nor an installed program mounts such a file system.
var ErrNoDriver = errors.New("no driver")

// A way is one way to mount a kind of file system.
type way struct {
	fstype  string   // of the kernel
	program string   // that serves it by FUSE, instead of the kernel
	pack    string   // the package that has the program
	options []string // always
	// unclean are the options, beside ro, for one that needs a replay on a device that cannot be written.
	unclean []string
	// readOnly says that one which cannot be mounted for writing may still be mounted read-only.
	readOnly bool
}

// ways are those for each kind, the best first. XFS and Btrfs know their file systems by UUID, and a copy of a mounted one
// has the same.
var ways = map[string][]way{
	"ext4":     {{fstype: "ext4", unclean: []string{"noload"}}},
	"XFS":      {{fstype: "xfs", options: []string{"nouuid"}, unclean: []string{"norecovery"}}},
	"Btrfs":    {{fstype: "btrfs", unclean: []string{"rescue=nologreplay"}}},
	"F2FS":     {{fstype: "f2fs", unclean: []string{"norecovery"}}},
	"FAT":      {{fstype: "vfat", options: []string{"utf8"}}},
	"exFAT":    {{fstype: "exfat"}, {program: "mount.exfat-fuse", pack: "exfat-fuse"}},
	"NTFS":     {{fstype: "ntfs3", readOnly: true}, {program: "ntfs-3g", pack: "ntfs-3g"}},
	"ISO 9660": {{fstype: "iso9660", options: []string{"ro"}}},
	"UDF":      {{fstype: "udf", options: []string{"ro"}}},
	"SquashFS": {{fstype: "squashfs", options: []string{"ro"}}},
	"EROFS":    {{fstype: "erofs", options: []string{"ro"}}},
}

// CanMount reports whether there is a way to mount the kind of file system.
func CanMount(kind string) bool { return len(ways[kind]) > 0 }

// Mount mounts the file system, which has no place then. Set-user-ID programs and devices on it have no effect.
func Mount(ctx context.Context, r Request) (*Tree, error) {
	list := ways[r.Kind]
	if len(list) == 0 {
		list = []way{{fstype: r.Kind}}
	}
	var missing []string
	for _, w := range list {
		t, err := w.mount(ctx, r)
		if !errors.Is(err, ErrNoDriver) {
			return t, err
		}
		if w.program != "" {
			missing = append(missing, "install the package "+w.pack)
		} else {
			missing = append(missing, "use a kernel with "+w.fstype)
		}
	}
	return nil, fmt.Errorf("%w for %s: %s", ErrNoDriver, r.Kind, strings.Join(missing, ", or "))
}

// mount tries the way, and those to mount a file system that was not unmounted.
func (w way) mount(ctx context.Context, r Request) (*Tree, error) {
	r.Options = append(slices.Clone(w.options), r.Options...)
	if w.program != "" {
		return w.serve(ctx, r)
	}
	if w.fstype == "btrfs" {
		if err := refuseTwin(r.Device); err != nil {
			return nil, err
		}
	}
	t, err := w.byKernel(r)
	if errors.Is(err, unix.EROFS) && r.ReadOnly && w.unclean != nil {
		again := r
		again.Options = append(slices.Clone(r.Options), w.unclean...)
		if t, aerr := w.byKernel(again); aerr == nil {
			t.Note = "it was not unmounted; its journal is not replayed, and the newest changes may be missing"
			return t, nil
		}
	}
	if err != nil && !errors.Is(err, ErrNoDriver) && w.readOnly && !r.ReadOnly {
		again := r
		again.ReadOnly = true
		if t, aerr := w.byKernel(again); aerr == nil {
			t.Note = "it is read-only, since it was not unmounted, as after hibernation or fast startup of Windows"
			return t, nil
		}
	}
	return t, err
}

// byKernel mounts by the kernel's own file system.
func (w way) byKernel(r Request) (*Tree, error) {
	fd, err := unix.Fsopen(w.fstype, unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, ErrNoDriver
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("mounting needs root: %w; run with sudo", err)
	case err != nil:
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	err = unix.FsconfigSetString(fd, "source", r.Device)
	if r.ReadOnly {
		r.Options = append(r.Options, "ro")
	}
	for _, o := range r.Options {
		if err != nil {
			break
		}
		if attr, ok := attributes[o]; ok {
			attrs |= attr
			continue
		}
		if name, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fd, name, value)
		} else {
			err = unix.FsconfigSetFlag(fd, o)
		}
		if err != nil {
			err = fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return nil, explain(err, complaints(fd))
	}
	tree, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return newTree(tree, w.fstype)
}

// attributes are the options that are one of the mount, and not of the file system.
var attributes = map[string]int{"noexec": unix.MOUNT_ATTR_NOEXEC, "noatime": unix.MOUNT_ATTR_NOATIME, "nosuid": 0, "nodev": 0}

func newTree(fd int, fstype string) (*Tree, error) {
	t := &Tree{fd: fd, Type: fstype}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, errors.Join(os.NewSyscallError("statfs", err), t.Close())
	}
	t.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	return t, nil
}

// maxComplaints bounds how many messages are read, each of which the kernel keeps for the mount that failed.
const maxComplaints = 16

// complaints are the errors that the kernel has noted while it was asked to mount.
func complaints(fd int) (list []string) {
	b := make([]byte, 1024)
	for range maxComplaints {
		n, err := unix.Read(fd, b)
		if err != nil || n < 2 {
			break
		}
		if text, ok := strings.CutPrefix(string(b[:n]), "e "); ok {
			list = append(list, strings.TrimSpace(text))
		}
	}
	return list
}

// explain adds what the kernel said to an error, or else what it may mean.
func explain(err error, said []string) error {
	switch {
	case len(said) > 0:
		return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: it is in use, or mounted in another way", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: the file system is damaged, or has features that this kernel does not know; dmesg says more", err)
	}
	return err
}

// refuseTwin refuses a Btrfs whose UUID is that of one that is mounted, as that of a copy of its disk is: the kernel would
// take them for one file system on two devices.
func refuseTwin(device string) error {
	const superblock, fsid = 64 << 10, 32
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var u [16]byte
	if _, err := f.ReadAt(u[:], superblock+fsid); err != nil {
		return err
	}
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	if _, err := os.Stat("/sys/fs/btrfs/" + uuid); err == nil {
		return fmt.Errorf("a Btrfs file system with the same UUID (%s) is mounted; unmount that first: %w", uuid, unix.EBUSY)
	}
	return nil
}

// Place moves the file system to the open directory, whatever has become of its path.
func (t *Tree) Place(dir uintptr) error {
	err := unix.MoveMount(t.fd, "", int(dir), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// Close gives the file system up. Where it has a place, it stays mounted there.
func (t *Tree) Close() error {
	if t == nil {
		return nil
	}
	return unix.Close(t.fd)
}

// serve mounts by a program, in a directory of its own, and takes the mount from there.
func (w way) serve(ctx context.Context, r Request) (_ *Tree, err error) {
	program, err := find(w.program)
	if err != nil {
		return nil, ErrNoDriver
	}
	dir, err := os.MkdirTemp("", "vhdxfs-mount-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	options := append([]string{"nosuid", "nodev"}, r.Options...)
	if r.ReadOnly {
		options = append(options, "ro")
	}
	cmd := exec.CommandContext(ctx, program, "-o", strings.Join(options, ","), r.Device, dir) // both are absolute
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH)                          // of a program that was interrupted
		said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n") // more is help
		err = fmt.Errorf("%s: %w (%s)", w.program, err, said)
		if meaning := ntfsStatuses[cmd.ProcessState.ExitCode()]; w.program == "ntfs-3g" && meaning != "" {
			err = fmt.Errorf("%s; %w", meaning, err)
		}
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	err = os.NewSyscallError("open_tree", err)
	uerr := os.NewSyscallError("umount", unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	if err == nil && uerr != nil {
		unix.Close(fd)
	}
	if err = errors.Join(err, uerr); err != nil {
		return nil, err
	}
	t, err := newTree(fd, "fuseblk")
	if err == nil && t.ReadOnly && !r.ReadOnly {
		t.Note = "it is read-only, since it was not unmounted, as after hibernation or fast startup of Windows"
	}
	return t, err
}

// ntfsStatuses are those exit statuses of ntfs-3g that tell what is wrong with a file system.
var ntfsStatuses = map[int]string{
	13: "the file system is damaged",
	14: "Windows is hibernated",
	15: "the file system was not unmounted",
}

// find returns the path of a program, also where the path of a user lacks the directories for the administrator.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(dir + name)
	}
	return path, err
}
