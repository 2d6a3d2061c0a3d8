package cli

import (
	"encoding/json"

	"github.com/sirupsen/logrus"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// A monitorConfig is what a monitor has to know of the command line. Paths in it need not be UTF-8.
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

// runMonitor is the life of a monitor.
func runMonitor() int {
	err := monitor.Run(func(config []byte, pid int, log *logrus.Logger) (monitor.Local, error) {
		var c monitorConfig
		if err := json.Unmarshal(config, &c); err != nil {
			return nil, err
		}
		log.SetLevel(c.LogLevel)
		return newLocalKeeper(c.job(), pid, log), nil
	})
	if err != nil {
		return statusSystem
	}
	return statusOK
}
