package imagefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// docs/cluster.md shows what is known of each file system that hosts share.
func TestKnownHostsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, h := range knownHosts {
		if h.Shared {
			want = append(want, fmt.Sprintf("| `%s` | %v | %v | %v | %v | %v |", h.Type, h.Locks, h.Holes, h.FindsHoles, h.TmpFile, h.Copies))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the table should be:\n%s", strings.Join(want, "\n"))
	}
}

func TestHostOfType(t *testing.T) {
	for name, want := range map[string]Host{
		"fuse":           {Type: "fuse", Shared: true, Holes: No},
		"fuse.something": {Type: "fuse.something", Shared: true, Holes: No},
		"something":      {Type: "something"},
	} {
		if got := HostOfType(name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if h := HostOfType("fuse.glusterfs"); !h.Shared || h.Holes != Yes {
		t.Errorf("GlusterFS: %+v", h)
	}
	if h := HostOfType("fuseblk"); h.Shared {
		t.Errorf("a FUSE file system on a block device: %+v", h)
	}
	for _, h := range knownHosts {
		if strings.HasPrefix(h.Type, "ext") && h.Shared {
			t.Errorf("%+v", h)
		}
	}
}

// The type comes from the mount table where the number does not tell it.
func TestMountedType(t *testing.T) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		t.Skip("this kernel does not tell the mount of an open file")
	}
	if got, options := mounted(int(f.Fd())); got != "proc" || options == "" {
		t.Errorf("/proc is of type %q, with %q", got, options)
	}
}

// Locks that do not leave this host are no locks where other hosts have the file.
func TestOwnLocks(t *testing.T) {
	for _, c := range []struct{ name, options, want string }{
		{"nfs", "rw,vers=3,nolock,proto=tcp,local_lock=all,addr=10.0.0.1", "nolock"},
		{"nfs", "rw,vers=3,local_lock=posix", "local_lock=posix"},
		{"nfs", "rw,vers=3,local_lock=flock", ""},
		{"nfs4", "rw,vers=4.2,local_lock=none", ""},
		{"cifs", "rw,vers=3.1.1,nobrl", "nobrl"},
		{"cifs", "rw,vers=3.1.1", ""},
		{"ext4", "rw,nolock", ""},
	} {
		if got := ownLocks(c.name, c.options); got != c.want {
			t.Errorf("%s with %s: %q, want %q", c.name, c.options, got, c.want)
		}
	}

	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	h := &hostFile{File: f, host: func() Host { return Host{Type: "nfs", Shared: true, OwnLocks: "nolock"} }}
	defer h.Close()
	other, err := Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := h.Lock(LockOn, Exclusive); !errors.Is(err, ErrNoLocks) {
		t.Errorf("with lock=on: %v", err)
	}
	for _, mode := range []LockMode{"", LockTry, LockLease} {
		if err := h.Lock(mode, Exclusive); err != nil {
			t.Errorf("with lock=%s: %v", mode, err)
		}
		if err := other.Lock(LockOn, Exclusive); !errors.Is(err, ErrLocked) {
			t.Errorf("another program on this host locks it with %v", err)
		}
		if err := h.Unlock(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTry(t *testing.T) {
	dir := t.TempDir()
	r, err := Try(dir, dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Locks != Yes || r.Sees != Yes {
		t.Errorf("found %+v", r)
	}
	if h := r.Host; h.FindsHoles == Yes && r.FindsHoles != Yes || h.Holes == Yes && r.Holes != Yes || h.TmpFile == Yes && r.TmpFile != Yes {
		t.Errorf("found %+v", r)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := Try(dir, t.TempDir()); err == nil {
		t.Error("another directory is taken for the same one")
	}
}
