package safefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// eachWalk runs a test with openat2 and with what stands in for it.
func eachWalk(t *testing.T, test func(t *testing.T)) {
	t.Run("openat2", test)
	t.Run("by hand", func(t *testing.T) {
		noOpenat2 = true
		defer func() { noOpenat2 = false }()
		test(t)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func directory(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func TestOpenBeneath(t *testing.T) { eachWalk(t, openBeneath) }

func openBeneath(t *testing.T) {
	top := t.TempDir()
	in := func(name string) string { return filepath.Join(top, name) }
	must(t, os.MkdirAll(in("home/sub/deep"), 0o777))
	for _, name := range []string{"secret", "home/file", "home/sub/file", "home/sub/deep/file"} {
		must(t, os.WriteFile(in(name), []byte(name), 0o600))
	}
	for name, to := range map[string]string{
		"home/link": "sub/file", "home/sub/up": "../file", "home/there": "sub/deep", "home/sub/deep/back": "../../there/../file",
		"home/out": "../secret", "home/absolute": in("home/file"), "home/outside": top, "home/sub/far": "../../secret",
		"home/loop": "loop", "home/self": ".", "home/magic": "/proc/self/cwd",
	} {
		must(t, os.Symlink(to, in(name)))
	}
	d := directory(t, in("home"))
	for name, want := range map[string]string{
		"file": "home/file", "./file": "home/file", "sub/file": "home/sub/file", "sub/../file": "home/file", "sub//file": "home/sub/file",
		"link": "home/sub/file", "sub/up": "home/file", "there/file": "home/sub/deep/file", "there/../file": "home/sub/file",
		"there/back": "home/sub/file", "self/self/file": "home/file",
	} {
		f, err := d.Open(name, os.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b, err := io.ReadAll(f); err != nil || string(b) != want {
			t.Errorf("%s: opened %q, %v; want %q", name, b, err, want)
		}
		if f.Name() != d.Join(name) {
			t.Errorf("%s: it is named %s", name, f.Name())
		}
		f.Close()
	}
	for name, want := range map[string]error{
		"../secret": ErrOutside, "sub/../../secret": ErrOutside, "out": ErrOutside, "absolute": ErrOutside, "outside/secret": ErrOutside,
		"sub/far": ErrOutside, in("home/file"): ErrOutside, "magic": ErrOutside, "loop": unix.ELOOP, "none": fs.ErrNotExist, "sub/none": fs.ErrNotExist,
		"file/x": unix.ENOTDIR, "sub": unix.EISDIR, ".": unix.EISDIR,
	} {
		f, err := d.Open(name, os.O_RDONLY)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if f != nil {
			f.Close()
		}
	}
	sub, err := d.OpenDir("there/..")
	must(t, err)
	defer sub.Close()
	if _, err := sub.Stat("file"); err != nil || !sub.Same(directory(t, in("home/sub"))) {
		t.Errorf("the directory is another one: %v", err)
	}
	if _, err := sub.Open("../file", os.O_RDONLY); !errors.Is(err, ErrOutside) {
		t.Errorf("out of a directory below: %v", err)
	}
	if d, err := d.OpenDir("file"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file as a directory: %v, %v", d, err)
	}
}

// A directory that is moved away while it is open leads nowhere else.
func TestMovedDir(t *testing.T) { eachWalk(t, movedDir) }

func movedDir(t *testing.T) {
	top := t.TempDir()
	home, other := filepath.Join(top, "home"), filepath.Join(top, "other")
	must(t, errors.Join(os.Mkdir(home, 0o777), os.Mkdir(other, 0o777)))
	must(t, os.WriteFile(filepath.Join(home, "file"), []byte("mine"), 0o600))
	must(t, os.WriteFile(filepath.Join(other, "file"), []byte("secret"), 0o600))
	d := directory(t, home)
	must(t, errors.Join(os.Rename(home, home+".moved"), os.Symlink(other, home)))
	f, err := d.Open("file", os.O_RDONLY)
	must(t, err)
	defer f.Close()
	if b, _ := io.ReadAll(f); string(b) != "mine" {
		t.Errorf("it holds %q", b)
	}
	must(t, d.RemoveFile("file", f))
	if _, err := os.Stat(filepath.Join(other, "file")); err != nil {
		t.Errorf("the other file is gone: %v", err)
	}
	if _, err := d.Stat("file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

// What is neither a regular file nor a block device is not opened: opening it could wait, or do something.
func TestOpenKinds(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	// Each open of a FIFO for writing finds out whether it is open for reading.
	d := directory(t, dir)
	for name, open := range map[string]func() (*os.File, error){
		"by path":      func() (*os.File, error) { return Open(fifo, os.O_RDONLY) },
		"by directory": func() (*os.File, error) { return d.Open("fifo", os.O_RDWR) },
		"device":       func() (*os.File, error) { return Open("/dev/null", os.O_RDONLY) },
	} {
		if f, err := open(); !errors.Is(err, ErrKind) {
			t.Errorf("%s: %v, %v; want ErrKind", name, f, err)
		}
	}
	if _, err := Open(dir, os.O_RDONLY); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none"), os.O_RDONLY); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

// No user reads or writes by this package what he may not.
func TestOpenPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may open everything")
	}
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o400))
	if _, err := Open(path, os.O_RDWR); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("for writing: %v", err)
	}
}
