package terminal

import "testing"

func TestText(t *testing.T) {
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
