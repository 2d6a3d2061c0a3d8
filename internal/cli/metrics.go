package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "vhdxfs/fs"
	"vhdxfs/vhdx"
)

// metricsNamespace is what the names of all metrics begin with.
const metricsNamespace = "vhdxfs"

// parseMetrics reads the value of the option metrics and returns the path of the socket.
func parseMetrics(v string) (string, error) {
	path, ok := strings.CutPrefix(v, "unix:")
	if !ok || path == "" {
		return "", errors.New("it is unix: and the path of a socket, such as unix:/run/vhdxfs/metrics.sock")
	}
	path, err := absPath(path)
	// The kernel's limit, with a zero byte behind the path.
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; err == nil && len(path) > limit {
		err = fmt.Errorf("the path of a socket has at most %d bytes, and %s has %d", limit, path, len(path))
	}
	return path, err
}

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
	socket, err := l.Listen(context.Background(), "unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStaleSocket(path); err != nil {
			return nil, fmt.Errorf("option metrics: %w", err)
		}
		socket, err = l.Listen(context.Background(), "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("option metrics: %w", err)
	}
	return &metricsServer{socket: socket}, nil
}

// removeStaleSocket removes a socket at which nobody listens.
func removeStaleSocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket; name another path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("another program listens at %s; name another path", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// serve answers requests from here on, with the statistics of the mount and of the process.
func (m *metricsServer) serve(server *mount.Server, im *vhdx.Image, log *logrus.Logger) {
	info := im.Info()
	mode := "ro"
	if im.Writable() {
		mode = "rw"
	}
	about := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: metricsNamespace,
		Name:      "mount_info",
		Help:      "What is mounted where; the value is always 1.",
		ConstLabels: prometheus.Labels{
			"image":       strings.ToValidUTF8(info.Path, "\uFFFD"),
			"mount_point": strings.ToValidUTF8(server.MountPoint(), "\uFFFD"),
			"type":        string(info.Type),
			"mode":        mode,
			"version":     buildVersion(),
		},
	})
	about.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(about, statsCollector{server.Stats},
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: metricsNamespace}))

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	m.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := m.http.Serve(m.socket); !errors.Is(err, http.ErrServerClosed) {
			log.WithError(err).Error("the metrics are not served any more")
		}
	}()
}

// close ends the service and removes the socket.
func (m *metricsServer) close() {
	if m.http != nil {
		m.http.Close()
	}
	m.socket.Close()
}

// A statsCollector hands the statistics of a mount to Prometheus.
type statsCollector struct{ stats func() mount.Stats }

func (c statsCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c statsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.stats() {
		name, kind := s.Name, prometheus.GaugeValue
		if !s.Gauge {
			name, kind = name+"_total", prometheus.CounterValue
		}
		desc := prometheus.NewDesc(metricsNamespace+"_"+name, "Number of "+s.Help+".", nil, nil)
		ch <- prometheus.MustNewConstMetric(desc, kind, float64(s.Value))
	}
}
