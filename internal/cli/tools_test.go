package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// rawFile makes a raw disk of n MiB, with one byte of data in each.
func rawFile(t *testing.T, n int) string {
	t.Helper()
	p := make([]byte, n<<20)
	for i := range n {
		p[i<<20+i] = byte(i + 1)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.status != statusOK {
		t.Fatalf("vhdxfs %q: status %d, %s", args, r.status, r.stderr)
	}
	return r.stdout
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return v
}

// What the commands that make something refuse leaves the input, and what is in the way, as it is.
func TestToolsRefuse(t *testing.T) {
	raw := rawFile(t, 3)
	dir := t.TempDir()
	image, there := filepath.Join(dir, "image.vhdx"), filepath.Join(dir, "there.vhdx")
	mustRun(t, "convert", raw, image)
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(dir, "child.vhdx")
	mustRun(t, "create", "--parent", image, child)
	changed, orphan := filepath.Join(dir, "changed.vhdx"), filepath.Join(dir, "orphan.vhdx")
	mustRun(t, "create", "--size", "1M", changed)
	mustRun(t, "create", "--parent", changed, orphan)
	mustRun(t, "create", "--force", "--size", "1M", changed)
	qcow := filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(qcow, append([]byte("QFI\xfb"), make([]byte, 1020)...), 0o600); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"convert", raw}, statusUsage, "missing OUTPUT"},
		{[]string{"convert", raw, there}, statusUsage, "exists"},
		{[]string{"convert", image, image}, statusUsage, "is also an input"},
		{[]string{"convert", "--force", child, image}, statusUsage, "is also an input"},
		{[]string{"convert", raw, filepath.Join(dir, "x", "y.vhdx")}, statusSystem, "no such file"},
		{[]string{"convert", qcow, filepath.Join(dir, "new.raw")}, statusSystem, "qemu-img convert"},
		{[]string{"convert", "-f", "vhdx", raw, filepath.Join(dir, "new.raw")}, statusDamaged, "R2"},
		{[]string{"convert", "-f", "qcow2", raw, filepath.Join(dir, "new.raw")}, statusUsage, "raw, vhdx or vhd"},
		{[]string{"convert", "-O", "vmdk", raw, filepath.Join(dir, "new")}, statusUsage, "raw, vhdx or vhd"},
		{[]string{"convert", "--workers", "0", raw, filepath.Join(dir, "new")}, statusUsage, "1 to 256"},
		{[]string{"convert", "--reflink=maybe", raw, filepath.Join(dir, "new")}, statusUsage, "auto, always or never"},
		{[]string{"convert", "--reflink", "--skip-errors", raw, filepath.Join(dir, "new")}, statusUsage, "--skip-errors"},
		{[]string{"convert", "--block-size", "3M", raw, filepath.Join(dir, "new.vhdx")}, statusUsage, "power of two"},
		{[]string{"convert", "-f", "vhdx", "-", filepath.Join(dir, "new.vhdx")}, statusUsage, "standard input"},
		{[]string{"flatten", raw, filepath.Join(dir, "new.vhdx")}, statusDamaged, "R2"},
		{[]string{"flatten", child, there}, statusUsage, "exists"},
		{[]string{"flatten", orphan, filepath.Join(dir, "new.vhdx")}, statusDamaged, "R63"},
		{[]string{"create", "--parent", orphan, filepath.Join(dir, "new.vhdx")}, statusDamaged, "R63"},
		{[]string{"diff", orphan}, statusDamaged, "R63"},
		{[]string{"convert", "--type", "fixed", image, filepath.Join(dir, "new.raw")}, statusUsage, "--type applies to images"},
		{[]string{"create", "--from", raw, "--parent", image, filepath.Join(dir, "new.vhdx")}, statusUsage, "exclude each other"},
		{[]string{"create", "--from", raw, "--size", "1M", filepath.Join(dir, "new.vhdx")}, statusUsage, "cannot hold"},
		{[]string{"create", "--parent", image, "--size", "1M", filepath.Join(dir, "new.vhdx")}, statusUsage, "must be at least 3 MiB"},
		{[]string{"create", "--parent", image, image}, statusUsage, "the file is the parent itself"},
		{[]string{"create", "--parent", qcow, filepath.Join(dir, "new.vhdx")}, statusDamaged, "parent: "},
		{[]string{"compare", raw}, statusUsage, "missing SECOND"},
		{[]string{"compare", raw, filepath.Join(dir, "missing")}, statusSystem, "no such file"},
		{[]string{"diff", image}, statusUsage, "has no parent; name two disks: vhdxfs diff OLD NEW"},
		{[]string{"diff", "--depth", "2", child}, statusUsage, "1 parent"},
		{[]string{"map", "--json", "--draw", image}, statusUsage, "json"},
		{[]string{"map", "--draw", "--color", "blue", image}, statusUsage, "auto, always or never"},
		{[]string{"map", "--svg", there, image}, statusUsage, "exists"},
		{[]string{"map", "--force", "--svg", image, child}, statusUsage, "one of its parents"},
		{[]string{"chain"}, statusUsage, "missing IMAGE"},
		{[]string{"chain", filepath.Join(dir, "missing")}, statusSystem, "no such file"},
		{[]string{"chain", there}, statusDamaged, "R1"},
	} {
		r := run(t, tc.args...)
		if r.status != tc.status || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("vhdxfs %q: status %d, %q; want %d and %q", tc.args, r.status, r.stderr, tc.status, tc.want)
		}
		checkMessage(t, r)
		after := contents(t, dir)
		for name, content := range before {
			if after[name] != content {
				t.Fatalf("vhdxfs %q changed %s", tc.args, name)
			}
		}
		if len(after) != len(before) {
			t.Fatalf("vhdxfs %q left something behind", tc.args)
		}
	}
}

