package vhdx

import (
	"io"
	"os"
)

// LockFile locks a file that is no VHDX image, such as a raw disk, against programs that lock as QEMU does, until
// it is closed: shared for reading, or as one that nobody else may use.
func LockFile(f *os.File, mode LockMode, exclusive bool) error {
	kind := sharedLock
	if exclusive {
		kind = exclusiveLock
	}
	return (&osFile{File: f}).lock(mode, kind)
}

// LockForReplacement locks the file at path, which may be missing, as one that nobody may use any more. It fails with
// ErrLocked where a program uses it. The lock ends with Close.
func LockForReplacement(path string) (io.Closer, error) {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return io.NopCloser(nil), nil // there is nothing to lose, or nothing that can be replaced
	}
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := f.lock(LockOn, exclusiveLock); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
