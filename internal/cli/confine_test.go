package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// blockDevice returns a path to any block device, and skips where there is none.
func blockDevice(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/dev")
	if err != nil {
		t.Skip(err)
	}
	for _, e := range entries {
		if e.Type() == fs.ModeDevice {
			return filepath.Join("/dev", e.Name())
		}
	}
	t.Skip("no block device in /dev")
	return ""
}

// Of an image on a device, the sandbox leaves the device, under each of its names, and no directory of devices: a program that has
// taken over the engine could remove or replace the names of other devices there.
func TestReachOfDevice(t *testing.T) {
	device := blockDevice(t)
	below, err := os.MkdirTemp("/dev", "vhdxfs-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(below) })
	beside := t.TempDir() // where parents may be
	for _, c := range []struct {
		dir  string
		want []string
	}{
		{below, nil},
		{beside, []string{beside}},
	} {
		link := filepath.Join(c.dir, "image")
		if err := os.Symlink(device, link); err != nil {
			t.Fatal(err)
		}
		if got, want := imageReach(link), append(c.want, link); !slices.Equal(got, want) {
			t.Errorf("to open %s, the engine reaches %q; want %q", link, got, want)
		}
	}
	if got, want := imageReach(device), []string{device}; !slices.Equal(got, want) {
		t.Errorf("to open %s, the engine reaches %q; want %q", device, got, want)
	}
}
