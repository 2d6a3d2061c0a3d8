package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// manualPages writes the manual and returns its pages by name, and the folder.
func manualPages(t *testing.T) (pages map[string]string, dir string) {
	t.Helper()
	dir = t.TempDir()
	if r := run(t, "man", dir); r.status != 0 {
		t.Fatalf("man: %s", r.stderr)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		t.Fatal(err)
	}
	pages = map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// A hyphen that is none for typesetters is written so.
		pages[strings.TrimSuffix(filepath.Base(f), ".8")] = strings.ReplaceAll(string(text), `\-`, "-")
	}
	return pages, dir
}

func TestManualHasTheUsualSections(t *testing.T) {
	pages, _ := manualPages(t)
	for name, want := range map[string]string{
		"vhdxfs":             "NAME SYNOPSIS DESCRIPTION OPTIONS|MOUNT OPTIONS|EXIT STATUS|FILES SIGNALS NOTES EXAMPLES SEE ALSO",
		"mount.vhdx":         "NAME SYNOPSIS DESCRIPTION OPTIONS|MOUNT OPTIONS|EXIT STATUS|FSTAB FILES EXAMPLES SEE ALSO",
		"umount.fuse.vhdxfs": "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT STATUS|SEE ALSO",
		"vhdxfs-check":       "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT STATUS|SEE ALSO",
	} {
		var got []string
		for line := range strings.Lines(pages[name]) {
			if title, ok := strings.CutPrefix(line, ".SH "); ok {
				got = append(got, strings.TrimSpace(title))
			}
		}
		if g := strings.Join(got, " "); g != strings.ReplaceAll(want, "|", " ") {
			t.Errorf("%s(8) has the sections %s, want %s", name, g, want)
		}
	}
}

// What --help says of options and exit statuses is in the manual once, as a list.
func TestManualSaysWhatTheHelpSays(t *testing.T) {
	pages, _ := manualPages(t)
	for _, name := range []string{"vhdxfs", "mount.vhdx"} {
		for _, o := range optionTable {
			want := 1
			if o.help == "" {
				want = 0
			}
			options, _, _ := strings.Cut(pages[name], ".SH FSTAB")
			if got := strings.Count(options, ".TP\n\\fB"+o.name+"\\fP"); got != want {
				t.Errorf("%s(8) lists option %s %d times, want %d", name, o.name, got, want)
			}
		}
	}
	for name, page := range pages {
		for _, s := range exitStatuses {
			helper := slices.Contains(helperPages, name)
			help, _, _ := strings.Cut(s.help, "; of check")
			want := !helper || slices.Contains(helperStatuses, s.status)
			if got := strings.Contains(page, ".TP\n\\fB"+strconv.Itoa(s.status)+"\\fP\n"+help); got != want {
				t.Errorf("%s(8): status %d is listed: %v, want %v", name, s.status, got, want)
			}
		}
		if strings.Contains(page, "Exit status:") {
			t.Errorf("%s(8) has the exit statuses in the description as well", name)
		}
	}
	for _, c := range newRoot(nil).Commands() {
		if _, ok := pages[pageName(c)]; ok != (c.IsAvailableCommand() && !c.HasSubCommands()) {
			t.Errorf("a page for %s: %v", c.Name(), ok)
		}
	}
}

func TestManualIsGoodMarkup(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skip("needs mandoc, which is not installed")
	}
	pages, dir := manualPages(t)
	for name := range pages {
		out, _ := exec.Command("mandoc", "-T", "lint", "-W", "warning", filepath.Join(dir, name+".8")).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // a test is not built from a commit
				t.Error(line)
			}
		}
	}
}
