// Package active tells which images are mounted here, and finds the mount that a name means: that of the image, the mount point,
// the file, a device on it, or a file system on that. A mount comes with its loop devices.
package active

import (
	"errors"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// The states of a mount.
const (
	Serving      = "serving"
	Dead         = "dead"          // its program has ended and left it behind
	NotAnswering = "not answering" // its program hangs, or is stopped
	Hidden       = "hidden"        // another mount lies on top of it
	Unknown      = "unknown"       // it could not be asked; mostly, this user may not
)

// A Mount is a mount of an image, and what is known of it. As JSON it is what list and attach print.
type Mount struct {
	Image      string        `json:"image"` // as the mount itself says, or else the mount table
	MountPoint string        `json:"mount_point"`
	State      string        `json:"state"`
	Reason     error         `json:"-"`                   // of Unknown
	PID        int           `json:"pid,omitempty"`       // 0 where it is not known here
	Mode       string        `json:"mode"`                // rw or ro
	Overlay    string        `json:"overlay,omitempty"`   // as the option of that name has it
	Partition  int           `json:"partition,omitempty"` // that is shown; 0 is the whole disk
	DiskSize   int64         `json:"disk_size,omitempty"` // bytes, of what disk.raw shows; list alone asks for it
	Sandbox    string        `json:"sandbox,omitempty"`   // how the process is confined, "off" if it is not
	Kernel     string        `json:"kernel,omitempty"`    // "on" if the kernel reads the image by itself; else "off", and why if it was to
	Devices    []loop.Device `json:"devices"`

	TakenOver string `json:"taken_over,omitempty"` // by which other host, and since when

	ImageState string `json:"image_state,omitempty"` // "deleted", or "renamed" for an image that is not at Image any more
	ImageNow   string `json:"image_now,omitempty"`   // where it is instead, if that is known

	ImageID string `json:"-"` // of the image's file, as the server has it open, see mounts.FileID; "" where unknown
	Device  string `json:"-"` // of the mount, major:minor
	trusted bool   // root has made it, or this user
}

// Disk returns the path of the mount's file.
func (m *Mount) Disk() string { return filepath.Join(m.MountPoint, mounts.FileName) }

// List returns all mounts of the program that this process can see, in the order in which they were made. It
// asks all of them at once, so that many that hang cost the time of one.
func List() ([]*Mount, error) {
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != mounts.Type || m.Root != "/", false
	})
	if err != nil {
		return nil, err
	}
	loops, err := readLoops()
	if err != nil {
		return nil, err
	}
	list := make([]*Mount, len(table))
	errs := make([]error, len(table))
	var asking sync.WaitGroup
	for i, m := range table {
		asking.Go(func() {
			defer fault.Catch(&errs[i])
			list[i], errs[i] = describe(m, loops)
		})
	}
	asking.Wait()
	return list, errors.Join(errs...)
}

// At returns the mount of an image that is on top at a directory, and nil where there is none.
func At(dir string) (*Mount, error) {
	m, err := mounts.ImageAt(dir)
	if err != nil || m == nil {
		return nil, err
	}
	loops, err := readLoops()
	if err != nil {
		return nil, err
	}
	return describe(m, loops)
}

// describe asks a mount for what the mount table does not tell.
func describe(m *mountinfo.Info, loops loopTable) (*Mount, error) {
	d := &Mount{Image: m.Source, MountPoint: m.Mountpoint, Mode: "rw", Devices: []loop.Device{}, Device: mounts.DeviceOf(m), trusted: mounts.Trusted(m)}
	if mounts.ReadOnly(m) {
		d.Mode = "ro"
	}
	top, err := mounts.At(m.Mountpoint)
	if err != nil {
		return nil, err
	}
	if top == nil || top.ID != m.ID {
		d.State = Hidden
		return d, nil
	}
	values, err := mounts.Ask(m, "path", "pid", "pid_namespace", "overlay", "partition", "sandbox", "kernel", "image_id", "image_state", "image_now", "taken_over")
	switch {
	case err == nil:
		d.State = Serving
		if path, ok := values["path"]; ok {
			d.Image = path
		}
		d.ImageID, d.ImageState, d.ImageNow = values["image_id"], values["image_state"], values["image_now"]
		d.Overlay, d.Sandbox, d.Kernel, d.TakenOver = values["overlay"], values["sandbox"], values["kernel"], values["taken_over"]
		d.Partition, _ = strconv.Atoi(values["partition"]) // 0 where there is none
		if pid, err := mounts.LocalPID(values); err == nil {
			d.PID = pid
		}
	case errors.Is(err, unix.ENOTCONN):
		d.State = Dead
	case errors.Is(err, mounts.ErrNoAnswer):
		d.State = NotAnswering
	default:
		d.State, d.Reason = Unknown, err
	}
	d.Devices = append(d.Devices, loops.of(m)...)
	return d, nil
}
