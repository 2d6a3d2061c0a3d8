package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// metricsNamespace is what the names of all metrics begin with.
const metricsNamespace = "vhdxfs"

// A metricsServer answers HTTP requests for /metrics at a Unix socket that only its owner can use.
type metricsServer struct {
	socket net.Listener
	http   *http.Server
}

// listenMetrics makes the socket. One that a program has left which is no more is replaced.
func listenMetrics(path string) (*metricsServer, error) {
	l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The file that bind makes takes its mode from the socket, so there is no moment in which others can connect.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	d, name, err := safefile.Reach(path)
	if err != nil {
		return nil, fmt.Errorf("option metrics: %w", err)
	}
	defer d.Close()
	socket, err := l.Listen(context.Background(), "unix", d.At(name))
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStaleIn(d, name, path); err != nil {
			return nil, fmt.Errorf("option metrics: %w", err)
		}
		socket, err = l.Listen(context.Background(), "unix", d.At(name))
	}
	if err != nil {
		if e, ok := errors.AsType[unix.Errno](err); ok { // the rest names the directory by its descriptor
			err = &fs.PathError{Op: "listen", Path: path, Err: e}
		}
		return nil, fmt.Errorf("option metrics: %w", err)
	}
	if u, ok := socket.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the keeper of the mount removes it, which has the right to
	}
	return &metricsServer{socket: socket}, nil
}

// removeStaleSocket removes a socket at which no program listens.
func removeStaleSocket(path string) error {
	d, name, err := safefile.Reach(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return removeStaleIn(d, name, path)
}

func removeStaleIn(d *safefile.Dir, name, path string) error {
	st, err := d.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s exists and is not a socket; choose another path", path)
	}
	c, err := net.Dial("unix", d.At(name))
	if err == nil {
		c.Close()
		return fmt.Errorf("another program listens on %s; choose another path", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return d.Remove(name)
}

// serve answers requests from here on, with the statistics of the mount and of the process.
func (m *metricsServer) serve(server *mount.Server, im openDisk, log *logrus.Logger) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		writeMetric(w, mountInfo(server, im), "gauge", "What is mounted where; the value is always 1.", 1)
		for _, s := range server.Stats() {
			name, kind := s.Name, "gauge"
			if !s.Gauge {
				name, kind = name+"_total", "counter"
			}
			writeMetric(w, name, kind, "Number of "+s.Help+".", s.Value)
		}
		metrics.WriteProcessMetrics(w)
		metrics.WriteFDMetrics(w)
	})
	m.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer fault.Reported(log)
		if err := m.http.Serve(m.socket); !errors.Is(err, http.ErrServerClosed) {
			log.WithError(err).Error("metrics are no longer served")
		}
	}()
}

// mountInfo is the metric that tells what is mounted, as it is now: a snapshot changes the image and its type.
func mountInfo(server *mount.Server, im openDisk) string {
	mode := "ro"
	if im.Writable() {
		mode = "rw"
	}
	return fmt.Sprintf("mount_info{image=%s,mount_point=%s,type=%s,mode=%s,version=%s}", label(server.Image()), label(server.MountPoint()),
		label(string(im.Type())), label(mode), label(buildVersion()))
}

// close ends the service.
func (m *metricsServer) close() {
	if m.http != nil {
		m.http.Close()
	}
	m.socket.Close()
}

// writeMetric writes a metric in the text format of Prometheus. The name can have labels.
func writeMetric(w io.Writer, name, kind, help string, v int64) {
	name = metricsNamespace + "_" + name
	family, _, _ := strings.Cut(name, "{")
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", family, help, family, kind, name, v)
}

// labelEscapes are those that the value of a label knows.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// label returns v as the value of a label.
func label(v string) string {
	return `"` + labelEscapes.Replace(strings.ToValidUTF8(v, "\uFFFD")) + `"`
}
