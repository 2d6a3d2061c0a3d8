package active

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// closingPatience is how long a server gets to end whose mount is gone, as after fusermount3 -u.
const closingPatience = 5 * time.Second

// FindToEnd is Find for a caller who promises that the image is closed when it returns. Where nothing is found, but
// another mount hides that of the image, or a server still has the image open for writing, the error does not match ErrNotMounted.
func FindToEnd(name string) (*Mount, error) {
	m, err := Find(name)
	if !errors.Is(err, ErrNotMounted) || errors.Is(err, errByAnother) {
		return m, err
	}
	if hidden := hiddenBy(name); hidden != nil {
		return nil, fmt.Errorf("%s: the mount of %s on %s is hidden by another one; unmount that first with: umount %[4]s", name, hidden.Image, hidden.MountPoint, terminal.Shell(hidden.MountPoint))
	}
	file, ferr := imagefile.CachedFileID(name)
	if ferr != nil {
		return nil, err
	}
	for deadline := time.Now().Add(closingPatience); ; time.Sleep(50 * time.Millisecond) {
		names, _ := Writers(file)
		switch {
		case names == "":
			return nil, err
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%s: no longer mounted, but %s still has it open for writing; end the programs that use its disk.raw", name, names)
		}
	}
}

// hiddenBy returns the mount that has the name of an image or of a mount point, and is hidden by another one; or nil.
func hiddenBy(name string) *Mount {
	path, err := filepath.Abs(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil
	}
	list, err := List()
	if err != nil {
		return nil
	}
	for _, m := range list {
		if m.State == Hidden && m.trusted && (m.MountPoint == path || m.Image == path) {
			return m
		}
	}
	return nil
}
