package imagefile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A typedFile is a file on a file system of another type.
type typedFile struct {
	File
	host Host
}

func (f typedFile) Host() Host { return f.host }

// Only a server that is known to copy is asked, and only for two files that it has both.
func TestCopiesByServer(t *testing.T) {
	dir := t.TempDir()
	files := func(dst, src string) (File, File) {
		a, b := open(t, create(t, dir, "a")), open(t, create(t, dir, "b"))
		return typedFile{a, HostOfType(dst)}, typedFile{b, HostOfType(src)}
	}
	for _, tc := range []struct {
		dst, src string
		want     bool
	}{
		{"nfs4", "nfs4", true},
		{"cifs", "cifs", true},
		{"smb3", "smb3", true},
		{"nfs4", "cifs", false},
		{"ext4", "ext4", false},
		{"xfs", "xfs", false},
		{"nfs", "nfs", false},
	} {
		dst, src := files(tc.dst, tc.src)
		if got := CopiesByServer(dst, src); got != tc.want {
			t.Errorf("from %s to %s: %v", tc.src, tc.dst, got)
		}
	}
	dst, _ := files("nfs4", "nfs4")
	elsewhere := open(t, create(t, "/dev/shm", "vhdxfs-test-*"))
	if CopiesByServer(dst, typedFile{elsewhere, HostOfType("nfs4")}) {
		t.Error("files on two file systems")
	}
	if CopiesByServer(dst, noDescriptor{}) {
		t.Error("a file without a descriptor")
	}
}

// A noDescriptor is a file in memory on such a file system.
type noDescriptor struct{ File }

func (noDescriptor) Host() Host          { return HostOfType("nfs4") }
func (noDescriptor) IsDevice() bool      { return false }
func (noDescriptor) Fd() (uintptr, bool) { return 0, false }

func create(t *testing.T, dir, pattern string) string {
	t.Helper()
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// That the kernel copied by itself shows in what the calling thread has written.
func TestCopyByServer(t *testing.T) {
	dir := t.TempDir()
	want := bytes.Repeat([]byte("vhdxfs! "), 1<<20/8)
	if err := os.WriteFile(filepath.Join(dir, "from"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	src, dst := open(t, filepath.Join(dir, "from")), open(t, create(t, dir, "to"))
	if src.Host().Type != "ext4" {
		t.Skipf("%s may share space, or count nothing", src.Host().Type)
	}
	const n = 900_000
	alone, err := CopyByServer(dst, 4096, src, 8, n)
	if alone || err != nil {
		t.Errorf("a local file system copied by itself: %v, %v", alone, err)
	}
	got := make([]byte, n)
	if _, err := dst.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want[8:][:n]) {
		t.Errorf("other bytes were copied: %v", err)
	}
	defer func(d func() (int64, bool)) { dirtied = d }(dirtied)
	dirtied = func() (int64, bool) { return 7, true }
	if alone, err := CopyByServer(dst, 0, src, 0, n); !alone || err != nil {
		t.Errorf("no byte was written here: %v, %v", alone, err)
	}
	dirtied = func() (int64, bool) { return 0, false }
	if alone, err := CopyByServer(dst, 0, src, 0, n); alone || err != nil {
		t.Errorf("the kernel does not count: %v, %v", alone, err)
	}
	if _, err := CopyByServer(dst, 0, src, 1<<20-10, 20); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("beyond the end: %v", err)
	}
}
