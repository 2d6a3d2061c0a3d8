package cli

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// manualPages returns the pages of the manual by name, as md2man renders them, without the sections that have no
// counterpart in the help.
func manualPages(t *testing.T) map[string]string {
	t.Helper()
	list, err := Manual(func(string) (string, error) { return "", nil })
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, p := range list {
		// A hyphen that is none for typesetters is written so.
		pages[p.Name] = strings.ReplaceAll(string(md2man.Render([]byte(p.Text))), `\-`, "-")
	}
	return pages
}

// What --help says of options and exit statuses is in the manual once, as a list.
func TestManualSaysWhatTheHelpSays(t *testing.T) {
	pages := manualPages(t)
	for _, name := range []string{"vhdxfs", "mount.vhdx"} {
		options, _, _ := strings.Cut(pages[name], ".SH FSTAB")
		for _, o := range mountoption.Explained() {
			if got := strings.Count(options, ".TP\n\\fB"+o.Name+"\\fP"); got != 1 {
				t.Errorf("%s(8) lists option %s %d times, want once", name, o.Name, got)
			}
		}
		for _, name := range []string{"nosuid", "auto", "user_id"} { // of those that Notes explains
			if strings.Contains(options, ".TP\n\\fB"+name+"\\fP") {
				t.Errorf("%s(8) lists option %s", name, name)
			}
		}
	}
	for name, page := range pages {
		for _, s := range exitStatuses {
			command := strings.TrimPrefix(name, "vhdxfs-")
			want := slices.ContainsFunc(statusesOf(command), func(o exitStatus) bool { return o.status == s.status })
			if got := strings.Contains(page, ".TP\n\\fB"+strconv.Itoa(s.status)+"\\fP\n"); got != want {
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
