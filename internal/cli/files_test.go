package cli

import (
	"os"
	"testing"
)

// A symbolic link is made only where it stays below the directory, with any other links there.
func TestStaysBelow(t *testing.T) {
	for _, tc := range []struct {
		target string
		depth  int
		want   bool
	}{
		{"a", 0, true}, {"a/b/c", 0, true}, {"./a", 0, true}, {"..", 0, false}, {"../a", 0, false}, {"../a", 1, true}, {"../../a", 1, false},
		{"../../a", 2, true}, {"./../a", 1, true}, {"a/..", 5, false}, {"a/../b", 5, false}, {"a/../../b", 5, false}, {"/a", 5, false},
		{"", 5, false}, {"a\x00b", 5, false}, {"..a", 0, true}, {"a..", 0, true}, {".../a", 0, true}, {"..//..//a", 1, false}, {"..//..//a", 2, true},
	} {
		if got := staysBelow(tc.target, tc.depth); got != tc.want {
			t.Errorf("staysBelow(%q, %d) = %t", tc.target, tc.depth, got)
		}
	}
}

// Directories have the names of labels, as long as that is a name, and the only one.
func TestDirNames(t *testing.T) {
	var list []*openVolume
	for i, label := range []string{"root", "a/b", "..", "p2", "", "same", "SAME", "p", "tab\t", "ok.x"} {
		list = append(list, &openVolume{Partition: i + 1, Label: label})
	}
	want := []string{"root", "p2", "p3", "p4", "p5", "p6", "p7", "p", "p9", "ok.x"}
	for i, got := range dirNames(list) {
		if got != want[i] {
			t.Errorf("label %q: %q, want %q", list[i].Label, got, want[i])
		}
	}
}

// Modes look as in ls.
func TestModeOf(t *testing.T) {
	for m, want := range map[os.FileMode]string{
		0o640: "-rw-r-----", os.ModeDir | 0o755: "drwxr-xr-x", os.ModeSymlink | 0o777: "lrwxrwxrwx", os.ModeSetuid | 0o755: "-rwsr-xr-x",
		os.ModeSetgid | 0o640: "-rw-r-S---", os.ModeDir | os.ModeSticky | 0o777: "drwxrwxrwt", os.ModeDevice | 0o660: "brw-rw----",
		os.ModeDevice | os.ModeCharDevice | 0o660: "crw-rw----", os.ModeNamedPipe: "p---------", os.ModeSocket: "s---------",
	} {
		if got := modeOf(m); got != want {
			t.Errorf("%v: %s, want %s", m, got, want)
		}
	}
}
