package active

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// A name of nothing that is mounted says so, and what kind of name it is.
func TestFindNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.vhdx")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		file:                       "vhdxfs list shows what is mounted",
		filepath.Join(dir, "none"): "vhdxfs list shows what is mounted",
		dir:                        "no VHDX image is mounted on this directory",
	} {
		if _, err := Find(name); !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if m, err := At(dir); m != nil || err != nil {
		t.Errorf("%v, %v is mounted at %s", m, err, dir)
	}
}

// An image is known by its file where its server tells which that is, and by its path only where it cannot be asked, and
// only of a mount that is to be believed.
func TestByFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.vhdx")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	other := &Mount{Image: path, ImageID: "1:2", Device: "0:50", trusted: true}
	renamed := &Mount{Image: "/elsewhere", ImageID: mounts.FileID(st), Device: "0:51", trusted: true}
	silent := &Mount{Image: path, Device: "0:52", trusted: true}
	liar := &Mount{Image: path, Device: "0:53"}
	again := &Mount{Image: "/elsewhere", ImageID: mounts.FileID(st), Device: "0:51", trusted: true}
	for _, tc := range []struct {
		list []*Mount
		want *Mount
	}{
		{[]*Mount{other, renamed, silent, liar, again}, renamed},
		{[]*Mount{other, liar, silent}, silent},
		{[]*Mount{other, liar}, nil},
	} {
		found, err := byFile(path, nil, tc.list)
		found = oncePerDevice(found)
		if tc.want == nil && len(found) == 0 && err == nil {
			continue
		}
		if err != nil || len(found) != 1 || found[0] != tc.want {
			t.Errorf("%v, %v, want %v", found, err, tc.want)
		}
	}
}
