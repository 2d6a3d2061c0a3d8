package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func TestSetParent(t *testing.T) {
	p := newWrittenChain(t, 3)
	want := diskSum(t, p[2], Options{})
	sub := filepath.Join(filepath.Dir(p[0]), "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(sub, "moved.vhdx")
	if err := os.Rename(p[1], moved); err != nil {
		t.Fatal(err)
	}
	if err := Create(filepath.Join(sub, "base.vhdx"), CreateOptions{Size: ondisk.MiB}); err != nil { // not the one that is meant
		t.Fatal(err)
	}
	if _, err := Open(p[2], Options{}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("with the parent gone: %v", err)
	}
	o := SetParentOptions{Open: Options{ParentDirs: []string{filepath.Dir(p[0])}}, ParentPaths: []string{`D:\vm\moved.vhdx`}}
	r, err := SetParent(moved, p[0], SetParentOptions{})
	if err != nil || r.Foreign {
		t.Fatalf("%+v, %v", r, err)
	}
	before := diskInfo(t, p[2], Options{Parents: []string{moved}, ParentDirs: o.Open.ParentDirs})
	if r, err = SetParent(p[2], moved, o); err != nil || r.Foreign {
		t.Fatalf("%+v, %v", r, err)
	}
	in := diskInfo(t, p[2], o.Open)
	if in.Parent.RelativePath != `.\sub\moved.vhdx` || in.Parent.AbsoluteWin32Path != `\\?\D:\vm\moved.vhdx` || in.Parent.Linkage != r.Linkage {
		t.Errorf("%+v", in.Parent)
	}
	if a, b := before.Headers[before.CurrentHeader-1], in.Headers[in.CurrentHeader-1]; a.DataWriteGUID != b.DataWriteGUID || a.FileWriteGUID == b.FileWriteGUID {
		t.Error("DataWriteGuid changed, or FileWriteGuid did not")
	}
	if diskSum(t, p[2], o.Open) != want {
		t.Error("the disk reads differently")
	}
}

func diskInfo(t *testing.T, path string, o Options) *Info {
	t.Helper()
	im, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	return im.Info()
}

// Another parent is refused, and taken with Unsafe; then the image is another disk, to its children too.
func TestSetForeignParent(t *testing.T) {
	p := newWrittenChain(t, 3)
	writeTo(t, p[0])
	before := fileSums(t, filepath.Dir(p[0]))
	_, err := SetParent(p[1], p[0], SetParentOptions{})
	if !errors.Is(err, ErrParentMismatch) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "R63") {
		t.Errorf("got %v", err)
	}
	checkSame(t, "another parent", filepath.Dir(p[0]), before)
	if r, err := SetParent(p[1], p[0], SetParentOptions{Unsafe: true}); err != nil || !r.Foreign {
		t.Fatalf("%+v, %v", r, err)
	}
	if im, err := Open(p[1], Options{}); err != nil {
		t.Error(err)
	} else {
		im.Close()
	}
	if _, err := Open(p[2], Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the child of an image that shows another disk now: %v", err)
	}
	if r, err := SetParent(p[1], p[0], SetParentOptions{Unsafe: true}); err != nil || r.Foreign {
		t.Errorf("again, now that it fits: %+v, %v", r, err)
	}
}

