package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/otheruser"
)

// append1 opens a file to append one byte, as a log is opened.
func append1(path string) error {
	d, name, err := Reach(path)
	if err != nil {
		return err
	}
	defer d.Close()
	fd, err := d.OpenToWrite(name, path, unix.O_APPEND|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	return err
}

// Links of root and of the caller are followed, others are refused, and so is what another user may have put there.
func TestOpenToWrite(t *testing.T) {
	theirs, ours := otheruser.Dir(t), t.TempDir()
	secret := filepath.Join(ours, "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	in := func(name string) string { return filepath.Join(theirs, name) }
	foreign := func(path string) { must(t, os.Lchown(path, otheruser.UID, otheruser.UID)) }
	link := func(to, name string, own bool) {
		must(t, os.Symlink(to, name))
		if !own {
			foreign(name)
		}
	}
	link(secret, in("link"), false)
	link(in("dangling"), in("link2"), false)
	link(ours, in("directory"), false)
	link("file", in("own"), true)
	link(ours, filepath.Join(ours, "here"), true)
	must(t, os.Mkdir(in("sub"), 0o755))
	must(t, os.WriteFile(in("file"), nil, 0o644))
	foreign(in("file"))
	must(t, unix.Mkfifo(in("fifo"), 0o666))
	foreign(in("fifo"))
	must(t, unix.Mkfifo(filepath.Join(ours, "fifo"), 0o600))
	must(t, os.Link(secret, filepath.Join(ours, "second")))
	linked := os.Link(filepath.Join(ours, "second"), in("hard")) // not where that is another file system
	for path, want := range map[string]error{
		in("link"): ErrForeign, in("link2"): ErrForeign, in("directory/secret"): ErrForeign, in("directory/none"): ErrForeign,
		in("fifo"): ErrForeign, in("hard"): ErrForeign, in("none/x"): fs.ErrNotExist, in("file/x"): unix.ENOTDIR, in("sub"): unix.EISDIR,
		in("sub/"): unix.EISDIR, in("new"): nil, in("file"): nil, in("own"): nil, in("sub/../new"): nil,
		filepath.Join(ours, "here/here/log"): nil, filepath.Join(ours, "second"): nil, filepath.Join(ours, "fifo"): unix.ENXIO,
		"/dev/null": nil, "/proc/self/cwd/../../../none/x": fs.ErrNotExist,
	} {
		if path == in("hard") && linked != nil {
			continue
		}
		if err := append1(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secretx" { // by its second name in the own directory
		t.Errorf("the file of root holds %q, %v", b, err)
	}
	for path, want := range map[string][2]bool{theirs: {true, true}, ours: {}, os.TempDir(): {true, false}} {
		if put, remove, err := directory(t, path).Shared(); err != nil || put != want[0] || remove != want[1] {
			t.Errorf("%s: shared %v, %v, %v", path, put, remove, err)
		}
	}
}

// What a name leads to is another thing at each moment.
func TestOpenToWriteWhileExchanged(t *testing.T) {
	theirs, secret := otheruser.Dir(t), filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, nil, 0o600))
	in := func(name string) string { return filepath.Join(theirs, name) }
	must(t, errors.Join(os.WriteFile(in("log"), nil, 0o644), os.Symlink(secret, in("link")), os.Mkdir(in("sub"), 0o755), os.Symlink(filepath.Dir(secret), in("directory"))))
	for _, name := range []string{"log", "link", "directory"} {
		must(t, os.Lchown(in(name), otheruser.UID, otheruser.UID))
	}
	otheruser.Exchange(t, in("log"), in("link"))
	otheruser.Exchange(t, in("sub"), in("directory"))
	written := 0
	for range 3000 {
		for _, name := range []string{"log", "sub/secret"} {
			if append1(in(name)) == nil {
				written++
			}
		}
	}
	if st, err := os.Stat(secret); err != nil || st.Size() > 0 || written == 0 {
		t.Errorf("the file of root: %d bytes, %v; the others took %d", st.Size(), err, written)
	}
}
