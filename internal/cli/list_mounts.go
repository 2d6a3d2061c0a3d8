package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// What can be said of a mount.
const (
	stateServing     = "serving"
	stateDead        = "dead"          // its program has ended and left it behind
	stateNotAnswered = "not answering" // its program hangs, or is stopped
	stateHidden      = "hidden"        // another mount lies on top of it
	stateUnknown     = "unknown"       // it could not be asked; mostly, this user may not
)

// An activeMount is a mount as list shows it, and attach.
type activeMount struct {
	Image      string        `json:"image"` // as the mount itself says, or else the mount table
	MountPoint string        `json:"mount_point"`
	State      string        `json:"state"`
	reason     error         // of stateUnknown
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

	imageID string // of the image's file, as the server has it open; "" where unknown
	device  string // of the mount, major:minor
	trusted bool   // root has made it, or this user
}

// disk returns the path of the mount's file.
func (m *activeMount) disk() string { return filepath.Join(m.MountPoint, mounts.FileName) }

func newList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List mounted images, their loop devices and partitions",
		Long: `List every mount of a VHDX image with its server process, the loop devices on its disk.raw, their partitions and file
systems, and where these are mounted.
A mount is "dead" if its server has died, and "not answering" if its server does not answer within some seconds. A mount
that another user made only for that user is "unknown". After another host has taken an image over, its mount here fails
every read and write.`,
		Example: `  vhdxfs list
  vhdxfs list --json | jq -r '.[].devices[].device'`,
		Args:              exactArgs(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := listMounts()
			if err != nil {
				return err
			}
			lookInside(list)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printMounts(cmd.OutOrStdout(), sizesOf(cmd), list)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// listMounts returns all mounts of the program that this process can see, in the order in which they were made. It
// asks all of them at once, so that many that hang cost the time of one.
func listMounts() ([]*activeMount, error) {
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
	list := make([]*activeMount, len(table))
	errs := make([]error, len(table))
	var asking sync.WaitGroup
	for i, m := range table {
		asking.Go(func() {
			defer fault.Catch(&errs[i])
			list[i], errs[i] = describeMount(m, loops)
		})
	}
	asking.Wait()
	return list, errors.Join(errs...)
}

// imageMountAt returns the mount that is on top at a directory, and nil where that is none of an image.
func imageMountAt(dir string) (*mountinfo.Info, error) {
	m, err := mounts.At(dir)
	if err != nil || m == nil || m.FSType != mounts.Type {
		return nil, err
	}
	return m, nil
}

// describeMount asks a mount for what the mount table does not tell.
func describeMount(m *mountinfo.Info, loops loopTable) (*activeMount, error) {
	d := &activeMount{Image: m.Source, MountPoint: m.Mountpoint, Mode: "rw", Devices: []loop.Device{}, device: mounts.DeviceOf(m), trusted: mounts.Trusted(m)}
	if mounts.ReadOnly(m) {
		d.Mode = "ro"
	}
	top, err := mounts.At(m.Mountpoint)
	if err != nil {
		return nil, err
	}
	if top == nil || top.ID != m.ID {
		d.State = stateHidden
		return d, nil
	}
	values, err := mounts.Ask(m, "path", "pid", "pid_namespace", "overlay", "partition", "sandbox", "kernel", "image_id", "image_state", "image_now", "taken_over")
	switch {
	case err == nil:
		d.State = stateServing
		if path, ok := values["path"]; ok {
			d.Image = path
		}
		d.imageID, d.ImageState, d.ImageNow = values["image_id"], values["image_state"], values["image_now"]
		d.Overlay, d.Sandbox, d.Kernel, d.TakenOver = values["overlay"], values["sandbox"], values["kernel"], values["taken_over"]
		d.Partition, _ = strconv.Atoi(values["partition"]) // 0 where there is none
		if pid, err := mounts.LocalPID(values); err == nil {
			d.PID = pid
		}
	case errors.Is(err, unix.ENOTCONN):
		d.State = stateDead
	case errors.Is(err, mounts.ErrNoAnswer):
		d.State = stateNotAnswered
	default:
		d.State, d.reason = stateUnknown, err
	}
	d.Devices = append(d.Devices, loops.of(m)...)
	return d, nil
}

// printMounts writes a table with a line for each mount, and below it one for each device and partition.
func printMounts(out io.Writer, size sizeWriter, list []*activeMount) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSIZE\tTYPE\tFILESYSTEM\tLABEL\tUSED BY")
	for _, m := range list {
		name := printable(m.Image)
		switch {
		case m.ImageState == mounts.StateRenamed && m.ImageNow != "":
			name += fmt.Sprintf(" (renamed to %s)", printable(m.ImageNow))
		case m.ImageState != "":
			name += fmt.Sprintf(" (%s)", m.ImageState)
		}
		kind := m.Mode
		if m.State != stateServing {
			kind += ", " + m.State
		}
		if m.TakenOver != "" {
			kind += fmt.Sprintf(", taken over by another host (%s)", printable(m.TakenOver))
		}
		if m.Partition != 0 {
			kind += fmt.Sprintf(", partition %d", m.Partition)
		}
		if m.Overlay != "" {
			kind += ", overlay " + printable(m.Overlay)
		}
		if m.Kernel == mountoption.KernelOn {
			kind += ", read by the kernel"
		}
		switch word, _, _ := strings.Cut(m.Sandbox, ":"); word {
		case mountoption.SandboxOff:
			kind += ", not confined"
		case "partly":
			kind += ", partly confined"
		}
		at := "mounted at " + printable(m.MountPoint)
		if m.PID != 0 {
			at += fmt.Sprintf(", process %d", m.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t\t\t%s\n", name, sizeOr(size, m.DiskSize), kind, at)
		for _, d := range m.Devices {
			writeDevice(w, "  "+d.Path, size(d.Size), "loop", d.Content, d.Uses)
			for _, p := range d.Partitions {
				writeDevice(w, "    "+p.Path, size(p.Size), "part", p.Content, p.Uses)
			}
		}
	}
	return w.Flush()
}

// sizeOr writes a size that may be unknown.
func sizeOr(size sizeWriter, n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

func writeDevice(w io.Writer, path, size, kind string, c loop.Content, uses []string) {
	var used []string
	for _, u := range uses {
		used = append(used, printable(u))
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", path, size, kind, c.FileSystem, printable(c.Label), strings.Join(used, ", "))
}
