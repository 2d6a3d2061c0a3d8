package cli

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// withStdin runs a command that reads b from a pipe.
func withStdin(t *testing.T, b []byte, args ...string) result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		_, _ = w.Write(b) // what is refused is not read to its end
		w.Close()
	}()
	defer func(was *os.File) { os.Stdin = was }(os.Stdin)
	os.Stdin = r
	got := run(t, args...)
	_, _ = io.Copy(io.Discard, r)
	return got
}

func writeTo(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is a container by its bytes, or by its name, is never a raw disk without a word, whichever command reads it, and
// -f raw says that it is.
func TestContainersAreNoRawDisks(t *testing.T) {
	dir, point := t.TempDir(), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	raw := rawFile(t, 3)
	image := path("image.vhdx")
	mustRun(t, "convert", "--block-size", "1M", raw, image)
	good, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	with := func(size int, off int, s string) []byte {
		b := make([]byte, size)
		copy(b[off:], s)
		return b
	}
	wiped := bytes.Clone(good)
	clear(wiped[:1<<20])
	noIdentifier := bytes.Clone(good)
	clear(noIdentifier[:8])
	noise := bytes.Repeat([]byte("noise"), 500_000)
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"disk.qcow2", with(70_000, 0, "QFI\xfb\x00\x00\x00\x03"), "a QCOW2 image"},
		{"small.qcow2", with(600, 0, "QFI\xfb\x00\x00\x00\x03"), "a QCOW2 image"},
		{"disk.vmdk", with(2<<20, 0, "KDMV"), "a VMDK image"},
		{"disk.vdi", with(2<<20, 64, "\x7f\x10\xda\xbe"), "a VDI image"},
		{"fixed.vhd", with(2<<20+512, 2<<20, "conectix"), "an old VHD image"},
		{"odd.vhd", with(2<<20+511, 2<<20, "conectix"), "an old VHD image"},
		{"packed.vhdx", with(2<<20, 0, "\x1f\x8b\x08"), "gzip data"},
		{"packed.img", with(2<<20, 0, "\x28\xb5\x2f\xfd"), "zstd data"},
		{"packed", with(2<<20, 0, "PK\x03\x04"), "a ZIP archive"},
		{"wiped.vhdx", wiped, "other parts of a VHDX image"},
		{"wiped.raw", wiped, "other parts of a VHDX image"},
		{"noidentifier", noIdentifier, "other parts of a VHDX image"},
		{"zeros.vhdx", make([]byte, 2<<20), "nothing but zeros"},
		{"noise.vhdx", noise, "not a VHDX file, nor another image"},
	} {
		file := writeTo(t, path(tc.name), tc.bytes)
		for _, args := range [][]string{
			{"convert", file, path("out.raw")},
			{"convert", file, path("out.vhdx")},
			{"create", "--from", file, path("out.vhdx")},
			{"compare", file, raw},
			{"compare", raw, file},
			{"diff", raw, file},
			{"info", file},
			{"check", file},
			{"map", file},
			{"create", "--parent", file, path("out.vhdx")},
			{"mount", file, point},
		} {
			r := run(t, args...)
			if r.status == statusOK || !strings.Contains(r.stderr+r.stdout, tc.want) || strings.Contains(r.stderr, "panic") {
				t.Errorf("vhdxfs %q: status %d, %q, want %q", args, r.status, r.stderr+r.stdout, tc.want)
			}
		}
		if strings.HasPrefix(tc.name, "zeros") || strings.HasPrefix(tc.name, "noise") { // which a stream has no name to tell
			continue
		}
		for _, args := range [][]string{
			{"convert", "-", path("out.raw")},
			{"create", "--from", "-", path("out.vhdx")},
		} {
			r := withStdin(t, tc.bytes, args...)
			if r.status == statusOK || !strings.Contains(r.stderr, tc.want) || !strings.Contains(r.stderr, "standard input") || strings.Contains(r.stderr, "/proc/") {
				t.Errorf("vhdxfs %q with %s: status %d, %q, want %q", args, tc.name, r.status, r.stderr, tc.want)
			}
		}
		mustRun(t, "convert", "-f", "raw", file, path("forced.raw"))
		if r := withStdin(t, tc.bytes, "convert", "--force", "-f", "raw", "-", path("forced.raw")); r.status != statusOK {
			t.Errorf("%s as raw on standard input: %d, %s", tc.name, r.status, r.stderr)
		}
		mustRun(t, "compare", "--strict", "-f", "raw", "-F", "raw", file, path("forced.raw"))
		mustRun(t, "create", "--from", file, "-f", "raw", path("forced.vhdx"))
		for _, name := range []string{"forced.raw", "forced.vhdx"} {
			if err := os.Remove(path(name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"out.raw", "out.vhdx"} {
			if _, err := os.Stat(path(name)); err == nil {
				t.Fatalf("%s left %s", tc.name, name)
			}
		}
	}
}

// An image on standard input is read as an image, through a pipe, and where it is a file.
func TestImageOnStandardInput(t *testing.T) {
	raw, dir := rawFile(t, 5), t.TempDir()
	image, out := filepath.Join(dir, "image.vhdx"), filepath.Join(dir, "out.raw")
	mustRun(t, "convert", raw, image)
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"convert", "-", out}, {"convert", "-f", "vhdx", "-", out}} {
		if r := withStdin(t, b, args...); r.status != statusOK {
			t.Fatalf("%q: status %d, %s", args, r.status, r.stderr)
		}
		mustRun(t, "compare", "--strict", raw, out)
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer func(was *os.File) { os.Stdin = was }(os.Stdin)
	os.Stdin = f
	mustRun(t, "convert", "-", out)
	mustRun(t, "compare", "--strict", raw, out)
	if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
}

