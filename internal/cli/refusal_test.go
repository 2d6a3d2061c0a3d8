package cli

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
)

// What a mount refuses is told by its reason, and is wrong usage only where the asker could have known.
func TestRefusal(t *testing.T) {
	m := &active.Mount{MountPoint: "/mnt/vhdx"}
	for _, tc := range []struct {
		errno  unix.Errno
		status int
		want   string
	}{
		{unix.EBUSY, statusSystem, "a snapshot is already running"},
		{unix.EROFS, statusUsage, "mounted read-only"},
		{unix.EPERM, statusUsage, "may request a"},
		{unix.EACCES, statusUsage, "may request a"},
		{unix.EINVAL, statusSystem, "another version of vhdxfs"},
		{unix.EOPNOTSUPP, statusSystem, "an older vhdxfs"},
		{unix.ENODATA, statusSystem, "an older vhdxfs"},
		{unix.EIO, statusSystem, "snapshot of /mnt/vhdx: setxattr"},
	} {
		err := refusal(m, "snapshot", &os.PathError{Op: "setxattr", Path: m.MountPoint, Err: tc.errno})
		status := statusSystem
		if s := (*statusError)(nil); errors.As(err, &s) {
			status = s.status
		}
		if status != tc.status || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "snapshot") {
			t.Errorf("%v: status %d, %v; want %d, %q", tc.errno, status, err, tc.status, tc.want)
		}
	}
}
