package cli

import (
	"slices"
	"testing"
)

func TestSplitOptions(t *testing.T) {
	for _, tc := range []struct {
		list string
		want []string
	}{
		{"", nil},
		{"ro", []string{"ro"}},
		{"ro,,uid=1,", []string{"ro", "uid=1"}},
		{`parent="/a,b/c d.vhdx",ro`, []string{"parent=/a,b/c d.vhdx", "ro"}},
		{`"parent=/a,b",ro`, []string{"parent=/a,b", "ro"}},
		{`parent=/a\,b,ro`, []string{"parent=/a,b", "ro"}},
		{`parent=/a\\,ro`, []string{`parent=/a\`, "ro"}},
		{`parent="/a\"b,c"`, []string{`parent=/a"b,c`}},
		{`parent=\\server\share`, []string{`parent=\server\share`}},
		{`parent=C:\x`, []string{`parent=C:\x`}},
		{`end\`, []string{`end\`}},
		{`fsname=""`, []string{"fsname="}},
		{"parent=/ä,ro", []string{"parent=/ä", "ro"}},
	} {
		got, err := splitOptions(tc.list)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v; want %q", tc.list, got, err, tc.want)
		}
	}
	if got, err := splitOptions(`parent="/a,ro`); err == nil {
		t.Errorf("open quote: %q, want an error", got)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"parent", "parent_dir", "ro", "uid", "info", "check"}
	for _, tc := range []struct{ word, want string }{
		{"parent_dri", "parent_dir"},
		{"parents", "parent"},
		{"inof", "info"},
		{"r", "ro"},
		{"chek", "check"},
		{"database", ""},
		{"", ""},
		{"/srv/images/disk.vhdx", ""},
	} {
		if got := nearest(tc.word, names); got != tc.want {
			t.Errorf("nearest(%q) = %q, want %q", tc.word, got, tc.want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"ro", "rw", 1}} {
		if got := editDistance(tc.a, tc.b); got != tc.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}
