package vhdx

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/otheruser"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// secretCopy returns a copy of a file, in a directory of root's, whose disk begins with "secret".
func secretCopy(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("public"))
	if at < 0 {
		t.Fatal("there is nothing public in it")
	}
	copy(b[at:], "secret")
	secret := filepath.Join(t.TempDir(), "secret.vhdx")
	if err := os.WriteFile(secret, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return secret
}

// The parent of another user's child is a good image at one moment, and at the next one a link to an image of root, whose
// disk nothing shows, or a pipe, for which nothing waits.
func TestParentOfAnotherUser(t *testing.T) {
	for name, c := range map[string]struct {
		rel  string
		make func(path, secret string) error
	}{
		"link":      {`p.vhdx`, func(path, secret string) error { return os.Symlink(secret, path) }},
		"directory": {`sub\secret.vhdx`, func(path, secret string) error { return os.Symlink(filepath.Dir(secret), path) }},
		"pipe":      {`p.vhdx`, func(path, _ string) error { return unix.Mkfifo(path, 0o600) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := otheruser.Dir(t)
			good := filepath.Join(dir, "p.vhdx")
			parent := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
			parent.put([]byte("public"), 0)
			parent.writeTo(t, good)
			swapped := good
			if name == "directory" {
				swapped = filepath.Join(dir, "sub")
				if err := errors.Join(os.Mkdir(swapped, 0o755), os.Rename(good, filepath.Join(swapped, "secret.vhdx"))); err != nil {
					t.Fatal(err)
				}
				good = filepath.Join(swapped, "secret.vhdx")
			}
			secret := secretCopy(t, good)
			child := filepath.Join(dir, "child.vhdx")
			build(spec{typ: Differencing, locator: [][2]string{linkage, {ondisk.KeyRelativePath, c.rel}}}).writeTo(t, child)
			if err := errors.Join(c.make(filepath.Join(dir, "bad"), secret), os.Lchown(filepath.Join(dir, "bad"), otheruser.UID, otheruser.UID), os.Lchown(swapped, otheruser.UID, otheruser.UID)); err != nil {
				t.Fatal(err)
			}
			otheruser.Exchange(t, swapped, filepath.Join(dir, "bad"))
			opened := 0
			for range 300 {
				switch got, err := taken(child, Options{}); {
				case got != "" && got[:6] != "public":
					t.Fatalf("it shows %q", got[:6])
				case err == nil:
					opened++
				}
			}
			if opened == 0 {
				t.Error("the parent was never found")
			}
		})
	}
}

// An undo file of another user's names an image beside it, which is a link to one of root's at every other moment.
func TestUndoOfAnotherUser(t *testing.T) {
	dir := otheruser.Dir(t)
	whole, err := os.ReadFile(chain{damagedForUndo(false)}.writeTo(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	image, secret, bad := filepath.Join(dir, "image0.vhdx"), filepath.Join(t.TempDir(), "secret.vhdx"), filepath.Join(dir, "bad")
	if list, _ := filepath.Glob(filepath.Join(dir, "*")); len(list) == 1 {
		image = list[0]
	}
	r := mustRepair(t, image, RepairOptions{})
	repaired, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(secret, repaired, 0o600), os.Symlink(secret, bad), os.Lchown(bad, otheruser.UID, otheruser.UID), os.Lchown(image, otheruser.UID, otheruser.UID)); err != nil {
		t.Fatal(err)
	}
	otheruser.Exchange(t, image, bad)
	undone := 0
	for range 100 {
		if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Force: true}); err == nil && u.Restored > 0 {
			undone++
		}
	}
	if now, err := os.ReadFile(secret); err != nil || !bytes.Equal(now, repaired) || bytes.Equal(now, whole) {
		t.Errorf("the image of root was changed, %v", err)
	}
	if undone == 0 {
		t.Error("nothing was ever undone")
	}
}

// Where files are made under another name first, a snapshot gives its child owner and permissions in a directory of another
// user's.
func TestSnapshotBesideAnotherUser(t *testing.T) {
	defer func(was func(*safefile.Dir, string, fs.FileMode) (*os.File, error)) { newfile.Unnamed = was }(newfile.Unnamed)
	newfile.Unnamed = func(*safefile.Dir, string, fs.FileMode) (*os.File, error) { return nil, unix.EOPNOTSUPP }
	dir, secret := otheruser.Dir(t), filepath.Join(t.TempDir(), "secret")
	image := chain{build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})}.writeTo(t, dir)
	if err := errors.Join(os.WriteFile(secret, nil, 0o600), os.Chmod(image, 0o666), os.Chown(image, otheruser.UID, otheruser.UID)); err != nil {
		t.Fatal(err)
	}
	otheruser.Replace(t, dir, secret)
	for range 50 {
		if r, err := Snapshot(t.Context(), image, filepath.Join(dir, "next.avhdx"), SnapshotOptions{}); err == nil {
			err = os.Remove(r.Child)
			if err != nil {
				t.Fatal(err)
			}
		}
		links, _ := filepath.Glob(filepath.Join(dir, ".*.part"))
		for _, l := range links {
			_ = os.Remove(l)
		}
		if st, err := os.Stat(secret); err != nil || st.Mode().Perm() != 0o600 || safefileOwner(t, secret) != 0 {
			t.Fatalf("the file of root: %v, %v, owner %d", st.Mode(), err, safefileOwner(t, secret))
		}
	}
}

func safefileOwner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}
