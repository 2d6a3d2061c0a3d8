package cli

import (
	"fmt"
	"io"
	"log/syslog"
	"os"

	"github.com/sirupsen/logrus"
	logrussyslog "github.com/sirupsen/logrus/hooks/syslog"
)

// Values of the option log, besides a path.
const (
	logStderr = "stderr"
	logSyslog = "syslog"
)

var logLevels = []string{"error", "warn", "info", "debug"}

// newLog returns the log of a mount. It writes to stderr until the option says otherwise; what a mount in
// the background logs by default is decided when it leaves its terminal.
func newLog(o *options, stderr io.Writer) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetLevel(o.logLevel)
	l.SetOutput(stderr)
	l.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	switch o.log {
	case "", logStderr:
	case logSyslog:
		if err := toSyslog(l); err != nil {
			return nil, fmt.Errorf("option log=syslog: %w; name a file, as in log=/var/log/vhdxfs.log", err)
		}
	default:
		f, err := os.OpenFile(o.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return nil, fmt.Errorf("option log: %w", err)
		}
		l.SetOutput(f) // open as long as the process
	}
	return l, nil
}

// toSyslog makes l log to syslog, which a system without one refuses.
func toSyslog(l *logrus.Logger) error {
	hook, err := logrussyslog.NewSyslogHook("", "", syslog.LOG_DAEMON|syslog.LOG_INFO, "vhdxfs")
	if err != nil {
		return err
	}
	l.AddHook(hook)
	l.SetOutput(io.Discard)
	l.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true}) // syslog has its own time
	return nil
}
