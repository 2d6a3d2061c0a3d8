package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A name below /dev that no device has is a mistake, by any path that leads there.
func TestRefuseDevice(t *testing.T) {
	link := filepath.Join(t.TempDir(), "devices")
	if err := os.Symlink("/dev", link); err != nil {
		t.Fatal(err)
	}
	for path, refused := range map[string]bool{
		"/dev/vhdxfs-no-such-device":               true,
		"/dev/../dev/vhdxfs-no-such-device":        true,
		link + "/vhdxfs-no-such-device":            true,
		"/dev/null":                                false,
		"/dev/shm/vhdxfs-no-such-file":             false,
		"/devices-of-mine/file":                    false,
		filepath.Join(t.TempDir(), "new"):          false,
		filepath.Join(t.TempDir(), "dev", "image"): false,
	} {
		err := RefuseDevice(path)
		if (err != nil) != refused || refused && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if f, err := Create("/dev/vhdxfs-no-such-device", Options{Replace: true}); err == nil {
		f.Discard()
		t.Error("a regular file was made below /dev")
	}
}
