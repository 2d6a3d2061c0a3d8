package test

import (
	"bytes"
	"encoding/binary"
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
	for off := int64(0); off < end; off += 5*mib + 3*v.sector {
		b := bytes.Repeat([]byte{0xA5}, int(min(mib, end-off)))
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	s.end(t)
	before := sha256File(t, img)
	t.Cleanup(func() { unchanged(t, img, before) })
	return childOf(t, img, size, v.options...)
}

// GUIDs as they stand in a file (MS-VHDX 2.6.2.1, 2.6.2.6 and 2.6.2.6.1).
const (
	fileParameters    = "\x37\x67\xA1\xCA\x36\xFA\x43\x4D\xB3\xB6\x33\xF0\xAA\x44\xE7\x6B"
	parentLocator     = "\x2D\x5F\xD3\xA8\x0B\xB3\x4D\x45\xAB\xF7\xD3\xD8\x48\x34\xAB\x0C"
	parentLocatorVHDX = "\xB7\xEF\x4A\xB0\x9E\xD1\x81\x4A\xB7\x89\x25\xB8\xE9\x44\x59\x13"
)

// childOf makes an empty differencing image over parent, in the same folder: an empty dynamic image that the
// program makes with the options, told that it has a parent. The BAT of a differencing disk also has entries for
// sector bitmap blocks; none is in use yet, and for a disk of this size the BAT region has room for them.
func childOf(t *testing.T, parent, size string, options ...string) string {
	t.Helper()
	img := filepath.Join(filepath.Dir(parent), "child of "+filepath.Base(parent))
	mustVhdxfs(t, append(append([]string{"create", "--size", size}, options...), img)...)

	const (
		tableHeader, tableEntry = 32, 32   // bytes
		room                    = 64 << 10 // bytes from one item to the next; far more than the items take
		hasParent               = 2        // flag of the file parameters
		required                = 4        // flag of a metadata table entry
	)
	region := regionOffset(t, img, metadataRegion)
	table := readAt(t, img, region, 64<<10)
	entries := int64(binary.LittleEndian.Uint16(table[10:]))
	var end, parameters int64 // of all items, in the region; where the file parameters are
	for e := table[tableHeader:][:entries*tableEntry]; len(e) > 0; e = e[tableEntry:] {
		off, n := int64(binary.LittleEndian.Uint32(e[16:])), int64(binary.LittleEndian.Uint32(e[20:]))
		end = max(end, off+n)
		if string(e[:16]) == fileParameters {
			parameters = off
		}
	}
	if parameters == 0 {
		t.Fatalf("%s has no file parameters", img)
	}
	i := info(t, parent)
	locator := encodeLocator([][2]string{
		{"parent_linkage", "{" + i.Headers[i.CurrentHeader-1].DataWriteGUID + "}"},
		{"relative_path", `.\` + filepath.Base(parent)},
		// libvhdi looks at this one.
		{"absolute_win32_path", `C:\` + filepath.Base(parent)},
	})
	at := (end + room - 1) / room * room
	entry := make([]byte, tableEntry)
	copy(entry, parentLocator)
	binary.LittleEndian.PutUint32(entry[16:], uint32(at))
	binary.LittleEndian.PutUint32(entry[20:], uint32(len(locator)))
	binary.LittleEndian.PutUint32(entry[24:], required)
	writeAt(t, img, locator, region+at)
	writeAt(t, img, []byte{hasParent}, region+parameters+4)
	writeAt(t, img, entry, region+tableHeader+entries*tableEntry)
	writeAt(t, img, binary.LittleEndian.AppendUint16(nil, uint16(entries+1)), region+10)

	if got := info(t, img).Type; got != "differencing" {
		t.Fatalf("%s is %s", img, got)
	}
	return img
}

// encodeLocator lays out a parent locator (MS-VHDX 2.6.2.6).
func encodeLocator(entries [][2]string) []byte {
	const header, entry = 20, 12 // bytes
	b := make([]byte, header+len(entries)*entry)
	copy(b, parentLocatorVHDX)
	binary.LittleEndian.PutUint16(b[18:], uint16(len(entries)))
	for i, kv := range entries {
		for j, s := range kv {
			e := b[header+i*entry:]
			binary.LittleEndian.PutUint32(e[4*j:], uint32(len(b)))
			binary.LittleEndian.PutUint16(e[8+2*j:], uint16(2*len(s)))
			for _, c := range []byte(s) { // the paths of these tests are plain ASCII
				b = append(b, c, 0)
			}
		}
	}
	return b
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
