package cli

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/erofs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A mount is served by two processes. The engine reads the image and answers the kernel; what it reads may have been
// made to attack it, so it can do little. The monitor keeps the privileges: it mounts, unmounts, and takes away what
// the mount has left. The engine starts the monitor before it reads a byte of the image, tells it what the command
// line has said, and has from then on only the words below, which have no arguments to speak of.
//
// The engine is the process that the mount is known by: its number is in the pidfile, in user.vhdx.pid, and in what
// systemd is told. The monitor ends with it, however that ends. An engine whose monitor was killed makes the image
// clean and ends.

// monitorCommand is the hidden command by which the program is a monitor. Its argument is the number of the engine, for
// people who look at a list of processes.
const monitorCommand = "internal-monitor"

// isMonitor reports whether a command line is that of a monitor.
func isMonitor(args []string) bool { return len(args) == 2 && args[0] == monitorCommand }

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

// A monitorQuestion is a word with the one thing that it may say.
type monitorQuestion struct {
	Word word             `json:"word"`
	Flag bool             `json:"flag,omitempty"` // of mount: read-only; of announce: in the background
	File imagefile.FileID `json:"file,omitzero"`  // of holders
	PIDs []int            `json:"pids,omitempty"` // of served-by
	Map  erofs.Geometry   `json:"map,omitzero"`   // of pass-through

	fds []int // of pass-through: the connection, that from which the runs are read, and the devices
}

