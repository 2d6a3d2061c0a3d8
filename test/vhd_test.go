package test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What QEMU writes as VHD, every command reads as the disk that it is; and QEMU and libvhdi read what convert writes.
func TestVHDThereAndBack(t *testing.T) {
	t.Parallel()
	notShort(t, "it makes a dozen disks")
	requireTools(t, "qemu-img", "sha256sum")
	raw := randomRaw(t, 58*mib, 31)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, tc := range []struct{ qemu, own string }{
		{"subformat=dynamic,force_size=on", "dynamic"}, {"subformat=fixed,force_size=on", "fixed"},
		{"subformat=dynamic", ""}, {"subformat=fixed", ""}, // of another size, by cylinders
	} {
		theirs, bytes := path("qemu.vhd"), path("qemu.raw")
		must(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", tc.qemu, raw, theirs)
		must(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", theirs, bytes)
		mustVhdxfs(t, "compare", "--strict", theirs, bytes)
		checkVHD(t, theirs)
		sum, _, _ := strings.Cut(must(t, "sha256sum", bytes), " ")
		if got := mustVhdxfs(t, "hash", theirs); !strings.HasPrefix(got, sum+" ") {
			t.Errorf("%s: %q, want %s", tc.qemu, got, sum)
		}
		mustVhdxfs(t, "convert", "--force", "--verify", theirs, path("new.vhdx"))
		mustVhdxfs(t, "compare", "--strict", path("new.vhdx"), bytes)
		checkClean(t, path("new.vhdx"))
		if tc.own == "" {
			continue
		}
		ours := path(tc.own + ".vhd")
		mustVhdxfs(t, "convert", "--verify", "--type", tc.own, path("new.vhdx"), ours)
		must(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", ours, raw)
		mustVhdxfs(t, "compare", "--strict", ours, raw)
		checkVHD(t, ours)
		if got, most := used(t, ours), used(t, raw)+20*mib; got > most {
			t.Errorf("%s takes %d bytes, the disk %d", ours, got, used(t, raw))
		}
		// Through a pipe as well.
		mustPipe(t, `cat "$1" | $vhdxfs convert -f vhd - "$2"`, ours, path(tc.own+".raw"))
		sameContent(t, path(tc.own+".raw"), raw)
	}
	mustPipe(t, `$vhdxfs convert -O vhd --type fixed "$1" - >"$2"`, raw, path("stream.vhd"))
	must(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", path("stream.vhd"), raw)
	mustPipe(t, `cat "$1" | $vhdxfs convert - "$2"`, raw, path("piped.vhd"))
	must(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", path("piped.vhd"), raw)
	// The disk becomes a whole number of MiB, and the file is, without its footer.
	if err := os.Truncate(raw, 30*mib+512); err != nil {
		t.Fatal(err)
	}
	r := vhdxfs(t, "convert", "--type", "fixed", raw, path("azure.vhd"))
	if r.status != 0 || !strings.Contains(r.stderr, "31 MiB, a whole number of MiB") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	if st, err := os.Stat(path("azure.vhd")); err != nil || st.Size() != 31*mib+512 {
		t.Errorf("%v, %v", st, err)
	}
	must(t, "truncate", "--size", "2041G", path("large.raw"))
	if r := vhdxfs(t, "convert", "-q", raw, path("named.vhd")); r.status != 0 || !strings.Contains(r.stderr, "becomes a VHD image because of its name") {
		t.Errorf("a format chosen by the name: status %d, %q", r.status, r.stderr)
	}
	if r := vhdxfs(t, "convert", "-q", "-O", "vhd", raw, path("meant.vhd")); r.status != 0 || strings.Contains(r.stderr, "name") {
		t.Errorf("a format that was named: status %d, %q", r.status, r.stderr)
	}
	if r := vhdxfs(t, "convert", path("large.raw"), path("large.vhd")); r.status != 1 || !strings.Contains(r.stderr, "2040 GiB") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	missing(t, path("large.vhd"))
}

func checkVHD(t *testing.T, image string) {
	t.Helper()
	if r := vhdxfs(t, "check", image); r.status != 0 {
		t.Errorf("vhdxfs check: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}

// differencing turns a dynamic image into the child of another: of its blocks it holds every third run of eight sectors
// itself. libvhdi 20210425 takes sectors behind the first of such a run for the child's, whatever their bits say.
func differencing(t *testing.T, image, parent string) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile(parent)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	header := b[be.Uint64(b[16:]):][:1024]
	table := b[be.Uint64(header[16:]):]
	for i := range be.Uint32(header[28:]) {
		if e := be.Uint32(table[4*i:]); e != 0xFFFFFFFF {
			bitmap := b[int64(e)*512:][:512]
			for s := range 4096 {
				if s/8%3 != 0 {
					bitmap[s/8] &^= 0x80 >> (s % 8)
				}
			}
		}
	}
	copy(header[40:], base[len(base)-512+68:][:16])
	for i, c := range filepath.Base(parent) {
		be.PutUint16(header[64+2*i:], uint16(c))
	}
	footer := b[len(b)-512:]
	footer[63], b[63] = 4, 4
	stamp := func(p []byte, at int) {
		sum := uint32(0)
		for i, c := range p {
			if i < at || i >= at+4 {
				sum += uint32(c)
			}
		}
		be.PutUint32(p[at:], ^sum)
	}
	stamp(header, 36)
	stamp(footer, 64)
	stamp(b[:512], 64)
	writeFile(t, image, b)
}

// Mounts of VHD images are read-only, and show what the commands read, also of a chain, which libvhdi reads alike.
func TestVHDMount(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img", "vhdimount")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	old, recent := randomRaw(t, 30*mib, 32), randomRaw(t, 30*mib, 33)
	for name, raw := range map[string]string{"base.vhd": old, "child.vhd": recent} {
		must(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, path(name))
	}
	mustVhdxfs(t, "convert", "--type", "fixed", old, path("fixed.vhd"))
	differencing(t, path("child.vhd"), path("base.vhd"))
	theirs := newDir(t)
	must(t, "vhdimount", path("child.vhd"), theirs)
	must(t, "cp", filepath.Join(theirs, "vhdi2"), path("child.raw"))
	unmount(t, theirs)
	if a, b := must(t, "cat", path("child.raw")), must(t, "cat", recent); a == b {
		t.Fatal("the child is like its parts")
	}
	for name, want := range map[string]string{"base.vhd": old, "fixed.vhd": old, "child.vhd": path("child.raw")} {
		before := must(t, "sha256sum", path(name))
		mustVhdxfs(t, "compare", "--strict", path(name), want)
		point := newDir(t)
		if r := vhdxfs(t, path(name), point); r.status != 32 || !strings.Contains(r.stderr, "can only be mounted read-only") {
			t.Errorf("status %d, %q", r.status, r.stderr)
		}
		if r := vhdxfs(t, "-o", "overlay=tmp", path(name), point); r.status != 32 || !strings.Contains(r.stderr, "overlay") {
			t.Errorf("status %d, %q", r.status, r.stderr)
		}
		mustVhdxfs(t, "-o", "ro", path(name), point)
		sameContent(t, filepath.Join(point, "disk.raw"), want)
		if f, err := os.OpenFile(filepath.Join(point, "disk.raw"), os.O_WRONLY, 0); err == nil {
			f.Close()
			t.Error("disk.raw can be written")
		}
		if got := mustVhdxfs(t, "hash", point); !strings.HasPrefix(got, strings.Fields(must(t, "sha256sum", want))[0]) {
			t.Errorf("%s: hash %s", name, got)
		}
		unmount(t, point)
		var info struct {
			Format, Type string
			DiskSize     int64 `json:"disk_size"`
			Parent       *struct{ Path string }
		}
		if err := json.Unmarshal([]byte(mustVhdxfs(t, "info", "--json", path(name))), &info); err != nil {
			t.Fatal(err)
		}
		if info.Format != "vhd" || info.DiskSize != 30*mib || (info.Parent != nil) != (name == "child.vhd") {
			t.Errorf("%+v", info)
		}
		if text := mustVhdxfs(t, "info", "-v", path(name)); !strings.Contains(text, "VHD") {
			t.Error(text)
		}
		// What the list of extents says is what is in the files.
		var extents []struct {
			Offset, Length int64
			Zero           bool
			File           string
			FileOffset     int64 `json:"file_offset"`
		}
		if err := json.Unmarshal([]byte(mustVhdxfs(t, "map", "--json", path(name))), &extents); err != nil {
			t.Fatal(err)
		}
		disk := []byte(must(t, "cat", want))
		end := int64(0)
		for _, e := range extents {
			p := make([]byte, e.Length)
			if !e.Zero {
				b, err := os.ReadFile(e.File)
				if err != nil {
					t.Fatal(err)
				}
				copy(p, b[e.FileOffset:])
			}
			if e.Offset != end || !bytes.Equal(p, disk[e.Offset:][:e.Length]) {
				t.Fatalf("%s: extent %+v behind byte %d", name, e, end)
			}
			end += e.Length
		}
		if after := must(t, "sha256sum", path(name)); end != 30*mib || after != before {
			t.Errorf("%s: the extents end at %d; the file was %s and is %s", name, end, before, after)
		}
	}
}

// What only works with VHDX images says so of an old one, and changes nothing.
func TestVHDIsRefused(t *testing.T) {
	t.Parallel()
	requireTools(t, "bash")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustVhdxfs(t, "convert", randomRaw(t, 20*mib, 35), path("old.vhd"))
	mustVhdxfs(t, "create", path("new.vhdx"), "20M")
	mustVhdxfs(t, "snapshot", path("new.vhdx"), path("child.avhdx"))
	before := must(t, "sh", "-c", `cd "$1" && sha256sum *`, "sh", dir)
	for _, args := range [][]string{
		{"map", "--draw", path("old.vhd")}, {"map", "--svg", path("x.svg"), path("old.vhd")}, {"map", "--png", "-", path("old.vhd")},
		{"check", "--repair", path("old.vhd")}, {"convert", "--skip-errors", path("old.vhd"), path("x.raw")},
		{"chain", path("old.vhd")}, {"set-parent", path("child.avhdx"), path("old.vhd")}, {"set-parent", path("old.vhd"), path("new.vhdx")},
		{"snapshot", path("old.vhd")}, {"merge", path("old.vhd")}, {"compact", path("old.vhd")}, {"resize", path("old.vhd"), "30M"},
		{"create", "--parent", path("old.vhd"), path("x.avhdx")}, {"flatten", path("old.vhd"), path("x.vhdx")},
		{"diff", path("old.vhd")}, {"diff", "--output", path("x.avhdx"), path("old.vhd"), path("new.vhdx")},
		{"apply", path("old.vhd"), path("new.vhdx")}, {"apply", path("child.avhdx"), path("old.vhd")},
	} {
		r := vhdxfs(t, args...)
		if r.status == 0 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "VHD") {
			t.Errorf("%q: status %d, %q%q", args, r.status, r.stdout, r.stderr)
		}
	}
	if after := must(t, "sh", "-c", `cd "$1" && sha256sum *`, "sh", dir); after != before {
		t.Errorf("it was\n%sand is\n%s", before, after)
	}
}

// Damage is told, and never read as a disk.
func TestBadVHD(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw := randomRaw(t, 20*mib, 34)
	for _, kind := range []string{"dynamic", "fixed"} {
		good := filepath.Join(dir, kind+".vhd")
		mustVhdxfs(t, "convert", "--type", kind, raw, good)
		b, err := os.ReadFile(good)
		if err != nil {
			t.Fatal(err)
		}
		for i, cut := range []int{len(b) - 512, len(b) - mib, 5 * mib, 2000, 512} {
			image := filepath.Join(dir, kind+strconv.Itoa(i)+".vhd")
			writeFile(t, image, b[:cut])
			r := vhdxfs(t, "convert", image, filepath.Join(dir, "out.vhdx"))
			if kind == "dynamic" && i == 0 { // the copy of the footer is enough
				if r.status != 0 {
					t.Errorf("%s", r.stderr)
				}
				mustVhdxfs(t, "compare", raw, filepath.Join(dir, "out.vhdx"))
				must(t, "rm", filepath.Join(dir, "out.vhdx"))
				continue
			}
			if r.status == 0 || !strings.Contains(r.stderr, kind+strconv.Itoa(i)+".vhd") {
				t.Errorf("%s cut at %d: status %d, %q", kind, cut, r.status, r.stderr)
			}
			missing(t, filepath.Join(dir, "out.vhdx"))
		}
	}
}
