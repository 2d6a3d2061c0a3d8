package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A monitorClient is the engine's side: a keeper that is another process.
type monitorClient struct {
	socket *net.UnixConn
	log    *logrus.Logger
	folder *os.File      // the lock of the mount point, if attach has made it
	gone   chan struct{} // closed when the monitor has ended
	ended  chan struct{} // closed when its status was taken
	mu     sync.Mutex    // one question at a time

	answers chan monitorReply
}

var _ keeper = (*monitorClient)(nil)

// A monitorReply is an answer with the descriptor that came with it, -1 for none.
type monitorReply struct {
	monitorAnswer
	fd int
}

// errMonitorGone says that the monitor has ended.
var errMonitorGone = errors.New("the monitor process has ended")

// monitorPatience is how long a monitor may take to end.
const monitorPatience = 10 * time.Second

// startMonitor starts a monitor and tells it the options. It does not wait for it.
func startMonitor(j *mountJob, log *logrus.Logger) (*monitorClient, error) {
	program, err := selfPath()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	socket, err := packetConn(pair[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, monitorCommand, strconv.Itoa(os.Getpid()))
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=")
	cmd.ExtraFiles = []*os.File{theirs} // becomes firstInherited
	if err := cmd.Start(); err != nil {
		socket.Close()
		return nil, fmt.Errorf("the monitor process cannot be started: %w", err)
	}
	c := &monitorClient{
		socket:  socket,
		log:     log,
		folder:  keepRunDir(j.Mount.MountPoint),
		gone:    make(chan struct{}),
		ended:   make(chan struct{}),
		answers: make(chan monitorReply),
	}
	go func() {
		defer close(c.ended)
		defer fault.Reported(log)
		_ = cmd.Wait() // what it has to say it has said
	}()
	go c.receive()
	b, err := json.Marshal(newMonitorConfig(j))
	if err == nil {
		_, err = socket.Write(b)
	}
	if err != nil {
		c.End()
		return nil, fmt.Errorf("the monitor process: %w", err)
	}
	return c, nil
}

// receive takes the answers until the monitor has ended.
func (c *monitorClient) receive() {
	defer close(c.gone)
	defer fault.Reported(c.log)
	buf, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, cn, _, _, err := c.socket.ReadMsgUnix(buf, control)
		if err != nil || n == 0 {
			return
		}
		r := monitorReply{fd: -1}
		if fds := descriptorsIn(control[:cn]); len(fds) == 1 {
			r.fd = fds[0]
		}
		if err := json.Unmarshal(buf[:n], &r.monitorAnswer); err != nil {
			return
		}
		c.answers <- r
	}
}

// descriptorsIn returns the descriptors in a control message.
func descriptorsIn(control []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if list, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, list...)
		}
	}
	return fds
}

// ask has the monitor do something, and returns the descriptor that came with the answer.
func (c *monitorClient) ask(q monitorQuestion) (int, error) {
	r, err := c.question(q)
	return r.fd, err
}

// question has the monitor do something, and returns its answer.
func (c *monitorClient) question(q monitorQuestion) (monitorReply, error) {
	none := monitorReply{fd: -1}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := json.Marshal(q)
	if err != nil {
		return none, err
	}
	var rights []byte
	if len(q.fds) > 0 {
		rights = unix.UnixRights(q.fds...)
	}
	if _, _, err := c.socket.WriteMsgUnix(b, rights, nil); err != nil {
		return none, fmt.Errorf("%w: %w", errMonitorGone, err)
	}
	var r monitorReply
	select {
	case r = <-c.answers:
	case <-c.gone:
		return none, errMonitorGone
	}
	for _, line := range r.Log {
		c.log.Log(max(line.Level, logrus.ErrorLevel), string(line.Text))
	}
	return r, r.err()
}

// tell asks for what has no descriptor as an answer.
func (c *monitorClient) tell(w word) error {
	_, err := c.ask(monitorQuestion{Word: w})
	return err
}

func (c *monitorClient) Mount(readOnly bool) (int, error) {
	fd, err := c.ask(monitorQuestion{Word: wordMount, Flag: readOnly})
	if err == nil && fd < 0 {
		err = errors.New("the monitor process has sent no connection")
	}
	return fd, err
}

func (c *monitorClient) ControlSocket() (int, error) {
	return c.ask(monitorQuestion{Word: wordControl})
}

func (c *monitorClient) PassThrough(k mount.KernelFile) (int32, error) {
	r, err := c.question(monitorQuestion{Word: wordPassThrough, Map: k.Geometry, fds: append([]int{k.Device, k.Runs}, k.Devices...)})
	return r.Passed, err
}

func (c *monitorClient) Accepted() {
	if err := c.tell(wordAccepted); err != nil {
		c.log.WithError(err).Debug("read-ahead left at the kernel's default")
	}
}

func (c *monitorClient) Announce(background bool) error {
	_, err := c.ask(monitorQuestion{Word: wordAnnounce, Flag: background})
	return err
}

func (c *monitorClient) Unmount() error        { return c.tell(wordUnmount) }
func (c *monitorClient) MakeReadOnly() error   { return c.tell(wordMakeReadOnly) }
func (c *monitorClient) DetachDead() error     { return c.tell(wordDetachDead) }
func (c *monitorClient) Gone() <-chan struct{} { return c.gone }

func (c *monitorClient) LockHolders(f imagefile.FileID) (names string, pids []int) {
	return c.usersOf(wordHolders, f)
}

func (c *monitorClient) Writers(f imagefile.FileID) (names string, pids []int) {
	return c.usersOf(wordWriters, f)
}

func (c *monitorClient) usersOf(w word, f imagefile.FileID) (names string, pids []int) {
	r, err := c.question(monitorQuestion{Word: w, File: f})
	if err != nil {
		return "", nil
	}
	return string(r.Text), r.PIDs
}

func (c *monitorClient) MountServedBy(pids []int) *active.Mount {
	r, err := c.question(monitorQuestion{Word: wordServedBy, PIDs: pids})
	if err != nil || r.Mount == nil {
		return nil
	}
	r.Mount.ImageID = r.ImageID
	return r.Mount
}

func (c *monitorClient) DialSyslog() (int, error) { return c.ask(monitorQuestion{Word: wordSyslog}) }

// End has the monitor take everything away, and returns when it has ended.
func (c *monitorClient) End() {
	if c.folder != nil {
		c.folder.Close() // so that the monitor can remove the mount point
	}
	if err := c.tell(wordEnd); err != nil && !errors.Is(err, errMonitorGone) {
		c.log.Warn(err)
	}
	c.socket.Close()
	select {
	case <-c.ended:
	case <-time.After(monitorPatience):
		c.log.Warn("the monitor process does not end")
	}
}
