package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/processes"
)

// remount changes the mount of an image from read/write to read-only and back, and flags such as noexec. The kernel
// does that by itself; the process that serves the mount is not asked. It can change nothing else while it runs, so
// any other option must be one that the mount has. With fake, all is checked and nothing is changed.
func remount(image, path string, lists []string, fake bool) error {
	dir, m, err := imageAt(path)
	switch {
	case err != nil:
		return err
	case m == nil:
		return fmt.Errorf("remount: no VHDX image is mounted on %s", dir)
	}
	if err := sameImage(m, dir, image); err != nil {
		return err
	}
	o, changed, err := mountoption.ParseRemount(lists, m, serverOptions(dir))
	switch {
	case err != nil:
		return optionError(err)
	case len(changed) > 0:
		return fmt.Errorf("remount cannot change %s; unmount %s, then mount it with the new options", strings.Join(changed, ", "), dir)
	}
	if wasReadOnly := hasOption(m.VFSOptions, "ro"); !o.ReadOnly && wasReadOnly {
		if mode, err := mounts.Attribute(dir, "mode"); err != nil || mode != "rw" {
			return fmt.Errorf("remount: the image is open read-only, so %s cannot be made writable; unmount it, then mount it with rw", dir)
		}
	}
	if fake {
		return nil
	}
	return busyError(dir, setFlags(dir, o.Mount.Flags, o.ReadOnly))
}

// sameImage returns an error where the mount m at dir is not of the image.
func sameImage(m *mountinfo.Info, dir, image string) error {
	if image == m.Source {
		return nil
	}
	path, err := absPath(image)
	if err != nil || path == m.Source {
		return err
	}
	if is, err := mounts.Attribute(dir, "path"); err != nil || is != path {
		return fmt.Errorf("remount: %[2]s is mounted on %[1]s, not %[3]s", dir, m.Source, image)
	}
	return nil
}

// serverOptions returns the options in the command line of the process that serves the mount at dir.
func serverOptions(dir string) []string {
	m, err := mounts.At(dir)
	if err != nil || m == nil || !mounts.Trusted(m) {
		return nil
	}
	pid, err := mounts.ServerPID(m)
	if err != nil {
		return nil
	}
	line, ok := processes.Look(func() ([]byte, bool) {
		line, err := os.ReadFile(processes.Path(pid, "cmdline"))
		return line, err == nil
	})
	if !ok {
		return nil
	}
	var options []string
	args := strings.Split(string(line), "\x00")
	for i, arg := range args {
		if arg == "-o" && i+1 < len(args) {
			if words, err := mountoption.Split(args[i+1]); err == nil {
				options = append(options, words...)
			}
		}
	}
	return options
}

// remountFlags makes m read-only or writable and leaves its other flags as they are.
func remountFlags(m *mountinfo.Info, readOnly bool) error {
	return setFlags(m.Mountpoint, mountoption.Flags(m), readOnly)
}

// setFlags remounts. The error matches unix.EBUSY where a program has a file open for writing.
func setFlags(dir string, flags uintptr, readOnly bool) error {
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("remount of %s needs root: %w", dir, err)
	}
	return os.NewSyscallError("remount", err)
}

// hasOption reports whether a list of options, without quotes, has a word.
func hasOption(list, word string) bool { return slices.Contains(strings.Split(list, ","), word) }
