package test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A clusterHost is how one host of several sees a directory on a shared storage: by a FUSE file system of its own. The storage
// has no locks that another host sees, or none at all.
type clusterHost struct {
	dir  string
	link sync.RWMutex // held alone while the host is cut off from the storage
}

// newClusterHost mounts the directory as another host sees it. With refuseLocks, whoever wants a lock gets an error.
func newClusterHost(t *testing.T, directory string, refuseLocks bool) *clusterHost {
	t.Helper()
	requireFUSE(t)
	h := &clusterHost{dir: newDir(t)}
	root := &fs.LoopbackRoot{Path: directory}
	root.RootNode = &clusterNode{LoopbackNode: fs.LoopbackNode{RootData: root}, host: h}
	server, err := fs.Mount(h.dir, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{Name: "clusterhost", EnableLocks: refuseLocks, DirectMount: os.Geteuid() == 0}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return h
}

type clusterNode struct {
	fs.LoopbackNode
	host *clusterHost
}

// WrapChild has each file below the directory be one of this host, too.
func (n *clusterNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	if node, ok := ops.(*fs.LoopbackNode); ok {
		return &clusterNode{LoopbackNode: fs.LoopbackNode{RootData: node.RootData}, host: n.host}
	}
	return ops
}

func (n *clusterNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return &clusterFile{f.(loopbackFile), n.host}, fuseFlags, 0
}

// loopbackFile is what is passed on of an open file: all but locks.
type loopbackFile interface {
	fs.FileReader
	fs.FileWriter
	fs.FileFsyncer
	fs.FileFlusher
	fs.FileReleaser
	fs.FileGetattrer
	fs.FileAllocater
}

type clusterFile struct {
	loopbackFile
	host *clusterHost
}

func (f *clusterFile) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.host.link.RLock()
	defer f.host.link.RUnlock()
	r, errno := f.loopbackFile.Read(ctx, buf, off)
	if errno != 0 {
		return r, errno
	}
	// At once: what is answered later may have been written later.
	b, status := r.Bytes(buf)
	return fuse.ReadResultData(bytes.Clone(b)), syscall.Errno(status)
}

func (f *clusterFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	f.host.link.RLock()
	defer f.host.link.RUnlock()
	return f.loopbackFile.Write(ctx, data, off)
}

func (f *clusterFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	f.host.link.RLock()
	defer f.host.link.RUnlock()
	return f.loopbackFile.Fsync(ctx, flags)
}

// A host that was cut off from the storage, while another one has taken its image over, writes and reads nothing of it any more.
func TestHostThatWasCutOff(t *testing.T) {
	t.Parallel()
	img := create(t, "64M")
	a, b := newClusterHost(t, filepath.Dir(img), false), newClusterHost(t, filepath.Dir(img), false)
	name := filepath.Base(img)

	sa := serve(t, filepath.Join(a.dir, name))
	da := openDisk(t, sa.disk, os.O_RDWR)
	mine, theirs := bytes.Repeat([]byte{0xaa}, 1<<20), bytes.Repeat([]byte{0xbb}, 1<<20)
	for _, off := range []int64{0, 8 << 20} {
		if _, err := da.WriteAt(mine, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := da.Sync(); err != nil {
		t.Fatal(err)
	}
	if out := mustVhdxfs(t, "info", img); !strings.Contains(out, "held: ") {
		t.Errorf("info does not tell of the lease:\n%s", out)
	}

	a.link.Lock()
	sb := serve(t, filepath.Join(b.dir, name)) // which waits until the first host cannot write any more
	if !strings.Contains(sb.log.String(), "and was not closed; waiting 13s") {
		t.Errorf("the second host does not say why it waits:\n%s", sb.log.String())
	}
	db := openDisk(t, sb.disk, os.O_RDWR)
	got := make([]byte, len(mine))
	if _, err := db.ReadAt(got, 8<<20); err != nil || !bytes.Equal(got, mine) {
		t.Errorf("the second host does not have what the first one has synced: %v", err)
	}
	if _, err := db.WriteAt(theirs, 0); err != nil {
		t.Fatal(err)
	}
	if err := db.Sync(); err != nil {
		t.Fatal(err)
	}
	a.link.Unlock()

	if _, err := da.WriteAt(mine, 0); err != syscall.EIO && !strings.Contains(errText(err), "input/output error") {
		t.Errorf("the first host writes with %v", err)
	}
	// What the kernel had cached of the disk goes, too.
	eventually(t, "the first host reads no more", func() bool {
		_, err := da.ReadAt(got, 8<<20)
		return strings.Contains(errText(err), "input/output error")
	})
	if out := mustVhdxfs(t, "list"); !strings.Contains(out, "taken over by another host (") {
		t.Errorf("list does not tell of the other host:\n%s", out)
	}
	da.Close()
	sa.fail = true
	unmount(t, sa.dir)
	<-sa.done
	if sa.cmd.ProcessState.ExitCode() == 0 {
		t.Error("the first host's mount ends well")
	}
	if !strings.Contains(sa.log.String(), "was taken over by another host (") {
		t.Errorf("the first host does not log the reason:\n%s", sa.log.String())
	}

	if strings.Contains(sa.log.String(), "retrying") {
		t.Errorf("the first host says that it tries again:\n%s", sa.log.String())
	}

	if _, err := db.ReadAt(got, 0); err != nil || !bytes.Equal(got, theirs) {
		t.Errorf("the second host has lost what it wrote: %v", err)
	}
	db.Close()
	sb.end(t)
	checkClean(t, img)
	if out := mustVhdxfs(t, "info", "-v", img); !strings.Contains(out, "released: ") {
		t.Errorf("info does not tell that the image was closed:\n%s", out)
	}
	began := time.Now()
	serve(t, filepath.Join(a.dir, name)).end(t)
	t.Logf("the next mount took %v", time.Since(began))
}

func errText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// A file system that refuses locks is not taken for one on which nobody else has the image.
func TestFileSystemWithoutLocks(t *testing.T) {
	t.Parallel()
	img := create(t, "64M")
	h := newClusterHost(t, filepath.Dir(img), true)
	path := filepath.Join(h.dir, filepath.Base(img))
	r := vhdxfs(t, "-f", "-o", "lock=on", path, newDir(t))
	if r.status != mountStatus || !strings.Contains(r.stderr, "the file system (fuse.clusterhost) has no locks (") || !strings.Contains(r.stderr, "lock=try") {
		t.Errorf("lock=on: exit status %d\n%s", r.status, r.stderr)
	}
	s := serve(t, path, "-o", "lock=try")
	s.end(t)
	if !strings.Contains(s.log.String(), "has no locks") {
		t.Errorf("lock=try does not say that there are none:\n%s", s.log.String())
	}
	serve(t, path).end(t) // with a lease
	mustVhdxfs(t, "info", path)
}
