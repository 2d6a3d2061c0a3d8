package cli

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The files that are asked for are none of the children, whosever child they are: merge takes a run of a chain.
func TestChildrenOf(t *testing.T) {
	base := newImage(t)
	child, grandchild := filepath.Join(filepath.Dir(base), "child.avhdx"), filepath.Join(filepath.Dir(base), "grandchild.avhdx")
	for _, args := range [][]string{{"create", "--parent", base, child}, {"create", "--parent", child, grandchild}} {
		if r := run(t, args...); r.status != 0 {
			t.Fatalf("%q: status %d, %s", args, r.status, r.stderr)
		}
	}
	for _, tt := range []struct {
		files []string
		want  []childImage
	}{
		{[]string{base}, []childImage{{path: child, parent: base}}},
		{[]string{base, child}, []childImage{{path: grandchild, parent: child}}},
		{[]string{grandchild}, nil},
	} {
		got, err := childrenOf(tt.files, vhdx.Options{})
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("childrenOf(%q) = %v, %v; want %v", tt.files, got, err, tt.want)
		}
	}
}
