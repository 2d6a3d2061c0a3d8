package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Wrong usage ends with status 1 and one line that says what to do.
func TestUsageErrors(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "missing command or IMAGE; see vhdxfs help"},
		{[]string{"x.vhdx"}, "missing MOUNTPOINT; usage: vhdxfs "},
		{[]string{"x.vhdx", "y", "z"}, `unexpected argument "z"`},
		{[]string{"-x", "x.vhdx", "y"}, "unknown flag -x; see vhdxfs --help"},
		{[]string{"x.vhdx", "y", "-o"}, "flag --options needs a value: LIST"},
		{[]string{"x.vhdx", "y", "-o", "color"}, `unknown option "color"`},
		{[]string{"inof", "x.vhdx"}, `unknown command "inof"; did you mean info?`},
		{[]string{"chek", "x.vhdx"}, `unknown command "chek"; did you mean check?`},
		{[]string{"frobnicate"}, `unknown command "frobnicate"; see vhdxfs help`},
		{[]string{"help", "inof"}, `no help on "inof"; did you mean info?`},
		{[]string{"info", "--jsn", "x"}, "unknown flag --jsn; did you mean --json?"},
		{[]string{"info", "--json=yes", "x"}, "--json takes no value"},
		{[]string{"compare", "--workers", "many", "x", "y"}, "--workers many: give a whole number"},
		{[]string{"create", "x", "10X"}, `invalid size "10X": give a positive size such as 64M or 10G`},
		{[]string{"create", "--size", "1G", "x", "2G"}, `unexpected argument "2G"`},
		{[]string{"resize", "x", "-big"}, "unknown flag -b"},
		{[]string{"resize", "x", "big"}, `invalid size "big"`},
		{[]string{"info"}, "missing IMAGE; usage: vhdxfs info "},
		{[]string{"info", "--yaml", "x"}, "see vhdxfs info --help"},
		{[]string{"check", "-o", "uid=1", "x"}, "option uid applies only to mounting"},
		{[]string{"map", "x", "y"}, `unexpected argument "y"`},
		{[]string{"create", "x"}, "missing SIZE, --parent or --from"},
		{[]string{"create", "--size", "big", "x"}, `such as 64M or 10G`},
		{[]string{"create", "--size", "1000", "x"}, "disk size 1000"},
		{[]string{"create", "--size", "1G", "--type", "thin", "x"}, `type "thin"`},
		{[]string{"version", "x"}, `unexpected argument "x"`},
	} {
		r := run(t, tc.args...)
		if r.status != statusUsage || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("vhdxfs %q: status %d, %q; want %d and %q", tc.args, r.status, r.stderr, statusUsage, tc.want)
		}
		checkMessage(t, r)
	}
}

// checkMessage wants one line on standard error, and nothing on standard output.
func checkMessage(t *testing.T, r result) {
	t.Helper()
	if !strings.HasPrefix(r.stderr, "vhdxfs: ") && !strings.HasPrefix(r.stderr, `{"error":"`) || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
		t.Errorf("standard error %q, output %q; want one line", r.stderr, r.stdout)
	}
}

func TestStatusOf(t *testing.T) {
	corrupt := fmt.Errorf("x: %w", &vhdx.FormatError{Err: errors.New("y")})
	denied := &fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}
	missing := &fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}
	for _, tc := range []struct {
		err         error
		plain, asMt int
	}{
		{corrupt, statusDamaged, statusMount},
		{denied, statusUsage, statusUsage},
		{missing, statusSystem, statusMount},
		{fmt.Errorf("x: %w", vhdx.ErrLocked), statusSystem, statusMount},
		{fmt.Errorf("x: %w", mounts.ErrNoFUSE), statusSystem, statusSystem},
		{usageError("x"), statusUsage, statusUsage},
		{fmt.Errorf("x: %w", fault.New("y")), statusFault, statusFault},
		{usageError("x: %w", fault.New("y")), statusFault, statusFault},
	} {
		if got := statusOf(tc.err); got != tc.plain {
			t.Errorf("%v: status %d, want %d", tc.err, got, tc.plain)
		}
		if got := statusOf(mountError(tc.err)); got != tc.asMt {
			t.Errorf("%v when mounting: status %d, want %d", tc.err, got, tc.asMt)
		}
	}
	if mountError(nil) != nil {
		t.Error("no error has become one")
	}
}