// What its name would say of a new file is true, unless it is said otherwise.
func TestNamesThatLie(t *testing.T) {
	dir := t.TempDir()
	image := newImage(t)
	for _, name := range []string{"x.avhd", "x.qcow2", "x.VMDK", "x.vdi", "x.vhds", "x.raw.gz"} {
		out := filepath.Join(dir, name)
		for _, args := range [][]string{{"convert", image, out}, {"create", "--size", "1M", out}, {"flatten", image, out}, {"snapshot", image, out}} {
			if r := run(t, args...); r.status != statusUsage || !strings.Contains(r.stderr, name) {
				t.Errorf("vhdxfs %q: status %d, %s", args, r.status, r.stderr)
			}
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s was made", name)
		}
		mustRun(t, "convert", "-O", "raw", image, out)
	}
	if r := run(t, "create", "--size", "1M", filepath.Join(dir, "disk.raw")); r.status != statusUsage {
		t.Errorf("an image with the name of a raw disk: status %d, %s", r.status, r.stderr)
	}
	if r := run(t, "convert", image, "/dev/vhdxfs-no-such-device"); r.status != statusSystem || !strings.Contains(r.stderr, "no such device") {
		t.Errorf("a mistyped device: status %d, %s", r.status, r.stderr)
	}
}

// withGPT returns a disk of 2 MiB that has the header of a GPT in its second sector.
func withGPT(sector int) []byte {
	b := make([]byte, 2<<20)
	h := b[sector:][:92]
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	h[24] = 1
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return b
}

// withMBR returns a disk of 2 MiB with an MBR, whose only partition, in sector 64, holds the start of an XFS.
func withMBR(sector int) []byte {
	b := make([]byte, 2<<20)
	copy(b[446+4:], "\x83\x00\x00\x00\x40\x00\x00\x00\x20\x00\x00\x00")
	copy(b[510:], "\x55\xaa")
	copy(b[64*sector:], "XFSB")
	return b
}

