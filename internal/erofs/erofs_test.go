package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stream returns the runs one by one.
func stream(runs ...Run) func() (Run, error) {
	return func() (Run, error) {
		if len(runs) == 0 {
			return Run{}, io.EOF
		}
		r := runs[0]
		runs = runs[1:]
		return r, nil
	}
}

// What comes from a process that is not trusted is refused where any number of it leads out of the file or a device.
func TestWriteRefuses(t *testing.T) {
	g := Geometry{Size: 10<<20 + 512, BlockBits: 12, ChunkBits: 20}
	devices := []int64{4 << 20, 8 << 20}
	good := []Run{{Chunks: 8, Device: 2}, {Chunks: 2}, {Chunks: 1, Device: 1, Block: 1<<10 - 1}}
	if err := Write(io.Discard, g, devices, stream(good...)); err != nil {
		t.Fatalf("a good map: %v", err)
	}
	for name, runs := range map[string][]Run{
		"no run":                        {},
		"too few chunks":                good[:2],
		"too many chunks":               append(good[:3:3], Run{Chunks: 1}),
		"a run over the end":            {{Chunks: 12}},
		"all chunks that there can be":  {{Chunks: 1<<32 - 1}},
		"the last run over the end":     {{Chunks: 8}, {Chunks: 4}},
		"an empty run":                  {{Chunks: 0}, {Chunks: 11}},
		"a device that there is not":    {{Chunks: 1, Device: 3}, {Chunks: 10}},
		"the last device number":        {{Chunks: 1, Device: 1<<16 - 1}, {Chunks: 10}},
		"a hole with a place":           {{Chunks: 11, Block: 1}},
		"behind the end of the device":  {{Chunks: 1, Device: 1, Block: 1 << 10}, {Chunks: 10}},
		"over the end of the device":    {{Chunks: 5, Device: 1}, {Chunks: 6}},
		"by one block":                  {{Chunks: 1, Device: 1, Block: 3<<8 + 1}, {Chunks: 10}},
		"the last block number":         {{Chunks: 1, Device: 1, Block: 1<<32 - 1}, {Chunks: 10}},
		"the end of the file, too long": {{Chunks: 10}, {Chunks: 1, Device: 1, Block: 1 << 10}},
	} {
		if err := Write(io.Discard, g, devices, stream(runs...)); !errors.Is(err, ErrBounds) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, g := range map[string]Geometry{
		"no size":          {0, 12, 20},
		"less":             {-1, 12, 20},
		"too large":        {maxFileSize + 1, 12, 30},
		"small blocks":     {1 << 20, 8, 20},
		"large blocks":     {1 << 20, 13, 20},
		"small chunks":     {1 << 20, 12, 11},
		"large chunks":     {1 << 20, 12, 31},
		"less than no bit": {1 << 20, 12, -1},
		"too many chunks":  {(MaxChunks + 1) << 12, 12, 12},
	} {
		if err := Write(io.Discard, g, devices, stream()); !errors.Is(err, ErrBounds) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Write(io.Discard, g, make([]int64, MaxDevices+1), stream()); !errors.Is(err, ErrBounds) {
		t.Errorf("too many devices: %v", err)
	}
	failed := errors.New("failed")
	if err := Write(io.Discard, g, devices, func() (Run, error) { return Run{}, failed }); !errors.Is(err, failed) {
		t.Errorf("an error of the stream: %v", err)
	}
}

// A 32-bit number of the last block is the hole's, and no chunk's, also where a device is that long.
func TestNoChunkIsAHole(t *testing.T) {
	g := Geometry{Size: 8 << 12, BlockBits: 12, ChunkBits: 12}
	devices := []int64{32 << 40}
	run := Run{Chunks: 8, Device: 1, Block: noBlock - 8}
	if err := Write(io.Discard, g, devices, stream(run)); err != nil {
		t.Error(err)
	}
	run.Block++
	if err := Write(io.Discard, g, devices, stream(run)); !errors.Is(err, ErrBounds) {
		t.Error(err)
	}
}

// An encoded run is the run, and half of one is an error.
func TestRunCodec(t *testing.T) {
	want := Run{Chunks: 1 << 31, Device: 1<<16 - 2, Block: 1<<32 - 3}
	b := want.Append(nil)
	if got, err := ReadRun(bytes.NewReader(b)); err != nil || got != want || len(b) != RunSize {
		t.Errorf("%+v, %v, %d bytes", got, err, len(b))
	}
	if _, err := ReadRun(bytes.NewReader(b[:RunSize-1])); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if _, err := ReadRun(bytes.NewReader(nil)); err != io.EOF {
		t.Error(err)
	}
}

// Whatever the numbers are, the metadata has the size that the geometry says, or there is an error.
func FuzzWrite(f *testing.F) {
	f.Add(int64(10<<20), 12, 20, int64(16<<20), Run{Chunks: 10, Device: 1, Block: 3}.Append(nil))
	f.Add(int64(512), 9, 9, int64(512), Run{Chunks: 1, Device: 1}.Append(nil))
	f.Fuzz(func(t *testing.T, size int64, block, chunk int, device int64, runs []byte) {
		g := Geometry{Size: size, BlockBits: block, ChunkBits: chunk}
		if g.Check() == nil && g.Chunks() > 1<<16 {
			t.Skip() // it only takes longer
		}
		var b bytes.Buffer
		in := bytes.NewReader(runs)
		if err := Write(&b, g, []int64{device}, func() (Run, error) { return ReadRun(in) }); err != nil {
			return
		}
		if b.Len()%pageSize != 0 || int64(b.Len()) < g.Chunks()*entrySize || int64(b.Len()) > g.Chunks()*entrySize+4*pageSize {
			t.Errorf("%d bytes for %d chunks", b.Len(), g.Chunks())
		}
	})
}

// requireKernel skips the test where the kernel cannot mount such a file.
func requireKernel(t *testing.T) {
	t.Helper()
	list, _ := os.ReadFile("/proc/filesystems")
	if os.Geteuid() != 0 || checkKernel() != nil || !strings.Contains(string(list), "\terofs\n") {
		t.Skip("needs root and a kernel from 6.18 on with EROFS")
	}
}

// A device is a file of random bytes.
func device(t *testing.T, size int64, rng *rand.ChaCha8) (*os.File, []byte) {
	t.Helper()
	b := make([]byte, size)
	rng.Read(b)
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f, b
}

// openMap opens a map as the program does.
func openMap(t *testing.T, g Geometry, devices []*os.File, runs []Run) (*os.File, error) {
	t.Helper()
	var b []byte
	for _, r := range runs {
		b = r.Append(b)
	}
	var fds []int
	for _, f := range devices {
		fds = append(fds, int(f.Fd()))
	}
	fd, err := Open(g, fds, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), FileName)
	t.Cleanup(func() { f.Close() })
	return f, nil
}

// The kernel reads what random maps say, of all sizes of blocks and chunks, and of sizes of the file that are no multiple
// of anything.
func TestKernelReadsMap(t *testing.T) {
	requireKernel(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var files []*os.File
	var contents [][]byte
	for i := range 3 {
		f, b := device(t, 3<<20+int64(i)*512, rand.NewChaCha8([32]byte{byte(i)}))
		files, contents = append(files, f), append(contents, b)
	}
	for _, bits := range [][2]int{{9, 9}, {9, 10}, {9, 12}, {9, 16}, {12, 12}, {12, 13}, {12, 16}, {12, 20}, {12, 30}} {
		g := Geometry{Size: 1<<20 + 1 + rng.Int64N(2<<20), BlockBits: bits[0], ChunkBits: bits[1]}
		if g.ChunkBits == MaxChunkBits {
			g.Size = 2<<20 + 300
		}
		runs, want := randomMap(rng, g, contents)
		f, err := openMap(t, g, files, runs)
		if err != nil {
			t.Fatalf("%+v: %v", g, err)
		}
		got := make([]byte, g.Size+1)
		if n, err := f.ReadAt(got, 0); int64(n) != g.Size || err != io.EOF || !bytes.Equal(got[:n], want) {
			t.Errorf("%+v: %d bytes, %v; equal: %v", g, n, err, bytes.Equal(got[:n], want[:n]))
		}
	}
}

// A file can have no devices, and as many as there may be.
func TestNumberOfDevices(t *testing.T) {
	requireKernel(t)
	var files []*os.File
	var runs []Run
	for i := range MaxDevices {
		f, err := os.Create(filepath.Join(t.TempDir(), "device"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(bytes.Repeat([]byte{byte(i)}, 4096)); err != nil {
			t.Fatal(err)
		}
		files, runs = append(files, f), append(runs, Run{Chunks: 1, Device: uint16(i + 1)})
	}
	f, err := openMap(t, Geometry{Size: MaxDevices << 12, BlockBits: 12, ChunkBits: 12}, files, runs)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, MaxDevices<<12)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if b[i] != byte(i>>12) {
			t.Fatalf("byte %d is %d", i, b[i])
		}
	}
	f, err = openMap(t, Geometry{Size: 10000, BlockBits: 12, ChunkBits: 30}, nil, []Run{{Chunks: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(b, 0); n != 10000 || err != io.EOF || !bytes.Equal(b[:n], make([]byte, n)) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// randomMap returns the runs of a map, and what the file holds.
func randomMap(rng *rand.Rand, g Geometry, contents [][]byte) (runs []Run, want []byte) {
	chunk := int64(1) << g.ChunkBits
	for off := int64(0); off < g.Size; {
		n := min(1+rng.Int64N(5), (g.Size-off+chunk-1)>>g.ChunkBits)
		bytes := min(n<<g.ChunkBits, g.Size-off)
		device := rng.IntN(len(contents) + 1)
		r := Run{Chunks: uint32(n), Device: uint16(device)}
		if device == 0 || bytes > int64(len(contents[device-1])) {
			r.Device = 0
			want = append(want, make([]byte, bytes)...)
		} else {
			c := contents[device-1]
			r.Block = uint32(rng.Int64N((int64(len(c))-bytes)>>g.BlockBits + 1))
			from := int64(r.Block) << g.BlockBits
			want = append(want, c[from:from+bytes]...)
		}
		runs = append(runs, r)
		off += bytes
	}
	return runs, want
}

// A device that was made shorter while it is in use yields errors or zeros where its bytes were, and never what was in the
// memory before.
func TestShortenedDevice(t *testing.T) {
	requireKernel(t)
	f, _ := device(t, 1<<20, rand.NewChaCha8([32]byte{}))
	m, err := openMap(t, Geometry{Size: 1 << 20, BlockBits: 12, ChunkBits: 12}, []*os.File{f}, []Run{{Chunks: 256, Device: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(100 << 10); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(m.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	errs := 0
	b := make([]byte, 4096)
	for off := int64(100 << 10); off < 1<<20; off += 4096 {
		if _, err := m.ReadAt(b, off); err != nil {
			errs++
		} else if bytes.Count(b, []byte{0}) != len(b) {
			t.Fatalf("at %d: % x", off, b[:16])
		}
	}
	t.Logf("%d of %d reads behind the end failed", errs, (1<<20-100<<10)>>12)
}

// A kernel without the file system, or that cannot be asked, is told from one that fails.
func TestMissingFileSystem(t *testing.T) {
	requireKernel(t)
	if _, err := newMount("no such", 0, nil); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "the kernel has no") {
		t.Error(err)
	}
	if _, err := newMount("erofs", 0, [][2]string{{"no such setting", ""}}); err == nil {
		t.Error("a setting that there is not was taken")
	}
	if _, err := newMount("erofs", 0, [][2]string{{"source", "/proc/self/fd/0"}}); err == nil {
		t.Error("mounted from no file")
	}
}

// A descriptor by which its holder could not read the file is none, and no file on a file system of a program is.
func TestOpenRefuses(t *testing.T) {
	requireKernel(t)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	g, run := Geometry{Size: 4096, BlockBits: 12, ChunkBits: 12}, []Run{{Chunks: 1, Device: 1}}
	for what, c := range map[string]struct {
		path  string
		flags int
	}{
		"a path alone":          {name, unix.O_PATH},
		"writing alone":         {name, unix.O_WRONLY},
		"a directory":           {filepath.Dir(name), unix.O_RDONLY},
		"a device":              {"/dev/null", unix.O_RDONLY},
		"a file of /proc":       {"/proc/self/status", unix.O_RDONLY},
		"a file of sysfs":       {"/sys/kernel/mm/transparent_hugepage/enabled", unix.O_RDONLY},
		"memory of /proc":       {"/proc/self/mem", unix.O_RDONLY},
		"a directory as a path": {filepath.Dir(name), unix.O_PATH},
	} {
		fd, err := unix.Open(c.path, c.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(what, err)
		}
		f := os.NewFile(uintptr(fd), c.path)
		if _, err := openMap(t, g, []*os.File{f}, run); err == nil || strings.Contains(err.Error(), "mount erofs") {
			t.Errorf("%s is a device, for this program at least: %v", what, err)
		}
		f.Close()
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := openMap(t, g, []*os.File{f}, run); err != nil {
		t.Errorf("a file: %v", err)
	}
	if _, err := openMap(t, g, []*os.File{f}, []Run{{Chunks: 1, Device: 1, Block: 2}}); !errors.Is(err, ErrBounds) {
		t.Errorf("behind the end: %v", err)
	}
}
