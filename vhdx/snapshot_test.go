package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func TestSnapshot(t *testing.T) {
	for _, tc := range []struct {
		name          string
		image, file   string // of the image, and the name that is given
		o             SnapshotOptions
		frozen, child string // patterns
	}{
		{"by the time", "data.vhdx", "", SnapshotOptions{}, `data\.vhdx`, `data-\d{8}-\d{6}\.avhdx`},
		{"named", "data.vhdx", "next.avhdx", SnapshotOptions{}, `data\.vhdx`, `next\.avhdx`},
		{"keep name, by the time", "data.vhdx", "", SnapshotOptions{KeepName: true}, `data-\d{8}-\d{6}\.vhdx`, `data\.vhdx`},
		{"keep name", "data", "before", SnapshotOptions{KeepName: true}, `before`, `data`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newWrittenChain(t, 2)
			dir := filepath.Dir(p[0])
			image, name := filepath.Join(dir, tc.image), ""
			if err := os.Rename(p[1], image); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(image, 0o640); err != nil {
				t.Fatal(err)
			}
			if tc.file != "" {
				name = filepath.Join(dir, tc.file)
			}
			want := diskSum(t, image, Options{})
			before := fileSums(t, dir)
			r, err := Snapshot(context.Background(), image, name, tc.o)
			if err != nil {
				t.Fatal(err)
			}
			for path, pattern := range map[string]string{r.Frozen: tc.frozen, r.Child: tc.child} {
				if !regexp.MustCompile("^" + regexp.QuoteMeta(dir) + "/" + pattern + "$").MatchString(path) {
					t.Errorf("%s does not match %s", path, pattern)
				}
				if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
					t.Errorf("%s: %v, %v", path, st.Mode(), err)
				}
			}
			after := fileSums(t, dir)
			if len(after) != len(before)+1 || after[filepath.Base(r.Frozen)] != before[tc.image] {
				t.Errorf("the image was changed, or the files are %d, before %d", len(after), len(before))
			}
			in := diskInfo(t, r.Child, Options{})
			if in.Parent.RelativePath != `.\`+filepath.Base(r.Frozen) || diskSum(t, r.Child, Options{}) != want {
				t.Errorf("the child reads differently, or has another parent: %+v", in.Parent)
			}
			writeTo(t, r.Child)
			if diskSum(t, r.Frozen, Options{}) != want {
				t.Error("writing to the child changed the frozen disk")
			}
			sound(t, r.Frozen, r.Child)

			// A merge undoes it.
			want = diskSum(t, r.Child, Options{})
			m, err := Merge(context.Background(), r.Child, MergeOptions{KeepName: tc.o.KeepName, Delete: !tc.o.KeepName})
			if err != nil {
				t.Fatal(err)
			}
			if m.Path != image || diskSum(t, image, Options{}) != want || len(fileSums(t, dir)) != len(before) {
				t.Errorf("after the merge: %+v", m)
			}
		})
	}
}

// A link to an image stands for it: parent and child are beside the image.
func TestSnapshotThroughALink(t *testing.T) {
	p := newWrittenChain(t, 1)
	link := filepath.Join(t.TempDir(), "link.vhdx")
	if err := os.Symlink(p[0], link); err != nil {
		t.Fatal(err)
	}
	want := diskSum(t, link, Options{})
	r, err := Snapshot(context.Background(), link, "", SnapshotOptions{KeepName: true})
	if err != nil || r.Child != p[0] || filepath.Dir(r.Frozen) != filepath.Dir(p[0]) {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := os.Readlink(link); err != nil || diskSum(t, p[0], Options{}) != want {
		t.Errorf("the link is gone, or the disk reads differently: %v", err)
	}
	if diskSum(t, link, Options{}) != want {
		t.Error("by the link, the disk reads differently")
	}
	if r, err := Merge(context.Background(), link, MergeOptions{KeepName: true}); err != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := os.Readlink(link); err != nil || diskSum(t, link, Options{}) != want || diskInfo(t, link, Options{}).Parent != nil {
		t.Errorf("after the merge: %v", err)
	}
}

// A log is replayed before: the parent of a child is not touched any more.
func TestSnapshotReplaysTheLog(t *testing.T) {
	p := newChain(t, 1)
	im, err := Open(p[0], Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.WriteAt([]byte("data"), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p[0])
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "dirty.vhdx")
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	want := diskSum(t, image, Options{})
	r, err := Snapshot(context.Background(), image, "", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if in := diskInfo(t, r.Frozen, Options{}); in.Log.State != LogClean || diskSum(t, r.Child, Options{}) != want {
		t.Errorf("the log is %s, or the disk reads differently", in.Log.State)
	}
}

// Where the name of the image leaves no room for the time, the new one is shorter.
func TestSnapshotOfALongName(t *testing.T) {
	for _, stem := range []string{strings.Repeat("x", 250), strings.Repeat("é", 125)} {
		for _, keep := range []bool{false, true} {
			p := newWrittenChain(t, 1)
			image := filepath.Join(filepath.Dir(p[0]), stem+".vhdx")
			if err := os.Rename(p[0], image); err != nil {
				t.Fatal(err)
			}
			want := diskSum(t, image, Options{})
			r, err := Snapshot(context.Background(), image, "", SnapshotOptions{KeepName: keep})
			if err != nil {
				t.Fatal(err)
			}
			if !utf8.ValidString(r.Frozen+r.Child) || diskSum(t, r.Child, Options{}) != want {
				t.Errorf("%+v", r)
			}
		}
	}
}

// What a cut between the two steps of KeepName leaves is no obstacle to another attempt.
func TestSnapshotAfterACut(t *testing.T) {
	p := newWrittenChain(t, 1)
	want := diskSum(t, p[0], Options{})
	frozen := filepath.Join(filepath.Dir(p[0]), "before.vhdx")
	if err := os.Link(p[0], frozen); err != nil {
		t.Fatal(err)
	}
	r, err := Snapshot(context.Background(), p[0], frozen, SnapshotOptions{KeepName: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Frozen != frozen || diskSum(t, r.Child, Options{}) != want || diskInfo(t, r.Child, Options{}).Parent == nil {
		t.Errorf("%+v", r)
	}
}

// Two snapshots that keep the name of one image, at one moment: one of them is made, also if both have chosen one name for
// the frozen image, and its child is not replaced by that of the other.
func TestSnapshotsAtOnce(t *testing.T) {
	dir := t.TempDir()
	image, frozen := filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "frozen.vhdx")
	if err := Create(image, CreateOptions{Size: 4 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"link", "create", "rename"} {
		var second error
		o := SnapshotOptions{KeepName: true}
		o.step = func(at string) {
			if at == step {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // it waits for the first
				defer cancel()
				_, second = Snapshot(ctx, image, frozen, SnapshotOptions{KeepName: true})
			}
		}
		if _, err := Snapshot(context.Background(), image, frozen, o); err != nil {
			t.Fatalf("the first, with a second one after %q: %v", step, err)
		}
		if want := map[bool]error{false: ErrLocked, true: fs.ErrExist}[step == "rename"]; !errors.Is(second, want) {
			t.Errorf("the second after %q: %v, want %v", step, second, want)
		}
		k, err := Chain(image, Options{})
		if err != nil || k.State != Linked || k.Parent == nil || filepath.Base(k.Parent.Path) != "frozen.vhdx" || k.Parent.Parent != nil {
			t.Errorf("after %q: %+v, %v", step, k, err)
		}
		if err := os.Rename(frozen, image); err != nil { // and back
			t.Fatal(err)
		}
	}
}

// A snapshot that fails when the image has its own name no more does not remove the other one, which may be the last.
func TestSnapshotKeepsTheLastName(t *testing.T) {
	dir := t.TempDir()
	image, frozen, other := filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "frozen.vhdx"), filepath.Join(dir, "other.vhdx")
	for _, path := range []string{image, other} {
		if err := Create(path, CreateOptions{Size: 4 * ondisk.MiB}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	o := SnapshotOptions{KeepName: true}
	o.step = func(at string) {
		if at != "create" {
			return
		}
		if err := os.Rename(other, image); err != nil {
			t.Error(err)
		}
	}
	if _, err := Snapshot(context.Background(), image, frozen, o); err == nil || !strings.Contains(err.Error(), "another file has this name now") {
		t.Errorf("got %v", err)
	}
	if now, err := os.Stat(frozen); err != nil || !os.SameFile(now, st) {
		t.Errorf("the image is gone: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	p := newWrittenChain(t, 1)
	dir := filepath.Dir(p[0])
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("there"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	written := path("written.vhdx")
	if err := Create(written, CreateOptions{Size: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(written, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	before := fileSums(t, dir)
	keep := SnapshotOptions{KeepName: true}
	for _, tc := range []struct {
		name, image, file string
		o                 SnapshotOptions
		is                error
		want              string
	}{
		{"in use", written, "", SnapshotOptions{}, ErrLocked, "another program"},
		{"in use, keep name", written, "", keep, ErrLocked, "another program"},
		{"exists", p[0], path("there"), SnapshotOptions{}, fs.ErrExist, "exists"},
		{"exists, keep name", p[0], path("there"), keep, fs.ErrExist, "exists"},
		{"itself", p[0], p[0], SnapshotOptions{}, nil, "is the parent"},
		{"itself, keep name", p[0], p[0], keep, fs.ErrExist, "exists"},
		{"itself written otherwise, keep name", p[0], dir + "/./" + filepath.Base(p[0]), keep, fs.ErrExist, "exists"},
		{"another directory, keep name", p[0], filepath.Join(t.TempDir(), "x.vhdx"), keep, ErrOptions, "not in the directory of the image"},
		{"no image", path("there"), "", SnapshotOptions{}, ErrCorrupt, "R1"},
		{"missing", path("missing"), "", keep, fs.ErrNotExist, "no such file"},
		{"a name that cannot stand in an image", p[0], path("a:b"), keep, ErrOptions, "colon"},
	} {
		_, err := Snapshot(context.Background(), tc.image, tc.file, tc.o)
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		} else if strings.Contains(err.Error(), ".part") {
			t.Errorf("%s: %v names a file that nobody has named", tc.name, err)
		}
		checkSame(t, tc.name, dir, before)
	}
}

// Of two snapshots of one image at the same time one is made at the most, with locks and without: else the image would have two
// children.
func TestSnapshotsDoNotFork(t *testing.T) {
	for _, lock := range []LockMode{LockOn, LockOff} {
		for _, keep := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
			t.Run(fmt.Sprintf("lock %s, keep name %v", lock, keep), func(t *testing.T) {
				p := newWrittenChain(t, 1)
				image, dir := p[0], filepath.Dir(p[0])
				want := diskSum(t, image, Options{})
				children := func(except string) (list []string) {
					names, err := filepath.Glob(filepath.Join(dir, "*.avhdx"))
					if err != nil {
						t.Fatal(err)
					}
					for _, name := range names {
						k, err := ParentLink(name, Options{Lock: LockOff})
						if err != nil {
							t.Fatal(err)
						}
						if name != except && k.Parent != nil && sameFile(t, k.Parent.Path, image) {
							list = append(list, name)
						}
					}
					return list
				}
				options := func(keep bool) SnapshotOptions {
					return SnapshotOptions{Open: Options{Lock: lock}, KeepName: keep, Check: func(child string) error {
						if list := children(child); len(list) > 0 {
							return fmt.Errorf("%w: %q", errHasChild, list)
						}
						return nil
					}}
				}
				other := make(chan error, 1)
				second := func() {
					_, err := Snapshot(context.Background(), image, filepath.Join(dir, "two.avhdx"), options(keep[1]))
					other <- err
				}
				o, began := options(keep[0]), false
				o.step = func(step string) {
					if step != "begin" || began {
						return
					}
					if began = true; lock == LockOff { // it is made in between
						second()
						return
					}
					go second() // it waits
					time.Sleep(20 * time.Millisecond)
				}
				_, one := Snapshot(context.Background(), image, filepath.Join(dir, "one.avhdx"), o)
				two := <-other
				if one != nil && two != nil {
					t.Errorf("neither is made: %v; %v", one, two)
				}
				if list := children(""); len(list) > 1 {
					t.Errorf("the image has the children %q (%v; %v)", list, one, two)
				}
				if diskSum(t, image, Options{}) != want {
					t.Error("the disk reads differently")
				}
				names, err := filepath.Glob(filepath.Join(dir, "*"))
				if err != nil {
					t.Fatal(err)
				}
				sound(t, names...)
			})
		}
	}
}

var errHasChild = errors.New("the image has a child")

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	sa, aerr := os.Stat(a)
	sb, berr := os.Stat(b)
	if aerr != nil || berr != nil {
		t.Fatal(aerr, berr)
	}
	return os.SameFile(sa, sb)
}
