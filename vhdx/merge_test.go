package vhdx

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// newWrittenChain makes a chain of n images in a new directory, base.vhdx first, each with data of its own and with some of its
// parent's blocks trimmed.
func newWrittenChain(t *testing.T, n int) []string {
	t.Helper()
	paths := newChain(t, n)
	for i, path := range paths {
		im, err := Open(path, Options{Writable: true, Lock: LockOff})
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(uint64(i), 5))
		for range 6 {
			p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, 512*(1+rng.IntN(3000)))
			if _, err := im.WriteAt(p, rng.Int64N((4*ondisk.MiB-int64(len(p)))/512)*512); err != nil {
				t.Fatal(err)
			}
		}
		if err := im.Zero(int64(i%4)*ondisk.MiB, ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		if i+1 < n { // it was made before its parent was written
			if _, err := SetParent(paths[i+1], path, SetParentOptions{Unsafe: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return paths
}

// diskSum is the checksum of what the disk reads as.
func diskSum(t *testing.T, path string, o Options) [32]byte {
	t.Helper()
	im, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	p := make([]byte, im.Size())
	if _, err := im.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(p)
}

var sumSeed = maphash.MakeSeed()

// fileSums are the checksums of all files of a directory, by name.
func fileSums(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]uint64{}
	buf := make([]byte, 256<<10)
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		var h maphash.Hash
		h.SetSeed(sumSeed)
		_, err = io.CopyBuffer(struct{ io.Writer }{&h}, struct{ io.Reader }{f}, buf)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		sums[e.Name()] = h.Sum64()
	}
	return sums
}

// checkSame fails the test unless the directory holds the files that it held before.
func checkSame(t *testing.T, what, dir string, before map[string]uint64) {
	t.Helper()
	after := fileSums(t, dir)
	for name, sum := range before {
		if after[name] != sum {
			t.Errorf("%s: %s was changed", what, name)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%s: %d files, before %d", what, len(after), len(before))
	}
}

func sound(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		r, err := Check(path, Options{})
		if err != nil || !r.Sound() || len(r.Warnings) > 0 {
			t.Errorf("check %s: %+v, %v", path, r, err)
		}
	}
}

func TestMerge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		images int
		child  int // index of what is merged
		into   int
		o      MergeOptions
		result int      // index of the path that the result has
		left   []int    // indices of the files that are there
		lost   []int    // of those that cannot be opened any more
		merged []string // names
	}{
		{"into the parent", 2, 1, 0, MergeOptions{}, 0, []int{0, 1}, nil, []string{"child1.vhdx"}},
		{"delete", 2, 1, 0, MergeOptions{Delete: true}, 0, []int{0}, nil, []string{"child1.vhdx"}},
		{"keep name", 2, 1, 0, MergeOptions{KeepName: true}, 1, []int{1}, nil, []string{"child1.vhdx"}},
		{"the last of three", 3, 2, 1, MergeOptions{Delete: true}, 1, []int{0, 1}, nil, []string{"child2.vhdx"}},
		{"the middle of three, with a child that knows it by name", 3, 1, 0, MergeOptions{KeepName: true}, 1, []int{1, 2}, nil, []string{"child1.vhdx"}},
		{"a run", 4, 3, 0, MergeOptions{}, 0, []int{0, 1, 2, 3}, []int{1, 2}, []string{"child1.vhdx", "child2.vhdx", "child3.vhdx"}},
		{"a run, delete", 4, 3, 1, MergeOptions{Delete: true}, 1, []int{0, 1}, nil, []string{"child2.vhdx", "child3.vhdx"}},
		{"a run, keep name", 3, 2, 0, MergeOptions{Delete: true, KeepName: true}, 2, []int{2}, nil, []string{"child1.vhdx", "child2.vhdx"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newWrittenChain(t, tc.images)
			last := diskSum(t, p[len(p)-1], Options{})
			want := diskSum(t, p[tc.child], Options{})
			var total, done int64
			tc.o.Phase = func(_ string, n int64) { total += n }
			tc.o.Progress = func(n int64) { done += n }
			if tc.into != tc.child-1 {
				tc.o.Into = p[tc.into]
			}
			r, err := Merge(context.Background(), p[tc.child], tc.o)
			if err != nil {
				t.Fatal(err)
			}
			var merged []string
			for _, m := range r.Merged {
				merged = append(merged, filepath.Base(m))
			}
			if r.Path != p[tc.result] || r.Into != p[tc.into] || strings.Join(merged, " ") != strings.Join(tc.merged, " ") || r.Data == 0 || r.Data != total || r.Data != done {
				t.Errorf("result %+v; the progress was %d of %d", r, done, total)
			}
			if got := diskSum(t, p[tc.result], Options{}); got != want {
				t.Error("the result reads differently")
			}
			left := fileSums(t, filepath.Dir(p[0]))
			if len(left) != len(tc.left) {
				t.Errorf("%d files are left, want %d", len(left), len(tc.left))
			}
			lost := map[int]bool{}
			for _, i := range tc.lost {
				lost[i] = true
			}
			for _, i := range tc.left {
				if im, err := Open(p[i], Options{}); lost[i] != errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", p[i], err)
				} else if err == nil {
					im.Close()
					sound(t, p[i])
				}
			}
			if tc.left[len(tc.left)-1] == len(p)-1 && diskSum(t, p[len(p)-1], Options{}) != last {
				t.Error("the last image of the chain reads differently")
			}
		})
	}
}

