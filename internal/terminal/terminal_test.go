package terminal

import (
	"os/exec"
	"testing"
)

func TestEscape(t *testing.T) {
	for s, want := range map[string][2]string{
		"/srv/a.vhdx":     {"/srv/a.vhdx", "/srv/a.vhdx"},
		"/srv/ä b":        {"/srv/ä b", "/srv/ä b"},
		"a\x1b[31mred":    {`a\x1b[31mred`, `"a\x1b[31mred"`},
		"a\nb":            {`a\nb`, `"a\nb"`},
		"a\xffb":          {`a\xffb`, `"a\xffb"`},
		"right\u202eleft": {`right\u202eleft`, `"right\u202eleft"`},
		"":                {"", ""},
	} {
		if got := [2]string{Escape(s), Printable(s)}; got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// A shell takes what Shell returns for one word again.
func TestShell(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skipf("needs bash: %v", err)
	}
	for s, want := range map[string]string{
		"/srv/a.vhdx":                  "/srv/a.vhdx",
		"":                             "''",
		"a b":                          "'a b'",
		"a'b":                          `'a'\''b'`,
		"$(id); rm -r":                 "'$(id); rm -r'",
		"a\nb":                         `$'a\012b'`,
		"\x1b[31m\u202e'\\\xff9\ufffd": `$'\033[31m\342\200\256\'\\\3779�'`,
	} {
		got := Shell(s)
		if got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
		cmd := exec.Command(bash, "-c", "printf %s "+got)
		cmd.Env = []string{"LC_ALL=C.UTF-8"}
		if out, err := cmd.Output(); err != nil || string(out) != s {
			t.Errorf("%q: bash takes %s for %q, %v", s, got, out, err)
		}
	}
}
