package mounts

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The number of a mount that is gone is given to the next one at once. Its socket may be there for a moment more.
func TestBindWaitsForTheLastServer(t *testing.T) {
	device := fmt.Sprintf("test:%d", os.Getpid())
	last, err := Bind(device)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(socketPatience/4, func() { unix.Close(last) })
	next, err := Bind(device)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(next)
	if third, err := Bind(device); err == nil { // of a server that stays
		unix.Close(third)
		t.Error("two servers have one socket")
	}
}
