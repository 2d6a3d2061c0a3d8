package cli

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

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

// appears has the file from become one at to when a command has looked for children and found none: a second look has to find it.
// The command waits for it, since a lease is held on another file that it looks at after it has listed the directory.
func appears(t *testing.T, from, to string) {
	t.Helper()
	decoy, err := os.Create(filepath.Join(filepath.Dir(to), "decoy.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGIO)
	if _, err := unix.FcntlInt(decoy.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no lease can be had here: %v", err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		<-asked
		if err := errors.Join(os.Rename(from, to), decoy.Close()); err != nil { // which ends the lease
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		signal.Stop(asked)
		close(asked)
		done.Wait()
	})
}

// A child that comes after a command has looked for children, and before it has locked the image, is found.
func TestChildThatComesMeanwhile(t *testing.T) {
	for _, tc := range []struct {
		name string
		args func(base, child, delta string) []string
	}{
		{"resize", func(base, _, _ string) []string { return []string{"resize", base, "+64M"} }},
		{"apply", func(base, _, delta string) []string { return []string{"apply", delta, base} }},
		{"merge", func(_, child, _ string) []string { return []string{"merge", child} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base, elsewhere := newImage(t), t.TempDir()
			dir := filepath.Dir(base)
			child, late, delta := filepath.Join(dir, "child.avhdx"), filepath.Join(dir, "late.avhdx"), filepath.Join(elsewhere, "delta.avhdx")
			ready := [][]string{{"create", "--parent", base, late}}
			switch tc.name {
			case "apply":
				ready = append(ready, []string{"convert", base, filepath.Join(elsewhere, "other.vhdx")},
					[]string{"diff", "--output", delta, base, filepath.Join(elsewhere, "other.vhdx")})
			case "merge":
				ready = append(ready, []string{"create", "--parent", base, child})
			}
			for _, args := range ready {
				if r := run(t, args...); r.status != 0 {
					t.Fatalf("%q: status %d, %s", args, r.status, r.stderr)
				}
			}
			hidden := filepath.Join(elsewhere, "late.avhdx")
			if err := os.Rename(late, hidden); err != nil {
				t.Fatal(err)
			}
			appears(t, hidden, late)
			if r := run(t, tc.args(base, child, delta)...); r.status != statusUsage || !strings.Contains(r.stderr, "late.avhdx") {
				t.Errorf("status %d, %q", r.status, r.stderr)
			}
			if r := run(t, "check", late); r.status != 0 {
				t.Errorf("the child lost its parent: %s", r.stdout)
			}
		})
	}
}
