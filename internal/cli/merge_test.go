package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// newChainOf makes base.vhdx with data, and children of it: one.avhdx, two.avhdx of that, and so on.
func newChainOf(t *testing.T, children ...string) (dir string, path func(string) string) {
	t.Helper()
	dir = t.TempDir()
	path = func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "convert", rawFile(t, 4), path("base.vhdx"))
	parent := "base.vhdx"
	for i, c := range children {
		mustRun(t, "create", "--parent", path(parent), path(c))
		im, err := vhdx.Open(path(c), vhdx.Options{Writable: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := im.WriteAt([]byte(c), int64(i)<<20+100); err != nil {
			t.Fatal(err)
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		parent = c
	}
	return dir, path
}

func TestMergeCommand(t *testing.T) {
	dir, path := newChainOf(t, "one.avhdx", "two.avhdx", "three.avhdx")
	raw := filepath.Join(t.TempDir(), "want.raw")
	mustRun(t, "convert", path("three.avhdx"), raw)

	// In the middle, with the name that the child above knows.
	r := decode[vhdx.MergeResult](t, mustRun(t, "merge", "--json", "--keep-name", path("two.avhdx")))
	if r.Into != path("one.avhdx") || r.Path != path("two.avhdx") || len(r.Merged) != 1 || r.Data == 0 {
		t.Errorf("%+v", r)
	}
	mustRun(t, "compare", path("three.avhdx"), raw)
	if out := mustRun(t, "chain", dir); strings.Contains(out, "one.avhdx") || strings.Count(out, ": linked") != 2 {
		t.Errorf("chain:\n%s", out)
	}
	if out := mustRun(t, "merge", path("three.avhdx")); !strings.Contains(out, path("three.avhdx")+": merged into "+path("two.avhdx")+"; ") ||
		!strings.Contains(out, path("three.avhdx")+": no longer needed\n") {
		t.Errorf("merge says %q", out)
	}
	mustRun(t, "compare", path("two.avhdx"), raw)
	mustRun(t, "compare", path("three.avhdx"), raw)
	if out := mustRun(t, "merge", "--delete", "--into", path("base.vhdx"), path("three.avhdx")); strings.Contains(out, "needed") {
		t.Errorf("merge says %q", out)
	}
	mustRun(t, "compare", "--strict", path("base.vhdx"), raw)
	if left := contents(t, dir); len(left) != 1 {
		t.Errorf("%d files are left", len(left))
	}
}

// A merge that would cost other children their disk is refused, and so is one that would leave children alone.
func TestMergeLooksForChildren(t *testing.T) {
	dir, path := newChainOf(t, "one.avhdx", "two.avhdx")
	mustRun(t, "create", "--parent", path("base.vhdx"), path("sibling.avhdx"))
	mustRun(t, "create", "--parent", path("one.avhdx"), path("nephew.avhdx"))
	link := filepath.Join(t.TempDir(), "link.avhdx") // the children are beside the file
	if err := os.Symlink(path("one.avhdx"), link); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"merge", path("one.avhdx")}, path("sibling.avhdx") + " would become unusable"},
		{[]string{"merge", path("two.avhdx")}, path("nephew.avhdx") + " would become unusable"},
		{[]string{"merge", "--into", path("base.vhdx"), path("two.avhdx")}, path("nephew.avhdx") + ", " + path("sibling.avhdx")},
		{[]string{"merge", "--delete", "--force", path("one.avhdx")}, "is a child of " + path("one.avhdx")},
		{[]string{"snapshot", "--keep-name", path("one.avhdx")}, path("two.avhdx")},
		{[]string{"resize", path("base.vhdx"), "+1M"}, " is the parent of " + path("one.avhdx") + ", " + path("sibling.avhdx") + ", which would become unusable"},
		{[]string{"snapshot", "--keep-name", link}, "two.avhdx"},
	} {
		r := run(t, tc.args...)
		if r.status != statusUsage || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("vhdxfs %q: status %d, %q", tc.args, r.status, r.stderr)
		}
		checkMessage(t, r)
		for name, content := range contents(t, dir) {
			if before[name] != content {
				t.Fatalf("vhdxfs %q changed %s", tc.args, name)
			}
		}
	}
	mustRun(t, "merge", "--force", path("one.avhdx"))
	if r := run(t, "info", path("sibling.avhdx")); r.status != statusDamaged || !strings.Contains(r.stderr, "R63") {
		t.Errorf("the child of a disk that was changed: status %d, %q", r.status, r.stderr)
	}
	mustRun(t, "set-parent", path("two.avhdx"), path("base.vhdx"))
	mustRun(t, "set-parent", path("nephew.avhdx"), path("base.vhdx"))
	if err := os.Remove(path("one.avhdx")); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "info", path("two.avhdx"))
}