// The sectors of a new image are those in which the partition table of the disk counts; what is asked for otherwise is
// done, with a warning.
func TestSectorsFollowThePartitionTable(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, tc := range []struct {
		name  string
		bytes []byte
		args  []string
		want  int64
		warn  bool
	}{
		{"gpt512", withGPT(512), nil, 512, false},
		{"gpt4096", withGPT(4096), nil, 4096, false},
		{"mbr512", withMBR(512), nil, 512, false},
		{"mbr4096", withMBR(4096), nil, 4096, false},
		{"none", make([]byte, 2<<20), nil, 512, false},
		{"asked none", make([]byte, 2<<20), []string{"--logical-sector-size", "4096"}, 4096, false},
		{"asked 512", withGPT(4096), []string{"--logical-sector-size", "512"}, 512, true},
		{"asked 4096", withGPT(512), []string{"--logical-sector-size", "4096"}, 4096, true},
	} {
		disk := writeTo(t, path("disk"), tc.bytes)
		for _, args := range [][]string{{"convert", disk, path("out.vhdx")}, {"create", "--from", disk, path("out.vhdx")}, {"convert", "-", path("out.vhdx")}} {
			args = append(args, tc.args...)
			r := withStdin(t, tc.bytes, args...)
			if r.status != statusOK || strings.Contains(r.stderr, "warning: the disk has sectors of") != tc.warn {
				t.Errorf("%s: vhdxfs %q: status %d, %q", tc.name, args, r.status, r.stderr)
			}
			if got := decode[vhdx.Info](t, mustRun(t, "info", "--json", path("out.vhdx"))).LogicalSectorSize; got != tc.want {
				t.Errorf("%s: vhdxfs %q: sectors of %d", tc.name, args, got)
			}
			if err := os.Remove(path("out.vhdx")); err != nil {
				t.Fatal(err)
			}
		}
	}
	// To raw and back the sectors stay, and to another size there is a warning, of an image as well.
	writeTo(t, path("disk"), withGPT(4096))
	mustRun(t, "convert", path("disk"), path("a.vhdx"))
	if r := run(t, "convert", path("a.vhdx"), path("b.raw")); r.status != statusOK || !strings.Contains(r.stderr, "--sector-size 4096") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	mustRun(t, "convert", path("b.raw"), path("c.vhdx"))
	if got := decode[vhdx.Info](t, mustRun(t, "info", "--json", path("c.vhdx"))).LogicalSectorSize; got != 4096 {
		t.Errorf("back in an image, sectors of %d", got)
	}
	if r := run(t, "convert", "--logical-sector-size", "512", path("a.vhdx"), path("d.vhdx")); r.status != statusOK || !strings.Contains(r.stderr, "warning: ") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

// What of an image is left says how to read it; what it does not say is found, or given.
func TestRescueWithoutStructures(t *testing.T) {
	raw, dir := rawFile(t, 6), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "convert", "--block-size", "1M", raw, path("good.vhdx"))
	good, err := os.ReadFile(path("good.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int64{}
	for _, r := range decode[vhdx.Info](t, mustRun(t, "info", "--json", path("good.vhdx"))).Regions {
		place[r.Name] = int64(r.Offset)
	}
	wipe := func(ranges ...[2]int64) []byte {
		b := bytes.Clone(good)
		for _, r := range ranges {
			clear(b[r[0]:r[1]])
		}
		return b
	}
	headers, tables, all := [2]int64{64 << 10, 192 << 10}, [2]int64{192 << 10, 320 << 10}, [2]int64{0, 1 << 20}
	metadata := [2]int64{place["metadata"], place["metadata"] + 1<<20}
	const bs = "--assume-block-size=1M"
	for _, tc := range []struct {
		name  string
		bytes []byte
		args  []string
		ok    bool
	}{
		{"identifier", wipe([2]int64{0, 8}), nil, true},
		{"headers", wipe(headers), nil, true},
		{"region tables", wipe(tables), nil, true},
		{"header section", wipe(all), nil, true},
		{"metadata", wipe(metadata), nil, false},
		{"metadata, block size given", wipe(metadata), []string{bs}, true},
		{"metadata, all given", wipe(metadata), []string{bs, "--assume-disk-size=6M", "--assume-sector-size=512"}, true},
		{"metadata, wrong block size", wipe(metadata), []string{"--assume-block-size=3M"}, false},
		{"header section and metadata", wipe(all, metadata), []string{"-f", "vhdx", bs}, true},
		{"all but the blocks", wipe([2]int64{0, place["BAT"] + 1<<20}), []string{"-f", "vhdx", bs}, false},
		{"file parameters alone", wipe([2]int64{metadata[0] + 64<<10, metadata[0] + 64<<10 + 4}), []string{bs}, true},
	} {
		damaged := writeTo(t, path("damaged.vhdx"), tc.bytes)
		r := run(t, append([]string{"convert", "--skip-errors", "--force", damaged, path("out.raw")}, tc.args...)...)
		switch {
		case tc.ok && r.status != statusWarnings, !tc.ok && (r.status == statusOK || r.status == statusWarnings):
			t.Errorf("%s: status %d, %s%s", tc.name, r.status, r.stdout, r.stderr)
		case tc.ok:
			if out := run(t, "compare", raw, path("out.raw")); out.status != statusOK {
				t.Errorf("%s: %s%s; convert said %s", tc.name, out.stdout, out.stderr, r.stdout)
			}
		}
		if after, err := os.ReadFile(damaged); err != nil || !bytes.Equal(after, tc.bytes) {
			t.Errorf("%s: the damaged image was changed", tc.name)
		}
		if r := run(t, "convert", damaged, path("other.raw")); r.status == statusOK {
			t.Errorf("%s: converted without a word", tc.name)
		}
	}
	if r := run(t, "convert", bs, path("good.vhdx"), path("other.raw")); r.status != statusUsage {
		t.Errorf("%s without --skip-errors: status %d", bs, r.status)
	}
}

// A child whose parent is lost gives what it holds itself.
func TestWithoutParent(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "convert", "--block-size", "1M", rawFile(t, 4), path("base.vhdx"))
	mustRun(t, "create", "--parent", path("base.vhdx"), path("child.vhdx"))
	im, err := vhdx.Open(path("child.vhdx"), vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte("the child's own"), 1<<20+4096); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path("base.vhdx")); err != nil {
		t.Fatal(err)
	}
	r := run(t, "convert", path("child.vhdx"), path("out.raw"))
	if r.status != statusDamaged || !strings.Contains(r.stderr, "--without-parent") {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	want := make([]byte, 4<<20)
	copy(want[1<<20+4096:], "the child's own")
	for _, args := range [][]string{{}, {"--skip-errors"}} {
		r := run(t, append([]string{"convert", "--force", "--without-parent", path("child.vhdx"), path("out.raw")}, args...)...)
		if r.status != statusWarnings || !strings.Contains(r.stdout, "in the parent alone") {
			t.Errorf("%q: status %d, %s%s", args, r.status, r.stdout, r.stderr)
		}
		if got, err := os.ReadFile(path("out.raw")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: other bytes, %v", args, err)
		}
	}
}