// A panic in a command is an error with a status of its own, and tells where it was.
func TestCommandThatPanics(t *testing.T) {
	c := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error { panic("out of order") }}
	c.SetArgs(nil)
	_, err := execute(t.Context(), c)
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || statusOf(err) != statusFault || !strings.Contains(string(f.Stack), "TestCommandThatPanics") {
		t.Errorf("%v, status %d", err, statusOf(err))
	}
}

// The help of every command fits the terminal and has a usage, examples, and no statuses but its own.
func TestHelp(t *testing.T) {
	texts := map[string]string{}
	for _, args := range [][]string{{"--help"}, {"help"}, {"help", "options"}, {"help", "exit-status"}} {
		texts[strings.Join(args, " ")] = mustRun(t, args...)
	}
	for _, name := range commandNames(newRoot(nil)) {
		text := mustRun(t, "help", name)
		texts["help "+name] = text
		for _, want := range []string{"Usage:\n", "Flags:\n", "Examples:\n", "Exit status:\n  0    success\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("help %s lacks %q", name, want)
			}
		}
		for _, s := range exitStatuses {
			own := slices.ContainsFunc(statusesOf(name), func(o exitStatus) bool { return o.status == s.status })
			if strings.Contains(text, fmt.Sprintf("\n  %-4d ", s.status)) != own {
				t.Errorf("help %s: status %d is there: %v", name, s.status, !own)
			}
		}
		if name != "help" && mustRun(t, name, "--help") != text {
			t.Errorf("%s --help is not help %[1]s", name)
		}
	}
	for name, text := range texts {
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(line) > 81 || strings.Contains(line, "`") {
				t.Errorf("%s has the line %q", name, line)
			}
		}
	}
	for _, s := range exitStatuses {
		if !strings.Contains(strings.Join(strings.Fields(texts["help exit-status"]), " "), fmt.Sprintf(" %d %s", s.status, s.help)) {
			t.Errorf("help exit-status lacks %d", s.status)
		}
	}
	if texts["help"] != texts["--help"] {
		t.Error("help and --help differ")
	}
}

func TestCreate(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want vhdx.Info
	}{
		{nil, vhdx.Info{Type: vhdx.Dynamic, BlockSize: vhdx.DefaultBlockSize(64 << 20), LogicalSectorSize: 512, PhysicalSectorSize: 4096}},
		{[]string{"--type", "fixed", "--block-size", "2M", "--logical-sector-size", "4096", "--log-size", "2MiB"},
			vhdx.Info{Type: vhdx.Fixed, BlockSize: 2 << 20, LogicalSectorSize: 4096, PhysicalSectorSize: 4096, Log: vhdx.LogInfo{Length: 2 << 20}}},
		{[]string{"--zero-blocks", "--physical-sector-size=512", "--block-size=32M"},
			vhdx.Info{Type: vhdx.Dynamic, BlockSize: 32 << 20, LogicalSectorSize: 512, PhysicalSectorSize: 512, Blocks: vhdx.BlockCounts{Zero: 2}}},
	} {
		path := newImage(t, tc.args...)
		r := run(t, "info", "--json", path)
		var got vhdx.Info
		if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.status != 0 {
			t.Fatalf("info --json: status %d, %v, %s", r.status, err, r.stderr)
		}
		w := tc.want
		if got.DiskSize != 64<<20 || got.Type != w.Type || got.BlockSize != w.BlockSize || got.LogicalSectorSize != w.LogicalSectorSize ||
			got.PhysicalSectorSize != w.PhysicalSectorSize || got.Blocks.Zero != w.Blocks.Zero || w.Log.Length != 0 && got.Log.Length != w.Log.Length {
			t.Errorf("create %q made %+v", tc.args, got)
		}
		if r := run(t, "check", path); r.status != 0 || r.stdout != path+": clean\n" {
			t.Errorf("check of what create %q made: status %d, %q", tc.args, r.status, r.stdout)
		}
	}
	path := newImage(t)
	r := run(t, "create", "--size", "1G", path)
	if r.status != statusUsage || !strings.Contains(r.stderr, path+" ") {
		t.Errorf("create over an image: status %d, %q", r.status, r.stderr)
	}
	checkMessage(t, r)
	r = run(t, "create", "--size", "1G", filepath.Join(path, "x"))
	if r.status != statusSystem || !strings.Contains(r.stderr, path) {
		t.Errorf("create below a file: status %d, %q", r.status, r.stderr)
	}
	checkMessage(t, r)
}

