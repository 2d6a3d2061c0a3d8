package active

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// closingPatience is how long a server gets to end whose mount is gone, as after fusermount3 -u.
const closingPatience = 5 * time.Second

// FindToEnd is Find for a caller who promises that the image is closed when it returns. Where nothing is found, but
// another mount hides that of the image, or a program still has the image open for writing, the error does not match ErrNotMounted.
func FindToEnd(name string) (*Mount, error) {
	m, err := Find(name)
	if !errors.Is(err, ErrNotMounted) || errors.Is(err, errByAnother) {
		return m, err
	}
	if hidden := hiddenBy(name); hidden != nil {
		return nil, fmt.Errorf("%s: the mount of %s on %s is hidden by another one; unmount that first with: umount %[4]s", name, hidden.Image, hidden.MountPoint, terminal.Shell(hidden.MountPoint))
	}
	file, ferr := imagefile.CachedImageID(name)
	if ferr != nil {
		return nil, err
	}
	for deadline := time.Now().Add(closingPatience); ; time.Sleep(50 * time.Millisecond) {
		names, _ := Writers(file)
		advice := "end the programs that use its disk.raw"
		if names == "" {
			names, advice = lockingWriters(file), "wait for it, or end it"
		}
		switch {
		case names == "":
			return nil, err
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%s: no longer mounted, but %s still has it open for writing; %s", name, names, advice)
		}
	}
}

// lockingWriters names the programs that have an image open for writing and locked. A server that is stopped, as by SIGSTOP, is one
// of them: it does not answer, so that Writers does not know it.
func lockingWriters(file imagefile.FileID) string {
	var found []string
	_, pids := imagefile.FindLockHolders(file)
	for _, pid := range pids {
		if writes, err := imagefile.WrittenBy(pid, file); writes && err == nil {
			found = append(found, imagefile.ProcessName(pid))
		}
	}
	return strings.Join(found, ", ")
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
