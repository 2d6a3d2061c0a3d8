package cli

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mistakesFile has what users get wrong, and what the program answers: a line "$ vhdxfs ...", then the exit status and the
// message. Lines with # say what a part is about. With -update the answers are written anew.
const mistakesFile = "testdata/mistakes.txt"

// guids are drawn at random.
var guids = regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`)

// mistakesSetup makes the files that the mistakes are about, in the working directory.
func mistakesSetup(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"create", "data.vhdx", "64M"},
		{"create", "sparse.vhdx", "64M"},
		{"create", "base.vhdx", "64M"},
		{"create", "--parent", "base.vhdx", "child.avhdx"},
		{"create", "lost.vhdx", "64M"},
		{"create", "--parent", "lost.vhdx", "orphan.avhdx"},
		{"create", "changed.vhdx", "64M"},
		{"create", "--parent", "changed.vhdx", "stale.avhdx"},
		{"create", "--force", "changed.vhdx", "64M"},
		{"create", "into.vhdx", "64M"},
		{"create", "--parent", "into.vhdx", "merged.avhdx"},
		{"merge", "merged.avhdx"},
		{"create", "headless.vhdx", "64M"},
		{"create", "cut.vhdx", "--type", "fixed", "8M"},
	} {
		mustRun(t, args...)
	}
	damage(t, "headless.vhdx", header1, 8)
	damage(t, "headless.vhdx", header2, 8)
	for name, content := range map[string]string{
		"disk.raw":     strings.Repeat("\x00", 1<<20-1) + "x",
		"letter.txt":   "Dear reader",
		"empty.vhdx":   "",
		"old.vhd":      "conectix" + strings.Repeat("\x00", 504),
		"qemu.qcow2":   "QFI\xfb" + strings.Repeat("\x00", 1020),
		"disk.vhdx.gz": "\x1f\x8b\x08" + strings.Repeat("\x00", 1021),
		"not.undo":     strings.Repeat("undo", 1<<10),
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat("cut.vhdx")
	if err == nil {
		err = os.Truncate("cut.vhdx", st.Size()-(1<<20))
	}
	if err == nil {
		err = os.Rename("lost.vhdx", filepath.Join(t.TempDir(), "lost.vhdx"))
	}
	if err == nil {
		err = os.Mkdir("directory", 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Each mistake has its status, and a message of one line that names the object once, what is wrong and what to do. Nothing
// changes.
func TestGoldenMistakes(t *testing.T) {
	agreed, err := filepath.Abs(mistakesFile)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(agreed)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	mistakesSetup(t)
	before := treeOf(t, dir)
	var out strings.Builder
	n := 0
	for line := range strings.Lines(string(table)) {
		command, is := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "$ vhdxfs")
		if !is {
			if strings.HasPrefix(line, "#") {
				out.WriteString("\n" + line)
			}
			continue
		}
		n++
		r := run(t, words(t, command)...)
		if r.status == statusOK || r.status == statusFault || strings.Count(r.stderr, "\n") != 1 && r.stdout == "" {
			t.Errorf("vhdxfs%s: status %d, %q; want a failure with one line", command, r.status, r.stderr)
		}
		fmt.Fprintf(&out, "\n$ vhdxfs%s\n[%d] %s", command, r.status, guids.ReplaceAllString(strings.ReplaceAll(r.stdout+r.stderr, dir, "DIR"), "GUID"))
		if after := treeOf(t, dir); !maps.Equal(after, before) {
			t.Fatalf("vhdxfs%s changed the files: %q, before %q", command, slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
		}
	}
	if n < 60 {
		t.Errorf("%d mistakes, want 60", n)
	}
	got := strings.TrimPrefix(out.String(), "\n")
	if *update {
		if err := os.WriteFile(agreed, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(table) {
		t.Errorf("the answers differ from %s; if that is meant, run this test with -update\n%s", mistakesFile, firstDifference(got, string(table)))
	}
}

// treeOf returns what identifies the state of each file below dir: its inode, its size and when it was changed.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	states := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		err = unix.Stat(path, &st)
		states[path] = fmt.Sprint(st.Ino, st.Size, st.Ctim)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return states
}

// words splits a line as a shell does, as far as quotes go.
func words(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "set -f; printf '%s\\0'"+line).Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(line) == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// What a rescue prints at its two steps before the data is read: info names a parent that is missing and does not guess what
// hides behind it, and convert speaks of unreadable ranges only where there are some.
func TestRescueMessages(t *testing.T) {
	t.Chdir(t.TempDir())
	mistakesSetup(t)
	for _, c := range []struct {
		args    []string
		status  int
		has, no string
	}{
		{[]string{"info", "orphan.avhdx"}, statusOK, "lost.vhdx, missing", "no known"},
		{[]string{"info", "orphan.avhdx"}, statusOK, "unknown without the parent", "no known"},
		{[]string{"convert", "--skip-errors", "headless.vhdx", "a.raw"}, statusWarnings, "no unreadable range was found", "are zeros"},
		{[]string{"convert", "--skip-errors", "cut.vhdx", "b.raw"}, statusWarnings, "unreadable ranges are zeros", "no unreadable"},
		{[]string{"check", "cut.vhdx"}, statusDamaged, "all errors are about data beyond the end of the file", "else vhdxfs"},
	} {
		r := run(t, c.args...)
		if all := r.stdout + r.stderr; r.status != c.status || !strings.Contains(all, c.has) || strings.Contains(all, c.no) {
			t.Errorf("vhdxfs %s: status %d, %s; want %d, %q and not %q", c.args, r.status, all, c.status, c.has, c.no)
		}
	}
}
