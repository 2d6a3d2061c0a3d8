package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount point belongs to the holders of its lock: nothing else removes it, or makes it anew.
func TestRunDirLock(t *testing.T) {
	there := func(dir string) bool {
		_, err := os.Lstat(dir)
		return err == nil
	}
	parent := t.TempDir()
	dir, lock, err := newRunDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := removeRunDir(dir); err != nil || !there(dir) {
		t.Errorf("removed while it is locked: %v", err)
	}
	sweepRunDir(parent)
	if !there(dir) {
		t.Error("swept while it is locked")
	}
	server, err := lockRunDir(dir, unix.LOCK_SH)
	if err != nil {
		t.Fatalf("the server of a mount shares the lock: %v", err)
	}
	lock.Close()
	if err := removeRunDir(dir); err != nil || !there(dir) {
		t.Errorf("removed while the server has it locked: %v", err)
	}
	server.Close()
	if err := removeRunDir(dir); err != nil || there(dir) {
		t.Errorf("a mount point without a holder: %v, there: %v", err, there(dir))
	}
	if err := removeRunDir(dir); err != nil {
		t.Errorf("removed already: %v", err)
	}

	byHand := filepath.Join(parent, "by-hand")
	if err := os.Mkdir(byHand, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := removeRunDir(byHand); err != nil || !there(byHand) {
		t.Errorf("a directory that attach did not make: %v", err)
	}
}

// What is mounted at a mount point keeps it, and the lock of the directory below can still be taken.
func TestRunDirMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	parent := t.TempDir()
	dir, server, err := newRunDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := lockBelowMount(dir); !errors.Is(err, errSwept) {
		t.Errorf("lock below a mount where there is none: %v", err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			unix.Unmount(dir, unix.MNT_DETACH)
			mounted = false
		}
	}
	defer unmount()
	if _, err := lockBelowMount(dir); !errors.Is(err, errSwept) {
		t.Errorf("lock below the mount of a server that lives: %v", err)
	}
	server.Close()
	if _, err := lockRunDir(dir, unix.LOCK_EX); !errors.Is(err, errSwept) {
		t.Errorf("lock of what is mounted: %v", err)
	}
	if err := removeRunDir(dir); err != nil {
		t.Errorf("remove a mount point in use: %v", err)
	}
	lock, err := lockBelowMount(dir)
	if err != nil {
		t.Fatalf("lock below the mount of a server that was killed: %v", err)
	}
	defer lock.Close()
	unmount()
	if _, err := lockRunDir(dir, unix.LOCK_SH); !errors.Is(err, errSwept) {
		t.Errorf("another lock: %v", err)
	}
	if err := removeLocked(lock, dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("after its removal: %v", err)
	}
}
