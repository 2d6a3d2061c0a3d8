package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rawFile is a raw disk that go-fuse serves: what a FUSE file system in Go costs, without any format. It has the
// options and habits that make that fast.
type rawFile struct {
	fs.Inode
	fd int
}

var (
	_ fs.NodeGetattrer = (*rawFile)(nil)
	_ fs.NodeOpener    = (*rawFile)(nil)
	_ fs.NodeReader    = (*rawFile)(nil)
	_ fs.NodeWriter    = (*rawFile)(nil)
	_ fs.NodeFsyncer   = (*rawFile)(nil)
	_ fs.NodeLseeker   = (*rawFile)(nil)
)

// mountRawFile serves the image by another process of this program, which is at the path: a copy, or it would never be
// out of the kernel's caches.
func mountRawFile(program string) func(image, dir, options string) (*mounted, error) {
	return func(image, dir, _ string) (*mounted, error) {
		cmd := exec.Command(program, serveFlag, image, dir)
		// A goroutine that waits for the disk keeps others from running for a while, unless they have more room.
		cmd.Env = append(os.Environ(), "GOMAXPROCS=8")
		return serve(cmd, filepath.Join(dir, "disk.raw"), dir)
	}
}

// serveFlag, as the first argument, makes this program serve a raw file.
const serveFlag = "-serve-raw-file"

// serveRawFile shows the image in the directory until that is unmounted, or a signal comes.
func serveRawFile(image, dir string) error {
	fd, err := unix.Open(image, unix.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	root := &fs.Inode{}
	options := &fs.Options{
		OnAdd: func(ctx context.Context) {
			child := root.NewPersistentInode(ctx, &rawFile{fd: fd}, fs.StableAttr{})
			root.AddChild("disk.raw", child, false)
		},
		MountOptions: fuse.MountOptions{
			MaxWrite: 1 << 20, MaxBackground: 64, DisableXAttrs: true, DirectMount: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
		},
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	server, err := fs.Mount(dir, root, options)
	if err != nil {
		return err
	}
	go func() {
		<-end
		server.Unmount()
	}()
	server.Wait()
	return nil
}

func (f *rawFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(f.fd, &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return fs.OK
}

func (f *rawFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PARALLEL_DIRECT_WRITES, fs.OK
}

// Read answers large reads by splice, but none that a pipe does not hold together with its header.
func (f *rawFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if n := len(p); n >= 64<<10 && n < 1<<20 {
		return fuse.ReadResultFd(uintptr(f.fd), off, n), fs.OK
	}
	n, err := unix.Pread(f.fd, p, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(p[:n]), fs.OK
}

func (f *rawFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := unix.Pwrite(f.fd, p, off)
	return uint32(max(n, 0)), fs.ToErrno(err)
}

func (f *rawFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return fs.ToErrno(unix.Fdatasync(f.fd))
}

func (f *rawFile) Lseek(_ context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	n, err := unix.Seek(f.fd, int64(off), int(whence))
	return uint64(max(n, 0)), fs.ToErrno(err)
}
