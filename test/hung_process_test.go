package test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The shell closes its script when it executes a program.
const hungScript = "echo ready\nexec true\n"

func (f *foreignFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (f *foreignFS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	f.read.Store(true)
	return fuse.ReadResultData([]byte(hungScript)[min(in.Offset, uint64(len(hungScript))):]), fuse.OK
}

func (f *foreignFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	if f.flush != nil && f.read.Load() { // the shell has closed another descriptor before it reads
		<-f.flush
	}
	return fuse.OK
}

// A process that never ends to execute a program, since a file of a mount that hangs is to be closed for that, does not
// let others look at it. That holds up no command.
func TestHungProcess(t *testing.T) {
	img := create(t, "64MiB")
	f := &foreignFS{flush: make(chan struct{})}
	dir := serveForeign(t, f, "foreign", 65534)
	cmd := exec.Command("sh", dir+"/disk.raw")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer close(f.flush)
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process to let nobody look", func() bool {
		looked := make(chan struct{})
		go func() {
			os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
			close(looked)
		}()
		select {
		case <-looked:
			return false
		case <-time.After(300 * time.Millisecond):
			return true
		}
	})

	listed := attachImage(t, img)
	if r := vhdxfs(t, "mount", img, newDir(t)); r.status == 0 || !strings.Contains(r.stderr, fmt.Sprint(listed.PID)) {
		t.Errorf("mount: status %d, %q, want the server %d", r.status, r.stderr, listed.PID)
	}
	mustVhdxfs(t, "list")
	hold, err := os.Open(listed.Devices[0].Device)
	if err != nil {
		t.Fatal(err)
	}
	if r := vhdxfs(t, "umount", img); r.status != 32 {
		t.Errorf("umount of a mount in use: status %d, %q", r.status, r.stderr)
	}
	if r := vhdxfs(t, "close", img); r.status != 32 || !strings.Contains(r.stderr, fmt.Sprint(os.Getpid())) {
		t.Errorf("close: status %d, %q, want this process %d", r.status, r.stderr, os.Getpid())
	}
	hold.Close()
	mustVhdxfs(t, "close", img)
}
