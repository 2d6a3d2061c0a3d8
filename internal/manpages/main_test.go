package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The pages have what the help has, and between it the sections of their own.
func TestManualHasTheUsualSections(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"vhdxfs":             "NAME SYNOPSIS DESCRIPTION COMMANDS OPTIONS|MOUNT OPTIONS|EXIT STATUS|FILES ENVIRONMENT SIGNALS NOTES EXAMPLES SEE ALSO",
		"mount.vhdx":         "NAME SYNOPSIS DESCRIPTION OPTIONS|MOUNT OPTIONS|EXIT STATUS|FSTAB FILES EXAMPLES SEE ALSO",
		"umount.fuse.vhdxfs": "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT STATUS|EXAMPLES SEE ALSO",
		"vhdxfs-check":       "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT STATUS|EXAMPLES SEE ALSO",
	} {
		text, err := os.ReadFile(filepath.Join(dir, name+".8"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(text)) {
			if title, ok := strings.CutPrefix(line, ".SH "); ok {
				got = append(got, strings.TrimSpace(title))
			}
		}
		if g := strings.Join(got, " "); g != strings.ReplaceAll(want, "|", " ") {
			t.Errorf("%s(8) has the sections %s, want %s", name, g, want)
		}
	}
	if err := write(filepath.Join(dir, "missing")); err == nil {
		t.Error("no error for a directory that does not exist")
	}
}

func TestManualIsGoodMarkup(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skip("needs mandoc, which is not installed")
	}
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, page := range pages {
		out, _ := exec.Command("mandoc", "-T", "lint", "-W", "warning", page).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // a test is not built from a commit
				t.Error(line)
			}
		}
	}
}
