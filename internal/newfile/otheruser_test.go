package newfile

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/otheruser"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// Another user that puts links to a file of root in the place of unfinished files gets no access to that file.
func TestLinksOfAnotherUser(t *testing.T) { eachWay(t, linksOfAnotherUser) }

func linksOfAnotherUser(t *testing.T) {
	dir, secret := otheruser.Dir(t), filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := access(t, secret)
	otheruser.Replace(t, dir, secret)
	path := filepath.Join(dir, "new")
	open := safefile.Access{UID: otheruser.UID, GID: otheruser.UID, Perm: 0o666}
	for i := range 100 {
		f, err := Create(path, Options{Replace: i > 0})
		if errors.Is(err, safefile.ErrForeign) { // the last one was exchanged when it got its name
			err = os.Remove(path)
			if err == nil {
				f, err = Create(path, Options{})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := open.Give(f.File, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("content"); err != nil {
			t.Fatal(err)
		}
		_ = f.Commit() // it fails where the file was exchanged
		if now := access(t, secret); now.UID != before.UID || now.Perm != before.Perm {
			t.Fatalf("the file of root has owner %d and permissions %o after %d files", now.UID, now.Perm, i+1)
		}
		if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
			t.Fatalf("the file of root holds %q, %v", b, err)
		}
		links, _ := filepath.Glob(filepath.Join(dir, ".*.part"))
		for _, l := range links {
			_ = os.Remove(l)
		}
	}
}

// What is made of a private file cannot be read by another user at any moment, in a directory of that user's.
func TestPrivateBesideAnotherUser(t *testing.T) { eachWay(t, privateBesideAnotherUser) }

func privateBesideAnotherUser(t *testing.T) {
	dir := otheruser.Dir(t)
	end := otheruser.Peek(t, dir)
	private := Options{Inputs: []safefile.Access{{Perm: 0o600}}}
	for range 100 {
		f, err := Create(filepath.Join(dir, "new"), private)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("content"); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "new")); err != nil {
			t.Fatal(err)
		}
	}
	if read := end(); read != "" {
		t.Errorf("the other user could read %s", strings.Fields(read)[0])
	}
}

// A user can put a file into a directory that this user cannot list.
func TestDirectoryThatCannotBeListed(t *testing.T) { eachWay(t, directoryThatCannotBeListed) }

func directoryThatCannotBeListed(t *testing.T) {
	dir := otheruser.Dir(t)
	if err := os.Chmod(dir, 0o300); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // it is this thread that becomes the other user, as far as files go
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(otheruser.UID); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	f, err := Create(filepath.Join(dir, "new"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	}
}
