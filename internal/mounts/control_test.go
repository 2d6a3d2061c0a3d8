package mounts

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
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

// Anybody may connect to the socket of a mount. Who keeps it busy does not hide its server.
func TestServersWaitForABusySocket(t *testing.T) {
	socket, err := Bind(fmt.Sprintf("test-busy:%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Listen(socket, 0); err != nil {
		t.Fatal(err)
	}
	name := socketName(fmt.Sprintf("test-busy:%d", os.Getpid()))
	var last error
	for range 10 { // until no more may wait
		var c net.Conn
		if c, last = net.Dial("unix", name); last != nil {
			break
		}
		defer c.Close()
	}
	if !errors.Is(last, unix.EAGAIN) {
		t.Fatalf("the socket is not full: %v", last)
	}
	time.AfterFunc(20*socketPause, func() {
		if fd, _, err := unix.Accept(socket); err == nil {
			unix.Close(fd)
		}
	})
	if !slices.ContainsFunc(Servers(), func(s Server) bool { return s.PID == os.Getpid() }) {
		t.Error("a busy server is not found")
	}
}

// The kernel shows the names of sockets as they are, with what looks like the ends of lines.
func TestServersPassOverOddNames(t *testing.T) {
	for _, name := range []string{"@odd\n\n", "@odd\n" + socketPrefix + "1:2", "@odd \n \n" + socketPrefix} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("%s %d\n\n", name, os.Getpid())}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
	}
	if slices.ContainsFunc(Servers(), func(s Server) bool { return s.PID == os.Getpid() }) {
		t.Error("a socket with another name counts as that of a server")
	}
}
