// Package monitor is the way from the engine of a mount to its monitor.
//
// A mount is served by two processes. The engine reads the image and answers the kernel; what it reads may have been made to
// attack it, so it can do little. The monitor keeps the privileges: it mounts, unmounts, and takes away what the mount has
// left. The engine starts the monitor before it reads a byte of the image (Start), tells it what the command line has said,
// and has from then on only the words of this package, which have no arguments to speak of. The monitor (Run) believes
// nothing else that comes from the engine. What a word does is the business of a Keeper, which the caller of Run makes.
//
// The engine is the process that the mount is known by: its number is in the pidfile, in user.vhdx.pid, and in what systemd
// is told. The monitor ends with it, however that ends. An engine whose monitor was killed makes the image clean and ends.
package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/erofs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A Keeper does for a mount what the process that serves it may not do itself once it is confined: all that takes
// privilege, or a path that has nothing to do with the image.
type Keeper interface {
	fs.Mounter

	// Announce makes the mount known: by the pidfile and in the table of mount(8). With background, a keeper that is
	// a process leaves the session of the caller.
	Announce(background bool) error
	// End takes away what is not needed any more: the pidfile, the entry in the table, the mount point of attach.
	End()
	// LockHolders names the programs that hold locks on a file.
	LockHolders(imagefile.FileID) (names string, pids []int)
	// Writers names the servers of other mounts that have a file open for writing.
	Writers(imagefile.FileID) (names string, pids []int)
	// MountServedBy returns the mount that one of the processes serves, and nil where there is none.
	MountServedBy(pids []int) *active.Mount
	// DialSyslog returns the descriptor of a connection to syslog.
	DialSyslog() (int, error)
	// Socket is the descriptor of the connection to a keeper that is another process, -1 for one that is not.
	Socket() int
	// Gone is closed when there is no keeper any more, and nothing can be unmounted.
	Gone() <-chan struct{}
}

// A Local is a Keeper that works in the process it is called in.
type Local interface {
	Keeper
	// Killed is End for an engine that was killed. What the next mount takes over stays.
	Killed()
}

// command is the hidden command by which the program is a monitor. Its argument is the number of the engine, for
// people who look at a list of processes.
const command = "internal-monitor"

// Is reports whether a command line is that of a monitor.
func Is(args []string) bool { return len(args) == 2 && args[0] == command }

// A word is what an engine asks of its monitor.
type word string

const (
	wordMount        word = "mount"
	wordControl      word = "control-socket"
	wordPassThrough  word = "pass-through"
	wordAccepted     word = "accepted"
	wordAnnounce     word = "announce"
	wordUnmount      word = "unmount"
	wordMakeReadOnly word = "make-read-only"
	wordDetachDead   word = "detach-dead"
	wordHolders      word = "holders"
	wordWriters      word = "writers"
	wordServedBy     word = "served-by"
	wordSyslog       word = "syslog"
	wordEnd          word = "end"
)

// maxMessage bounds a message between the two, in bytes.
const maxMessage = 64 << 10

var errTooLong = errors.New("the answer is too long")

// A question is a word with the one thing that it may say.
type question struct {
	Word word             `json:"word"`
	Flag bool             `json:"flag,omitempty"` // of mount: read-only; of announce: in the background
	File imagefile.FileID `json:"file,omitzero"`  // of holders
	PIDs []int            `json:"pids,omitempty"` // of served-by
	Map  erofs.Geometry   `json:"map,omitzero"`   // of pass-through

	fds []int // of pass-through: the connection, that from which the runs are read, and the devices
}

// An answer says what became of it. A descriptor may come with it.
type answer struct {
	Error  []byte        `json:"error,omitempty"` // a path in it need not be UTF-8
	Errno  syscall.Errno `json:"errno,omitempty"`
	NoFUSE bool          `json:"no_fuse,omitempty"` // the error is mounts.ErrNoFUSE
	Text   []byte        `json:"text,omitempty"`    // of holders: their names
	PIDs   []int         `json:"pids,omitempty"`    // of holders

	Mount   *active.Mount `json:"mount,omitempty"`    // of served-by
	Passed  int32         `json:"passed,omitempty"`   // of pass-through
	ImageID string        `json:"image_id,omitempty"` // of that mount
	Log     []logLine     `json:"log,omitempty"`      // what is to be logged
}

// A logLine is what the monitor has to log. The engine has the log.
type logLine struct {
	Level logrus.Level `json:"level"`
	Text  []byte       `json:"text"`
}

// setError puts an error into the answer.
func (a *answer) setError(err error) {
	if err == nil {
		return
	}
	a.Error = []byte(terminal.OneLine(terminal.Text(err)))
	a.NoFUSE = errors.Is(err, mounts.ErrNoFUSE)
	if !errors.As(err, &a.Errno) && errors.Is(err, os.ErrPermission) {
		a.Errno = unix.EPERM
	}
}

// err returns the error that the answer tells of.
func (a *answer) err() error {
	if len(a.Error) == 0 {
		return nil
	}
	e := &remoteError{text: string(a.Error)}
	if a.Errno != 0 {
		e.is = append(e.is, a.Errno)
	}
	if a.NoFUSE {
		e.is = append(e.is, mounts.ErrNoFUSE)
	}
	return e
}

// A remoteError is an error of the monitor.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }

// engineEnds is how long a word that the monitor is carrying out may take when the engine has ended.
const engineEnds = 2 * time.Second

// engineSocket is the first descriptor behind standard error, which is the socket to the engine.
const engineSocket = 3

