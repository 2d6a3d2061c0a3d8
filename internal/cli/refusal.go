package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
)

// refusal says what the error of a mount means for a command that has asked it for work, such as a snapshot.
func refusal(m *active.Mount, work string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: a %s is already running, or the image is being unmounted", m.MountPoint, work)
	case errors.Is(err, unix.EROFS):
		return &statusError{statusUsage, fmt.Errorf("%s is mounted read-only; a %s needs a read/write mount", m.MountPoint, work)}
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		return &statusError{statusUsage, fmt.Errorf("%s was mounted by a user without allow_other; only that user may request a %s, root may not", m.MountPoint, work)}
	case errors.Is(err, fs.ErrPermission):
		return &statusError{statusUsage, fmt.Errorf("only root and the owner of the mount %s may request a %s", m.MountPoint, work)}
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s is served by another version of vhdxfs, which does not know this kind of %s; unmount it first", m.MountPoint, work)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODATA):
		return fmt.Errorf("%s is served by an older vhdxfs without %s; unmount it first", m.MountPoint, work)
	}
	return fmt.Errorf("%s of %s: %w", work, m.MountPoint, err)
}
