package vhdx

import (
	"errors"
	"fmt"
	"path/filepath"
)

// openRun opens the image at path with n-1 of its parents for writing, and the rest of the chain for reading. Each
// image of the run has a writer. The function that it returns closes all of them; their own Close does not serve.
func openRun(path string, o Options, n int) (run []*Image, closeAll func() error, err error) {
	op := newOpener(o)
	op.writing = n
	top, err := op.open(path)
	if err != nil {
		return nil, nil, err
	}
	return runOf(op, top, n)
}

// runOf makes the first n layers of a chain writable.
func runOf(op *opener, top *layer, n int) (run []*Image, closeAll func() error, err error) {
	var files []File // of the whole chain as it is now; a merge makes it shorter
	for l := top; l != nil; l = l.parent() {
		files = append(files, l.file)
	}
	closeAll = func() error {
		var errs []error
		for _, im := range run {
			if im.writer.err() != nil {
				im.writer.stop() // why is known already
			} else if err := im.writer.close(); err != nil {
				errs = append(errs, fmt.Errorf("close %s: %w", im.current().path, err))
			}
		}
		for _, f := range files {
			errs = append(errs, f.Close())
		}
		return errors.Join(errs...)
	}
	for l := top; len(run) < n && l != nil; l = l.parent() {
		w, err := newWriter(op, l)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%s: %w", l.path, err), closeAll())
		}
		l = w.current()          // a new one, if there was a log to replay
		files[len(run)] = l.file // it may be under a lease now
		if len(run) > 0 {
			run[len(run)-1].current().setParent(l)
		}
		run = append(run, &Image{own: w.own, writer: w})
	}
	return run, closeAll, nil
}

// realPath returns where the file at path is when symbolic links are followed.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return absolute(path)
}