func TestSetParentCommand(t *testing.T) {
	_, path := newChainOf(t, "one.avhdx")
	if err := os.Rename(path("base.vhdx"), path("moved.vhdx")); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "rebase", "--parent-path", `D:\moved.vhdx`, path("one.avhdx"), path("moved.vhdx")); out != path("one.avhdx")+": the parent is now "+path("moved.vhdx")+"\n" {
		t.Errorf("%q", out)
	}
	in := decode[vhdx.Info](t, mustRun(t, "info", "--json", path("one.avhdx")))
	if in.Parent.RelativePath != `.\moved.vhdx` || in.Parent.AbsoluteWin32Path != `\\?\D:\moved.vhdx` {
		t.Errorf("%+v", in.Parent)
	}
	mustRun(t, "create", "--size", "4M", path("other.vhdx"))
	r := run(t, "set-parent", path("one.avhdx"), path("other.vhdx"))
	if r.status != statusDamaged || !strings.Contains(r.stderr, "R63") || !strings.HasSuffix(r.stderr, "; --unsafe accepts it\n") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	checkMessage(t, r)
	r = run(t, "set-parent", "--json", "--unsafe", path("one.avhdx"), path("other.vhdx"))
	if r.status != statusOK || !strings.Contains(r.stderr, "warning: "+path("one.avhdx")+": "+path("other.vhdx")+" is a different parent") || !decode[vhdx.SetParentResult](t, r.stdout).Foreign {
		t.Errorf("status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	for _, args := range [][]string{
		{"set-parent", path("one.avhdx")},
		{"set-parent", "-o", "ignore_parent_mismatch", path("one.avhdx"), path("moved.vhdx")},
		{"set-parent", path("moved.vhdx"), path("other.vhdx")},
		{"set-parent", path("one.avhdx"), path("one.avhdx")},
	} {
		r := run(t, args...)
		if r.status != statusUsage {
			t.Errorf("vhdxfs %q: status %d, %q", args, r.status, r.stderr)
		}
		checkMessage(t, r)
	}
}

func TestSnapshotCommand(t *testing.T) {
	dir, path := newChainOf(t)
	want := contents(t, dir)["base.vhdx"]
	out := mustRun(t, "snapshot", path("base.vhdx"))
	if !regexp.MustCompile(`^` + regexp.QuoteMeta(dir) + `/base-\d{8}-\d{6}\.avhdx is now the active image; ` + regexp.QuoteMeta(path("base.vhdx")) + ` is frozen as its parent\n$`).MatchString(out) {
		t.Errorf("snapshot says %q", out)
	}
	r := decode[vhdx.SnapshotResult](t, mustRun(t, "snapshot", "--json", "--force", "--keep-name", path("base.vhdx"), path("old.vhdx")))
	if r.Frozen != path("old.vhdx") || r.Child != path("base.vhdx") || contents(t, dir)["old.vhdx"] != want {
		t.Errorf("%+v", r)
	}
	mustRun(t, "compare", path("base.vhdx"), path("old.vhdx"))
	for _, args := range [][]string{
		{"snapshot"},
		{"snapshot", path("base.vhdx"), path("old.vhdx")},
		{"snapshot", "--keep-name", path("base.vhdx"), path("old.vhdx")},
		{"snapshot", path("base.vhdx"), path("x"), path("y")},
	} {
		r := run(t, args...)
		if r.status != statusUsage {
			t.Errorf("vhdxfs %q: status %d, %q", args, r.status, r.stderr)
		}
		checkMessage(t, r)
	}
}
