package imagefile

import (
	"os"
	"os/signal"
	"path/filepath"
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
