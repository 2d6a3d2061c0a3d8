package fs

import (
	"fmt"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// maxBackground is how many read-ahead and asynchronous requests the kernel may have under way. Its own
// default of 12 keeps too few reads of a disk in flight.
const maxBackground = 64

// capabilities are what is asked of the kernel beyond what go-fuse asks for:
//
//   - requests of one O_DIRECT read or write are under way at once;
//   - with FOPEN_DIRECT_IO, disk.raw can still be mapped;
//   - there are no set-user-ID bits and file capabilities to remove at a write. Else the kernel asks before each
//     write for the extended attribute security.capability.
//
// CAP_WRITEBACK_CACHE is only asked for by Options.WritebackCache. With it a write is answered before the image has
// space for it, the caller learns of ENOSPC at fsync or close, and dirty pages need this process to have memory before
// the kernel can get at theirs. A write beyond the end of the disk is taken, too, and makes disk.raw look longer; see
// fileSystem.tooLong. File systems on a loop device have a cache of their own above.
const capabilities = fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_HANDLE_KILLPRIV_V2

// Options says where and how to mount a disk.
type Options struct {
	MountPoint string // absolute path of a directory
	Source     string // what the mount table names as the source; "" is the image's path
	Image      string // path of the image file, whose owner, mode and times disk.raw takes on

	File func() (*vhdx.ImageFile, error) // tells what became of the name of the image; nil does not

	Overlay string  // what takes the writes in place of the image; "" if nothing does
	Window  *Window // what disk.raw shows of the disk; nil is all

	AllowOther         bool // users other than the mounting one may use the mount
	AllowRoot          bool // root may use it, and no other user
	DefaultPermissions bool // the kernel checks the permissions of disk.raw
	NonEmpty           bool // the mount point may hold files, which the mount then hides
	KeepStale          bool // a dead mount of this program at the mount point is an error, not taken away

	UID, GID       *uint32 // owner of disk.raw; nil is the image's
	Umask          *uint32 // permission bits to remove from all; nil starts from the image's
	Mode           *uint32 // permission bits of disk.raw; nil derives them
	Flags          uintptr // MS_NOEXEC, MS_SYNCHRONOUS and the like, for mount(2); the disk decides about MS_RDONLY
	WritebackCache bool    // the kernel may collect writes before it sends them
	DirectIO       bool    // reads and writes pass by the kernel's page cache
	Kernel         bool    // the kernel reads what is mounted read-only by itself, if it can

	ReadOnlyOnError bool // after a failed sync changes fail with EROFS, and the mount becomes read-only if it can

	// CheckMerge may refuse a merge, when all images that change are locked and nothing is changed; nil allows each.
	CheckMerge func(mounts.MergeRequest) error

	BeforeUnmount func() // called when Server.Unmount begins; nil does nothing

	Sandbox string  // how the process is confined, as the attribute user.vhdx.sandbox tells it
	Mounter Mounter // mounts and unmounts; nil is one that does so in this process

	Log logrus.FieldLogger // errors of requests; nil is logrus's standard logger
}

// A Server serves a mounted disk.
type Server struct {
	fs         *fileSystem
	mountPoint string
	device     string // of the mount, major:minor, as the mount table has it; "" where unknown
	log        logrus.FieldLogger
	disk       *fencedDisk
	transport  *transport
	done       chan struct{} // closed when the last request is answered
	mounter    Mounter
}

// Mount mounts disk and begins to serve it. When it returns, disk.raw can be read. An error names what to
// do about it, and leaves no mount behind. The disk must stay open until Wait returns.
func Mount(disk Disk, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = logrus.StandardLogger()
	}
	im, err := o.statImage(disk)
	if err != nil {
		return nil, err
	}
	if o.MountPoint, err = mounts.Resolve(o.MountPoint); err != nil {
		return nil, mountPointError(o.MountPoint, err)
	}
	if o.Window != nil {
		if disk, err = newWindow(disk, *o.Window); err != nil {
			return nil, err
		}
	}
	if err := prepareSplice(); err != nil {
		return nil, err
	}
	if o.Mounter == nil {
		o.Mounter = NewMounter(o)
	}
	fence := &fencedDisk{Disk: disk}
	fsys := newFileSystem(fence, &o, im)
	fd, err := o.Mounter.Mount(!disk.Writable())
	if err != nil {
		return nil, err
	}
	t := newTransport(fd, fsys, &o)
	if err := t.initialize(); err != nil {
		unix.Close(fd)
		_ = o.Mounter.Unmount() // it is told that the kernel did not accept it, which is why
		return nil, fmt.Errorf("the kernel did not accept the mount on %s: %w", o.MountPoint, err)
	}
	fsys.kernel.setUp(fence, &o, fd)
	s := &Server{mountPoint: o.MountPoint, log: o.Log, disk: fence, fs: fsys, transport: t, done: make(chan struct{}), mounter: o.Mounter}
	s.device = deviceAt(o.MountPoint)
	fsys.compactor.readOnly, fsys.merger.readOnly = s.readOnly, s.readOnly
	t.start()
	endControl := s.serveControl(fd)
	go func() {
		defer close(s.done)
		defer fault.Reported(o.Log)
		t.wait()
		endControl()
		fsys.compactor.end()
		fsys.snapshotter.end()
		fsys.merger.end()
	}()
	o.Mounter.Accepted()
	go fsys.name.watch(s.done)
	return s, nil
}

func (o *Options) capabilities() uint64 {
	if o.WritebackCache {
		return capabilities | fuse.CAP_WRITEBACK_CACHE
	}
	return capabilities
}

// source is what the mount table is to name as the source.
func (o *Options) source() string {
	if o.Source == "" {
		return o.Image
	}
	return o.Source
}

// MountPoint returns the absolute path of the mount point, without symbolic links.
func (s *Server) MountPoint() string { return s.mountPoint }

// Image returns the path of the image, which a snapshot may have changed.
func (s *Server) Image() string { return s.disk.Path() }

// readOnly reports whether the mount is read-only wherever it is, as after a remount.
func (s *Server) readOnly() bool {
	list, err := mounts.Of(s.device)
	return err == nil && len(list) > 0 && !slices.ContainsFunc(list, func(m *mountinfo.Info) bool { return !mounts.ReadOnly(m) })
}

// Wait returns when the disk is unmounted and no longer used.
func (s *Server) Wait() { <-s.done }

// Done returns a channel that is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// callerAllowed returns the check that allow_root stands for. The kernel knows only allow_other, so that
// is what it is told, and the rest is refused here.
func (o *Options) callerAllowed() func(*fuse.InHeader) bool {
	if !o.AllowRoot || o.AllowOther {
		return func(*fuse.InHeader) bool { return true }
	}
	owner := uint32(unix.Geteuid())
	return func(h *fuse.InHeader) bool { return h.Uid == owner || h.Uid == 0 }
}

// logWriter passes on what go-fuse has to say.
type logWriter struct{ log logrus.FieldLogger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn("fuse: " + trimNewline(p))
	return len(p), nil
}

func trimNewline(p []byte) string {
	for len(p) > 0 && p[len(p)-1] == '\n' {
		p = p[:len(p)-1]
	}
	return string(p)
}
