package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// eachWay runs a test with files that have no name until they are complete, and with such that have one.
func eachWay(t *testing.T, test func(t *testing.T)) {
	t.Run("without a name", func(t *testing.T) {
		f, err := Create(filepath.Join(t.TempDir(), "new"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Discard()
		if f.temp != "" {
			t.Skip("the file system knows no files without a name")
		}
		test(t)
	})
	t.Run("with a name", func(t *testing.T) {
		defer func(was func(*safefile.Dir, string, fs.FileMode) (*os.File, error)) { Unnamed = was }(Unnamed)
		Unnamed = func(*safefile.Dir, string, fs.FileMode) (*os.File, error) { return nil, unix.EOPNOTSUPP }
		test(t)
	})
}

// holds fails the test unless the directory holds exactly the files given, by name and content.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(b)
	}
	if len(got) != len(want) {
		t.Errorf("the directory holds %q, want %q", got, want)
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s holds %q, want %q", name, got[name], content)
		}
	}
}

func write(t *testing.T, f *File, s string) {
	t.Helper()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func TestCommit(t *testing.T) { eachWay(t, commit) }

func commit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new")
	f, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "content")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name is taken before the file is complete: %v", err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, map[string]string{"new": "content"})
	if err := f.Discard(); err != nil {
		t.Errorf("Discard after Commit: %v", err)
	}
	holds(t, dir, map[string]string{"new": "content"})
}

func TestDiscard(t *testing.T) { eachWay(t, discard) }

func discard(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "new"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "content")
	if b, err := os.ReadFile(f.TempPath()); err != nil || string(b) != "content" {
		t.Errorf("by TempPath it holds %q, %v", b, err)
	}
	for range 2 {
		if err := f.Discard(); err != nil {
			t.Error(err)
		}
	}
	holds(t, dir, nil)
	if err := f.Commit(); err == nil {
		t.Error("Commit after Discard gave no error")
	}
}

func TestExistingFileStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "there")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create: %v", err)
	}
	holds(t, dir, map[string]string{"there": "old"})
}

// A file that another program makes meanwhile is not replaced either.
func TestFileThatComesMeanwhileStays(t *testing.T) { eachWay(t, fileThatComesMeanwhileStays) }

func fileThatComesMeanwhileStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "there")
	f, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "new")
	if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit: %v", err)
	}
	holds(t, dir, map[string]string{"there": "theirs"})
}

func TestReplace(t *testing.T) { eachWay(t, replace) }

func replace(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "there"), filepath.Join(t.TempDir(), "link")
	if err := os.WriteFile(path, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{path, link} {
		f, err := Create(name, Options{Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, "new")
		if i == 0 {
			holdsPart(t, path, "old")
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, map[string]string{"there": "new"})
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want that of the file before", st.Mode(), err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Errorf("the link was replaced: %v", err)
	}
	if _, err := Create(dir, Options{Replace: true}); err == nil {
		t.Error("a directory would be replaced")
	}
}

func holdsPart(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v; want %q", path, b, err, want)
	}
}

// What is no regular file, or cannot be made, is named as the caller named it.
func TestErrors(t *testing.T) { eachWay(t, errorsNameThePath) }

func errorsNameThePath(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none", "new"): "no such file or directory",
		"/proc/new":                       "no such file or directory",
		dir:                               "is not a regular file",
		"/dev/null":                       "is not a regular file",
	} {
		f, err := Create(path, Options{Replace: true})
		if err == nil {
			f.Discard()
		}
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	full, err := Create("/dev/full/new", Options{})
	if err == nil {
		full.Discard()
		t.Error("a file in a device was made")
	}
}

// access returns owner, group, permissions and ACL of a file.
func access(t *testing.T, path string) safefile.Access {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, err := safefile.AccessOf(f)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A new file is never more open than the most private of its inputs, and one that is replaced keeps what it has, as far as
// the inputs let it.
func TestAccess(t *testing.T) { eachWay(t, givesAccess) }

func givesAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to others")
	}
	type file struct {
		uid, gid int
		mode     fs.FileMode
	}
	defer unix.Umask(unix.Umask(0o022))
	for name, c := range map[string]struct {
		inputs []file
		old    *file
		want   file
	}{
		"no inputs":                       {nil, nil, file{0, 0, 0o644}},
		"an open input":                   {[]file{{1, 1, 0o644}}, nil, file{0, 0, 0o644}},
		"one that can only be read":       {[]file{{0, 0, 0o444}}, nil, file{0, 0, 0o644}},
		"a private input":                 {[]file{{0, 0, 0o600}}, nil, file{0, 0, 0o600}},
		"an open and a private input":     {[]file{{0, 0, 0o644}, {1, 1, 0o600}}, nil, file{0, 0, 0o600}},
		"one for the same group":          {[]file{{1, 0, 0o640}}, nil, file{0, 0, 0o640}},
		"one for another group":           {[]file{{0, 6, 0o660}}, nil, file{0, 0, 0o600}},
		"a group that is kept out":        {[]file{{0, 6, 0o604}}, nil, file{0, 0, 0o600}},
		"replaced":                        {nil, &file{12, 13, 0o664}, file{12, 13, 0o664}},
		"replaced, and an open input":     {[]file{{0, 0, 0o644}}, &file{12, 13, 0o640}, file{12, 13, 0o640}},
		"replaced, and a private input":   {[]file{{0, 0, 0o600}}, &file{12, 13, 0o664}, file{0, 13, 0o600}},
		"replaced, and one of its owner":  {[]file{{12, 0, 0o600}}, &file{12, 13, 0o664}, file{12, 13, 0o600}},
		"replaced, and one of a group":    {[]file{{0, 13, 0o640}}, &file{12, 13, 0o664}, file{0, 13, 0o640}},
		"replaced, which nobody can read": {nil, &file{12, 13, 0}, file{12, 13, 0}},
	} {
		dir := t.TempDir()
		set := func(name string, f file) string {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, f.uid, f.gid), os.Chmod(path, f.mode)); err != nil {
				t.Fatal(err)
			}
			return path
		}
		o := Options{Replace: c.old != nil}
		for _, in := range c.inputs {
			o.Inputs = append(o.Inputs, access(t, set("input", in)))
		}
		if c.old != nil {
			set("new", *c.old)
		}
		f, err := Create(filepath.Join(dir, "new"), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if got := access(t, filepath.Join(dir, "new")); (file{int(got.UID), int(got.GID), got.Perm}) != c.want {
			t.Errorf("%s: %d:%d with %o, want %v", name, got.UID, got.GID, got.Perm, c.want)
		}
	}
}

