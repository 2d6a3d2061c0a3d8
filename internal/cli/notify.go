package cli

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// What a service of Type=notify tells systemd. Where there is none, nothing is said.
const (
	notifyRunning  = daemon.SdNotifyReady
	notifyStopping = daemon.SdNotifyStopping
)

// A notifier is a connection to systemd; nil where there is none.
type notifier struct{ socket *net.UnixConn }

// newNotifier connects to systemd, if that has started this process as a service of Type=notify.
func newNotifier() (*notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	socket, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &notifier{socket}, nil
}

// tell tells systemd the state.
func (n *notifier) tell(log *logrus.Logger, state ...string) {
	if n == nil {
		return
	}
	if _, err := n.socket.Write([]byte(strings.Join(state, "\n"))); err != nil {
		log.WithError(err).Debug("cannot notify systemd")
	}
}

// notifyStatus returns the line with which systemd shows a status. A line feed in a name would begin a line that tells something else.
func notifyStatus(format string, args ...any) string {
	return "STATUS=" + terminal.Escape(fmt.Sprintf(format, args...))
}

// notifyReady tells systemd that the mount is there, and starts what feeds the watchdog. It returns a function
// that stops that.
func notifyReady(j *mountJob, server *mount.Server, writable, background bool, log *logrus.Logger) (stop func()) {
	how := "read-only"
	if writable {
		how = "read/write"
	}
	state := []string{notifyRunning, notifyStatus("Serving %s at %s, %s", j.Mount.Image, server.MountPoint(), how)}
	if background {
		state = append(state, "MAINPID="+strconv.Itoa(os.Getpid()))
	}
	j.notify.tell(log, state...)

	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.WithError(err).Warn("not feeding the watchdog of systemd")
	}
	if err != nil || interval == 0 {
		return func() {}
	}
	quit := make(chan struct{})
	go j.notify.feedWatchdog(interval/2, server, quit, log)
	return func() { close(quit) }
}

// feedWatchdog tells systemd at each interval that the disk can be served, which it finds out by reading from it.
// A read that hangs or fails is not reported: that is for the watchdog to see.
func (n *notifier) feedWatchdog(interval time.Duration, server *mount.Server, quit <-chan struct{}, log *logrus.Logger) {
	t := time.NewTicker(interval)
	defer t.Stop()
	defer fault.Reported(log)
	for {
		select {
		case <-quit:
			return
		case <-t.C:
			if err := server.Check(); err != nil {
				log.WithError(err).Error("the disk cannot be read; not feeding the watchdog of systemd")
				continue
			}
			n.tell(log, daemon.SdNotifyWatchdog)
		}
	}
}
