package vhdx

import (
	"errors"
	"fmt"
	"os"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// chainFiles is what the merge of a disk in use asks of the host.
type chainFiles interface {
	// reopen opens the file of a parent for writing, and locks it against every other program.
	reopen(l *layer) (File, error)
	// share lets other programs read the file again.
	share(l *layer) error
	// remove removes the name of the file.
	remove(l *layer) error
	// rename gives the file of from the name of the file of to, durably. It reports whether it has the name: after an error of
	// the sync, it may lose it in a cut.
	rename(from, to *layer) (done bool, err error)
}

// hostFiles are the files of the host.
type hostFiles struct{ mode LockMode }

func (h hostFiles) reopen(l *layer) (File, error) {
	p, err := locationOf(l.file, l.path)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := l.file.Unshare(h.mode); err != nil {
		return nil, err
	}
	file, err := p.Open(p.name, os.O_RDWR)
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w; if it is not in the directory of the image, mount with -o sandbox=off, or unmount the disk to merge", err)
	}
	if err != nil {
		return nil, errors.Join(err, h.share(l))
	}
	f := imagefile.Of(file)
	if !imagefile.Same(f, l.file) {
		return nil, errors.Join(fmt.Errorf("%s is no longer the image: another file has this name now", l.path), f.Close(), h.share(l))
	}
	return f, nil
}

func (h hostFiles) share(l *layer) error {
	if h.mode == LockOff {
		return nil
	}
	return l.file.Share()
}

func (hostFiles) remove(l *layer) error {
	p, err := locationOf(l.file, l.path)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.remove()
}

func (hostFiles) rename(from, to *layer) (done bool, err error) {
	old, err := locationOf(from.file, from.path)
	if err != nil {
		return false, err
	}
	defer old.Close()
	p, err := locationOf(to.file, to.path)
	if err != nil {
		return false, err
	}
	defer p.Close()
	return takeName(old, p)
}