// Children that are larger than their parents make the result as large.
func TestMergeLargerChildren(t *testing.T) {
	p := newChain(t, 1)
	for _, size := range []int64{6 * ondisk.MiB, 9*ondisk.MiB + 512} {
		child := filepath.Join(filepath.Dir(p[0]), fmt.Sprintf("%d.vhdx", size))
		if err := Create(child, CreateOptions{Parent: p[len(p)-1], Size: size}); err != nil {
			t.Fatal(err)
		}
		im, err := Open(child, Options{Writable: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{ondisk.MiB, size - 512} {
			if _, err := im.WriteAt([]byte("data"), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		p = append(p, child)
	}
	want := diskSum(t, p[2], Options{})
	if _, err := Merge(context.Background(), p[2], MergeOptions{Into: p[0], Delete: true}); err != nil {
		t.Fatal(err)
	}
	if diskSum(t, p[0], Options{}) != want {
		t.Error("the result reads differently")
	}
	sound(t, p[0])
}

// A child that is smaller than its parent makes that as small. What the parent held behind the end stays away, also
// when a larger child follows.
func TestMergeSmallerChildren(t *testing.T) {
	for name, into := range map[string]func(p []string) []string{ // what is merged, one after the other, into p[0]
		"one by one": func(p []string) []string { return p[1:] },
		"a run":      func(p []string) []string { return p[2:] },
	} {
		t.Run(name, func(t *testing.T) {
			p := newWrittenChain(t, 2)
			resize(t, p[1], 2*ondisk.MiB+512)
			p = append(p, filepath.Join(filepath.Dir(p[0]), "larger.vhdx"))
			if err := Create(p[2], CreateOptions{Parent: p[1], Size: 3 * ondisk.MiB}); err != nil {
				t.Fatal(err)
			}
			for _, path := range into(p) {
				if path == p[2] && name == "one by one" {
					if _, err := SetParent(path, p[0], SetParentOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				want := diskSum(t, path, Options{})
				if _, err := Merge(context.Background(), path, MergeOptions{Into: p[0]}); err != nil {
					t.Fatal(err)
				}
				if diskSum(t, p[0], Options{}) != want || diskSum(t, path, Options{}) != want {
					t.Errorf("%s: the result reads differently, or the child", path)
				}
				sound(t, p[0])
			}
		})
	}
}

func resize(t *testing.T, path string, size int64) {
	t.Helper()
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(im.Resize(context.Background(), size), im.Close()); err != nil {
		t.Fatal(err)
	}
}

// What a merge cannot do leaves every file as it was.
func TestMergeRefuses(t *testing.T) {
	p := newWrittenChain(t, 3)
	dir := filepath.Dir(p[0])
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, o := range map[string]CreateOptions{
		"smaller.vhdx": {Parent: p[0]},
		"other.vhdx":   {Size: 4 * ondisk.MiB},
	} {
		if err := Create(path(name), o); err != nil {
			t.Fatal(err)
		}
	}
	resize(t, path("smaller.vhdx"), 2*ondisk.MiB)
	larger := path("larger.vhdx") // than its parent, which is smaller than its own
	if err := Create(larger, CreateOptions{Parent: path("smaller.vhdx"), Size: 3 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path("directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	moved := path("directory/moved.vhdx")
	if err := Create(moved, CreateOptions{Parent: p[0]}); err != nil {
		t.Fatal(err)
	}
	broken := path("broken.vhdx")
	if err := os.WriteFile(broken, make([]byte, 4*ondisk.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	strange := path("strange.vhdx") // its parent is another one meanwhile
	if err := Create(strange, CreateOptions{Parent: path("other.vhdx")}); err != nil {
		t.Fatal(err)
	}
	writeTo(t, path("other.vhdx"))
	for _, tc := range []struct {
		name, path string
		o          MergeOptions
		want       string
		is         error
	}{
		{"no child", p[0], MergeOptions{}, "has no parent to merge into", ErrOptions},
		{"into a stranger", p[2], MergeOptions{Into: path("other.vhdx")}, "is not a parent of", ErrOptions},
		{"into itself", p[2], MergeOptions{Into: p[2]}, "is not a parent of", ErrOptions},
		{"into nothing", p[2], MergeOptions{Into: path("missing")}, "no such file", os.ErrNotExist},
		{"larger than its parent can become", larger, MergeOptions{}, "flatten", ErrSize},
		{"a name in another directory", moved, MergeOptions{KeepName: true, Open: Options{ParentDirs: []string{dir}}}, "another directory", ErrOptions},
		{"damaged", broken, MergeOptions{}, "R2", ErrCorrupt},
		{"another parent", strange, MergeOptions{}, "R63", ErrCorrupt},
		{"another parent in spite of the option", strange, MergeOptions{Open: Options{AnyParent: true}}, "R63", ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := fileSums(t, dir)
			_, err := Merge(context.Background(), tc.path, tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, tc.is) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			checkSame(t, tc.name, dir, before)
		})
	}
}

// Every image that takes part is locked against readers too, the ones below against writers.
func TestMergeLocks(t *testing.T) {
	p := newWrittenChain(t, 4)
	for i, writable := range []bool{true, false, false, false} {
		im, err := Open(p[i], Options{Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		before := fileSums(t, filepath.Dir(p[0]))
		if _, err := Merge(context.Background(), p[3], MergeOptions{Into: p[1]}); !errors.Is(err, ErrLocked) {
			t.Errorf("with %s open: %v", p[i], err)
		}
		checkSame(t, p[i]+" open", filepath.Dir(p[0]), before)
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
	base, err := Open(p[0], Options{}) // a reader of what is only read
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	if _, err := Merge(context.Background(), p[3], MergeOptions{Into: p[1]}); err != nil {
		t.Error(err)
	}
}

// An interrupted merge leaves the disk as it was, and can be run again, also where logs have to be replayed.
// What has taken the place of an image while that was merged is neither removed nor replaced.
func TestMergeLeavesOtherFiles(t *testing.T) {
	for _, o := range []MergeOptions{{Delete: true}, {KeepName: true}} {
		p := newWrittenChain(t, 2)
		want := diskSum(t, p[1], Options{})
		other := []byte("not an image")
		o.Phase = func(string, int64) {
			if err := errors.Join(os.Rename(p[1], p[1]+".moved"), os.WriteFile(p[1], other, 0o600)); err != nil {
				t.Error(err)
			}
		}
		if _, err := Merge(context.Background(), p[1], o); err == nil || !strings.Contains(err.Error(), "the merge is done, but") {
			t.Errorf("%+v: %v", o, err)
		}
		if b, err := os.ReadFile(p[1]); err != nil || !bytes.Equal(b, other) {
			t.Errorf("the other file: %.20q, %v", b, err)
		}
		if got := diskSum(t, p[0], Options{}); got != want {
			t.Error("the parent does not show the disk that was merged")
		}
	}
}

func TestMergeInterrupted(t *testing.T) {
	p := newWrittenChain(t, 3)
	want := diskSum(t, p[2], Options{})
	for n := range 4 {
		ctx, cancel := context.WithCancelCause(context.Background())
		stop := errors.New("stop")
		pieces := 0
		_, err := Merge(ctx, p[2], MergeOptions{Into: p[0], Progress: func(int64) {
			if pieces++; pieces > n {
				cancel(stop)
			}
		}})
		if !errors.Is(err, stop) {
			t.Fatalf("after %d pieces: %v", pieces, err)
		}
		cancel(nil)
		if got := diskSum(t, p[2], Options{}); got != want {
			t.Fatalf("after %d pieces the disk reads differently", pieces)
		}
		isMixedAlone(t, p[0])
		// The child may be told where it is, and reads as before.
		child, err := Chain(p[2], Options{})
		if err != nil {
			t.Fatal(err)
		}
		for child.Parent.Parent != nil {
			child = child.Parent
		}
		if r, err := SetParent(child.Path, p[0], SetParentOptions{}); err != nil || r.Foreign {
			t.Fatalf("set-parent to the image that is mixed: %+v, %v", r, err)
		}
		if got := diskSum(t, p[2], Options{}); got != want {
			t.Fatalf("after set-parent the disk reads differently")
		}
		if r, err := Check(p[2], Options{}); err != nil || !r.Sound() || len(r.Warnings) > 0 {
			t.Fatalf("check %s: %+v, %v", p[2], r, err)
		}
	}
	if _, err := Merge(context.Background(), p[2], MergeOptions{Into: p[0], Delete: true}); err != nil {
		t.Fatal(err)
	}
	if got := diskSum(t, p[0], Options{}); got != want {
		t.Error("the result reads differently")
	}
	sound(t, p[0])
}

// isMixedAlone checks that an image into which a merge was interrupted says so itself, and is not used by mistake, even where the
// child that is merged is not at hand.
func isMixedAlone(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	alone := filepath.Join(dir, "alone.vhdx")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(alone, b, 0o600); err != nil {
		t.Fatal(err)
	}
	other := newChain(t, 2)[1]
	for what, use := range map[string]func() error{
		"read":   func() error { return openAndClose(alone, Options{}) },
		"write":  func() error { return openAndClose(alone, Options{Writable: true}) },
		"parent": func() error { return Create(filepath.Join(dir, "child.vhdx"), CreateOptions{Parent: alone}) },
		"snapshot": func() error {
			_, err := Snapshot(t.Context(), alone, filepath.Join(dir, "new.avhdx"), SnapshotOptions{})
			return err
		},
		"set-parent": func() error {
			_, err := SetParent(other, alone, SetParentOptions{Unsafe: true})
			return err
		},
	} {
		if err := use(); !errors.Is(err, ErrMixed) {
			t.Errorf("%s of an image that is mixed: %v", what, err)
		}
	}
	if after, err := os.ReadFile(alone); err != nil || !bytes.Equal(after, b) {
		t.Errorf("the image that is mixed was changed, %v", err)
	}
	if r, err := Check(alone, Options{}); err != nil || !r.Clean() {
		t.Errorf("check of an image that is mixed: %+v, %v", r, err)
	}
	for _, o := range []Options{{Mixed: true}, {Salvage: true}, {Mixed: true, Writable: true}} {
		if err := openAndClose(alone, o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func openAndClose(path string, o Options) error {
	im, err := Open(path, o)
	if err != nil {
		return err
	}
	return im.Close()
}

// Images that were not closed are merged as their logs have them.
func TestMergeReplaysLogs(t *testing.T) {
	p := newWrittenChain(t, 2)
	dir := t.TempDir()
	var want [32]byte
	for i, path := range p {
		im, err := Open(path, Options{Writable: true, Lock: LockOff})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		if i == 0 { // of the parent, only what no reader sees; its DataWriteGuid stays
			if err := im.Allocate(0, im.Size()); err != nil {
				t.Fatal(err)
			}
		} else if err := im.Zero(0, ondisk.MiB); err != nil {
			t.Fatal(err)
		} else if _, err := im.WriteAt([]byte("not closed"), 700); err != nil {
			t.Fatal(err)
		}
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p[i] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(p[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(p[i], Options{})
		if err != nil || r.Info().Log.State != LogReplayed {
			t.Fatalf("%s has no log to replay: %v", p[i], err)
		}
		r.Close()
	}
	want = diskSum(t, p[1], Options{})
	if _, err := Merge(context.Background(), p[1], MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if diskSum(t, p[0], Options{}) != want || diskSum(t, p[1], Options{}) != want {
		t.Error("parent or child read differently")
	}
	sound(t, p...)
}

// A full disk in the middle is an error that harms nothing.
func TestMergeOnAFullDisk(t *testing.T) {
	c := mergeChain(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}}}, spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	mt := newMergeTest(c)
	parent := &faultFile{File: c[1].memFile, limit: c[1].memFile.size}
	f := directory{names: []string{chainName(0), chainName(1)}, files: map[string]File{chainName(0): c[0].memFile, chainName(1): parent}}
	if err := f.merge(); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("merge: %v", err)
	}
	if err := mt.check(f, false); err != nil {
		t.Fatal(err)
	}
	parent.set(func(f *faultFile) { f.limit = 0 })
	if err := f.merge(); err != nil {
		t.Fatal(err)
	}
	if err := mt.check(f, true); err != nil {
		t.Error(err)
	}
}

// A sync that fails ends the merge, and nothing more is written to that image.
func TestMergeAfterAFailedSync(t *testing.T) {
	for i := range 2 {
		c := mergeSpecs()["dynamic"]()
		mt := newMergeTest(c)
		files := map[string]File{chainName(0): c[0].memFile, chainName(1): c[1].memFile}
		broken := &faultFile{File: c[i].memFile, failSync: errInjected}
		files[chainName(i)] = broken
		f := directory{names: []string{chainName(0), chainName(1)}, files: files}
		if err := f.merge(); !errors.Is(err, errInjected) {
			t.Fatalf("merge: %v", err)
		}
		broken.set(func(f *faultFile) { f.failSync = nil })
		if err := mt.check(f, false); err != nil {
			t.Error(err)
		}
		if err := f.merge(); err != nil {
			t.Error(err)
		}
		if err := mt.check(f, true); err != nil {
			t.Error(err)
		}
	}
}

// Whichever read of the child's payload or write of the parent's fails once: the merge fails, both images read as they did, and a
// second try completes it. Taken for done, the parent would lack what the child held.
func TestMergeAfterAnError(t *testing.T) {
	for what, i := range map[string]int{"read": 0, "write": 1} {
		failures := 0
		for n := 0; ; n++ {
			c := mergeChain(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}}},
				spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}})
			mt := newMergeTest(c)
			left, failed := n, false
			fail := func(off int64) error {
				if off < c[i].dataOff || failed {
					return nil
				}
				if left--; left < 0 {
					failed = true
					return errInjected
				}
				return nil
			}
			broken := &faultFile{File: c[i].memFile}
			if what == "read" {
				broken.failRead = fail
			} else {
				broken.failWrite = fail
			}
			files := map[string]File{chainName(0): c[0].memFile, chainName(1): c[1].memFile}
			files[chainName(i)] = broken
			f := directory{names: []string{chainName(0), chainName(1)}, files: files}
			err := f.merge()
			if !failed {
				break
			}
			failures++
			if !errors.Is(err, errInjected) {
				t.Errorf("%s %d failed: merge returns %v", what, n, err)
			}
			if err := mt.check(f, false); err != nil {
				t.Errorf("%s %d failed: %v", what, n, err)
			}
			if err := f.merge(); err != nil {
				t.Errorf("%s %d failed: the second merge: %v", what, n, err)
			}
			if err := mt.check(f, true); err != nil {
				t.Errorf("%s %d failed, and the merge was made again: %v", what, n, err)
			}
		}
		if failures < 3 {
			t.Errorf("%d times a %s failed, the test wants more", failures, what)
		}
	}
}

// On a host whose files can share space, a merge shares what the child holds, and the parent reads the same as without. A fixed
// parent has space of its own, unless all is to be shared.
func TestMergeShares(t *testing.T) {
	for _, tc := range []struct {
		chain   string
		host    host
		reflink imagefile.Reflink
		shares  bool
		err     error
	}{
		{"dynamic", host{shares: true}, "", true, nil},
		{"other block size", host{shares: true}, imagefile.ReflinkAlways, true, nil},
		{"dynamic", host{shares: true}, imagefile.ReflinkNever, false, nil},
		{"fixed", host{shares: true}, imagefile.ReflinkAuto, false, nil},
		{"fixed", host{shares: true}, imagefile.ReflinkAlways, true, nil},
		{"dynamic", host{}, imagefile.ReflinkAuto, false, nil},
		{"dynamic", host{}, imagefile.ReflinkAlways, false, imagefile.ErrReflink},
	} {
		t.Run(fmt.Sprintf("%s, %+v, %s", tc.chain, tc.host, tc.reflink), func(t *testing.T) {
			c := mergeSpecs()[tc.chain]()[:2]
			want := newModel(c)
			f := directory{files: map[string]File{}}
			for i, im := range c {
				f.names = append(f.names, chainName(i))
				f.files[chainName(i)] = tc.host.disk(im.memFile, im.memFile.size)
			}
			shared := int64(0)
			r, err := f.mergeWith(MergeOptions{Reflink: tc.reflink, Phase: func(string, int64) {}, Progress: func(int64) {}, Shared: func(n int64) { shared += n }})
			if !errors.Is(err, tc.err) {
				t.Fatalf("%v, want %v", err, tc.err)
			}
			if r.Shared > 0 != tc.shares || r.Shared != shared || r.Shared > r.Data {
				t.Errorf("result %+v, and %d bytes shared", r, shared)
			}
			im, err := f.open(f.names[0])
			if err != nil {
				t.Fatal(err)
			}
			into, err := f.open(f.names[1])
			if err != nil && tc.err == nil {
				t.Fatal(err)
			}
			for _, im := range []*Image{im, into} {
				got, model := make([]byte, im.Size()), make([]byte, im.Size())
				if _, err := im.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				want.ReadAt(model, 0)
				if d := firstDifference(got, model); d >= 0 {
					t.Errorf("byte %#x reads as %#x, want %#x", d, got[d], model[d])
				}
				if tc.err != nil {
					break
				}
			}
		})
	}
}

// What may refuse a merge is asked when no other program can open the images any more, and before anything is changed.
func TestMergeIsChecked(t *testing.T) {
	p := newWrittenChain(t, 2)
	before := fileSums(t, filepath.Dir(p[0]))
	refusal := errors.New("refused")
	_, err := Merge(context.Background(), p[1], MergeOptions{Check: func() error {
		for _, path := range p[:2] {
			if im, err := Open(path, Options{}); !errors.Is(err, ErrLocked) {
				t.Errorf("%s can be opened: %v", path, err)
				_ = im.Close()
			}
		}
		return refusal
	}})
	if !errors.Is(err, refusal) {
		t.Errorf("%v, want the refusal", err)
	}
	if after := fileSums(t, filepath.Dir(p[0])); !maps.Equal(after, before) {
		t.Error("the images were changed")
	}
}
