package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// refusal says what the error of a mount means for who has asked it for work, such as a snapshot.
func refusal(m *activeMount, work string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: a %s is under way already, or it is being unmounted", m.MountPoint, work)
	case errors.Is(err, unix.EROFS):
		return &statusError{statusUsage, fmt.Errorf("%s is mounted read-only, which allows no %s; unmount it, or mount it for writing", m.MountPoint, work)}
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		return &statusError{statusUsage, fmt.Errorf("%s was mounted by a user without allow_other, so that only he may ask it for a %s, and not even root", m.MountPoint, work)}
	case errors.Is(err, fs.ErrPermission):
		return &statusError{statusUsage, fmt.Errorf("only root and who mounted %s may ask it for a %s", m.MountPoint, work)}
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODATA):
		return fmt.Errorf("%s is served by an older vhdxfs, which knows no %s; unmount it first", m.MountPoint, work)
	}
	return fmt.Errorf("%s of %s: %w", work, m.MountPoint, err)
}