// info has eight lines for people, and with -v the rest.
func TestInfoText(t *testing.T) {
	path := newImage(t, "--logical-sector-size", "4096")
	short := "image:      " + path + `
type:       dynamic, blocks of 1 MiB, sectors of 4 KiB (losetup --sector-size 4096)
disk size:  64 MiB
file size:  4 MiB, 0 B used by the disk
contents:   no known partition table or file system
parent:     none
state:      clean
mounted:    no
`
	if out := mustRun(t, "info", path); out != short {
		t.Errorf("info:\n%s\nwant:\n%s", out, short)
	}
	out := mustRun(t, "info", "-v", path)
	for _, want := range []string{
		short, "64 MiB (67108864 bytes)", "logical 4 KiB, physical 4 KiB", "losetup --sector-size 4096",
		"clean", "header 2, current:", "data write GUID", "BAT at 0x", "virtual disk size", "64 not present",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("info -v lacks %q:\n%s", want, out)
		}
	}
	if out := mustRun(t, "info", "--bytes", path); !strings.Contains(out, "disk size:  67108864 B\n") {
		t.Errorf("info --bytes:\n%s", out)
	}
}

// check tells by its status what it found; the report says the rest.
func TestCheckStatus(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(path string)
		status int
		want   string
	}{
		{"clean", func(string) {}, statusOK, ": clean"},
		{"one header", func(p string) { damage(t, p, header1, 8) }, statusWarnings, "(header, offset 0x10000)"},
		{"both headers", func(p string) { damage(t, p, header1, 8); damage(t, p, header2, 8) }, statusDamaged, "error: "},
		{"no image", func(p string) { damage(t, p, 0, 8) }, statusDamaged, "rule R"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newImage(t)
			tc.damage(path)
			r := run(t, "check", path)
			if r.status != tc.status || !strings.Contains(r.stdout, tc.want) || r.stderr != "" {
				t.Errorf("status %d, %q, %q; want %d and %q", r.status, r.stdout, r.stderr, tc.status, tc.want)
			}
			j := run(t, "check", "--json", path)
			var report vhdx.Report
			if err := json.Unmarshal([]byte(j.stdout), &report); err != nil || j.status != tc.status {
				t.Errorf("--json: status %d, %v", j.status, err)
			}
			if report.Clean() != (tc.status == statusOK) || report.Sound() != (tc.status != statusDamaged) {
				t.Errorf("--json: %+v", report)
			}
			for _, name := range []string{"info", "map"} {
				r := run(t, name, path)
				if tc.status != statusDamaged {
					if r.status != 0 {
						t.Errorf("%s: status %d, %s", name, r.status, r.stderr)
					}
					continue
				}
				if r.status != statusDamaged {
					t.Errorf("%s: status %d, want %d", name, r.status, statusDamaged)
				}
				checkMessage(t, r)
			}
		})
	}
}

func TestImageThatCannotBeOpened(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.vhdx")
	for _, name := range []string{"info", "check", "map"} {
		r := run(t, name, missing)
		if r.status != statusSystem || !strings.Contains(r.stderr, missing) {
			t.Errorf("%s: status %d, %q; want %d", name, r.status, r.stderr, statusSystem)
		}
		checkMessage(t, r)
	}
}

func TestMap(t *testing.T) {
	for _, tc := range []struct {
		kind, state string
		zero        bool
	}{{"dynamic", "NOT_PRESENT", true}, {"fixed", "FULLY_PRESENT", false}} {
		path := newImage(t, "--type", tc.kind)
		var entries []mapEntry
		r := run(t, "map", "--json", path)
		if err := json.Unmarshal([]byte(r.stdout), &entries); err != nil || r.status != 0 {
			t.Fatalf("map --json: status %d, %v\n%s", r.status, err, r.stdout)
		}
		off := int64(0)
		for _, e := range entries {
			if e.Offset != off || e.State != tc.state || e.Zero != tc.zero || e.Layer != 0 {
				t.Errorf("%s: entry %+v at %d", tc.kind, e, off)
			}
			if !tc.zero && (e.File != path || e.FileOffset == nil || *e.FileOffset%(1<<20) != 0) {
				t.Errorf("%s: entry %+v does not tell where it is", tc.kind, e)
			}
			off += e.Length
		}
		if off != 64<<20 {
			t.Errorf("%s: the map ends at %d", tc.kind, off)
		}
		if r := run(t, "map", path); r.status != 0 || !strings.Contains(r.stdout, tc.state) || !strings.Contains(r.stdout, "64 MiB") {
			t.Errorf("map: status %d\n%s", r.status, r.stdout)
		}
	}
}

