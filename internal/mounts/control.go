package mounts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/processes"
)

// Each server listens on a socket with an abstract name, that of its mount's device. By it the mount is asked and told
// what to do without a step into it: that would keep it from being unmounted at that moment. The kernel says who is at
// either end. The server answers root and its own user, and a program believes the user whose mount it is.

const socketPrefix = "@vhdxfs/"

// socketName is the name of the socket for the mount with a device, major:minor.
func socketName(device string) string { return socketPrefix + device }

// listening is among the flags of a socket in /proc/net/unix: SO_ACCEPTCON. The ends of its connections have the same name.
const listening = "00010000"

// A Server is a process that serves a mount over its socket, or that says so.
type Server struct {
	PID    int
	Device string // of the mount, as DeviceOf has it
	uid    uint32
}

// Serves reports whether the server is that of the mount m: it belongs to the user who has made the mount.
func (s Server) Serves(m *mountinfo.Info) bool {
	owner, known := Owner(m)
	return known && s.PID > 0 && s.Device == DeviceOf(m) && s.uid == owner.Uid
}

// Servers returns the processes that serve mounts over their sockets, of any user and in any mount namespace.
// It waits for no answer, and where a user lets sockets of his own be full, for no longer than patience in all. A process
// that only says that it does so is among them.
func Servers() (servers []Server) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil
	}
	end := time.Now().Add(patience)
	for line := range strings.Lines(string(table)) {
		const flags, path, columns = 3, 7, 8
		words := strings.Fields(line)
		if len(words) != columns || words[flags] != listening || !strings.HasPrefix(words[path], socketPrefix) {
			continue // also what the name of another socket makes look like a line
		}
		name := words[path]
		c, err := connect(name, end)
		if err != nil {
			continue // it has ended
		}
		if peer, err := peerOf(c); err == nil && peer.Pid > 0 {
			servers = append(servers, Server{int(peer.Pid), strings.TrimPrefix(name, socketPrefix), peer.Uid})
		}
		c.Close()
	}
	return servers
}

// connect connects to a socket. Where more programs ask at this moment than the socket lets wait, it tries again until end.
func connect(name string, end time.Time) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", name)
		if !errors.Is(err, unix.EAGAIN) || !time.Now().Before(end) {
			return c, err
		}
		time.Sleep(socketPause)
	}
}

// A request is one question or order. A connection carries one, and then the answer.
type request struct {
	Names []string // of attributes to be told
	Set   string   // name of an attribute to be set, "" for none
	Value []byte
	Hold  bool // no change of the disk begins until the connection ends, or maxHold is over
}

// maxHold is how long changes of a disk wait at the most for a program that looks at the image.
const maxHold = 3 * time.Second

const (
	maxRequest     = 1 << 20 // bytes
	maxConnections = 16      // at once; more wait
)

// A Handler answers questions about a mount, as the attributes do.
type Handler interface {
	Get(name string) (value string, ok bool)
	Set(name string, value []byte) syscall.Errno
	Hold() (release func(), held bool) // keeps changes of the disk waiting
	Alive() bool                       // whether the mount is there, and its device not that of another
}

// Bind makes the socket of the mount with a device. A server that may not do that itself gets it from another process,
// and is still the one that the kernel names: that is the process which listens.
func Bind(device string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketName(device)})
	// The server of a mount that is gone may have it for a moment more, and the kernel has given its number to this mount.
	for end := time.Now().Add(socketPatience); errors.Is(err, unix.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(socketPause)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketName(device)})
	}
	if err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// Serve answers on a socket, which it closes, until the listener that it returns is closed. An error means that the mount
