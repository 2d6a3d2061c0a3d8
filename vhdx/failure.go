package vhdx

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// ErrFailed is what every write returns after the first failed sync: what reached the disk is not known any
// more. Opening the image again restores the last state that was synced.
var ErrFailed = errors.New("the image became read-only after a failed sync; unmount and mount it again")

// A failure is what a writer knows of errors of the image file. There is one policy for them:
//
//   - A sync that fails ends all writing. The kernel may have dropped the pages that it could not write, and a second sync
//     would succeed without them.
//   - So does a write of a header, of the log, or of a page of metadata to its place: what the file holds there is unknown.
//   - With "no space left" such a write has lost nothing: one of the two headers is as it was, a batch that is not in the log
//     stays in memory, and a page that is not in its place stays in the log. The caller gets the error, new changes fail, and
//     each of them tries the rest again; see metadata and waitForSpace.
//   - A write of payload returns its error to the caller, and writing goes on. If its block has no place yet, nothing names
//     the bytes and the block stays as it was; if it has, some of the bytes may be there, as with any disk.
//   - What the host does not support (imagefile.IsUnsupported) is done by other means.
//   - An image that another host has taken over is not written any more; see package lease.
//   - A panic, or state that contradicts itself, ends all writing: what is half done is in memory only, and stays there.
//
// Writing that has ended does not begin again before the image is opened anew, whose replay restores what was synced. Reads
// go on. Any number of goroutines may use it; the first error is kept.
type failure struct {
	log   logrus.FieldLogger
	first atomic.Pointer[error]
}

// fail makes the image read-only for good, with the first error as its reason.
func (f *failure) fail(err error) error {
	first := fmt.Errorf("%w: %w", ErrFailed, err)
	if f.first.CompareAndSwap(nil, &first) {
		f.log.WithError(err).Error("the image is now read-only; synced data is safe")
	}
	return err
}

// endWith ends all writing for a reason that is no error of the file: err is what every write returns.
func (f *failure) endWith(err error) { f.first.CompareAndSwap(nil, &err) }

// catch is to be deferred by each function that changes something. After a panic, which is a fault of this program, the image is
// read-only: what the change has left half done is in memory alone, and stays there.
func (f *failure) catch(err *error) {
	if e := fault.New(recover()); e != nil {
		fault.Report(f.log, e)
		*err = f.fail(e)
	}
}

// err returns the error with which every write fails, and nil as long as all is well. It takes no lock: a change that misses
// a failure of this moment is like one that came before it, and cannot become durable any more.
func (f *failure) err() error {
	if e := f.first.Load(); e != nil {
		return *e
	}
	return nil
}

// metadata takes the error of a write of a header, of the log, or of a page of metadata. Want of space is the caller's to
// deal with; any other error ends all writing.
func (f *failure) metadata(err error) error {
	if err == nil || outOfSpace(err) {
		return err
	}
	return f.fail(err)
}

// durable syncs the file. An error ends all writing.
func (f *failure) durable(file File) error {
	if err := file.Sync(); err != nil {
		return f.fail(fmt.Errorf("sync the image: %w", err))
	}
	return nil
}

// outOfSpace reports whether err says that the host has no space left, or none for this user.
func outOfSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
