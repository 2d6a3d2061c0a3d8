package imagefile

import (
	"errors"
	"io"
	"os"
)

// LockForReplacement locks the file at path, which may be missing, as one that no program may use any more. It fails with
// ErrLocked where a program uses it. The lock ends with Close.
func LockForReplacement(path string) (io.Closer, error) {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return io.NopCloser(nil), nil // there is nothing to lose, or nothing that can be replaced
	}
	f, err := Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(LockOn, Exclusive); err != nil && !errors.Is(err, ErrNoLocks) {
		f.Close()
		return nil, err
	}
	return f, nil
}
