package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// eachWay runs a test with files that have no name until they are complete, and with such that have one.
func eachWay(t *testing.T, test func(t *testing.T)) {
	t.Run("without a name", func(t *testing.T) {
		f, err := Create(filepath.Join(t.TempDir(), "new"), false)
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
		defer func(was int) { tmpFile = was }(tmpFile)
		tmpFile = unix.O_DIRECTORY // which cannot be opened for writing
		test(t)
	})
}

// holds fails the test unless the folder holds exactly the files given, by name and content.
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
		t.Errorf("the folder holds %q, want %q", got, want)
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
	f, err := Create(path, false)
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
	f, err := Create(filepath.Join(dir, "new"), false)
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
	if _, err := Create(path, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create: %v", err)
	}
	holds(t, dir, map[string]string{"there": "old"})
}

// A file that somebody else makes meanwhile is not replaced either.
func TestFileThatComesMeanwhileStays(t *testing.T) { eachWay(t, fileThatComesMeanwhileStays) }

func fileThatComesMeanwhileStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "there")
	f, err := Create(path, false)
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
		f, err := Create(name, true)
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
	if _, err := Create(dir, true); err == nil {
		t.Error("a folder would be replaced")
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
		dir:                               "is no regular file; it is left as it is",
		"/dev/null":                       "is no regular file; it is left as it is",
	} {
		f, err := Create(path, true)
		if err == nil {
			f.Discard()
		}
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	full, err := Create("/dev/full/new", false)
	if err == nil {
		full.Discard()
		t.Error("a file in a device was made")
	}
}
