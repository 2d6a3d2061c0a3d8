package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// newLog returns the log of a mount. It writes to stderr until the option says otherwise; what a mount in
// the background logs by default is decided when it leaves its terminal.
func newLog(o *mountoption.Options, stderr io.Writer) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetLevel(o.LogLevel)
	l.SetOutput(stderr)
	l.SetFormatter(messageFormatter{})
	if o.Log != "" && (o.Log != mountoption.LogStderr || !isTerminal(stderr)) { // a log that is kept
		l.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	}
	switch o.Log {
	case "", mountoption.LogStderr:
	case mountoption.LogSyslog:
		hook, err := newSyslogHook(dialSyslog)
		if err != nil {
			return nil, fmt.Errorf("option log=syslog: %w; use a file, such as log=/var/log/vhdxfs.log", err)
		}
		hook.take(l)
	default:
		f, err := openLogFile(o.Log)
		if err != nil {
			return nil, fmt.Errorf("option log: %w", err)
		}
		l.SetOutput(f)
	}
	return l, nil
}

// A logFile is the descriptor of a file to log to, open as long as the process. It is not an os.File, since that waits
// for the reader of a FIFO, and reads and writes of the disk would wait with it.
type logFile int

// openLogFile opens a log to append to it, and makes it if it is not there.
func openLogFile(path string) (logFile, error) {
	if err := newfile.RefuseDevice(path); err != nil {
		return 0, err
	}
	d, name, err := safefile.Reach(path)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	fd, err := d.OpenToWrite(name, path, unix.O_APPEND|unix.O_NONBLOCK, 0o640)
	if errors.Is(err, unix.ENXIO) {
		return 0, fmt.Errorf("no program reads the FIFO %s; start the reader first, or use a file", path)
	}
	return logFile(fd), err
}

// Write writes a line. One that a FIFO or a terminal has no room for now is lost.
func (f logFile) Write(p []byte) (int, error) {
	for written := 0; written < len(p); {
		n, err := unix.Write(int(f), p[written:])
		switch {
		case err == unix.EAGAIN:
			return len(p), nil
		case err == unix.EINTR:
		case err != nil:
			return written, os.NewSyscallError("write", err)
		default:
			written += n
		}
	}
	return len(p), nil
}