func TestSetParentRefuses(t *testing.T) {
	p := newWrittenChain(t, 3)
	dir := filepath.Dir(p[0])
	sectors, plain := filepath.Join(dir, "sectors.vhdx"), filepath.Join(dir, "plain.vhdx")
	if err := Create(sectors, CreateOptions{Size: 4 * ondisk.MiB, LogicalSectorSize: 4096}); err != nil {
		t.Fatal(err)
	}
	if err := Create(plain, CreateOptions{Size: 4 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken.vhdx")
	if err := os.WriteFile(broken, make([]byte, 4*ondisk.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(dir, "used.vhdx")
	if err := Create(used, CreateOptions{Parent: p[0]}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(used, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	before := fileSums(t, dir)
	for _, tc := range []struct {
		name, child, parent string
		o                   SetParentOptions
		is                  error
		want                string
	}{
		{"no child", plain, p[0], SetParentOptions{Unsafe: true}, ErrOptions, "has no parent"},
		{"itself", p[1], p[1], SetParentOptions{Unsafe: true}, ErrOptions, "same image"},
		{"a loop", p[1], p[2], SetParentOptions{Unsafe: true}, ErrOptions, "a child of it"},
		{"missing", p[1], filepath.Join(dir, "missing"), SetParentOptions{}, os.ErrNotExist, "parent: "},
		{"damaged parent", p[1], broken, SetParentOptions{Unsafe: true}, ErrCorrupt, "R2"},
		{"damaged child", broken, p[0], SetParentOptions{Unsafe: true}, ErrCorrupt, "R2"},
		{"sectors", p[1], sectors, SetParentOptions{Unsafe: true}, ErrCorrupt, "R64"},
		{"path", p[1], p[0], SetParentOptions{ParentPaths: []string{"base.vhdx"}}, ErrOptions, "such as D:"},
		{"in use", used, p[0], SetParentOptions{}, ErrLocked, "another program"},
		{"another disk", p[2], plain, SetParentOptions{}, ErrParentMismatch, "R63"},
	} {
		if _, err := SetParent(tc.child, tc.parent, tc.o); !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		checkSame(t, tc.name, dir, before)
	}
}

// locatorImage builds a child whose locator has an unknown key, and an item directly behind it.
func locatorImage(room uint32) *image {
	entries := append(parentEntries("old.vhdx", parentGUID), [2]string{"of somebody", "else"}, [2]string{ondisk.KeyLinkage2, guidText(uuid.Nil)})
	user := rawItem{uuid.New(), ondisk.ItemIsUser, []byte("behind")}
	child := build(spec{typ: Differencing, locator: entries, items: []rawItem{user}, blocks: []blockSpec{{1, ondisk.FullyPresent}, {2, ondisk.PartiallyPresent}}})
	if room > 0 { // fill the rest of the region
		end := child.items[len(child.items)-1]
		at := end.Offset + end.Length
		for at < uint32(child.metaLen)-room {
			n := min(uint32(ondisk.MaxItemSize), uint32(child.metaLen)-room-at)
			child.addItems(ondisk.MetadataItem{ID: uuid.New(), Offset: at, Length: n, Flags: ondisk.ItemIsUser})
			at += n
		}
	}
	return child
}

// relink gives the locator of a child, the first of the files, a longer path and another GUID.
func relink(to string, files ...File) error {
	op := newOpener(Options{})
	top, err := loadFiles(op, files...)
	if err != nil {
		return err
	}
	run, closeAll, err := runOf(op, top, 1)
	if err != nil {
		return err
	}
	err = run[0].writer.linkParent([][2]string{{ondisk.KeyLinkage, ondisk.LinkageText(otherGUID)}, {ondisk.KeyRelativePath, to}})
	return errors.Join(err, closeAll())
}

// A power cut while the locator changes leaves the old one or the new one, whole, and everything else as it was.
func TestPowerCutInSetParent(t *testing.T) {
	longer := `.\folder\` + strings.Repeat("long ", 2000) + ".vhdx" // several pages
	for name, to := range map[string]string{"in its place": `.\a`, "in a new place": longer} {
		t.Run(name, func(t *testing.T) {
			child := locatorImage(0)
			parent := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}})
			want := newModel(chain{child, parent})
			seen := map[string]bool{}
			cutAt := func(h host, cut int) (done bool, err error) {
				disk := h.disk(child.memFile, child.memFile.size)
				disk.Tearable = func(off int64) bool { return off < child.dataOff }
				disk.CutAt(cut)
				err = relink(to, disk, parent.memFile)
				if done = disk.Powered(); done && err != nil {
					return done, err
				}
				for s := range uint64(fewer(crashStates)) {
					path, err := locatorOf(disk.AfterCut(rand.New(rand.NewPCG(s, 1))), parent.memFile, want)
					if err != nil {
						return done, fmt.Errorf("cut %d, state %d: %w", cut, s, err)
					}
					seen[path] = true
					if path != to && (path != `.\old.vhdx` || done) {
						return done, fmt.Errorf("cut %d, state %d: the path is %q", cut, s, path)
					}
				}
				return done, nil
			}
			err := onHosts(0, func(h host, first, step int) error {
				return untilDone(first, step, func(cut int) (bool, error) { return cutAt(h, cut) })
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(seen) != 2 {
				t.Errorf("seen %d locators, want the old one and the new one", len(seen))
			}
		})
	}
}

// locatorOf checks a child and returns the path in its locator.
func locatorOf(child, parent File, want model) (string, error) {
	im, err := loadReadOnly(child, parent)
	if err != nil {
		return "", err
	}
	v := im.current().meta.locator.Values
	if old := v[ondisk.KeyRelativePath] == `.\old.vhdx`; (v[ondisk.KeyLinkage] == ondisk.LinkageText(parentGUID)) != old || (v[ondisk.KeyLinkage2] != "") != old || v["of somebody"] != "else" {
		return "", fmt.Errorf("a mixture: %q", v)
	}
	items, err := im.current().diskItems()
	if err != nil || len(items) != 0 {
		return "", fmt.Errorf("items of the disk: %v, %v", items, err)
	}
	for _, m := range im.current().items {
		if m.User() {
			b := make([]byte, m.Length)
			if _, err := im.current().src.ReadAt(b, im.current().metadataOffset()+int64(m.Offset)); err != nil || string(b) != "behind" {
				return "", fmt.Errorf("the item behind the locator is %q, %v", b, err)
			}
		}
	}
	got, model := make([]byte, im.Size()), make([]byte, im.Size())
	if _, err := im.ReadAt(got, 0); err != nil {
		return "", err
	}
	want.ReadAt(model, 0)
	if !bytes.Equal(got, model) {
		return "", errors.New("the disk reads differently")
	}
	return v[ondisk.KeyRelativePath], nil
}

// A locator that does not fit is refused before anything is changed.
func TestNoRoomForALocator(t *testing.T) {
	long := `.\` + strings.Repeat("x", 4000)
	parent := build(spec{})
	child := locatorImage(100)
	before := child.memFile.clone()
	if err := relink(long, child.memFile, parent.memFile); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got %v", err)
	}
	if !sameContent(before, child.memFile) {
		t.Error("the image was changed")
	}
	if err := relink(`.\x`, child.memFile, parent.memFile); err != nil {
		t.Errorf("a shorter one: %v", err)
	}
	child = locatorImage(16000)
	if err := relink(long, child.memFile, parent.memFile); err != nil {
		t.Errorf("one that fits behind all others: %v", err)
	}
}