// A monitorAnswer says what became of it. A descriptor may come with it.
type monitorAnswer struct {
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
func (a *monitorAnswer) setError(err error) {
	if err == nil {
		return
	}
	a.Error = []byte(err.Error())
	a.NoFUSE = errors.Is(err, mounts.ErrNoFUSE)
	if !errors.As(err, &a.Errno) && errors.Is(err, os.ErrPermission) {
		a.Errno = unix.EPERM
	}
}

// err returns the error that the answer tells of.
func (a *monitorAnswer) err() error {
	if len(a.Error) == 0 {
		return nil
	}
	e := &monitorError{text: string(a.Error)}
	if a.Errno != 0 {
		e.is = append(e.is, a.Errno)
	}
	if a.NoFUSE {
		e.is = append(e.is, mounts.ErrNoFUSE)
	}
	return e
}

// A monitorError is an error of the monitor.
type monitorError struct {
	text string
	is   []error
}

func (e *monitorError) Error() string   { return e.text }
func (e *monitorError) Unwrap() []error { return e.is }

// A monitorConfig is what a monitor has to know of the command line.
type monitorConfig struct {
	MountPoint []byte `json:"mount_point"`
	Source     []byte `json:"source"`
	Image      []byte `json:"image"`
	PIDFile    []byte `json:"pidfile"`
	Metrics    []byte `json:"metrics"`
	OverlayDir []byte `json:"overlay_dir"`

	ReadOnly, AllowOther, AllowRoot, DefaultPermissions, NonEmpty, KeepStale, Attach bool

	Flags    uintptr      `json:"flags"`
	LogLevel logrus.Level `json:"log_level"`
}

func newMonitorConfig(j *mountJob) *monitorConfig {
	m := &j.Mount
	return &monitorConfig{
		MountPoint: []byte(m.MountPoint), Source: []byte(m.Source), Image: []byte(m.Image),
		PIDFile: []byte(j.PIDFile), Metrics: []byte(j.Metrics), OverlayDir: []byte(j.overlayDir),
		ReadOnly: j.ReadOnly, AllowOther: m.AllowOther, AllowRoot: m.AllowRoot, DefaultPermissions: m.DefaultPermissions,
		NonEmpty: m.NonEmpty, KeepStale: m.KeepStale, Attach: j.attach,
		Flags: m.Flags, LogLevel: j.LogLevel,
	}
}

// job returns the part of the mount that the configuration holds.
func (c *monitorConfig) job() *mountJob {
	return &mountJob{
		Options: &mountoption.Options{
			ReadOnly: c.ReadOnly, PIDFile: string(c.PIDFile), Metrics: string(c.Metrics),
			Mount: mount.Options{
				MountPoint: string(c.MountPoint), Source: string(c.Source), Image: string(c.Image),
				AllowOther: c.AllowOther, AllowRoot: c.AllowRoot, DefaultPermissions: c.DefaultPermissions,
				NonEmpty: c.NonEmpty, KeepStale: c.KeepStale, Flags: c.Flags,
			},
		},
		overlayDir: string(c.OverlayDir), attach: c.Attach,
	}
}

// engineEnds is how long a word that the monitor is carrying out may take when the engine has ended.
const engineEnds = 2 * time.Second

// runMonitor is the life of a monitor. The socket to the engine is its first descriptor behind standard error.
func runMonitor() int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE) // the engine answers them
	socket, err := packetConn(firstInherited)
	if err != nil {
		return statusSystem
	}
	buf, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*(firstDevice+erofs.MaxDevices)))
	n, err := socket.Read(buf)
	var c monitorConfig
	if err != nil || json.Unmarshal(buf[:n], &c) != nil {
		return statusOK // the engine has ended already
	}
	log := &logCollector{}
	logger := logrus.New()
	logger.SetLevel(c.LogLevel)
	logger.SetOutput(io.Discard)
	logger.AddHook(log)
	k := newLocalKeeper(c.job(), os.Getppid(), logger)
	if err := os.Chdir("/"); err != nil { // so as to keep no other file system from being unmounted
		return statusSystem
	}

	questions := make(chan monitorQuestion)
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		defer fault.Reported(logger)
		for q := range questions {
			answerEngine(socket, k, log, q)
		}
	}()
	for {
		n, cn, _, _, err := socket.ReadMsgUnix(buf, control)
		if err != nil || n == 0 {
			break
		}
		q := monitorQuestion{fds: descriptorsIn(control[:cn])}
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
	k.killed() // unless it has said that it ends
	return statusOK
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

// answerEngine does what a word asks for, and answers.
func answerEngine(socket *net.UnixConn, k *localKeeper, log *logCollector, q monitorQuestion) {
	var a monitorAnswer
	sent := -1 // a descriptor
	defer func() {
		for _, fd := range q.fds {
			unix.Close(fd)
		}
		if sent >= 0 {
			unix.Close(sent) // the engine's is the only one: what it stands for ends with the engine
		}
	}()
	var rights []byte
	send := func(fd int, err error) {
		if err == nil {
			sent, rights = fd, unix.UnixRights(fd)
		}
		a.setError(err)
	}
	switch q.Word {
	case wordMount:
		fd, err := k.Mount(q.Flag)
		send(fd, err)
	case wordControl:
		fd, err := k.ControlSocket()
		send(fd, err)
	case wordPassThrough:
		var err error
		a.Passed, err = passThrough(k, q)
		a.setError(err)
	case wordAccepted:
		k.Accepted()
	case wordAnnounce:
		a.setError(k.Announce(q.Flag))
		if q.Flag { // not before: an automounter lets the caller's process group through alone
			_, _ = unix.Setsid() // it fails where it leads a session already
		}
	case wordUnmount:
		a.setError(k.Unmount())
	case wordMakeReadOnly:
		a.setError(k.MakeReadOnly())
	case wordDetachDead:
		a.setError(k.DetachDead())
	case wordHolders:
		q.File.PID = os.Getppid() // not the number in the message, which is not trusted
		names, pids := imagefile.FindLockHolders(q.File)
		a.Text, a.PIDs = []byte(names), pids
	case wordWriters:
		q.File.PID = os.Getppid()
		names, pids := active.Writers(q.File)
		a.Text, a.PIDs = []byte(names), pids
	case wordServedBy:
		if a.Mount = active.ServedBy(q.PIDs); a.Mount != nil {
			a.ImageID = a.Mount.ImageID
		}
	case wordSyslog:
		fd, err := dialSyslog()
		send(fd, err)
	case wordEnd:
		k.End()
	default:
		a.setError(errors.New("unknown word"))
	}
	a.Log = log.take()
	b, err := json.Marshal(a)
	if err != nil || len(b) > maxMessage {
		a.Log = nil
		b, _ = json.Marshal(a)
	}
	_, _, _ = socket.WriteMsgUnix(b, rights, nil) // an engine that has ended does not listen
}

// firstDevice is where the devices are among the descriptors of wordPassThrough.
const firstDevice = 2

// passThrough does what wordPassThrough asks for. All that comes from the engine is checked where it is used: by package
// erofs, and by the Mounter.
func passThrough(k mount.Mounter, q monitorQuestion) (int32, error) {
	if len(q.fds) < firstDevice {
		return 0, errors.New("too few descriptors")
	}
	return k.PassThrough(mount.KernelFile{Geometry: q.Map, Device: q.fds[0], Runs: q.fds[1], Devices: q.fds[firstDevice:]})
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
		text += ": " + err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, logLine{e.Level, []byte(text)})
	return nil
}

func (l *logCollector) take() []logLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}