// What an image, or the name of a file, has in it must not be obeyed by the terminal that a message goes to.
func TestNothingForTheTerminal(t *testing.T) {
	dir := t.TempDir()
	base, child, odd := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx"), filepath.Join(dir, "\x1b[31m\nodd.vhdx")
	mustRun(t, "create", "--size", "64M", base)
	mustRun(t, "create", "--parent", base, child)
	mustRun(t, "create", "--size", "64M", odd)
	b, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	utf16 := func(s string) (out []byte) {
		for _, r := range s {
			out = append(out, byte(r), 0)
		}
		return out
	}
	b = bytes.ReplaceAll(b, utf16("base.vhdx"), utf16("\x1b[31m.vhd"))
	if err := os.WriteFile(child, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"info", child}, {"check", child}, {"chain", child}, {"map", child}, {"snapshot", child}, {"compact", child},
		{"info", odd}, {"check", odd}, {"chain", odd}, {"compact", odd}, {"resize", odd, "65M"}, {"check", "--repair", odd},
		{"convert", odd, odd + ".raw"}, {"snapshot", odd, filepath.Join(dir, "next\a.avhdx")}, {"info", odd + "x"},
		{"set-parent", filepath.Join(dir, "next\a.avhdx"), odd}, {"map", odd}, {"merge", "--delete", filepath.Join(dir, "next\a.avhdx")},
	} {
		r := run(t, args...)
		if out := r.stdout + r.stderr; out == "" || strings.ContainsAny(out, "\x1b\a") {
			t.Errorf("%q: status %d, %q", args, r.status, out)
		}
	}
}

// A parent that no search will find is worth a warning, from each command that makes or moves the child.
func TestParentOutsideTheDir(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	base := in("base.vhdx")
	mustRun(t, "create", "--size", "64M", base)
	for _, tc := range []struct {
		args []string
		warn bool
	}{
		{[]string{"create", "--parent", base, in("child.avhdx")}, false},
		{[]string{"create", "--parent", base, filepath.Join(link, "linked.avhdx")}, false},
		{[]string{"create", "--parent", base, filepath.Join(other, "child.avhdx")}, true},
		{[]string{"set-parent", in("child.avhdx"), base}, false},
		{[]string{"set-parent", filepath.Join(other, "child.avhdx"), base}, true},
		{[]string{"snapshot", "--branch", base, in("next.avhdx")}, false},
		{[]string{"snapshot", "--branch", base, filepath.Join(other, "next.avhdx")}, true},
	} {
		r := run(t, tc.args...)
		if want := "-o parent_dir=" + dir; r.status != statusOK || strings.Contains(r.stderr, want) != tc.warn {
			t.Errorf("%q: status %d, %q; a warning with %q: %t", tc.args, r.status, r.stderr, want, tc.warn)
		}
		if child := tc.args[len(tc.args)-1]; tc.args[0] != "set-parent" && (run(t, "check", child).status == statusOK) == tc.warn {
			t.Errorf("%s opens without a word of where its parent is: %t", child, tc.warn)
		}
	}
}