// acl is what the kernel stores for an ACL that lets the user 12 read and write, beside the owner.
var acl = []byte{
	2, 0, 0, 0,
	1, 0, 6, 0, 255, 255, 255, 255, // owner rw
	2, 0, 6, 0, 12, 0, 0, 0, // user 12 rw
	4, 0, 0, 0, 255, 255, 255, 255, // group ---
	16, 0, 6, 0, 255, 255, 255, 255, // mask rw
	32, 0, 0, 0, 255, 255, 255, 255, // others ---
}

// An ACL of what is replaced is kept, unless an input is more private; the group's bits of an input with an ACL are not
// those of its group; and an ACL that the directory gives to new files does not open those with private inputs.
func TestACL(t *testing.T) { eachWay(t, keepsACL) }

func keepsACL(t *testing.T) {
	const name = "system.posix_acl_access"
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, n := range []string{"acl", "kept", "limited", "private"} {
		if err := os.WriteFile(path(n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if n == "private" {
			continue
		}
		if err := unix.Setxattr(path(n), name, acl, 0); err != nil {
			t.Skipf("no ACLs here: %v", err)
		}
	}
	if err := unix.Setxattr(dir, "system.posix_acl_default", acl, 0); err != nil {
		t.Skipf("no ACLs here: %v", err)
	}
	for _, c := range []struct {
		name, input string
		acl         bool
		perm        fs.FileMode
	}{
		{"kept", "", true, 0o660}, {"kept", "acl", false, 0o600}, {"limited", "private", false, 0o600},
		{"new from a private one", "private", false, 0o600}, {"new from one with an ACL", "acl", false, 0o600},
	} {
		o := Options{Replace: true}
		if c.input != "" {
			o.Inputs = append(o.Inputs, access(t, path(c.input)))
		}
		f, err := Create(path(c.name), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		n, err := unix.Getxattr(path(c.name), name, make([]byte, 1024))
		if got := access(t, path(c.name)); err == nil && n > 0 != c.acl || err != nil && c.acl || got.Perm != c.perm {
			t.Errorf("%s from %q: an ACL of %d bytes, %v, with %o; want one: %v, %o", c.name, c.input, n, err, got.Perm, c.acl, c.perm)
		}
	}
}

// What takes the place of the file, or of its directory, while it is being written is not touched: neither by the owner and
// the permissions that the file gets, nor by the end.
func TestNameTakenMeanwhile(t *testing.T) { eachWay(t, nameTakenMeanwhile) }

func nameTakenMeanwhile(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(*File) error
	}{{"commit", (*File).Commit}, {"discard", (*File).Discard}} {
		dir, other := t.TempDir(), t.TempDir()
		secret := filepath.Join(other, "secret")
		if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		directory := filepath.Join(dir, "directory")
		if err := os.Mkdir(directory, 0o777); err != nil {
			t.Fatal(err)
		}
		f, err := Create(filepath.Join(directory, "new"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, "content")
		if f.temp != "" {
			if err := errors.Join(os.Remove(filepath.Join(directory, f.temp)), os.Symlink(secret, filepath.Join(directory, f.temp))); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(other, f.temp), []byte("theirs"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Rename(directory, directory+".moved"), os.Symlink(other, directory)); err != nil {
			t.Fatal(err)
		}
		before := access(t, secret)
		if err := (safefile.Access{UID: before.UID, GID: before.GID, Perm: 0o666}).Give(f.File, nil); err != nil && f.temp == "" {
			t.Error(err)
		}
		if err := end.do(f); (err != nil) != (f.temp != "" && end.name == "commit") {
			t.Errorf("%s: %v", end.name, err)
		}
		if now := access(t, secret); now.Perm != before.Perm {
			t.Errorf("%s: the secret file has %o now", end.name, now.Perm)
		}
		want := map[string]string{"secret": "secret"}
		if f.temp != "" {
			want[f.temp] = "theirs"
		}
		holds(t, other, want)
	}
}

// A file that is replaced by a symbolic link to it is named where it is.
func TestReplaceByLink(t *testing.T) {
	dir, there := t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(there, "file"), nil, 0o600), os.Symlink(there, filepath.Join(dir, "directory")), os.Symlink("directory/file", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	f, err := Create(filepath.Join(dir, "link"), Options{Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if f.Path() != filepath.Join(there, "file") {
		t.Errorf("it is named %s", f.Path())
	}
}
