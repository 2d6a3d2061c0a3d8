package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A family is a child and files that may be its parent, in a directory with subdirectories.
type family struct {
	t   *testing.T
	dir string
}

func newFamily(t *testing.T) *family {
	t.Helper()
	f := &family{t, t.TempDir()}
	for _, sub := range []string{"vm", "vm/sub", "base", "other"} {
		if err := os.Mkdir(filepath.Join(f.dir, sub), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *family) path(name string) string { return filepath.Join(f.dir, name) }

// child writes vm/child.vhdx with the given entries of its parent locator.
func (f *family) child(entries ...[2]string) string {
	build(spec{typ: Differencing, locator: entries}).writeTo(f.t, f.path("vm/child.vhdx"))
	return f.path("vm/child.vhdx")
}

// parent writes a parent whose first block begins with its name, so that it can be told which one was taken.
func (f *family) parent(name string) {
	im := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	im.put(fmt.Appendf(nil, "%-40s", name), 0)
	im.writeTo(f.t, f.path(name))
}

// other writes an image that is not the parent.
func (f *family) other(name string) {
	build(spec{dataWrite: otherGUID}).writeTo(f.t, f.path(name))
}

// taken opens the image and returns which parent it reads from.
func taken(path string, o Options) (string, error) {
	im, err := Open(path, o)
	if err != nil {
		return "", err
	}
	defer im.Close()
	var b [40]byte
	_, err = im.ReadAt(b[:], 0)
	return strings.TrimSpace(string(b[:])), err
}

func TestFindParent(t *testing.T) {
	const rel, vol, abs = ondisk.KeyRelativePath, ondisk.KeyVolumePath, ondisk.KeyAbsolutePath
	for _, c := range []struct {
		name    string
		entries [][2]string
		parents []string
		others  []string
		opts    func(f *family) Options
		want    string // "" if none is found
	}{
		{name: "relative path", entries: [][2]string{{rel, `.\p.vhdx`}}, parents: []string{"vm/p.vhdx"}, want: "vm/p.vhdx"},
		{name: "relative path without a dot", entries: [][2]string{{rel, `p.vhdx`}}, parents: []string{"vm/p.vhdx"}, want: "vm/p.vhdx"},
		{name: "relative path into a subdirectory", entries: [][2]string{{rel, `sub\p.vhdx`}}, parents: []string{"vm/sub/p.vhdx", "vm/p.vhdx"}, want: "vm/sub/p.vhdx"},
		{name: "relative path before the others", entries: [][2]string{{abs, `\\?\C:\a.vhdx`}, {vol, `\\?\Volume{x}\v.vhdx`}, {rel, `r.vhdx`}},
			parents: []string{"vm/a.vhdx", "vm/v.vhdx", "vm/r.vhdx"}, want: "vm/r.vhdx"},
		{name: "volume path before the absolute one", entries: [][2]string{{abs, `\\?\C:\vms\a.vhdx`}, {vol, `\\?\Volume{x}\vms\v.vhdx`}},
			parents: []string{"vm/a.vhdx", "vm/v.vhdx"}, want: "vm/v.vhdx"},
		{name: "name in an absolute path", entries: [][2]string{{abs, `\\?\C:\vms\a.vhdx`}}, parents: []string{"vm/a.vhdx"}, want: "vm/a.vhdx"},
		{name: "name in a UNC path", entries: [][2]string{{abs, `\\server\share\a.vhdx`}}, parents: []string{"vm/a.vhdx"}, want: "vm/a.vhdx"},
		{name: "next path when the first is another disk", entries: [][2]string{{rel, `r.vhdx`}, {abs, `C:\a.vhdx`}},
			parents: []string{"vm/a.vhdx"}, others: []string{"vm/r.vhdx"}, want: "vm/a.vhdx"},
		{name: "name in the relative path, moved beside the child", entries: [][2]string{{rel, `..\base\p.vhdx`}}, parents: []string{"vm/p.vhdx"}, want: "vm/p.vhdx"},
		{name: "name with spaces, percent and letters", entries: [][2]string{{rel, `.\Größe 100%20 日本 𝄞.vhdx`}}, parents: []string{"vm/Größe 100%20 日本 𝄞.vhdx"}, want: "vm/Größe 100%20 日本 𝄞.vhdx"},

		{name: "outside the directory", entries: [][2]string{{rel, `..\base\p.vhdx`}}, parents: []string{"base/p.vhdx"}},
		{name: "outside the directory, allowed", entries: [][2]string{{rel, `..\base\p.vhdx`}}, parents: []string{"base/p.vhdx"},
			opts: func(f *family) Options { return Options{ParentDirs: []string{f.path("base")}} }, want: "base/p.vhdx"},
		{name: "outside the directory, parent_dir is above", entries: [][2]string{{rel, `..\base\p.vhdx`}}, parents: []string{"base/p.vhdx"},
			opts: func(f *family) Options { return Options{ParentDirs: []string{f.dir}} }, want: "base/p.vhdx"},
		{name: "out of the directory and back", entries: [][2]string{{rel, `..\vm\p.vhdx`}}, parents: []string{"vm/p.vhdx"}, want: "vm/p.vhdx"},
		{name: "absolute path in relative_path", entries: [][2]string{{rel, `/etc/p.vhdx`}}, parents: []string{"vm/p.vhdx"}, want: "vm/p.vhdx"},
		{name: "drive in relative_path", entries: [][2]string{{rel, `C:sub\p.vhdx`}}, parents: []string{"vm/sub/p.vhdx"}},
		{name: "directory as a name", entries: [][2]string{{rel, `..`}, {vol, `\\?\Volume{x}\`}, {abs, `.`}}},
		{name: "several parent_dir", entries: [][2]string{{abs, `C:\p.vhdx`}}, parents: []string{"other/p.vhdx"},
			opts: func(f *family) Options { return Options{ParentDirs: []string{f.path("base"), f.path("other")}} }, want: "other/p.vhdx"},
		{name: "child's directory before parent_dir", entries: [][2]string{{abs, `C:\p.vhdx`}}, parents: []string{"vm/p.vhdx", "base/p.vhdx"},
			opts: func(f *family) Options { return Options{ParentDirs: []string{f.path("base")}} }, want: "vm/p.vhdx"},

		{name: "parent option before everything", entries: [][2]string{{rel, `p.vhdx`}}, parents: []string{"vm/p.vhdx", "other/elsewhere.vhdx"},
			opts: func(f *family) Options { return Options{Parents: []string{f.path("other/elsewhere.vhdx")}} }, want: "other/elsewhere.vhdx"},
		{name: "parent option is the only one tried", entries: [][2]string{{rel, `p.vhdx`}}, parents: []string{"vm/p.vhdx"}, others: []string{"other/o.vhdx"},
			opts: func(f *family) Options { return Options{Parents: []string{f.path("other/o.vhdx")}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFamily(t)
			for _, p := range c.parents {
				f.parent(p)
			}
			for _, p := range c.others {
				f.other(p)
			}
			var o Options
			if c.opts != nil {
				o = c.opts(f)
			}
			got, err := taken(f.child(append([][2]string{linkage}, c.entries...)...), o)
			if c.want == "" {
				if err == nil {
					t.Errorf("%s was taken as the parent; want none", got)
				}
				return
			}
			if got != c.want || err != nil {
				t.Errorf("parent %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// The mounter gives the parents of a chain in turn.
func TestParentOptionsForEachLevel(t *testing.T) {
	f := newFamily(t)
	child := f.child(linkage, relPath)
	mid := build(spec{typ: Differencing, locator: parentEntries("nowhere.vhdx", otherGUID)})
	mid.writeTo(t, f.path("other/mid.vhdx"))
	base := build(spec{dataWrite: otherGUID, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	base.put([]byte("the base                                "), 0)
	base.writeTo(t, f.path("base/base.vhdx"))
	got, err := taken(child, Options{Parents: []string{f.path("other/mid.vhdx"), f.path("base/base.vhdx")}})
	if got != "the base" || err != nil {
		t.Errorf("read %q, %v from the base", got, err)
	}
	if _, err := taken(child, Options{Parents: []string{f.path("base/base.vhdx"), f.path("other/mid.vhdx")}}); err == nil {
		t.Error("parents in the wrong order were taken")
	}
}

func TestLinkage2(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries [][2]string
		ok      bool
	}{
		{"first matches", [][2]string{{ondisk.KeyLinkage, guidText(parentGUID)}, {ondisk.KeyLinkage2, guidText(otherGUID)}}, true},
		{"second matches", [][2]string{{ondisk.KeyLinkage, guidText(otherGUID)}, {ondisk.KeyLinkage2, guidText(parentGUID)}}, true},
		{"neither matches", [][2]string{{ondisk.KeyLinkage, guidText(otherGUID)}, {ondisk.KeyLinkage2, guidText(testLogGUID)}}, false},
		{"second is no GUID", [][2]string{{ondisk.KeyLinkage, guidText(parentGUID)}, {ondisk.KeyLinkage2, "none"}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFamily(t)
			f.parent("vm/parent.vhdx")
			path := f.child(append(c.entries, relPath)...)
			if _, err := taken(path, Options{}); (err == nil) != c.ok {
				t.Errorf("opened with %v", err)
			}
			if k, err := LinkTo([]uuid.UUID{parentGUID}, path, Options{}); err != nil || (k.State == Linked) != c.ok {
				t.Errorf("LinkTo the parent: %+v, %v", k, err)
			}
			// It does not look for a parent that is none of those.
			if k, err := LinkTo([]uuid.UUID{{1}, {2}}, path, Options{}); err != nil || k.State != "" || k.Parent != nil || k.Linkage == nil {
				t.Errorf("LinkTo others: %+v, %v", k, err)
			}
			if k, err := LinkTo(nil, path, Options{AnyParent: true}); err != nil || k.State != Linked {
				t.Errorf("LinkTo any: %+v, %v", k, err)
			}
			if im, err := Open(path, Options{}); err == nil {
				defer im.Close()
				if p := im.Info().Parent; (p.Linkage2 != nil) != (c.name != "second is no GUID") {
					t.Errorf("Info shows parent_linkage2 %v", p.Linkage2)
				}
			}
		})
	}
}

// The error knows every place, and why what is there is not the parent. Its text is one sentence.
func TestParentErrorKnowsWhatWasTried(t *testing.T) {
	f := newFamily(t)
	f.other("vm/r.vhdx")
	build(spec{sectorSize: 4096}).writeTo(t, f.path("vm/v.vhdx"))
	if err := os.WriteFile(f.path("base/a.vhdx"), []byte("short"), 0o666); err != nil {
		t.Fatal(err)
	}
	path := f.child(linkage, [2]string{ondisk.KeyRelativePath, `r.vhdx`}, [2]string{ondisk.KeyVolumePath, `\\?\Volume{x}\v.vhdx`},
		[2]string{ondisk.KeyAbsolutePath, `C:\vm\a.vhdx`}, [2]string{"unknown", `x.vhdx`})
	_, err := Open(path, Options{ParentDirs: []string{f.path("base")}})
	var why *parentSearchError
	if !errors.As(err, &why) {
		t.Fatalf("it opened, or: %v", err)
	}
	for _, want := range []string{path, "parent r.vhdx", otherGUID.String(), "parent=FILE"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	places := strings.Join(why.places(), "\n")
	for _, want := range []string{
		f.path("vm/r.vhdx") + " (relative_path): it has changed since the child was created, or is another disk (DataWriteGuid " + otherGUID.String(),
		f.path("base/r.vhdx") + " (parent_dir= option): open",
		f.path("vm/v.vhdx") + " (name in volume_path): its logical sector size is 4096, that of the child 512",
		f.path("vm/a.vhdx") + " (name in absolute_win32_path): open",
		f.path("base/a.vhdx") + " (parent_dir= option): ",
	} {
		if !strings.Contains(places, want) {
			t.Errorf("it does not know %q:\n%s", want, places)
		}
	}
	if strings.Contains(places, "x.vhdx") {
		t.Errorf("an unknown key was taken as a path:\n%s", places)
	}
}

// The text of the error is short, names the option that helps, and no more than the end of a long name.
func TestParentErrorIsOneSentence(t *testing.T) {
	long := strings.Repeat("long", 60)
	for name, c := range map[string]struct {
		rel  string
		make func(f *family) error
		want string
	}{
		"missing":          {`p.vhdx`, nil, "parent p.vhdx not found; name its directory with -o parent_dir=DIR"},
		"with a long name": {long, nil, "longlong not found; name its directory with -o parent_dir=DIR"},
		"outside":          {`..\base\p.vhdx`, nil, "parent p.vhdx is outside the directory of the image; to allow it, use -o parent_dir="},
		"a link out": {`p.vhdx`, func(f *family) error { return os.Symlink("../base/p.vhdx", f.path("vm/p.vhdx")) },
			"parent p.vhdx is a symbolic link out of its directory, which is not followed; name the file with -o parent=FILE"},
		"another disk": {`p.vhdx`, func(f *family) error { f.other("vm/p.vhdx"); return nil }, "parent p.vhdx cannot be used: it has changed since"},
	} {
		f := newFamily(t)
		f.parent("base/p.vhdx")
		if c.make != nil {
			if err := c.make(f); err != nil {
				t.Fatal(err)
			}
		}
		path := f.child(linkage, [2]string{ondisk.KeyRelativePath, c.rel})
		_, err := Open(path, Options{})
		if err == nil {
			t.Errorf("%s: it opened", name)
			continue
		}
		text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), path+": "), f.dir, "")
		if !strings.Contains(text, c.want) || strings.Contains(text, "\n") || len(text)-len(" (parent locator, offset 0x210028, rule R61, MS-VHDX 2.6.2.6.3)") > 200 {
			t.Errorf("%s: %d bytes: %s", name, len(text), text)
		}
	}
}

// Names that differ in case alone are taken where nothing has the exact name, if the identity is right, under all
// options.
func TestParentDiffersInCase(t *testing.T) {
	for name, c := range map[string]struct {
		rel             string
		parents, others []string
		opts            func(f *family) Options
		want            string
	}{
		"name":                 {`P.VHDX`, []string{"vm/p.vhdx"}, nil, nil, "vm/p.vhdx"},
		"directory and name":   {`SUB\P.vhdx`, []string{"vm/sub/p.VHDX"}, nil, nil, "vm/sub/p.VHDX"},
		"beyond ASCII":         {`ÄÖ.vhdx`, []string{"vm/äö.vhdx"}, nil, nil, "vm/äö.vhdx"},
		"in a parent_dir":      {`..\x\P.vhdx`, []string{"base/p.vhdx"}, nil, func(f *family) Options { return Options{ParentDirs: []string{f.path("base")}} }, "base/p.vhdx"},
		"the exact one before": {`P.vhdx`, []string{"vm/p.vhdx", "vm/P.vhdx"}, nil, nil, "vm/P.vhdx"},
		"an exact one elsewhere before": {`P.vhdx`, []string{"vm/p.vhdx", "base/P.vhdx"}, nil,
			func(f *family) Options { return Options{ParentDirs: []string{f.path("base")}} }, "base/P.vhdx"},
		"the one that fits": {`P.vhdx`, []string{"vm/p.VHDX"}, []string{"vm/p.vhdx"}, nil, "vm/p.VHDX"},
		"another disk":      {`P.vhdx`, nil, []string{"vm/p.vhdx"}, func(*family) Options { return Options{AnyParent: true} }, ""},
	} {
		f := newFamily(t)
		for _, p := range c.parents {
			f.parent(p)
		}
		for _, p := range c.others {
			f.other(p)
		}
		var o Options
		if c.opts != nil {
			o = c.opts(f)
		}
		got, err := taken(f.child(linkage, [2]string{ondisk.KeyRelativePath, c.rel}), o)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
		if c.want == "" && !strings.Contains(fmt.Sprint(err), "p.vhdx") {
			t.Errorf("%s: the error does not name the file: %v", name, err)
		}
	}
}

// A symbolic link leads to a parent in the directory, or in one that is allowed, and nowhere else; neither does a directory
// that was swapped for a link, nor does anything wait for a pipe.
func TestParentByLinks(t *testing.T) {
	for name, c := range map[string]struct {
		rel, link, to string // in the directory of the family
		dirs          []string
		want          string
	}{
		"inside":                      {`l.vhdx`, "vm/l.vhdx", "sub/p.vhdx", nil, "vm/sub/p.vhdx"},
		"directory inside":            {`l\p.vhdx`, "vm/l", "sub", nil, "vm/sub/p.vhdx"},
		"out of the directory":        {`l.vhdx`, "vm/l.vhdx", "../base/p.vhdx", nil, ""},
		"directory outside":           {`l\p.vhdx`, "vm/l", "../base", nil, ""},
		"absolute":                    {`l.vhdx`, "vm/l.vhdx", "/base/p.vhdx", nil, ""},
		"out of the directory and in": {`l.vhdx`, "vm/l.vhdx", "../vm/sub/p.vhdx", nil, ""},
		"a pipe":                      {`fifo`, "vm/l.vhdx", "sub/p.vhdx", nil, ""},
		"a device":                    {`null`, "vm/null", "/dev/null", nil, ""},
		"from an allowed directory":   {`l.vhdx`, "other/l.vhdx", "../base/p.vhdx", []string{"other"}, ""},
		"a directory that is allowed": {`l.vhdx`, "other/l.vhdx", "base/p.vhdx", []string{"other"}, "other/base/p.vhdx"},
	} {
		f := newFamily(t)
		for _, dir := range []string{"other/base"} {
			if err := os.Mkdir(f.path(dir), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []string{"vm/sub/p.vhdx", "base/p.vhdx", "other/base/p.vhdx"} {
			f.parent(p)
		}
		if strings.HasPrefix(c.to, "/base") {
			c.to = f.path(c.to)
		}
		if err := errors.Join(os.Symlink(c.to, f.path(c.link)), unix.Mkfifo(f.path("vm/fifo"), 0o666)); err != nil {
			t.Fatal(err)
		}
		var o Options
		for _, d := range c.dirs {
			o.ParentDirs = append(o.ParentDirs, f.path(d))
		}
		if got, err := taken(f.child(linkage, [2]string{ondisk.KeyRelativePath, c.rel}), o); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

// Where the parent is not found, the image itself can still be told of and checked.
func TestMissingParent(t *testing.T) {
	f := newFamily(t)
	path := f.child(linkage, [2]string{ondisk.KeyRelativePath, `.\win.vhdx`})
	in := diskInfo(t, path, Options{MissingParent: true})
	if in.Parent == nil || in.Parent.Missing != "win.vhdx" || in.Parent.Image != nil || in.Parent.RelativePath != `.\win.vhdx` {
		t.Errorf("Info: %+v", in.Parent)
	}
	r, err := Check(path, Options{})
	if err != nil || !r.Sound() || r.Clean() || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Message, "win.vhdx") {
		t.Errorf("Check: %+v, %v", r, err)
	}
	if _, err := Open(path, Options{MissingParent: true, Writable: true}); err == nil {
		t.Error("it was opened for writing")
	}
	f.other("vm/win.vhdx")
	if _, err := Open(path, Options{MissingParent: true}); brokenRule(err, ondisk.RuleParentChanged) != nil {
		t.Errorf("with another disk in its place: %v", err)
	}
	if r, err := Check(path, Options{}); err != nil || r.Sound() {
		t.Errorf("Check with another disk in its place: %+v, %v", r, err)
	}
}

// A symbolic link and a hard link are the same file, under any name.
func TestChainHoldsAFileOnce(t *testing.T) {
	for name, link := range map[string]func(old, new string) error{"symbolic": os.Symlink, "hard": os.Link} {
		t.Run(name, func(t *testing.T) {
			f := newFamily(t)
			path := f.child(linkage, [2]string{ondisk.KeyRelativePath, "nowhere.vhdx"})
			if err := link(path, f.path("other/again.vhdx")); err != nil {
				t.Skip(err)
			}
			_, err := Open(path, Options{Parents: []string{f.path("other/again.vhdx")}})
			if err := brokenRule(err, ondisk.RuleChainEndless); err != nil {
				t.Error(err)
			}
		})
	}
}

// Where the image or its directory is a symbolic link, the parent beside the file is found, and named so.
func TestParentBesideTheFile(t *testing.T) {
	f := newFamily(t)
	if err := Create(f.path("vm/base.vhdx"), CreateOptions{Size: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	for _, link := range [][2]string{{"../vm/child.avhdx", "other/link.avhdx"}, {"vm", "linked"}} {
		if err := os.Symlink(link[0], f.path(link[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := Create(f.path("linked/child.avhdx"), CreateOptions{Parent: f.path("vm/base.vhdx")}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"vm/child.avhdx", "linked/child.avhdx", "other/link.avhdx"} {
		im, err := Open(f.path(path), Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		if rel := im.Info().Parent.RelativePath; rel != `.\base.vhdx` {
			t.Errorf("%s: the relative path is %s", path, rel)
		}
		im.Close()
	}
	if _, err := SetParent(f.path("other/link.avhdx"), f.path("vm/base.vhdx"), SetParentOptions{}); err != nil {
		t.Fatal(err)
	}
	if rel := diskInfo(t, f.path("vm/child.avhdx"), Options{}).Parent.RelativePath; rel != `.\base.vhdx` {
		t.Errorf("set through a link, the relative path is %s", rel)
	}
}

// A wrong turn that leads through many files leaves nothing behind when the right one is taken.
func TestWrongParentsDoNotCount(t *testing.T) {
	notShort(t, "it makes hundreds of files")
	t.Parallel()
	f := newFamily(t)
	writeChain(t, f.path("vm"), "wrong", 200)
	writeChain(t, f.path("vm"), "right", 100)
	if err := os.Remove(f.path("vm/wrong199.vhdx")); err != nil {
		t.Fatal(err)
	}
	path := f.child([2]string{ondisk.KeyLinkage, guidText(chainGUID(0))},
		[2]string{ondisk.KeyRelativePath, `wrong0.vhdx`}, [2]string{ondisk.KeyAbsolutePath, `C:\right0.vhdx`})
	before := openFiles(t, f.dir)
	got, err := taken(path, Options{})
	if got != "the end of the chain" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if after := openFiles(t, f.dir); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// chainGUID is the DataWriteGuid of level i of what writeChain writes.
func chainGUID(i int) uuid.UUID { return uuid.UUID{0: 0x1A, 14: byte(i >> 8), 15: byte(i)} }

// writeChain writes n images in the directory, each the parent of the one before, and returns the path of the first.
// Their names are the given one and a number.
func writeChain(t *testing.T, dir, name string, n int) string {
	t.Helper()
	for i := range n {
		s := spec{diskSize: ondisk.MiB, dataWrite: chainGUID(i)}
		if i < n-1 {
			s.typ = Differencing
			s.locator = parentEntries(fmt.Sprintf("%s%d.vhdx", name, i+1), chainGUID(i+1))
		}
		im := build(s)
		if i == n-1 {
			im.setBlock(0, ondisk.FullyPresent)
			im.put([]byte("the end of the chain                    "), 0)
		}
		im.writeTo(t, filepath.Join(dir, fmt.Sprintf("%s%d.vhdx", name, i)))
	}
	return filepath.Join(dir, name+"0.vhdx")
}

func TestLongestChain(t *testing.T) {
	notShort(t, "it makes hundreds of files")
	t.Parallel()
	got, err := taken(writeChain(t, t.TempDir(), "c", maxLayers), Options{})
	if got != "the end of the chain" || err != nil {
		t.Errorf("a chain of %d: read %q, %v", maxLayers, got, err)
	}
	longest := writeChain(t, t.TempDir(), "c", maxLayers)
	if _, err := Snapshot(context.Background(), longest, "", SnapshotOptions{KeepName: true}); !errors.Is(err, ErrOptions) {
		t.Errorf("a child that nobody could open: %v", err)
	}
	if _, err := taken(longest, Options{}); err != nil {
		t.Error(err)
	}
	_, err = taken(writeChain(t, t.TempDir(), "c", maxLayers+1), Options{})
	if err := brokenRule(err, ondisk.RuleChainEndless); err != nil {
		t.Errorf("a chain of %d: %v", maxLayers+1, err)
	}
}

// Where each parent of a long chain has a copy and the last one is missing, there are more ways through the
// copies than could ever be tried.
func TestCopiesOfParentsAreNotTriedForever(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const levels = 40
	for i := range levels {
		im := build(spec{typ: Differencing, diskSize: ondisk.MiB, dataWrite: chainGUID(i), locator: [][2]string{
			{ondisk.KeyLinkage, guidText(chainGUID(i + 1))},
			{ondisk.KeyRelativePath, fmt.Sprintf("a%d.vhdx", i+1)},
			{ondisk.KeyAbsolutePath, fmt.Sprintf(`C:\b%d.vhdx`, i+1)},
		}})
		im.writeTo(t, filepath.Join(dir, fmt.Sprintf("a%d.vhdx", i)))
		im.writeTo(t, filepath.Join(dir, fmt.Sprintf("b%d.vhdx", i)))
	}
	_, err := Open(filepath.Join(dir, "a0.vhdx"), Options{})
	if err := brokenRule(err, ondisk.RuleChainEndless); err != nil {
		t.Error(err)
	}
	if n := len(err.Error()); n > ondisk.MiB {
		t.Errorf("the error has %d bytes", n)
	}
}

// The sectors of a child beyond the end of its parent read as zeros, and only those.
func TestParentSmallerThanChild(t *testing.T) {
	parent := build(spec{diskSize: 2*ondisk.MiB + 1024, blockSize: 2 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	child := build(spec{typ: Differencing, diskSize: 7 * ondisk.MiB, blockSize: 4 * ondisk.MiB})
	c := chain{child, parent}
	im, err := Open(c.writeTo(t, t.TempDir()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	c.verify(t, im)
	in := im.Info()
	if in.DiskSize != 7*ondisk.MiB || in.Parent.Image.DiskSize != 2*ondisk.MiB+1024 || in.Parent.Image.BlockSize != 2*ondisk.MiB {
		t.Errorf("Info: %+v on %+v", in, in.Parent.Image)
	}
}