// can be asked by its attributes alone.
func Serve(socket int, h Handler, log interface{ Errorf(string, ...any) }) (io.Closer, error) {
	f := os.NewFile(uintptr(socket), "control")
	defer f.Close()
	if err := unix.Listen(socket, maxConnections); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	go func() {
		defer fault.Reported(log)
		room := make(chan struct{}, maxConnections)
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // of too many open files, say
				time.Sleep(100 * time.Millisecond)
				continue
			}
			if peer, err := peerOf(c); err != nil || peer.Uid != 0 && peer.Uid != uint32(os.Geteuid()) {
				_ = json.NewEncoder(c).Encode(answer{Errno: unix.EACCES})
				c.Close()
				continue
			}
			room <- struct{}{}
			go func() {
				defer func() { <-room }()
				defer c.Close()
				defer fault.Reported(log)
				reply(c, h)
			}()
		}
	}()
	return l, nil
}

// reply answers the one request on a connection.
func reply(c net.Conn, h Handler) {
	var r request
	if c.SetDeadline(time.Now().Add(patience)) != nil || json.NewDecoder(io.LimitReader(c, maxRequest)).Decode(&r) != nil {
		return
	}
	a := answer{Values: make(map[string][]byte)}
	if !h.Alive() {
		return
	}
	if r.Set != "" {
		a.Errno = h.Set(r.Set, r.Value)
	}
	for _, name := range r.Names {
		if v, ok := h.Get(name); ok {
			a.Values[name] = []byte(v)
		}
	}
	if !h.Alive() {
		return
	}
	if r.Hold {
		release, held := h.Hold()
		if !held {
			a.Errno = unix.EBUSY
		}
		defer release()
	}
	_ = json.NewEncoder(c).Encode(a) // a program that has gone needs no answer
	if r.Hold && a.Errno == 0 && c.SetDeadline(time.Now().Add(maxHold)) == nil {
		_, _ = c.Read(make([]byte, 1)) // it ends with the connection
	}
}

// peerOf returns the process at the other end of a connection, as the kernel knows it.
func peerOf(c net.Conn) (peer *unix.Ucred, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return nil, cerr
	}
	return peer, err
}

// errNoServer says that the socket of a mount is not there, or not that of its user.
var errNoServer = errors.New("the mount has no socket here")

// dial connects to the server of a mount. The process at the other end belongs to the user who has made the mount.
func dial(m *mountinfo.Info) (c net.Conn, peer *unix.Ucred, err error) {
	owner, known := Owner(m)
	if !known {
		return nil, nil, errNoServer
	}
	if c, err = connect(socketName(DeviceOf(m)), time.Now().Add(patience)); err != nil {
		return nil, nil, errNoServer
	}
	if peer, err = peerOf(c); err != nil || peer.Uid != owner.Uid {
		c.Close()
		return nil, nil, errNoServer
	}
	return c, peer, nil
}

// ListenerPID returns the process that serves the mount m over its socket, and 0 where there is none here. It does not wait
// for an answer.
func ListenerPID(m *mountinfo.Info) int {
	c, peer, err := dial(m)
	if err != nil {
		return 0
	}
	c.Close()
	return int(peer.Pid)
}

// askServer sends a request to the server of a mount. The error is errNoServer where it cannot be asked so.
func askServer(m *mountinfo.Info, r request) (answer, error) {
	a, _, err := exchange(m, r)
	if err == nil && a.Errno == unix.EACCES && r.Set == "" {
		err = errNoServer // the attributes know better who may ask
	}
	if err != nil {
		return a, err
	}
	return a, pathError("ask", m.Mountpoint, a.Errno)
}

// call returns the process that serves the mount m over its socket. It may be asked for a mount that is not Trusted.
func call(m *mountinfo.Info) (*unix.Ucred, error) {
	_, peer, err := exchange(m, request{})
	return peer, err
}

// exchange sends a request to the server of a mount and returns the answer.
func exchange(m *mountinfo.Info, r request) (a answer, peer *unix.Ucred, err error) {
	c, peer, err := dial(m)
	if err != nil {
		return a, nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return a, nil, err
	}
	err = json.NewEncoder(c).Encode(r)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(c, maxAnswer)).Decode(&a)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return a, nil, ErrNoAnswer
	case err != nil: // it ends at this moment, or its mount has ended
		return a, nil, errNoServer
	}
	return a, peer, nil
}

