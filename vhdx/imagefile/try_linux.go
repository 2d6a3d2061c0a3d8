package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Trial says what a storage was found to do.
type Trial struct {
	Host Host // what is known of its type

	Locks      Fact // a lock is seen by another open file: that of another host, where there is one
	Holes      Fact // holes can be made, and give space back
	FindsHoles Fact // holes are told, and data that was just written is none
	TmpFile    Fact
	Copies     Fact
	Direct     Fact // reads past the kernel's cache
	Sees       Fact // another host sees what was synced; Unknown without one
}

// The file of a trial: data in its middle, and holes around.
const (
	trialSize = 8 << 20 // bytes, all of which are written where files have no holes
	trialData = 4 << 20 // where the data is
	trialLen  = 1 << 20 // bytes of it
)

// Try finds out what the storage of the directory dir does, with a file that it makes there and removes. other is the same
// directory as another host sees it, as by a second mount; "" where there is none.
func Try(dir, other string) (_ *Trial, err error) {
	for _, d := range []string{dir, other} {
		if st, err := os.Stat(d); d != "" && err != nil {
			return nil, err
		} else if d != "" && !st.IsDir() {
			return nil, &fs.PathError{Op: "open", Path: d, Err: unix.ENOTDIR}
		}
	}
	f, err := os.CreateTemp(dir, ".vhdxfs-probe-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	h, err := hostOf(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	t := &Trial{Host: h}
	data := bytes.Repeat([]byte("vhdxfs! "), trialLen/8)
	if err := f.Truncate(trialSize); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(data, trialData); err != nil {
		return nil, err
	}
	t.FindsHoles = tryFindHoles(f) // before a sync
	if err := f.Sync(); err != nil {
		return nil, err
	}
	seen := filepath.Join(dir, filepath.Base(f.Name()))
	if other != "" {
		seen = filepath.Join(other, filepath.Base(f.Name()))
	}
	if err := t.trySeen(f, seen, data, other != ""); err != nil {
		return nil, err
	}
	t.Copies = tryCopy(f, dir)
	t.TmpFile = tryTmpFile(dir)
	t.Holes, err = tryHoles(f)
	return t, err
}

// trySeen looks at the file by another descriptor.
func (t *Trial) trySeen(f *os.File, path string, data []byte, elsewhere bool) error {
	g, err := Open(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) && elsewhere {
		return fmt.Errorf("%s is not the same directory: a new file does not appear in it", filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	defer g.Close()
	other := g.(*hostFile)
	own := Of(f).(*hostFile)
	switch err := own.setLock(unix.F_RDLCK, unsharedLocks+permWrite, 1); {
	case err == nil:
		held, err := other.lockHeld(unsharedLocks + permWrite)
		t.Locks = fact(err == nil && held)
	case noLocks(err):
		t.Locks = No
	default:
		return err
	}
	t.Direct = fact(other.direct() != nil)
	if elsewhere {
		got := make([]byte, len(data))
		n, err := other.ReadFresh(got, trialData)
		t.Sees = fact(err == nil && n == len(data) && bytes.Equal(got, data))
	}
	return nil
}

func fact(yes bool) Fact {
	if yes {
		return Yes
	}
	return No
}

// tryFindHoles asks where data and holes are. All other answers than the right one are no use.
func tryFindHoles(f *os.File) Fact {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	end, herr := unix.Seek(int(f.Fd()), trialData, unix.SEEK_HOLE)
	return fact(err == nil && herr == nil && at > 0 && at <= trialData && end >= trialData+trialLen && end < trialSize)
}

// tryHoles makes a hole where data is.
func tryHoles(f *os.File) (Fact, error) {
	var before, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return Unknown, err
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, trialData, trialLen)
	if IsUnsupported(err) {
		return No, nil
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &after)
	}
	got := make([]byte, trialLen)
	if err == nil {
		_, err = f.ReadAt(got, trialData)
	}
	return fact(after.Blocks < before.Blocks && bytes.Equal(got, make([]byte, trialLen))), err
}

// tryTmpFile makes a file without a name, and gives it one.
func tryTmpFile(dir string) Fact {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return No
	}
	defer unix.Close(fd)
	name := filepath.Join(dir, fmt.Sprintf(".vhdxfs-probe-%d.tmp", os.Getpid()))
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return No
	}
	_ = os.Remove(name)
	return Yes
}

// tryCopy has the file system share or copy a range by itself.
func tryCopy(f *os.File, dir string) Fact {
	to, err := os.CreateTemp(dir, ".vhdxfs-probe-*")
	if err != nil {
		return Unknown
	}
	defer os.Remove(to.Name())
	defer to.Close()
	r := unix.FileCloneRange{Src_fd: int64(f.Fd()), Src_offset: trialData, Src_length: trialLen}
	return fact(unix.IoctlFileCloneRange(int(to.Fd()), &r) == nil)
}
