package fs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"vhdxfs/vhdx"
)

// errno picks the number that answers a request which failed at byte off of the disk, and logs what the
// number cannot say.
func (f *fileSystem) errno(op string, off int64, err error) fuse.Status {
	var e syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, vhdx.ErrReadOnly):
		e = syscall.EROFS
	case errors.As(err, &e) && e != 0: // from the image file, such as ENOMEM or ESTALE
	default:
		e = syscall.EIO
	}
	f.log.WithError(err).WithFields(logrus.Fields{"op": op, "offset": off, "errno": e}).Error("request failed")
	return fuse.Status(e)
}
