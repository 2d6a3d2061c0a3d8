package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// A name that looks like a message of its own, changes colours and the direction of the text, and is no UTF-8.
const evil = "a\nvhdxfs: warning: \x1b[31m\u202e\x07\u009b\xff; rm -r"

// What a command writes about files of any names has one line for each thing that is said, has nothing that a terminal obeys, and is
// UTF-8.
func TestNamesInOutput(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, evil, name) }
	if err := os.Mkdir(in(""), 0o755); err != nil {
		t.Fatal(err)
	}
	img, base, kid, lost := in(evil+".vhdx"), in("base.vhdx"), in("kid.avhdx"), in("lost.avhdx")
	mustRun(t, "create", img, "64M")
	if err := os.Rename(img, base); err != nil { // a child cannot record such a name
		t.Fatal(err)
	}
	mustRun(t, "create", "--parent", base, kid)
	mustRun(t, "create", in("gone.vhdx"), "64M")
	mustRun(t, "create", "--parent", in("gone.vhdx"), lost)
	mustRun(t, "create", img, "64M")
	damaged := in("damaged" + evil + ".vhdx")
	mustRun(t, "create", damaged, "64M")
	damage(t, damaged, header1, 8)
	headless := in("headless" + evil + ".vhdx")
	mustRun(t, "create", headless, "64M")
	damage(t, headless, header1, 8)
	damage(t, headless, header2, 8)
	raw := in(evil + ".raw")
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(in("gone.vhdx")); err != nil {
		t.Fatal(err)
	}
	missing := in("missing" + evil)

	var commands [][]string
	for _, path := range []string{img, kid, lost, headless, missing, in("")} {
		for _, command := range []string{"info", "check", "map", "chain", "diff", "hash", "files"} {
			commands = append(commands, []string{command, path}, []string{command, "-v", path}, []string{command, "--json", path})
		}
		for _, command := range []string{"detach", "umount", "stats", "close", "break-lease", "probe"} {
			commands = append(commands, []string{command, path})
		}
		commands = append(commands,
			[]string{"map", "--draw", path}, []string{"info", "--zeros", path}, []string{"check", "--repair", "--dry-run", path},
			[]string{"compare", path, img}, []string{"compare", raw, path}, []string{"create", path, "64M"}, []string{"create", path},
			[]string{"create", "--parent", path, in("x" + evil + ".vhdx")}, []string{"set-parent", kid, path}, []string{"set-parent", path, img},
			[]string{"apply", path, img}, []string{"apply", img, path}, []string{"check", "--undo", path}, []string{"check", "--undo", path, img},
			[]string{"hash", "--check", path, img}, []string{"convert", path, path}, []string{"flatten", path, img}, []string{"extract", path, evil, in("")},
			[]string{"snapshot", path, raw}, []string{"snapshot", path, path}, []string{"merge", path}, []string{"merge", "--into", path, kid},
			[]string{"resize", path, "+" + evil}, []string{"resize", path, "1"}, []string{"compact", "--dry-run", path}, []string{path}, []string{"-o", evil, path, path},
			[]string{"-f", "-o", "parent=" + strings.ReplaceAll(path, ",", ""), path, missing}, []string{"-f", path, path})
	}
	commands = append(commands,
		[]string{"check", "--repair", damaged}, []string{"check", "--undo", damaged + ".undo"}, []string{"check", damaged},
		[]string{"convert", raw, in("from raw " + evil + ".vhdx")}, []string{"convert", img, in("to raw " + evil + ".raw")},
		[]string{"snapshot", img, in("next " + evil + ".vhdx")}, []string{"snapshot", kid, in("next " + evil + ".vhdx")},
		[]string{"snapshot", "--keep-name", kid, in("before " + evil + ".vhdx")}, []string{"chain", in("")}, []string{"chain", "--json", in("")},
		[]string{"merge", "--keep-name", kid}, []string{"resize", img, "128M"}, []string{"compact", img}, []string{"hash", "--output", in("list " + evil), img},
		[]string{"diff", "--output", in("delta " + evil + ".avhdx"), base, img}, []string{evil}, []string{"--" + evil}, []string{"help", evil}, []string{"info", "--" + evil},
		[]string{"map", "--svg", in("map " + evil + ".svg"), img}, []string{"completion", evil},
	)
	for _, args := range commands {
		r := run(t, args...)
		for what, text := range map[string]string{"stdout": r.stdout, "stderr": r.stderr} {
			if !utf8.ValidString(text) {
				t.Errorf("vhdxfs %q: %s is no UTF-8: %q", args, what, text)
			}
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				if at := strings.IndexFunc(line, func(r rune) bool { return !strconv.IsPrint(r) }); at >= 0 {
					t.Errorf("vhdxfs %q: %s has %q", args, what, line[at:])
				}
				if strings.HasPrefix(line, `vhdxfs: warning: \x1b`) {
					t.Errorf("vhdxfs %q: a line of %s is part of a name: %q", args, what, line)
				}
			}
			if strings.Contains(text, "a; vhdxfs") {
				t.Errorf("vhdxfs %q: a line feed of a name is shown as the end of a line: %q", args, text)
			}
		}
		if strings.Count(r.stderr, "\n") > 4 {
			t.Errorf("vhdxfs %q says in more than some lines: %s", args, r.stderr)
		}
		if len(args) > 1 && args[1] == "--json" && r.stdout != "" && !json.Valid([]byte(r.stdout)) {
			t.Errorf("vhdxfs %q: no JSON: %s", args, r.stdout)
		}
	}
}
