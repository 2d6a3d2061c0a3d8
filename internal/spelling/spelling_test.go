package spelling

import "testing"

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
		if got := Nearest(tc.word, names); got != tc.want {
			t.Errorf("Nearest(%q) = %q, want %q", tc.word, got, tc.want)
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