// contents reads all files of a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = string(b)
	}
	return m
}

func TestConvertCommand(t *testing.T) {
	raw, dir := rawFile(t, 5), t.TempDir()
	image := filepath.Join(dir, "image.vhdx")
	report := decode[struct {
		Input, Output, OutputFormat string
		DiskSize                    int64 `json:"disk_size"`
		Data                        int64 `json:"data_bytes"`
		Verified                    bool
	}](t, mustRun(t, "convert", "--json", "--verify", "--block-size", "1M", "--creator", "me", raw, image))
	if report.Output != image || report.DiskSize != 5<<20 || !report.Verified || report.Data < 5 || report.Data > 1<<20 {
		t.Errorf("%+v", report)
	}
	in := decode[vhdx.Info](t, mustRun(t, "info", "--json", image))
	if in.Creator != "me" || in.BlockSize != 1<<20 || in.Type != vhdx.Dynamic {
		t.Errorf("%+v", in)
	}
	// What the options leave open is as in the input, but for the disk id.
	fixed, again := filepath.Join(dir, "fixed.vhdx"), filepath.Join(dir, "again.vhdx")
	mustRun(t, "convert", "--type", "fixed", image, fixed)
	mustRun(t, "convert", fixed, again)
	other := decode[vhdx.Info](t, mustRun(t, "info", "--json", again))
	if other.Type != vhdx.Fixed || other.BlockSize != 1<<20 || other.DiskID == in.DiskID || other.Creator != vhdx.DefaultCreator {
		t.Errorf("%+v", other)
	}
	back := filepath.Join(dir, "back")
	if out := mustRun(t, "convert", "-q", again, back); !strings.Contains(out, "5 MiB disk, 160 KiB used") {
		t.Errorf("convert says %q", out)
	}
	for _, path := range []string{image, fixed, again, back} {
		if out := mustRun(t, "compare", raw, path); out != "the disks are equal\n" {
			t.Errorf("%s: %s", path, out)
		}
	}
	mustRun(t, "convert", "--force", raw, back)
}

func TestCompareCommand(t *testing.T) {
	raw := rawFile(t, 3)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	longer, other := filepath.Join(t.TempDir(), "longer"), filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(longer, append(b, make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	b[1<<20+700] ^= 1
	b[2<<20] ^= 1
	if err := os.WriteFile(other, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{raw, raw}, statusOK, "the disks are equal\n"},
		{[]string{raw, longer}, statusOK, "equal, but their sizes are 3 MiB and 4 MiB"},
		{[]string{"--strict", raw, longer}, statusDiffers, "sizes are 3 MiB"},
		{[]string{raw, other}, statusDiffers, "512 B at 0x100200 differs\n512 B at 0x200000 differs\nthe disks differ in 2 ranges, 1 KiB in total\n"},
		{[]string{"--limit", "1", raw, other}, statusDiffers, "512 B at 0x100200 differs\nthe disks differ in 2 ranges"},
	} {
		r := run(t, append([]string{"compare"}, tc.args...)...)
		if r.status != tc.status || !strings.Contains(r.stdout, tc.want) || r.stderr != "" {
			t.Errorf("compare %q: status %d, %q, %q", tc.args, r.status, r.stdout, r.stderr)
		}
	}
	r := run(t, "compare", "--json", raw, other)
	if c := decode[comparison](t, r.stdout); c.Equal || c.Different != 1024 || c.Count != 2 || len(c.Ranges) != 2 {
		t.Errorf("%+v", c)
	}
	if out := mustRun(t, "diff", raw, other); out != "0x100200           512 B            data\n0x200000           512 B            data\n" {
		t.Errorf("diff: %q", out)
	}
	if out := mustRun(t, "diff", "--json", raw, raw); out != "[]\n" {
		t.Errorf("diff of a disk with itself: %q", out)
	}
}

func TestChainCommand(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "create", "--size", "4M", path("base.vhdx"))
	mustRun(t, "create", "--parent", path("base.vhdx"), path("one.avhdx"))
	mustRun(t, "create", "--parent", path("base.vhdx"), "--parent-path", `D:\vm\base.vhdx`, path("two.avhdx"))
	mustRun(t, "create", "--parent", path("one.avhdx"), path("three.avhdx"))
	out := strings.ReplaceAll(mustRun(t, "chain", dir), dir+"/", "")
	for _, want := range []string{"base.vhdx  dynamic", "├── one.avhdx  differencing", "│   └── three.avhdx ", "└── two.avhdx ", ": linked\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("chain lacks %q:\n%s", want, out)
		}
	}
	if p := decode[vhdx.Info](t, mustRun(t, "info", "--json", path("two.avhdx"))).Parent; p.AbsoluteWin32Path != `\\?\D:\vm\base.vhdx` || p.RelativePath != `.\base.vhdx` {
		t.Errorf("%+v", p)
	}
	if err := os.Remove(path("one.avhdx")); err != nil {
		t.Fatal(err)
	}
	r := run(t, "chain", dir)
	if r.status != statusWarnings || !strings.Contains(r.stdout, "three.avhdx  differencing, disk 4 MiB, file 4 MiB: parent missing\n") || r.stderr != "" {
		t.Errorf("status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	trees := decode[[]struct {
		Path     string
		Children []struct{ Path, Link string }
	}](t, run(t, "chain", "--json", dir).stdout)
	if len(trees) != 2 || len(trees[0].Children) != 1 || trees[0].Children[0].Link != "linked" {
		t.Errorf("%+v", trees)
	}
}

