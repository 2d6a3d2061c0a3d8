package vhdx

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

var errInjected = errors.New("injected")

// A faultFile is a file that counts what is done with it and fails when it is told to.
type faultFile struct {
	File
	syncs, writes atomic.Int64

	mu        sync.Mutex
	failRead  func(off int64) error
	failWrite func(off int64) error
	failSync  error
	limit     int64 // size above which the disk is full; 0 is none
}

func (f *faultFile) set(change func(f *faultFile)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	fail := f.failRead
	f.mu.Unlock()
	if fail != nil {
		if err := fail(off); err != nil {
			return 0, err
		}
	}
	return f.File.ReadAt(p, off)
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.writing(off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultFile) Allocate(off, n int64) error {
	if err := f.writing(off, n); err != nil {
		return err
	}
	return f.File.Allocate(off, n)
}

func (f *faultFile) ZeroRange(off, n int64) error {
	if err := f.writing(off, n); err != nil {
		return err
	}
	return f.File.ZeroRange(off, n)
}

// writing counts an operation that needs space for n bytes at off, and fails where it is told to.
func (f *faultFile) writing(off, n int64) error {
	f.writes.Add(1)
	f.mu.Lock()
	fail, limit := f.failWrite, f.limit
	f.mu.Unlock()
	if limit > 0 && off+n > limit {
		return unix.ENOSPC
	}
	if fail != nil {
		return fail(off)
	}
	return nil
}

func (f *faultFile) Truncate(size int64) error {
	f.mu.Lock()
	limit := f.limit
	f.mu.Unlock()
	if limit > 0 && size > limit {
		return unix.ENOSPC
	}
	return f.File.Truncate(size)
}

func (f *faultFile) Sync() error {
	f.mu.Lock()
	err := f.failSync
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.syncs.Add(1)
	return f.File.Sync()
}