// ErrUnknownServer says that it is not known which process serves a mount.
var ErrUnknownServer = errors.New("its server process is unknown")

// ServerPID returns the process that serves the mount m. It belongs to the user who has made the mount. The error matches
// unix.ENOTCONN for a mount whose program has died.
func ServerPID(m *mountinfo.Info) (int, error) {
	switch peer, err := call(m); {
	case errors.Is(err, errNoServer):
	case err != nil:
		return 0, err
	case peer.Pid > 0:
		return int(peer.Pid), nil
	default:
		return 0, ErrUnknownServer // in a container, say
	}
	owner, known := Owner(m)
	if !known {
		return 0, ErrUnknownServer
	}
	if !Trusted(m) {
		// What it says is not asked for: the process is the one that the kernel names, or none.
		return serverOf(DeviceOf(m), owner.Uid)
	}
	a, err := runHidden(nil, askCommand, m.Mountpoint, "pid", "pid_namespace")
	if err == nil {
		err = pathError("getxattr", m.Mountpoint, a.Errno)
	}
	if err != nil {
		return 0, err
	}
	pid, err := LocalPID(stringsOf(a.Values))
	if err == nil && !serves(pid, DeviceOf(m), owner.Uid) {
		err = ErrUnknownServer
	}
	return pid, err
}

// LocalPID returns the number of the process that the attributes pid and pid_namespace of a mount name.
func LocalPID(values map[string]string) (int, error) {
	if ours, err := os.Readlink("/proc/self/ns/pid"); err != nil || ours != values["pid_namespace"] {
		return 0, ErrUnknownServer // in a container, say
	}
	pid, err := strconv.Atoi(values["pid"])
	if err != nil || pid <= 0 {
		return 0, ErrUnknownServer
	}
	return pid, nil
}

// serverOf looks for the process of a user that serves the FUSE connection of a device, major:minor.
func serverOf(device string, uid uint32) (int, error) {
	for pid := range processes.Find(func(pid int) (struct{}, bool) {
		return struct{}{}, belongs(pid, uid) && connected(pid, device)
	}) {
		return pid, nil
	}
	return 0, ErrUnknownServer
}

// serves reports whether the process belongs to the user and may serve the connection of the device: it does so, or this
// process may not see what it has open, or the kernel does not say which connection an open file is of.
func serves(pid int, device string, uid uint32) bool {
	if !belongs(pid, uid) {
		return false
	}
	open, answered := processes.Look(func() ([]string, bool) { return fuseFiles(pid), true })
	if !answered {
		return false
	}
	if open == nil {
		_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return errors.Is(err, os.ErrPermission)
	}
	for _, connection := range open {
		if connection == "" || "0:"+connection == device {
			return true
		}
	}
	return false
}

// connected reports whether the kernel says that the process has the FUSE connection of the device open.
func connected(pid int, device string) bool {
	for _, connection := range fuseFiles(pid) {
		if connection != "" && "0:"+connection == device {
			return true
		}
	}
	return false
}

// fuseFiles returns the FUSE connections that a process has open; "" stands for one of which the kernel tells no number,
// as before Linux 6.18.
func fuseFiles(pid int) (connections []string) {
	for _, l := range processes.OpenFiles(pid) {
		if to, err := os.Readlink(l); err != nil || to != FUSEDevice {
			continue
		}
		info, err := os.ReadFile(processes.Path(pid, "fdinfo", filepath.Base(l)))
		if err != nil {
			continue
		}
		_, number, _ := strings.Cut(string(info), "fuse_connection:")
		number, _, _ = strings.Cut(number, "\n")
		connections = append(connections, strings.TrimSpace(number))
	}
	return connections
}

// belongs reports whether the process runs as the user.
func belongs(pid int, uid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, ids, _ := strings.Cut(string(status), "\nUid:")
	ids, _, _ = strings.Cut(ids, "\n")
	words := strings.Fields(ids) // real, effective, saved, of the file system
	return len(words) == 4 && words[1] == strconv.FormatUint(uint64(uid), 10)
}
