package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHelperByName(t *testing.T) {
	for name, want := range map[string]string{
		"mount.vhdx": "Mount", "mount.vhdxfs": "Mount", "mount.fuse.vhdxfs": "Mount", "umount.fuse.vhdxfs": "Unmount", "vhdxfs": "", "cli.test": "",
	} {
		var got string
		if cmd := newHelper(name, nil); cmd != nil {
			got, _, _ = strings.Cut(cmd.Long, " ")
			if cmd.Name() != name {
				t.Errorf("%s calls itself %s", name, cmd.Name())
			}
		}
		if got != want {
			t.Errorf("%s: a command that begins with %q, want %q", name, got, want)
		}
	}
}

func TestHelperArguments(t *testing.T) {
	for _, tc := range []struct {
		args   string
		status int
		want   string
	}{
		{"mount.vhdx -V", statusUsage, "unknown flag -V"},
		{"mount.vhdx", statusUsage, "missing IMAGE"},
		{"mount.vhdx /none /none -o", statusUsage, "flag --options needs a value: LIST"},
		{"mount.vhdx /none /none -sfnvr -t vhdx -o rw", statusMount, "mount point /none does not exist"},
		{"mount.vhdx /none /none -f -o rw,nonsuch", statusUsage, "mount.vhdx: unknown option"},
		{"mount.vhdx /none /none -sf -o rw,nonsuch", statusMount, "mount point /none does not exist"},
		{"mount.vhdx /none /none -f -o nofail", statusOK, ""},
		{"mount.vhdx /none /none -vN/none", statusUsage, "separate arguments"},
		{"umount.fuse.vhdxfs", statusUsage, "missing MOUNTPOINT"},
		{"umount.fuse.vhdxfs /none -nlfvr -t fuse.vhdxfs", statusMount, "umount.fuse.vhdxfs: "},
	} {
		var stderr strings.Builder
		if status := Run(t.Context(), strings.Fields(tc.args), io.Discard, &stderr); status != tc.status || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("%s: status %d, %q; want %d, %q", tc.args, status, stderr.String(), tc.status, tc.want)
		}
	}
}

func TestWithoutNamespace(t *testing.T) {
	for args, want := range map[string]string{
		"a b -o rw -N /x -v": "a b -o rw -v",
		"a b -N/x":           "a b",
		"a b -o rw":          "a b -o rw",
		"a -N":               "a",
	} {
		if got := withoutNamespace(strings.Fields(args)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, tc := range []struct {
		path, dir string
		want      bool
	}{
		{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"/a", "/", true}, {"anon_inode:x", "/", false},
	} {
		if got := below(tc.path, tc.dir); got != tc.want {
			t.Errorf("below(%s, %s) = %v", tc.path, tc.dir, got)
		}
	}
}

// Only the line of ours about the mount point goes.
func TestForgetInTable(t *testing.T) {
	const before = `SRC=/dev/sda1 TARGET=/mnt/a\040b ROOT=/ OPTS=x-foo
SRC=vhdxfs TARGET=/mnt/a\040b ROOT=/ OPTS=uhelper=fuse.vhdxfs
SRC=vhdxfs TARGET=/mnt/a ROOT=/ OPTS=uhelper=fuse.vhdxfs
`
	want := strings.Replace(before, "SRC=vhdxfs TARGET=/mnt/a\\040b ROOT=/ OPTS=uhelper=fuse.vhdxfs\n", "", 1)
	table := mountTable{dir: t.TempDir()}
	file := filepath.Join(table.dir, "utab")
	if err := table.remove("/mnt/a b"); !os.IsNotExist(err) {
		t.Errorf("without a table: %v", err)
	}
	if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := table.remove("/mnt/a b"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%v, table:\n%s", err, got)
	}
	if left, err := os.ReadDir(table.dir); err != nil || len(left) != 2 { // the table and its lock
		t.Errorf("left: %v, %v", left, err)
	}
}

// Any user may lock the table for ever.
func TestForgetInLockedTable(t *testing.T) {
	table := mountTable{dir: t.TempDir()}
	if err := os.WriteFile(table.path(), []byte("SRC=vhdxfs TARGET=/mnt/a ROOT=/ OPTS=uhelper=fuse.vhdxfs\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(table.path() + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := table.remove("/mnt/a"); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the table was locked: %v", err)
	}
}

// A descriptor that the caller has open for the program is not one of the process in the background.
func TestBackgroundInheritsNothing(t *testing.T) {
	image, dir := newImage(t), t.TempDir()
	held, err := os.Create(filepath.Join(t.TempDir(), "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := unix.FcntlInt(held.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	wantMount(t, mountImage(t, image, dir), dir, "rw", "")
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", server(t, dir)))
	if err != nil || len(links) == 0 {
		t.Fatalf("descriptors: %q, %v", links, err)
	}
	for _, l := range links {
		if to, _ := os.Readlink(l); to == held.Name() {
			t.Errorf("%s is %s", l, to)
		}
	}
}
