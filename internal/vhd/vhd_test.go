package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

const mib = 1 << 20

// A memFile is an image file in memory.
type memFile struct {
	imagefile.Plain
	b []byte
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *memFile) Truncate(n int64) error {
	f.b = append(f.b, make([]byte, max(0, int(n)-len(f.b)))...)[:n]
	return nil
}

func (f *memFile) Size() (int64, error) { return int64(len(f.b)), nil }
func (f *memFile) Sync() error          { return nil }
func (f *memFile) Close() error         { return nil }

// someDisk returns the bytes of a disk, with data in places.
func someDisk(size int64) []byte {
	rng := rand.New(rand.NewPCG(7, uint64(size)))
	p := make([]byte, size)
	for range 5 {
		off := rng.Int64N(size - 5000)
		for i := range 5000 {
			p[off+int64(i)] = byte(1 + rng.IntN(255))
		}
	}
	p[size-1] = 1
	return p
}

// build makes an image of the disk.
func build(t testing.TB, disk []byte, fixed bool) []byte {
	t.Helper()
	f := new(memFile)
	b := NewBuilder(f, int64(len(disk)), fixed)
	for off := 0; off < len(disk); off += 4096 {
		p := disk[off:min(off+4096, len(disk))]
		if len(bytes.Trim(p, "\x00")) == 0 {
			continue
		}
		if n, err := b.WriteAt(p, int64(off)); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	size, err := PaddedSize(int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Finish(size); err != nil {
		t.Fatal(err)
	}
	return f.b
}

// load loads an image without a parent.
func load(b []byte, collect bool) (*layer, error) {
	l := &layer{path: "a.vhd", file: &memFile{b: b}, collect: collect}
	return l, l.load()
}

func save(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string, o vhdx.Options) *Image {
	t.Helper()
	im, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// reads fails the test unless the image reads as the disk, in whole and in pieces of any size, and its extents say the same.
func reads(t *testing.T, im *Image, disk []byte) {
	t.Helper()
	got := make([]byte, len(disk))
	if n, err := im.ReadAt(got, 0); n != len(got) || err != nil && err != io.EOF || !bytes.Equal(got, disk) {
		t.Fatalf("%d bytes, %v, or others than there should be", n, err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := rng.Int64N(int64(len(disk)))
		p := make([]byte, 1+rng.Int64N(min(9000, int64(len(disk))-off)))
		if n, err := im.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, disk[off:][:n]) {
			t.Fatalf("%d bytes at %d: %d, %v, or others than there should be", len(p), off, n, err)
		}
	}
	extents, err := im.Resolve(nil, 0, im.Size())
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.DiskOff != end || e.Len <= 0 {
			t.Fatalf("extent %+v behind byte %d", e, end)
		}
		end = e.End()
		p := make([]byte, e.Len)
		if err := e.Read(p); err != nil {
			t.Fatal(err)
		}
		if want := disk[min(e.DiskOff, int64(len(disk))):min(end, int64(len(disk)))]; !bytes.Equal(p[:len(want)], want) {
			t.Fatalf("extent %+v holds other bytes", e)
		}
	}
	if end != im.Size() {
		t.Errorf("the extents end at %d", end)
	}
	for off := int64(0); ; {
		data, err := im.SeekData(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		hole, err := im.SeekHole(data)
		if err != nil || hole <= data {
			t.Fatal(data, hole, err)
		}
		if p := disk[min(off, int64(len(disk))):min(data, int64(len(disk)))]; len(bytes.Trim(p, "\x00")) > 0 {
			t.Fatalf("there is data in the hole from %d to %d", off, data)
		}
		off = hole
	}
}

func TestBuilder(t *testing.T) {
	for _, size := range []int64{mib, 5 * mib, 20*mib + 512} {
		for _, fixed := range []bool{false, true} {
			disk := someDisk(size)
			path := save(t, filepath.Join(t.TempDir(), "a.vhd"), build(t, disk, fixed))
			im := open(t, path, vhdx.Options{})
			reads(t, im, disk)
			in := im.Describe()
			if want := roundUp(size, mib); im.Size() != want || in.OriginalSize != want || len(in.Warnings) > 0 || (in.Type == vhdx.Fixed) != fixed {
				t.Errorf("%+v", in)
			}
			if r, err := Check(path, vhdx.Options{}); err != nil || !r.Clean() {
				t.Errorf("%+v, %v", r, err)
			}
			if g := (geometry{uint16(in.Geometry.Cylinders), uint8(in.Geometry.Heads), uint8(in.Geometry.Sectors)}); g != maxGeometry && g.size() != im.Size() {
				t.Errorf("geometry %+v of %d bytes", g, im.Size())
			}
		}
	}
	for _, n := range []int64{0, -1, MaxSize + 1} {
		if _, err := PaddedSize(n); err == nil {
			t.Errorf("a disk of %d bytes", n)
		}
	}
	if n, err := PaddedSize(MaxSize); n != MaxSize || err != nil {
		t.Error(n, err)
	}
}

// stamp writes the checksums of the footers and of the header anew.
func stamp(b []byte) []byte {
	for _, s := range []struct{ off, n, at int }{{0, footerSize, footerChecksumAt}, {len(b) - footerSize, footerSize, footerChecksumAt}, {footerSize, headerSize, headerChecksumAt}} {
		if p := b[s.off:]; len(p) >= s.n && (string(p[:8]) == footerCookie || string(p[:8]) == headerCookie) {
			be.PutUint32(p[s.at:], checksum(p[:s.n], s.at))
		}
	}
	return b
}

// Every number of an image that is wrong is found, and what says so is the structure.
func TestBadImages(t *testing.T) {
	disk := someDisk(9 * mib)
	dynamic, fixed := build(t, disk, false), build(t, disk, true)
	both := func(off int, p ...byte) func([]byte) []byte { // changes the footer and its copy
		return func(b []byte) []byte {
			copy(b[off:], p)
			copy(b[len(b)-footerSize+off:], p)
			return stamp(b)
		}
	}
	table := func(i int, e uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			be.PutUint32(b[newTableOff+4*i:], e)
			return b
		}
	}
	header := func(off int, p ...byte) func([]byte) []byte {
		return func(b []byte) []byte {
			copy(b[footerSize+off:], p)
			return stamp(b)
		}
	}
	for _, tc := range []struct {
		name   string
		image  []byte
		change func(b []byte) []byte
		want   string // "" is none
	}{
		{"nothing", dynamic, func(b []byte) []byte { return b }, ""},
		{"empty", dynamic, func(b []byte) []byte { return nil }, "(VHD file,"},
		{"both footers", dynamic, func(b []byte) []byte { b[9]++; b[len(b)-500]++; return b }, "is damaged: checksum"},
		{"the footer of a fixed image", fixed, func(b []byte) []byte { b[len(b)-500]++; return b }, "(VHD footer,"},
		{"version", dynamic, both(12, 0, 2), "version 2"},
		{"disk type", dynamic, both(60, 0, 0, 0, 7), "disk type 7"},
		{"no size", dynamic, both(48, 0, 0, 0, 0, 0, 0, 0, 0), "multiple of 512"},
		{"odd size", dynamic, both(55, 1), "multiple of 512"},
		{"large size", dynamic, both(48, 0xFF), "at most 2 TiB"},
		{"fixed that is cut", fixed, func(b []byte) []byte { return append(bytes.Clone(b[:5*mib]), b[len(b)-footerSize:]...) }, "cut off"},
		{"header outside", dynamic, both(16, 0, 0, 0x10), "outside the file"},
		{"header in the footer", dynamic, both(16, 0, 0, 0, 0, 0, 0, 0, 0), "outside the file"},
		{"no header offset", dynamic, both(16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF), "outside the file"},
		{"header signature", dynamic, header(0, 'x'), "signature"},
		{"header checksum", dynamic, func(b []byte) []byte { b[footerSize+200]++; return b }, "checksum"},
		{"header version", dynamic, header(24, 0, 9), "version 9"},
		{"few entries", dynamic, header(28, 0, 0, 0, 1), "1 entries"},
		{"block size", dynamic, header(32, 0, 0x30), "power of two"},
		{"small block size", dynamic, header(32, 0, 0, 0, 0), "power of two"},
		{"huge block size", dynamic, header(32, 0x80), "power of two"},
		{"table outside", dynamic, header(16, 0, 0, 1), "the BAT is said"},
		{"table unaligned", dynamic, header(23, 1), "the BAT is said"},
		{"table at the very end", dynamic, header(16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0), "the BAT is said"},
		{"block outside", dynamic, table(1, 1<<30), "beyond the end"},
		{"block at the largest place", dynamic, table(1, 0xFFFFFFFE), "beyond the end"},
		{"block in the header", dynamic, table(1, 1), "overlaps"},
		{"block in the table", dynamic, table(1, 3), "overlaps"},
		{"block twice", dynamic, func(b []byte) []byte { copy(b[newTableOff+4:], b[newTableOff:][:4]); return b }, "overlaps"},
	} {
		_, err := load(tc.change(bytes.Clone(tc.image)), false)
		if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || !errors.Is(err, vhdx.ErrCorrupt)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// A footer that is lost, or old, is none that keeps the image from being read.
func TestFooters(t *testing.T) {
	disk := someDisk(9 * mib)
	for _, tc := range []struct {
		name   string
		fixed  bool
		change func(b []byte) []byte
		warns  string
	}{
		{"no footer at the end", false, func(b []byte) []byte { return b[:len(b)-footerSize] }, "its copy is used"},
		{"damaged footer", false, func(b []byte) []byte { b[len(b)-9]++; return b }, "its copy is used"},
		{"damaged copy", false, func(b []byte) []byte { b[99]++; return b }, "the copy of the footer is damaged"},
		{"another copy", false, func(b []byte) []byte { b[70]++; return stamp(b) }, "differs"},
		{"saved state", false, func(b []byte) []byte { b[84], b[len(b)-footerSize+84] = 1, 1; return stamp(b) }, "was saved"},
		{"a footer of 511 bytes", true, func(b []byte) []byte { return b[:len(b)-1] }, ""},
		{"space before the footer", true, func(b []byte) []byte {
			return slices.Concat(b[:len(b)-footerSize], make([]byte, 4096), b[len(b)-footerSize:])
		}, "between the end of the disk and the footer"},
	} {
		l, err := load(tc.change(build(t, disk, tc.fixed)), false)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if len(l.warnings) > 0 != (tc.warns != "") || tc.warns != "" && !strings.Contains(l.warnings[0].Message, tc.warns) {
			t.Errorf("%s: %+v", tc.name, l.warnings)
		}
		reads(t, &Image{l}, disk)
	}
}

// A check finds all that is wrong, not only the first.
func TestCheck(t *testing.T) {
	b := build(t, someDisk(9*mib), false)
	be.PutUint32(b[newTableOff:], 1<<30)
	be.PutUint32(b[newTableOff+4:], 1<<30)
	b[99]++
	r, err := Check(save(t, filepath.Join(t.TempDir(), "a.vhd"), b), vhdx.Options{})
	if err != nil || len(r.Errors) != 2 || len(r.Warnings) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = Check(save(t, filepath.Join(t.TempDir(), "b.vhd"), b[:100]), vhdx.Options{})
	if err != nil || len(r.Errors) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A child is a differencing image for a test: sectors of its own over those of a parent.
type child struct {
	parentID      uuid.UUID
	name          string // in the header
	rel, absolute string // in the locators; "" is none
	sectors       map[int64]byte
}

// build makes the image of a disk of the given size.
func (c *child) build(size int64) []byte {
	f := &memFile{}
	b := NewBuilder(f, size, false)
	for s := range c.sectors { // each block gets its place
		if _, err := b.WriteAt(make([]byte, sectorSize), s*sectorSize); err != nil {
			panic(err)
		}
	}
	if err := b.Finish(size); err != nil {
		panic(err)
	}
	for _, e := range b.bat {
		if e != unusedEntry {
			clear(f.b[int64(e)*sectorSize:][:sectorSize])
		}
	}
	for s, v := range c.sectors {
		n, in := s*sectorSize/newBlockSize, s*sectorSize%newBlockSize/sectorSize
		at := int64(b.bat[n]) * sectorSize
		f.b[at+in/8] |= 0x80 >> (in % 8)
		copy(f.b[at+sectorSize+in*sectorSize:], bytes.Repeat([]byte{v}, sectorSize))
	}
	utf16 := func(s string, big int) (p []byte) {
		for _, c := range []byte(s) {
			p = append(p, 0, 0)
			p[len(p)-2+big] = c
		}
		return p
	}
	h := f.b[footerSize:][:headerSize]
	copy(h[40:], c.parentID[:])
	copy(h[64:576], utf16(c.name, 1))
	end := f.b[len(f.b)-footerSize:]
	footer := bytes.Clone(end)
	f.b = f.b[:len(f.b)-footerSize]
	for i, p := range []struct{ code, path string }{{locatorAbsolute, c.absolute}, {locatorRelative, c.rel}} {
		if p.path == "" {
			continue
		}
		text := utf16(p.path, 0)
		e := f.b[footerSize+576+24*i:]
		copy(e, p.code)
		be.PutUint32(e[8:], uint32(len(text)))
		be.PutUint64(e[16:], uint64(len(f.b)))
		f.b = append(f.b, append(text, make([]byte, 512-len(text))...)...)
	}
	f.b = append(f.b, footer...)
	f.b[63], f.b[len(f.b)-footerSize+63] = typeDifferencing, typeDifferencing
	return stamp(f.b)
}

func TestDifferencing(t *testing.T) {
	const size = 9 * mib
	disk := someDisk(size)
	base := build(t, disk, false)
	id := uuid.UUID(base[len(base)-footerSize+68:][:16])
	sectors := map[int64]byte{0: 1, 1: 2, 9: 3, 10: 0, 4095: 4, 4096: 5, 9*2048 - 1: 6}
	for s := int64(5000); s < 5100; s++ {
		sectors[s] = byte(s)
	}
	want := bytes.Clone(disk)
	for s, v := range sectors {
		copy(want[s*sectorSize:], bytes.Repeat([]byte{v}, sectorSize))
	}
	for _, tc := range []struct {
		name   string
		file   string // of the parent
		child  child
		o      func(dir string) vhdx.Options
		broken string // what is said
	}{
		{"relative path", "base.vhd", child{rel: `.\base.vhd`}, nil, ""},
		{"relative path into a directory", "sub/base.vhd", child{rel: `.\sub\base.vhd`}, nil, ""},
		{"absolute path", "base.vhd", child{absolute: `C:\disks\base.vhd`}, nil, ""},
		{"name", "base.vhd", child{name: "base.vhd"}, nil, ""},
		{"other case", "BASE.VHD", child{name: "base.vhd"}, nil, ""},
		{"two directories", "sub/base.vhd", child{name: "base.vhd"}, func(dir string) vhdx.Options { return vhdx.Options{ParentDirs: []string{dir + "/sub"}} }, ""},
		{"named", "sub/other", child{name: "base.vhd"}, func(dir string) vhdx.Options { return vhdx.Options{Parents: []string{dir + "/sub/other"}} }, ""},
		{"missing", "sub/base.vhd", child{rel: `.\base.vhd`}, nil, "base.vhd not found"},
		{"outside", "base.vhd", child{rel: `..\x\secret.vhd`}, nil, "leads out of the directory"},
		{"no name", "base.vhd", child{}, nil, "not found"},
		{"another disk", "base.vhd", child{name: "base.vhd", parentID: uuid.Max}, nil, "another disk"},
		{"itself", "base.vhd", child{name: "child.avhd"}, nil, "its own parent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "x")
			if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			save(t, filepath.Join(dir, tc.file), base)
			c := tc.child
			if c.parentID == uuid.Nil {
				c.parentID = id
			}
			c.sectors = sectors
			path := save(t, filepath.Join(dir, "child.avhd"), c.build(size))
			var o vhdx.Options
			if tc.o != nil {
				o = tc.o(dir)
			}
			if tc.broken != "" {
				im, err := Open(path, o)
				if err == nil {
					im.Close()
				}
				if err == nil || !strings.Contains(err.Error(), tc.broken) || !errors.Is(err, vhdx.ErrCorrupt) {
					t.Errorf("%v, want %q", err, tc.broken)
				}
				return
			}
			im := open(t, path, o)
			reads(t, im, want)
			in := im.Info()
			if in.Type != vhdx.Differencing || in.Parent == nil || in.Parent.Image == nil || im.Describe().Parent == nil {
				t.Errorf("%+v", in)
			}
			if e, err := im.Extent(2 * sectorSize); err != nil || e.Len > 7*sectorSize || e.Layer > 1 || e.State == ondisk.PartiallyPresent && e.Layer == 0 && e.File == nil && e.Len == 0 {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// A chain that has no end is refused, and in no time.
func TestChainThatLoops(t *testing.T) {
	dir := t.TempDir()
	base := build(t, someDisk(mib), false)
	id := uuid.UUID(base[len(base)-footerSize+68:][:16])
	ids := make([]uuid.UUID, 2)
	var images [2][]byte
	for i := range images {
		c := child{parentID: id, name: fmt.Sprintf("%d.avhd", 1-i)}
		images[i] = c.build(mib)
		ids[i] = uuid.UUID(images[i][len(images[i])-footerSize+68:][:16])
	}
	for i := range images {
		copy(images[i][footerSize+40:], ids[1-i][:])
		save(t, filepath.Join(dir, fmt.Sprintf("%d.avhd", i)), stamp(images[i]))
	}
	if _, err := Open(filepath.Join(dir, "0.avhd"), vhdx.Options{}); err == nil || !strings.Contains(err.Error(), "its own parent") {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	path := save(t, filepath.Join(t.TempDir(), "a.vhd"), build(t, someDisk(mib), false))
	for _, o := range []vhdx.Options{{Writable: true}, {Salvage: true}, {WithoutParent: true}} {
		if _, err := Open(path, o); err == nil {
			t.Errorf("opened with %+v", o)
		}
	}
	im := open(t, path, vhdx.Options{})
	if _, err := im.WriteAt(nil, 0); !errors.Is(err, vhdx.ErrReadOnly) || im.Writable() {
		t.Error(err)
	}
}

func TestGeometry(t *testing.T) {
	for _, tc := range []struct {
		size int64
		want geometry
	}{
		{17 * 4 * 1000 * sectorSize, geometry{1000, 4, 17}}, // exact
		{mib, maxGeometry},
		{MaxSize, maxGeometry},
	} {
		if got := geometryOf(tc.size); got != tc.want {
			t.Errorf("%d bytes: %+v, want %+v", tc.size, got, tc.want)
		}
	}
}

// Nothing in a file makes it fail otherwise than by an error, or be read without an end.
func FuzzOpen(f *testing.F) {
	disk := someDisk(5 * mib)
	for _, fixed := range []bool{true, false} {
		b := build(f, disk, fixed)
		f.Add(b[:min(len(b), 4096)], b[len(b)-footerSize:])
	}
	c := child{name: "base.vhd", rel: "base.vhd", sectors: map[int64]byte{3: 4}}
	b := c.build(5 * mib)
	f.Add(b[:4096], b[len(b)-footerSize:])
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		b := make([]byte, 6*mib)
		copy(b, head)
		b = append(b, tail...)
		if len(b) > 6*mib+footerSize {
			return
		}
		l, err := load(stamp(b), false)
		if err != nil {
			if !errors.Is(err, vhdx.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if l.footer.diskType == typeDifferencing {
			if _, err := l.parentNames(); err != nil && !errors.Is(err, vhdx.ErrCorrupt) {
				t.Fatal(err)
			}
		}
		im := &Image{l}
		end := int64(0)
		for range 5000 {
			e, err := im.Extent(end)
			if err == io.EOF {
				break
			}
			if err != nil || e.DiskOff != end || e.Len <= 0 || e.End() > im.Size() || e.File != nil && (e.FileOff < 0 || e.FileOff+e.Len > l.size) {
				t.Fatalf("extent %+v, %v", e, err)
			}
			end = e.End()
		}
		p := make([]byte, 4096)
		_, _ = im.ReadAt(p, im.Size()-1)
		_ = im.Describe()
		_ = im.Info()
		_ = l.checked()
	})
}
