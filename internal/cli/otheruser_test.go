package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/otheruser"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// What options make in a directory of another user is made there or not at all, wherever that user's links lead.
func TestFilesInDirOfAnotherUser(t *testing.T) {
	for name, use := range map[string]func(path string) error{
		"log": func(path string) error {
			f, err := openLogFile(path)
			if err == nil {
				_, err = f.Write([]byte("line\n"))
				unix.Close(int(f))
			}
			return err
		},
		"pidfile": func(path string) error {
			_, err := writePIDFile(path, 42)
			return err
		},
		"metrics": func(path string) error {
			m, err := listenMetrics(path)
			if err == nil {
				m.close()
			}
			return err
		},
		"a new file": func(path string) error { return vhdx.Create(path, vhdx.CreateOptions{Size: 1 << 20}) },
		"a replaced file": func(path string) error {
			return vhdx.Create(path, vhdx.CreateOptions{Size: 1 << 20, Replace: true})
		},
		"a raw file": func(path string) error {
			f, err := convert.NewRaw(path, 1<<20, newfile.Options{Replace: true})
			if err == nil {
				err = errors.Join(f.Finish(), f.Commit())
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, ours := otheruser.Dir(t), t.TempDir()
			secret := filepath.Join(ours, "secret")
			if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			for link, to := range map[string]string{"link": secret, "dangling": filepath.Join(ours, "none"), "directory": ours} {
				if err := errors.Join(os.Symlink(to, filepath.Join(dir, link)), os.Lchown(filepath.Join(dir, link), otheruser.UID, otheruser.UID)); err != nil {
					t.Fatal(err)
				}
			}
			for _, path := range []string{"link", "dangling", "directory/none", "directory/secret"} {
				err := use(filepath.Join(dir, path))
				if !errors.Is(err, safefile.ErrForeign) && !errors.Is(err, os.ErrExist) {
					t.Errorf("%s: %v", path, err)
				}
			}
			if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
				t.Errorf("the file of root: %q, %v", b, err)
			}
			if list, err := os.ReadDir(ours); err != nil || len(list) != 1 {
				t.Errorf("in the directory of root: %v, %v", list, err)
			}
			if err := use(filepath.Join(dir, "new")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A pidfile goes with its mount, unless another one has taken its name.
func TestPIDFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	p, err := writePIDFile(path, 42)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	p.remove(log)
	if b, err := os.ReadFile(path); err != nil || string(b) != "other" {
		t.Errorf("the other pidfile: %q, %v", b, err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	p.remove(log)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// Mount points are not made where others can put something into the directory for them.
func TestSharedRunDir(t *testing.T) {
	if err := refuseShared(otheruser.Dir(t)); err == nil {
		t.Error("a directory of another user is taken")
	}
	dir := t.TempDir()
	for mode, refused := range map[os.FileMode]bool{0o777: true, 0o775: true, 0o777 | os.ModeSticky: false, 0o755: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := refuseShared(dir); (err != nil) != refused {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}
