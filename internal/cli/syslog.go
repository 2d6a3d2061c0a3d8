package cli

import (
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Package log/syslog connects by itself when the daemon was restarted, which a confined process cannot. So the lines are
// written here, and the keeper of the mount connects.

// A syslogHook writes what is logged to syslog.
type syslogHook struct {
	dial func() (int, error)

	mu sync.Mutex // guards fd
	fd int        // of the connection
}

// newSyslogHook connects to syslog by dial.
func newSyslogHook(dial func() (int, error)) (*syslogHook, error) {
	fd, err := dial()
	if err != nil {
		return nil, err
	}
	return &syslogHook{dial: dial, fd: fd}, nil
}

// dialSyslog connects to the syslog of this machine.
func dialSyslog() (int, error) {
	var err error
	for _, path := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
			var fd int
			if fd, err = unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0); err != nil {
				return -1, os.NewSyscallError("socket", err)
			}
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
				return fd, nil
			}
			unix.Close(fd)
		}
	}
	return -1, fmt.Errorf("no syslog: %w", err)
}

// take makes l log to syslog alone.
func (h *syslogHook) take(l *logrus.Logger) {
	l.AddHook(h)
	l.SetOutput(io.Discard)
	l.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true}) // syslog has its own time
}

func (*syslogHook) Levels() []logrus.Level { return logrus.AllLevels }

var syslogPriorities = map[logrus.Level]syslog.Priority{
	logrus.PanicLevel: syslog.LOG_CRIT,
	logrus.FatalLevel: syslog.LOG_CRIT,
	logrus.ErrorLevel: syslog.LOG_ERR,
	logrus.WarnLevel:  syslog.LOG_WARNING,
	logrus.InfoLevel:  syslog.LOG_INFO,
	logrus.DebugLevel: syslog.LOG_DEBUG,
	logrus.TraceLevel: syslog.LOG_DEBUG,
}

func (h *syslogHook) Fire(e *logrus.Entry) error {
	text, err := e.String()
	if err != nil {
		return err
	}
	line := fmt.Appendf(nil, "<%d>%s vhdxfs[%d]: %s\n", syslogPriorities[e.Level]|syslog.LOG_DAEMON,
		time.Now().Format(time.Stamp), os.Getpid(), strings.TrimRight(text, "\n"))
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err = unix.Write(h.fd, line); err == nil {
		return nil
	}
	fd, err := h.dial() // it was restarted
	if err != nil {
		return err
	}
	unix.Close(h.fd)
	h.fd = fd
	_, err = unix.Write(h.fd, line)
	return err
}
