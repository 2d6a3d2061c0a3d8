package test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The longer forms of the tests that write, such as go test ./test -run Kill -kills 100.
var (
	long  = flag.Bool("long", false, "write more, for longer, and in more combinations")
	kills = flag.Int("kills", 4, "how often the program is killed, for each kind of image")
)

// create makes an image with the program and returns its path.
func create(t *testing.T, size string, options ...string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "disk.vhdx")
	mustVhdxfs(t, append(append([]string{"create", "--size", size}, options...), img)...)
	return img
}

// A variant is a kind of image that everything has to work on.
type variant struct {
	name    string
	sector  int64    // logical sector size, bytes
	options []string // for the command create
	child   bool     // a differencing image over one made with the options
}

var variants = []variant{
	{name: "dynamic", sector: 512, options: []string{"--block-size", "1MiB"}},
	{name: "dynamic 4096", sector: 4096, options: []string{"--block-size", "1MiB", "--logical-sector-size", "4096"}},
	{name: "fixed", sector: 512, options: []string{"--type", "fixed"}},
	{name: "differencing", sector: 512, options: []string{"--block-size", "2MiB"}, child: true},
	{name: "differencing 4096", sector: 4096, options: []string{"--block-size", "2MiB", "--logical-sector-size", "4096"}, child: true},
}

// create makes an empty image of this kind. A differencing one shows a parent with bytes other than zero in many
// places, which the test's end finds unchanged.
func (v variant) create(t *testing.T, size string) string {
	t.Helper()
	img := create(t, size, v.options...)
	if !v.child {
		return img
	}
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	end := sizeOf(t, f)
	for off := int64(0); off < end; off += max(5*mib, end/64) + 3*v.sector {
		b := bytes.Repeat([]byte{0xA5}, int(min(mib, end-off)))
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	s.end(t)
	before := sha256File(t, img)
	t.Cleanup(func() { unchanged(t, img, before) })
	return childOf(t, img, size)
}

// childOf makes an empty differencing image over parent, in the same directory, with the options for the command create.
func childOf(t *testing.T, parent, size string, options ...string) string {
	t.Helper()
	img := filepath.Join(filepath.Dir(parent), "child of "+filepath.Base(parent))
	mustVhdxfs(t, append(append([]string{"create", "--parent", parent, "--size", size}, options...), img)...)
	return img
}

// checkClean fails the test unless the image, which must not be mounted, passes the program's check and, if QEMU
// knows its kind, qemu-img's.
func checkClean(t *testing.T, img string) {
	t.Helper()
	if r := vhdxfs(t, "check", img); r.status != 0 {
		t.Errorf("vhdxfs check: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	i := info(t, img)
	if i.Log.State != "clean" {
		t.Errorf("the log is %s after the unmount", i.Log.State)
	}
	if i.Type == "differencing" || i.LogicalSectorSize != 512 {
		return
	}
	requireTools(t, "qemu-img")
	if out, err := command("qemu-img", "check", "-f", "vhdx", img); err != nil {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
}

// used returns how many bytes the file takes on its file system.
func used(t *testing.T, path string) int64 { t.Helper(); return stat(t, path).Blocks * 512 }

// A loopDevice is one that can be written, on disk.raw.
type loopDevice struct {
	dev, file string
	detached  bool
}

// attachRW attaches file to a loop device for reading and writing. The test's end detaches it, if nobody did.
func attachRW(t *testing.T, file string, sector int64) *loopDevice {
	t.Helper()
	requireLoop(t)
	size := "512"
	if sector == 4096 {
		size = "4096"
	}
	l := &loopDevice{file: file}
	l.dev = strings.TrimSpace(must(t, "losetup", "--find", "--show", "--sector-size", size, file))
	t.Cleanup(func() { l.detach(t) })
	return l
}

// detach detaches the device and waits until the kernel has done so.
func (l *loopDevice) detach(t *testing.T) {
	t.Helper()
	if l.detached {
		return
	}
	l.detached = true
	must(t, "losetup", "--detach", l.dev)
	state := filepath.Join("/sys/block", filepath.Base(l.dev), "loop/backing_file")
	eventually(t, l.dev+" to be detached", func() bool {
		b, err := os.ReadFile(state)
		return err != nil || strings.TrimSpace(string(b)) != l.file
	})
}

// openDisk opens disk.raw for reading and writing. The test's end closes it, if nobody did.
func openDisk(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// aligned returns n bytes of memory that O_DIRECT takes.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// within runs do and reports whether it ended in the time given. What hangs in the kernel cannot be ended.
func within(d time.Duration, do func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