func TestFlattenKeepsTheDisk(t *testing.T) {
	dir := t.TempDir()
	base, child, flat := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx"), filepath.Join(dir, "flat.vhdx")
	mustRun(t, "convert", rawFile(t, 4), base)
	mustRun(t, "create", "--parent", base, "--size", "6M", child)
	mustRun(t, "flatten", "--verify", child, flat)
	a, b := decode[vhdx.Info](t, mustRun(t, "info", "--json", child)), decode[vhdx.Info](t, mustRun(t, "info", "--json", flat))
	if b.Type != vhdx.Dynamic || b.DiskID != a.DiskID || b.DiskSize != 6<<20 || b.Parent != nil {
		t.Errorf("%+v", b)
	}
	mustRun(t, "compare", "--strict", child, flat)
}

func TestMapForms(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx")
	mustRun(t, "convert", "--block-size", "1M", rawFile(t, 2), base)
	mustRun(t, "create", "--parent", base, "--size", "4M", child)
	type qemu struct {
		Start, Length       int64
		Depth               int
		Present, Zero, Data bool
		Offset              *int64
	}
	list := decode[[]qemu](t, mustRun(t, "map", "--qemu-json", child))
	if len(list) != 2 || list[0].Length != 2<<20 || list[0].Depth != 1 || !list[0].Present || !list[0].Data || list[0].Offset == nil ||
		list[1].Start != 2<<20 || list[1].Present || !list[1].Zero || list[1].Data || list[1].Offset != nil {
		t.Errorf("%+v", list)
	}
	if out := mustRun(t, "map", "--draw", child); !strings.Contains(out, "base.vhdx: 2 MiB, 50 %") || strings.Contains(out, "\x1b") {
		t.Errorf("map --draw:\n%q", out)
	}
	if out := mustRun(t, "map", "--draw", "--color", "always", child); !strings.Contains(out, "\x1b") {
		t.Errorf("map --draw --color always:\n%q", out)
	}
	svg, png := filepath.Join(dir, "x.svg"), filepath.Join(dir, "x.png")
	mustRun(t, "map", "--svg", svg, "--png", png, child)
	for path, want := range map[string]string{svg: "<svg ", png: "\x89PNG"} {
		if b, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// What a damaged image still holds is saved, and what it lost is told.
func TestConvertSalvages(t *testing.T) {
	raw, dir := rawFile(t, 4), t.TempDir()
	image, out := filepath.Join(dir, "image.vhdx"), filepath.Join(dir, "out.raw")
	mustRun(t, "convert", "--block-size", "1M", raw, image)
	bat := int64(0)
	for _, r := range decode[vhdx.Info](t, mustRun(t, "info", "--json", image)).Regions {
		if r.Name == "BAT" {
			bat = int64(r.Offset)
		}
	}
	damage(t, image, bat+8+4, 4) // the place of block 1
	before := contents(t, dir)
	r := run(t, "convert", image, out)
	if r.status != statusDamaged || !strings.Contains(r.stderr, "BAT entry") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	r = run(t, "convert", "--skip-errors", image, out)
	if r.status != statusWarnings || !strings.Contains(r.stdout, "1 MiB at 0x100000 of the disk could not be read: block 1") || !strings.Contains(r.stdout, "(BAT entry, offset 0x300008, rule R47, MS-VHDX 2.5.1)") ||
		!strings.Contains(r.stderr, "is damaged") {
		t.Errorf("status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	clear(want[1<<20 : 2<<20])
	after := contents(t, dir)
	if after["out.raw"] != string(want) || after["image.vhdx"] != before["image.vhdx"] {
		t.Error("other bytes were saved, or the image was changed")
	}
}
