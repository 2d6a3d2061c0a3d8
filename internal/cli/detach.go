package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

func newDetach() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "detach [flags] IMAGE|DEVICE|MOUNTPOINT",
		Short: "Detach the loop devices, unmount, and wait until it is closed",
		Long: `Detach the loop devices on the disk.raw of a mount, unmount it, and return when the image is written and closed. Name the
mount by its image, its mount point or one of its devices. It does not matter how it was mounted. A mount point in
` + rootRunDir + ` is removed.

If something on a device is mounted or in use, nothing is done. The error says what is in use.`,
		Example: `  vhdxfs detach data.vhdx
  vhdxfs detach /dev/loop0`,
		Args:              exactArgs("IMAGE"),
		ValidArgsFunction: completeMounted,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := active.FindToEnd(args[0])
			if err == nil {
				err = detach(m, cmd.ErrOrStderr())
			}
			if err == nil && asJSON {
				return writeJSON(cmd.OutOrStdout(), m)
			}
			return mountError(err)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// detach takes away a mount and what lies on it, or nothing where that is in use.
func detach(m *active.Mount, stderr io.Writer) error {
	switch m.State {
	case active.NotAnswering:
		return fmt.Errorf("%s: %w; wait until it does, or end its process, which vhdxfs list shows", m.MountPoint, mounts.ErrNoAnswer)
	case active.Unknown:
		if errors.Is(m.Reason, mounts.ErrForeign) && os.Geteuid() == 0 {
			break // root need not ask: what uses the mount the kernel says
		}
		if errors.Is(m.Reason, fs.ErrPermission) {
			return fmt.Errorf("%s: %w: it belongs to another user; run detach as that user", m.MountPoint, fs.ErrPermission)
		}
		return m.Reason
	}
	if err := waitUnused(m.Devices); err != nil {
		return err
	}
	if err := detachAll(m.Devices); err != nil {
		return err
	}
	u := umountCommand{name: "vhdxfs detach", patience: releasePatience}
	if err := u.unmount(m.MountPoint, io.Discard, stderr); err != nil {
		return err
	}
	if dir, err := runDir(); err == nil && filepath.Dir(m.MountPoint) == dir {
		return removeRunDir(m.MountPoint)
	}
	return nil
}

// waitUnused returns an error where one of the devices is in use. Processes that have one open for a moment only get
// their time.
func waitUnused(devices []loop.Device) error {
	for deadline := time.Now().Add(releasePatience); ; time.Sleep(50 * time.Millisecond) {
		var lasting, passing []string
		for _, d := range devices {
			lasting = append(lasting, lastingUses(d)...)
			passing = append(passing, inUse(d.Path, openedBy(d.Path))...)
			for _, p := range d.Partitions {
				passing = append(passing, inUse(p.Path, openedBy(p.Path))...)
			}
		}
		switch {
		case len(lasting) > 0: // the program that has mounted it may also have it open, which need not be reported
			return errors.New(strings.Join(lasting, "; "))
		case len(passing) == 0:
			return nil
		case time.Now().After(deadline):
			return errors.New(strings.Join(passing, "; "))
		}
	}
}

// lastingUses are those of a device and its partitions, without programs that have it open for a moment.
func lastingUses(d loop.Device) []string {
	uses := inUse(d.Path, d.Uses)
	for _, p := range d.Partitions {
		uses = append(uses, inUse(p.Path, p.Uses)...)
	}
	return uses
}

// inUse puts the path of a device in front of each of its uses.
func inUse(path string, uses []string) []string {
	var list []string
	for _, u := range uses {
		list = append(list, path+" is "+u)
	}
	return list
}

// openedBy names the processes that have the device open.
func openedBy(path string) []string {
	var list []string
	for _, user := range processUsers(path, os.Getpid()) {
		list = append(list, "open in "+user)
	}
	return list
}
