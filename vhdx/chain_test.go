package vhdx

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// newChain makes a chain of n images in a new directory, base.vhdx first, and returns their paths.
func newChain(t *testing.T, n int) []string {
	t.Helper()
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "base.vhdx")}
	if err := Create(paths[0], CreateOptions{Size: 4 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("child%d.vhdx", i)))
		if err := Create(paths[i], CreateOptions{Parent: paths[i-1]}); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func TestChain(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(t *testing.T, paths []string)
		states  string // of the links from the last child on
		problem string // of the link that is broken
	}{
		{"linked", func(*testing.T, []string) {}, "linked, linked, ", ""},
		{"no base", func(t *testing.T, p []string) { remove(t, p[0]) }, "linked, parent missing", "base.vhdx (relative_path): no such file"},
		{"no middle", func(t *testing.T, p []string) { remove(t, p[1]) }, "parent missing", "child1.vhdx"},
		{"base written", func(t *testing.T, p []string) { writeTo(t, p[0]) }, "linked, parent changed, ", "it has changed since"},
		{"middle written", func(t *testing.T, p []string) { writeTo(t, p[1]) }, "parent changed, linked, ", "it has changed since"},
		{"base damaged", func(t *testing.T, p []string) {
			remove(t, p[0])
			if err := os.WriteFile(p[0], make([]byte, 4*ondisk.MiB), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "linked, parent unusable, ", "R2"},
		{"loop", func(t *testing.T, p []string) {
			remove(t, p[0])
			if err := os.Link(p[2], p[0]); err != nil {
				t.Fatal(err)
			}
		}, "linked, parent unusable, ", "has this file already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			paths := newChain(t, 3)
			tc.change(t, paths)
			k, err := Chain(paths[2], Options{})
			if err != nil {
				t.Fatal(err)
			}
			var states []string
			problem := ""
			for ; k != nil; k = k.Parent {
				states = append(states, string(k.State))
				problem += k.Problem
			}
			if got := strings.Join(states, ", "); got != tc.states {
				t.Errorf("states %q, want %q", got, tc.states)
			}
			if (problem == "") != (tc.problem == "") || !strings.Contains(problem, tc.problem) {
				t.Errorf("problem %q, want %q", problem, tc.problem)
			}
			// All locks are released.
			for _, p := range paths {
				if f, err := os.OpenFile(p, os.O_RDWR, 0); err == nil {
					if err := imagefile.Of(f).Lock(LockOn, imagefile.Exclusive); err != nil {
						t.Error(err)
					}
					f.Close()
				}
			}
		})
	}
	if _, err := Chain(filepath.Join(t.TempDir(), "missing.vhdx"), Options{}); !os.IsNotExist(err) {
		t.Errorf("a missing image: %v", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// writeTo changes a byte of a disk.
func writeTo(t *testing.T, path string) {
	t.Helper()
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSharedLayers(t *testing.T) {
	paths := newChain(t, 3)
	a, err := Open(paths[2], Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Open(paths[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := a.SharedLayers(b); len(got) != 2 || !got[[2]int{1, 0}] || !got[[2]int{2, 1}] {
		t.Errorf("shared layers %v", got)
	}
}

func TestFreeRanges(t *testing.T) {
	img := build(spec{dataOff: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}}})
	img.grow(11 * ondisk.MiB)
	im := chain{img}.open(t, Options{})
	var got [][2]int64
	total := int64(0)
	im.FreeRanges(func(off, n int64) { got = append(got, [2]int64{off / ondisk.MiB, n / ondisk.MiB}); total += n })
	if fmt.Sprint(got) != "[[4 4] [9 2]]" || total != im.Info().FreeBytes {
		t.Errorf("free %v, %d bytes, want %d", got, total, im.Info().FreeBytes)
	}
}

// What Info tells of the parents of a long chain is put together once.
func TestInfoOfParentsOnce(t *testing.T) {
	p := newChain(t, 50)
	im, err := Open(p[len(p)-1], Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	first := im.Info()
	if _, err := im.WriteAt([]byte("data"), 0); err != nil {
		t.Fatal(err)
	}
	again := im.Info()
	if again == first || again.AllocatedBytes == first.AllocatedBytes {
		t.Error("the image itself is told of as it was")
	}
	if again.Parent.Image != first.Parent.Image {
		t.Error("its parents are looked at again")
	}
	n := 0
	for in := again; in.Parent != nil; in = in.Parent.Image {
		n++
	}
	if n != len(p)-1 {
		t.Errorf("%d parents, want %d", n, len(p)-1)
	}
}
