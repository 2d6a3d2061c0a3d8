package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

func newClose() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "close [flags] IMAGE|DIR",
		Short: "Unmount the file systems on an image, detach and close it",
		Long: `Undo vhdxfs open: unmount all file systems on the disk of an image, detach its loop devices, unmount the image, and return
when it is written and closed. Name the image, the directory of its files, or a device. Directories that open has made are
removed. It does not matter how the image and the file systems were mounted.

If a program uses one of the file systems, nothing is done. The error names the program and its process.`,
		Example: `  vhdxfs close data.vhdx
  vhdxfs close /mnt`,
		Args:              exactArgs("IMAGE"),
		ValidArgsFunction: completeMounted,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := findOpened(args[0])
			if err == nil {
				err = closeAll(cmd, m)
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

// findOpened is active.FindToEnd for a name that may also be the directory that holds the file systems of an image.
func findOpened(name string) (*active.Mount, error) {
	m, err := active.FindToEnd(name)
	if !errors.Is(err, active.ErrNotMounted) || !isDir(name) {
		return m, err
	}
	dir, rerr := mounts.Resolve(name)
	if rerr != nil {
		return nil, rerr
	}
	table, terr := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return filepath.Dir(i.Mountpoint) != dir, false })
	found, ferr := active.Holding(table)
	if terr != nil || ferr != nil {
		return nil, errors.Join(terr, ferr)
	}
	switch len(found) {
	case 0:
		return nil, err
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s holds the files of several images; name one of them: %s, %s", name, found[0].Image, found[1].Image)
}

// closeAll unmounts what is mounted from the devices of a mount, if nothing uses it, and detaches.
func closeAll(cmd *cobra.Command, m *active.Mount) error {
	places, err := placesFrom(m.Devices)
	if err == nil {
		err = refuseUsed(places)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.Image, err)
	}
	for i, p := range places {
		if err := unmountPlace(p); err != nil {
			if i > 0 {
				err = fmt.Errorf("%w; already unmounted: %s", err, strings.Join(places[:i], ", "))
			}
			return fmt.Errorf("%s: %w", m.Image, err)
		}
		if err := removePlaces(p); err != nil {
			warn(cmd, "%v", err)
		}
	}
	if len(places) > 0 { // which the devices still show
		if m, err = describeAgain(m); err != nil {
			return err
		}
	}
	return detach(m, cmd.ErrOrStderr())
}

// describeAgain describes a mount anew.
func describeAgain(m *active.Mount) (*active.Mount, error) {
	now, err := active.At(m.MountPoint)
	if err == nil && (now == nil || now.Device != m.Device) {
		err = fmt.Errorf("another program has unmounted %s", m.MountPoint)
	}
	return now, err
}

// placesFrom returns where the file systems on the devices are mounted, the newest mount first. Other uses of them are an
// error.
func placesFrom(devices []loop.Device) ([]string, error) {
	var places, others []string
	add := func(device string, uses []string) {
		mine, other := placesOf(uses)
		places = append(places, mine...)
		others = append(others, inUse(device, other)...)
	}
	for _, d := range devices {
		add(d.Path, d.Uses)
		for _, p := range d.Partitions {
			add(p.Path, p.Uses)
		}
	}
	if len(others) > 0 {
		return nil, errors.New(strings.Join(others, "; "))
	}
	table, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	age := func(place string) int {
		return slices.IndexFunc(table, func(m *mountinfo.Info) bool { return m.Mountpoint == place })
	}
	slices.SortStableFunc(places, func(a, b string) int { return age(b) - age(a) })
	return places, nil
}

// refuseUsed returns an error that says who uses one of the places, if anybody does. Programs that look at it for a moment
// only get their time.
func refuseUsed(places []string) error {
	var users []string
	for end := time.Now().Add(passingEnds); ; time.Sleep(50 * time.Millisecond) {
		users = nil
		table, err := mountinfo.GetMounts(nil)
		if err != nil {
			return err
		}
		for _, p := range places {
			using := processUsers(p, os.Getpid())
			for _, m := range table {
				if below(m.Mountpoint, p) && m.Mountpoint != p && !slices.Contains(places, m.Mountpoint) {
					using = append(using, fmt.Sprintf("the mount at %s (umount %s)", m.Mountpoint, terminal.Shell(m.Mountpoint)))
				}
			}
			if len(using) > 0 {
				users = append(users, fmt.Sprintf("%s is in use by %s", p, strings.Join(using, ", ")))
			}
		}
		if len(users) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return errors.New(strings.Join(users, "; "))
		}
	}
}

// unmountPlace unmounts the file system at a path, and gives programs that use it for a moment only their time.
func unmountPlace(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	for end := time.Now().Add(releasePatience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return busyError(path, err)
	case err != nil:
		return &os.PathError{Op: "umount", Path: path, Err: err}
	}
	return nil
}

// mountIsReadOnly reports whether what is mounted at a path is read-only, in itself or there.
func mountIsReadOnly(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}
