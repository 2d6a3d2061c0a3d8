package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

// What would destroy something says with --dry-run what it would do, and changes no byte.
func TestDryRun(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "convert", "--block-size", "1M", rawFile(t, 6), path("base.vhdx"))
	mustRun(t, "create", "--parent", path("base.vhdx"), path("child.vhdx"))
	mustRun(t, "convert", path("base.vhdx"), path("other.vhdx"))
	mustRun(t, "create", "--size", "64M", path("empty.vhdx"))
	mustRun(t, "convert", path("base.vhdx"), path("old.raw"))
	before := contents(t, dir)
	for _, tc := range []struct {
		args   []string
		status int
		want   string // on either output
	}{
		{[]string{"compact", path("base.vhdx")}, statusOK, "nothing was changed"},
		{[]string{"compact", "--trim", path("base.vhdx")}, statusUsage, "--dry-run"},
		{[]string{"resize", path("empty.vhdx"), "32M"}, statusOK, "could become 32"},
		{[]string{"resize", path("other.vhdx"), "4M"}, statusUsage, "cannot shrink"},
		{[]string{"resize", "--force", path("other.vhdx"), "4M"}, statusOK, "would lose data"},
		{[]string{"merge", path("child.vhdx")}, statusOK, "would be merged into " + path("base.vhdx")},
		{[]string{"merge", "--delete", path("child.vhdx")}, statusOK, path("child.vhdx") + ": would be removed"},
		{[]string{"merge", path("base.vhdx")}, statusUsage, "merge"},
		{[]string{"set-parent", path("child.vhdx"), path("base.vhdx")}, statusOK, "nothing was changed"},
		{[]string{"set-parent", path("child.vhdx"), path("other.vhdx")}, statusDamaged, "--unsafe"},
		{[]string{"set-parent", "--unsafe", path("child.vhdx"), path("other.vhdx")}, statusOK, "would change"},
		{[]string{"convert", path("base.vhdx"), path("new.raw")}, statusOK, "would be created"},
		{[]string{"convert", path("base.vhdx"), path("old.raw")}, statusUsage, "--force"},
		{[]string{"convert", "--force", path("base.vhdx"), path("other.vhdx")}, statusOK, "holds a VHDX image, which would be overwritten"},
		{[]string{"convert", path("base.vhdx"), "/dev/vhdxfs-no-such-device"}, statusSystem, "no such device"},
		{[]string{"check", "--repair", path("base.vhdx")}, statusOK, "nothing to repair"},
	} {
		r := run(t, append([]string{tc.args[0], "--dry-run"}, tc.args[1:]...)...)
		if r.status != tc.status || !strings.Contains(r.stdout+r.stderr, tc.want) {
			t.Errorf("vhdxfs %q: status %d, %q; want %d and %q", tc.args, r.status, r.stdout+r.stderr, tc.status, tc.want)
		}
		after := contents(t, dir)
		for name, content := range after {
			if before[name] != content {
				t.Fatalf("vhdxfs %q --dry-run changed %s", tc.args, name)
			}
		}
		if len(after) != len(before) {
			t.Fatalf("vhdxfs %q --dry-run left something behind, or removed it", tc.args)
		}
	}
}
