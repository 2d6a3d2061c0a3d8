package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RefuseDevice returns an error where a new file at path would be one among the devices: its name is that of a device, but
// for a mistake. What takes files below /dev, as shared memory does, is a directory of its own.
func RefuseDevice(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil // making the file tells
	}
	below, devices := strings.CutPrefix(dir+"/", "/dev/")
	if !devices || strings.HasPrefix(below, "shm/") || strings.HasPrefix(below, "hugepages/") {
		return nil
	}
	return &fs.PathError{Op: "create", Path: path, Err: noDevice{}}
}

// noDevice matches fs.ErrNotExist.
type noDevice struct{}

func (noDevice) Error() string        { return "no such device; no regular file is made below /dev" }
func (noDevice) Is(target error) bool { return target == fs.ErrNotExist }
