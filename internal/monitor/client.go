package monitor

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

	"github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A Client is the engine's side: a Keeper that is another process.
type Client struct {
	socket *net.UnixConn
	log    *logrus.Logger
	gone   chan struct{} // closed when the monitor has ended
	ended  chan struct{} // closed when its status was taken
	mu     sync.Mutex    // one question at a time

	answers chan answered
}

var _ Keeper = (*Client)(nil)

// An answered is an answer with the descriptor that came with it, -1 for none.
type answered struct {
	answer
	fd int
}

// errGone says that the monitor has ended.
var errGone = errors.New("the monitor process has ended")

// patience is how long a monitor may take to end.
const patience = 10 * time.Second

// Start starts a monitor, which is the program at path, and gives it the configuration that its Run hands on. It does not wait
// for it.
func Start(path string, config []byte, log *logrus.Logger) (*Client, error) {
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
	cmd := exec.Command(path, command, strconv.Itoa(os.Getpid()))
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=")
	cmd.ExtraFiles = []*os.File{theirs} // becomes engineSocket
	if err := cmd.Start(); err != nil {
		socket.Close()
		return nil, fmt.Errorf("the monitor process cannot be started: %w", err)
	}
	c := &Client{
		socket:  socket,
		log:     log,
		gone:    make(chan struct{}),
		ended:   make(chan struct{}),
		answers: make(chan answered),
	}
	go func() {
		defer close(c.ended)
		defer fault.Reported(log)
		_ = cmd.Wait() // what it has to say it has said
	}()
	go c.receive()
	if _, err := socket.Write(config); err != nil {
		c.End()
		return nil, fmt.Errorf("the monitor process: %w", err)
	}
	return c, nil
}

// receive takes the answers until the monitor has ended.
func (c *Client) receive() {
	defer close(c.gone)
	defer fault.Reported(c.log)
	buf, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, cn, _, _, err := c.socket.ReadMsgUnix(buf, control)
		if err != nil || n == 0 {
			return
		}
		r := answered{fd: -1}
		if fds := descriptorsIn(control[:cn]); len(fds) == 1 {
			r.fd = fds[0]
		}
		if err := json.Unmarshal(buf[:n], &r.answer); err != nil {
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
func (c *Client) ask(q question) (int, error) {
	r, err := c.answerTo(q)
	return r.fd, err
}

// answerTo has the monitor do something, and returns its answer.
func (c *Client) answerTo(q question) (answered, error) {
	none := answered{fd: -1}
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
		return none, fmt.Errorf("%w: %w", errGone, err)
	}
	var r answered
	select {
	case r = <-c.answers:
	case <-c.gone:
		return none, errGone
	}
	for _, line := range r.Log {
		c.log.Log(max(line.Level, logrus.ErrorLevel), string(line.Text))
	}
	return r, r.err()
}

// tell asks for what has no descriptor as an answer.
func (c *Client) tell(w word) error {
	_, err := c.ask(question{Word: w})
	return err
}

func (c *Client) Mount(readOnly bool) (int, error) {
	fd, err := c.ask(question{Word: wordMount, Flag: readOnly})
	if err == nil && fd < 0 {
		err = errors.New("the monitor process has sent no connection")
	}
	return fd, err
}

func (c *Client) ControlSocket() (int, error) {
	return c.ask(question{Word: wordControl})
}

func (c *Client) PassThrough(k fs.KernelFile) (int32, error) {
	r, err := c.answerTo(question{Word: wordPassThrough, Map: k.Geometry, fds: append([]int{k.Device, k.Runs}, k.Devices...)})
	return r.Passed, err
}

func (c *Client) Accepted() {
	if err := c.tell(wordAccepted); err != nil {
		c.log.WithError(err).Debug("read-ahead left at the kernel's default")
	}
}

func (c *Client) Announce(background bool) error {
	_, err := c.ask(question{Word: wordAnnounce, Flag: background})
	return err
}

func (c *Client) Unmount() error        { return c.tell(wordUnmount) }
func (c *Client) MakeReadOnly() error   { return c.tell(wordMakeReadOnly) }
func (c *Client) DetachDead() error     { return c.tell(wordDetachDead) }
func (c *Client) Gone() <-chan struct{} { return c.gone }

func (c *Client) LockHolders(f imagefile.FileID) (names string, pids []int) {
	return c.usersOf(wordHolders, f)
}

func (c *Client) Writers(f imagefile.FileID) (names string, pids []int) {
	return c.usersOf(wordWriters, f)
}

func (c *Client) usersOf(w word, f imagefile.FileID) (names string, pids []int) {
	r, err := c.answerTo(question{Word: w, File: f})
	if err != nil {
		return "", nil
	}
	return string(r.Text), r.PIDs
}

func (c *Client) MountServedBy(pids []int) *active.Mount {
	r, err := c.answerTo(question{Word: wordServedBy, PIDs: pids})
	if err != nil || r.Mount == nil {
		return nil
	}
	r.Mount.ImageID = r.ImageID
	return r.Mount
}

func (c *Client) DialSyslog() (int, error) { return c.ask(question{Word: wordSyslog}) }

func (c *Client) Socket() (fd int) {
	fd = -1
	if raw, err := c.socket.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

// End has the monitor take everything away, and returns when it has ended.
func (c *Client) End() {
	if err := c.tell(wordEnd); err != nil && !errors.Is(err, errGone) {
		c.log.Warn(err)
	}
	_ = c.socket.CloseWrite() // which the sandbox lets this process do; closing the socket it does not
	c.socket.Close()
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.log.Warn("the monitor process does not end")
	}
}
