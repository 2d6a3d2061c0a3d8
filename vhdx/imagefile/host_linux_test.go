package imagefile

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A server that exports the file holds a lease on it while a client has it, and gives it up when it is asked to.
func TestOpenWaitsForALease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leased")
	holder, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGIO)
	defer signal.Stop(asked)
	if _, err := unix.FcntlInt(holder.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no lease can be had here: %v", err)
	}
	given := make(chan error, 1)
	go func() {
		<-asked
		_, err := unix.FcntlInt(holder.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		given <- err
	}()
	f, err := Open(path, os.O_RDWR)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	f.Close()
	if err := <-given; err != nil {
		t.Error(err)
	}
}

// The locks are those of QEMU, byte by byte: each that is taken can be seen by another program, and each that another
// program holds and ours does not go with is a conflict.
func TestLockBytes(t *testing.T) {
	const read, write, resize, rename = 0, 1, 3, 4
	for name, c := range map[string]struct {
		kind      LockKind
		taken     []int64
		conflicts []int64
	}{
		"shared": {Shared, []int64{100 + read, 200 + write, 200 + resize}, []int64{100 + write, 100 + resize, 200 + read}},
		"exclusive": {Exclusive, []int64{100 + read, 100 + write, 100 + resize, 200 + write, 200 + resize},
			[]int64{100 + write, 100 + resize, 200 + read, 200 + write, 200 + resize}},
		"renaming": {Renaming, []int64{100 + rename, 200 + rename}, []int64{100 + rename, 200 + rename}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			other, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			set := func(kind int16, at int64) error {
				return unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
			}
			var taken, conflicts []int64
			f := open(t, path)
			if err := f.Lock(LockOn, c.kind); err != nil {
				t.Fatal(err)
			}
			for at := int64(90); at < 300; at++ {
				if err := set(unix.F_WRLCK, at); err != nil {
					taken = append(taken, at)
				} else if err := set(unix.F_UNLCK, at); err != nil {
					t.Fatal(err)
				}
			}
			f.Close()
			for at := int64(90); at < 300; at++ {
				f := open(t, path)
				if err := set(unix.F_RDLCK, at); err != nil {
					t.Fatal(err)
				}
				if err := f.Lock(LockOn, c.kind); errors.Is(err, ErrLocked) {
					conflicts = append(conflicts, at)
				} else if err != nil {
					t.Fatal(err)
				}
				f.Close()
				if err := set(unix.F_UNLCK, at); err != nil {
					t.Fatal(err)
				}
			}
			if !slices.Equal(taken, c.taken) || !slices.Equal(conflicts, c.conflicts) {
				t.Errorf("taken %v, in conflict with %v; want %v and %v", taken, conflicts, c.taken, c.conflicts)
			}
		})
	}
}

// Which other program has the file open for writing is looked for only if one has it open at all, and then in each mode.
func TestWritersAreLookedForIfTheFileIsOpen(t *testing.T) {
	defer func() { Writers = nil }()
	asked := 0
	Writers = func(FileID) (string, []int) {
		asked++
		return "another", []int{1}
	}
	for _, mode := range []LockMode{LockOn, LockTry, LockOff} {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		asked = 0
		alone := open(t, path)
		if err := alone.Lock(mode, Exclusive); err != nil {
			t.Fatal(err)
		}
		if err := alone.Unlock(); err != nil {
			t.Fatal(err)
		}
		if asked != 0 {
			t.Errorf("lock=%s: %d questions for a file that only this program has open", mode, asked)
		}
		for flags, name := range map[int]string{os.O_RDONLY: "reading", os.O_WRONLY: "writing", os.O_RDWR: "both"} {
			other, err := os.OpenFile(path, flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			asked = 0
			if err := alone.Lock(mode, Exclusive); !errors.Is(err, ErrLocked) || asked != 1 {
				t.Errorf("lock=%s: %v after %d questions, though the file is open for %s", mode, err, asked, name)
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if held, err := unix.FcntlInt(alone.(*hostFile).File.Fd(), unix.F_GETLEASE, 0); err != nil || held != unix.F_UNLCK {
			t.Errorf("a lease is left: %d, %v", held, err)
		}
	}
}

func open(t *testing.T, path string) File {
	t.Helper()
	f, err := Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
