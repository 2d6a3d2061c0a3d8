package mountoption

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
		got, err := Split(tc.list)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v; want %q", tc.list, got, err, tc.want)
		}
	}
	if got, err := Split(`parent="/a,ro`); err == nil {
		t.Errorf("open quote: %q, want an error", got)
	}
}
