package cli

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/sirupsen/logrus"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// A statsReporter tells the statistics of a mount: to the log, whenever SIGUSR1 comes, and to Prometheus.
type statsReporter struct {
	signals chan os.Signal
	metrics *metricsServer // nil where the option metrics is not given
	once    sync.Once      // for end
	ended   chan struct{}  // closed when no more is written to the log; nil before begin
}

// newStatsReporter catches the signal from here on, and takes the place of the socket of the metrics, "" for none. What can fail has then
// succeeded before anything is mounted.
func newStatsReporter(metrics string) (*statsReporter, error) {
	s := &statsReporter{signals: make(chan os.Signal, 1)}
	if metrics != "" {
		var err error
		if s.metrics, err = listenMetrics(metrics); err != nil {
			return nil, err
		}
	}
	signal.Notify(s.signals, syscall.SIGUSR1)
	return s, nil
}

// begin tells of the image im, which is served, until end.
func (s *statsReporter) begin(server *mount.Server, im openDisk, log *logrus.Logger) {
	if s.metrics != nil {
		s.metrics.serve(server, im, log)
	}
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		defer fault.Reported(log)
		for range s.signals {
			logStats(server, log)
		}
	}()
}

// end may be called again.
func (s *statsReporter) end() { s.once.Do(s.stop) }

func (s *statsReporter) stop() {
	signal.Stop(s.signals)
	close(s.signals)
	if s.ended != nil {
		<-s.ended
	}
	if s.metrics != nil {
		s.metrics.close()
	}
}

// logStats writes one line. Someone has asked for it, so no log level is too high.
func logStats(server *mount.Server, log *logrus.Logger) {
	fields := make(logrus.Fields)
	for name, v := range server.Stats().Map() {
		fields[name] = v
	}
	log.WithFields(fields).Logf(min(logrus.InfoLevel, log.GetLevel()), "statistics of %s", server.MountPoint())
}