// Run is the life of a monitor. It makes its keeper by what the engine has given to Start, for the engine's process pid;
// what the keeper logs goes to the engine. It returns an error where the process cannot be a monitor.
func Run(keeper func(config []byte, pid int, log *logrus.Logger) (Local, error)) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE) // the engine answers them
	socket, err := packetConn(engineSocket)
	if err != nil {
		return err
	}
	buf, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*(firstDevice+erofs.MaxDevices)))
	n, err := socket.Read(buf)
	if err != nil {
		return nil // the engine has ended already
	}
	log := &logCollector{}
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(log)
	k, err := keeper(buf[:n], os.Getppid(), logger)
	if err != nil {
		return nil // no engine that is still itself says that
	}
	if err := os.Chdir("/"); err != nil { // so as to keep no other file system from being unmounted
		return err
	}

	questions := make(chan question)
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		defer fault.Reported(logger)
		for q := range questions {
			reply(socket, k, log, q)
		}
	}()
	for {
		n, cn, _, _, err := socket.ReadMsgUnix(buf, control)
		if err != nil || n == 0 {
			break
		}
		q := question{fds: descriptorsIn(control[:cn])}
		if json.Unmarshal(buf[:n], &q) != nil {
			break // no engine that is still itself says that
		}
		questions <- q
	}
	close(questions)
	select {
	case <-idle:
	case <-time.After(engineEnds): // it waits for another program, as when the pidfile is a FIFO
	}
	k.Killed() // unless it has said that it ends
	return nil
}

// packetConn returns the socket of a descriptor, which it closes.
func packetConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "monitor")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("no Unix socket")
	}
	return u, nil
}

// reply does what a word asks for, and answers.
func reply(socket *net.UnixConn, k Keeper, log *logCollector, q question) {
	var a answer
	fd, err := carryOut(k, log, q, &a)
	a.setError(err)
	var rights []byte
	if err == nil && fd >= 0 {
		defer unix.Close(fd) // the engine's is the only one: what it stands for ends with the engine
		rights = unix.UnixRights(fd)
	}
	for _, fd := range q.fds {
		unix.Close(fd)
	}
	a.Log = log.take()
	b, err := json.Marshal(a)
	if err != nil || len(b) > maxMessage {
		a.Log = nil
		b, _ = json.Marshal(a)
	}
	if len(b) > maxMessage { // as of a file that a thousand programs have locked
		a = answer{}
		a.setError(errTooLong)
		b, _ = json.Marshal(a)
	}
	_, _, _ = socket.WriteMsgUnix(b, rights, nil) // an engine that has ended does not listen
}

// carryOut does what a word asks for. The descriptor that it returns goes with the answer; -1 is none. A panic is an error of
// the word, or the engine would wait for the answer, and for those to all later words, without an end.
func carryOut(k Keeper, log *logCollector, q question, a *answer) (fd int, err error) {
	defer fault.Then(func(e error) {
		fault.Report(log, e)
		fd, err = -1, e
	})
	switch q.Word {
	case wordMount:
		return k.Mount(q.Flag)
	case wordControl:
		return k.ControlSocket()
	case wordSyslog:
		return k.DialSyslog()
	case wordPassThrough:
		a.Passed, err = passThrough(k, q)
	case wordAccepted:
		k.Accepted()
	case wordAnnounce:
		err = k.Announce(q.Flag)
		if q.Flag { // not before: an automounter lets the caller's process group through alone
			_, _ = unix.Setsid() // it fails where it leads a session already
		}
	case wordUnmount:
		err = k.Unmount()
	case wordMakeReadOnly:
		err = k.MakeReadOnly()
	case wordDetachDead:
		err = k.DetachDead()
	case wordHolders:
		q.File.PID = os.Getppid() // not the number in the message, which is not trusted
		names, pids := k.LockHolders(q.File)
		a.Text, a.PIDs = []byte(names), pids
	case wordWriters:
		q.File.PID = os.Getppid()
		names, pids := k.Writers(q.File)
		a.Text, a.PIDs = []byte(names), pids
	case wordServedBy:
		if a.Mount = k.MountServedBy(q.PIDs); a.Mount != nil {
			a.ImageID = a.Mount.ImageID
		}
	case wordEnd:
		k.End()
	default:
		err = errors.New("unknown word")
	}
	return -1, err
}

// firstDevice is where the devices are among the descriptors of wordPassThrough.
const firstDevice = 2

// passThrough does what wordPassThrough asks for. All that comes from the engine is checked where it is used: by package
// erofs, and by the Mounter.
func passThrough(k fs.Mounter, q question) (int32, error) {
	if len(q.fds) < firstDevice {
		return 0, errors.New("too few descriptors")
	}
	return k.PassThrough(fs.KernelFile{Geometry: q.Map, Device: q.fds[0], Runs: q.fds[1], Devices: q.fds[firstDevice:]})
}

// A logCollector keeps what is logged until the engine takes it.
type logCollector struct {
	mu    sync.Mutex // guards lines
	lines []logLine
}

func (*logCollector) Levels() []logrus.Level { return logrus.AllLevels }

func (l *logCollector) Fire(e *logrus.Entry) error {
	text := e.Message
	if err, ok := e.Data[logrus.ErrorKey].(error); ok {
		text += ": " + terminal.OneLine(terminal.Text(err))
	}
	l.add(e.Level, text)
	return nil
}

// Errorf is there for package fault.
func (l *logCollector) Errorf(format string, args ...any) {
	l.add(logrus.ErrorLevel, fmt.Sprintf(format, args...))
}

func (l *logCollector) add(level logrus.Level, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, logLine{level, []byte(text)})
}

func (l *logCollector) take() []logLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}