func TestPictureToStandardOutput(t *testing.T) {
	t.Chdir(t.TempDir())
	path := newImage(t)
	if out := mustRun(t, "map", "--svg", "-", path); !strings.HasPrefix(out, "<") || !strings.HasSuffix(strings.TrimSpace(out), "</svg>") {
		t.Errorf("map --svg -: %.80q", out)
	}
	if out := mustRun(t, "map", "--png", "-", path); !strings.HasPrefix(out, "\x89PNG") {
		t.Errorf("map --png -: %.80q", out)
	}
	if _, err := os.Lstat("-"); err == nil {
		t.Error("a file - was made")
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "",
		"a":                                    "a",
		"a\x00b\x00":                           "a; b",
		"none found; tried:\x00  x\x00\x00  y": "none found; tried: x; y",
		"a\nb":                                 `a\nb`,
		"open \x1b[31mred\u202e: no":           `open \x1b[31mred\u202e: no`,
		"a\tb\xffc":                            `a\tb\xffc`,
		"größer":                               "größer",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestVersionCompletion(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if r := run(t, args...); r.status != 0 || !strings.HasPrefix(r.stdout, "vhdxfs ") {
			t.Errorf("%q: status %d, %q", args, r.status, r.stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := run(t, "completion", shell); r.status != 0 || !strings.Contains(r.stdout, "vhdxfs") {
			t.Errorf("completion %s: status %d", shell, r.status)
		}
	}
	for typed, want := range map[string]string{
		"ro,par": "ro,parent_dir=\t", "ro,discard=": "ro,discard=punch\n", "overlay=": "overlay=tmp\n", "r": "ro\t",
	} {
		if r := run(t, "__complete", "-o", typed); !strings.Contains(r.stdout, want) {
			t.Errorf("completion of -o %s: %s", typed, r.stdout)
		}
	}
	if r := run(t, "__complete", "-o", "overlay="); strings.Contains(r.stdout, "FILE") {
		t.Errorf("completion of -o overlay=: %s", r.stdout)
	}
}

// What people are used to from other programs works.
func TestHabits(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "b.vhdx")
	for _, args := range [][]string{
		{"create", a, "64Mi"}, {"-q", "create", "-v", b, "1G"}, {"resize", a, "+1G"}, {"resize", a, "-512M", "-q"}, {"check", "-q", a}, {"rebase", "-h"},
		{"unmount", "--help"},
	} {
		mustRun(t, args...)
	}
	var list []vhdx.Info
	if err := json.Unmarshal([]byte(mustRun(t, "info", "--json", a, b)), &list); err != nil || len(list) != 2 || list[0].DiskSize != 576<<20 || list[1].Path != b {
		t.Errorf("info of two images: %v, %+v", err, list)
	}
	if out := mustRun(t, "info", a, b); !strings.Contains(out, a) || !strings.Contains(out, b) {
		t.Errorf("info of two images: %s", out)
	}
}

// With --json an error is one object on standard error, also where the flags themselves are wrong, and a path that is not
// UTF-8 is told byte by byte.
func TestJSONErrors(t *testing.T) {
	dir := t.TempDir()
	broken := newImage(t)
	damage(t, broken, 0, 8)
	for _, tc := range []struct {
		args   []string
		status int
		want   jsonError
	}{
		{[]string{"info", "--json", filepath.Join(dir, "none.vhdx")}, statusSystem, jsonError{Path: filepath.Join(dir, "none.vhdx")}},
		{[]string{"info", "--json", broken}, statusDamaged, jsonError{Structure: "file type identifier", Rule: "R2"}},
		{[]string{"info", "--json", "--yaml", broken}, statusUsage, jsonError{Error: "unknown flag --yaml; see vhdxfs info --help"}},
		{[]string{"detach", "--json", broken}, statusNotMounted, jsonError{Error: broken + " is not mounted; vhdxfs list shows what is mounted"}},
	} {
		r := run(t, tc.args...)
		var got jsonError
		if err := json.Unmarshal([]byte(r.stderr), &got); err != nil || r.stdout != "" || r.status != tc.status || got.Status != tc.status {
			t.Errorf("%q: status %d, %v\n%s%s", tc.args, r.status, err, r.stderr, r.stdout)
		}
		if got.Path != tc.want.Path || got.Structure != tc.want.Structure || got.Rule != tc.want.Rule || got.Error == "" ||
			tc.want.Error != "" && got.Error != tc.want.Error || (got.Offset != nil) != (tc.want.Structure != "") {
			t.Errorf("%q: %+v", tc.args, got)
		}
	}
	odd := filepath.Join(dir, "b\xf6se \ufffd.vhdx")
	mustRun(t, "create", odd, "16M")
	for _, args := range [][]string{{"info", "--json", odd}, {"check", "--json", odd}, {"chain", "--json", odd}} {
		if out := mustRun(t, args...); !strings.Contains(out, `b\udcf6se `+"\ufffd.vhdx") || !json.Valid([]byte(out)) {
			t.Errorf("%q: %s", args, out)
		}
	}
	if out := run(t, "info", "--json", odd+"x").stderr; !strings.Contains(out, `b\udcf6se `) || !json.Valid([]byte(out)) {
		t.Errorf("an error: %s", out)
	}
	var v struct{ Version, Go string }
	if err := json.Unmarshal([]byte(mustRun(t, "version", "--json")), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("version --json: %+v, %v", v, err)
	}
}

func TestMessageFormatter(t *testing.T) {
	log := logrus.New()
	log.SetFormatter(messageFormatter{})
	var b strings.Builder
	log.SetOutput(&b)
	log.WithError(errors.New("no space left")).WithField("offset", 7).WithField("image", "a.vhdx").Warn("cannot flush")
	log.Error("it failed")
	if got := b.String(); got != "vhdxfs: warning: cannot flush: no space left (image a.vhdx, offset 7)\nvhdxfs: it failed\n" {
		t.Errorf("%q", got)
	}
}
