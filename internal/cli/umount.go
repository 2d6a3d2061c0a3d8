package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// newUmountHelper returns the command that umount(8) calls for a mount of the type fuse.vhdxfs:
//
//	NAME MOUNTPOINT [-nlfvr] [-t TYPE] [-N NAMESPACE]
func newUmountHelper(name string, args []string) *cobra.Command {
	u := umountCommand{name: name, args: args}
	cmd := &cobra.Command{
		Use:   name + " MOUNTPOINT [-nlfvr]",
		Short: "Unmount a Hyper-V VHDX image for umount(8)",
		Long: `Unmount a VHDX image and return when all data is written and the image is closed. umount(8) calls this program
for mounts of the type fuse.vhdxfs.`,
		Example:       `  umount /mnt/vhdx`,
		Args:          exactArgs("MOUNTPOINT"),
		RunE:          u.run,
		SilenceErrors: true, // Run reports them
		SilenceUsage:  true,
	}
	cmd.Flags().BoolVarP(&u.lazy, "lazy", "l", false, "detach the mount point now, even if it is in use, and do not wait")
	cmd.Flags().BoolVarP(&u.force, "force", "f", false, "ignored: aborting the connection would lose data")
	cmd.Flags().BoolVarP(&u.readOnly, "read-only", "r", false, "make the mount read-only if it is in use")
	helperFlags(cmd, "unmount", &u.verbose, &u.namespace)
	return cmd
}

// newUmount returns the command that unmounts by hand.
func newUmount() *cobra.Command {
	u := umountCommand{name: "vhdxfs", patience: releasePatience}
	cmd := &cobra.Command{
		Use:     "umount [-l] IMAGE|MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "Unmount an image and wait until it is closed",
		Long: `Unmount a VHDX image and return when all data is written and the image is closed. Nothing is changed if the mount is in
use, such as by a loop device. To detach loop devices as well, use vhdxfs detach.`,
		Example: `  vhdxfs umount /mnt/vhdx
  vhdxfs umount data.vhdx`,
		Args:              exactArgs("IMAGE"),
		ValidArgsFunction: completeMounted,
		RunE: func(cmd *cobra.Command, args []string) error {
			u.verbose = isVerbose(cmd)
			m, err := active.FindToEnd(args[0])
			if err == nil {
				err = u.unmount(m.MountPoint, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return mountError(err)
		},
	}
	cmd.Flags().BoolVarP(&u.lazy, "lazy", "l", false, "detach the mount point now, even if it is in use, and do not wait")
	return cmd
}

// A umountCommand unmounts and waits for the end of the process that served the mount.
type umountCommand struct {
	name                           string
	args                           []string // the whole command line
	lazy, force, readOnly, verbose bool
	patience                       time.Duration // with programs that use the mount for a moment only
	namespace                      string
}

func (u *umountCommand) run(cmd *cobra.Command, args []string) error {
	if u.namespace != "" {
		return mountError(enterNamespace(u.namespace, u.args))
	}
	if u.force {
		u.say(cmd.ErrOrStderr(), "ignoring -f: aborting the connection would lose data")
	}
	return mountError(u.unmount(args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()))
}

// imageAt returns the mount of an image at path, and the path without symbolic links. The mount is nil if there is none.
func imageAt(path string) (dir string, m *mountinfo.Info, err error) {
	if dir, err = mounts.Resolve(path); err == nil {
		m, err = mounts.ImageAt(dir)
	}
	return dir, m, err
}

func (u *umountCommand) unmount(path string, stdout, stderr io.Writer) error {
	dir, m, err := imageAt(path)
	switch {
	case err != nil:
		return err
	case m == nil:
		return fmt.Errorf("%s is not a mount point of a VHDX image", dir)
	}
	if uid := os.Geteuid(); uid != 0 && !hasOption(m.VFSOptions, fmt.Sprint("user_id=", uid)) {
		return fmt.Errorf("unmount %s: %w: it belongs to another user; unmount it as root", dir, os.ErrPermission)
	}
	var server *serverProcess
	var unknown error // why it is not known which process serves it
	if !u.lazy {
		server, unknown = findServer(m)
		defer server.close()
	}
	err = u.takeAway(dir, errors.Is(unknown, mounts.ErrNoAnswer))
	switch {
	case errors.Is(err, unix.EBUSY) && u.readOnly:
		if err := remountFlags(m, true); err != nil {
			return busyError(dir, err)
		}
		u.say(stderr, "%s is in use; it is now read-only", dir)
		return nil
	case errors.Is(err, unix.EBUSY):
		return busyError(dir, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: already unmounted by another program", dir)
	case err != nil:
		return fmt.Errorf("unmount %s: %w", dir, err)
	case unknown != nil:
		u.say(stderr, "%s: %v; unmounting without waiting for it", dir, unknown)
	}
	if server != nil {
		device := mounts.DeviceOf(m)
		late := func() time.Duration {
			switch {
			case u.heldElsewhere(dir, device, server.pid, stderr):
				return 0
			case !mounts.Trusted(m):
				return foreignPatience
			}
			return noLimit
		}
		if err := server.wait(late); err != nil {
			return err
		}
	}
	if u.verbose {
		fmt.Fprintf(stdout, "%s unmounted from %s\n", printable(m.Source), printable(dir))
	}
	return nil
}

// takeAway unmounts, and tries again while the mount is in use by programs that use it for a moment. The program that
// serves one that hangs does not answer.
func (u *umountCommand) takeAway(dir string, hangs bool) error {
	err := mounts.Unmount(dir, u.lazy)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	patience, unused := u.patience, len(mountUsers(dir)) == 0
	switch {
	case hangs:
		patience = max(patience, questionEnds)
	case unused:
		patience = max(patience, glanceEnds)
	default:
		patience = max(patience, passingEnds)
	}
	for end := time.Now().Add(patience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		err = mounts.Unmount(dir, u.lazy)
	}
	if errors.Is(err, unix.EBUSY) && hangs && unused {
		return mounts.Unmount(dir, true) // only questions of programs keep it, which cannot be ended
	}
	return err
}

func (u *umountCommand) say(w io.Writer, format string, args ...any) {
	fmt.Fprintf(w, "%s: %s\n", u.name, oneLine(fmt.Sprintf(format, withText(args)...)))
}

// heldElsewhere tells the user that the process does not end yet, and reports whether waiting is useless: the disk is also
// mounted in another place, or other mount namespaces, such as containers, still have the mount.
func (u *umountCommand) heldElsewhere(dir, device string, pid int, stderr io.Writer) bool {
	if at := mountedAt(device); at != "" {
		u.say(stderr, "%s is unmounted, but also mounted on %s (umount %s)", dir, at, terminal.Shell(at))
		return true
	}
	if p := namespaceWith(device); p != "" {
		u.say(stderr, "%s is unmounted, but process %s still has it mounted in another namespace", dir, p)
		return true
	}
	u.say(stderr, "%s: waiting for process %d to write everything", dir, pid)
	return false
}

// passingEnds is how long a mount is tried again that a process uses: it may have it open for a moment only.
const passingEnds = 300 * time.Millisecond

// glanceEnds is how long a mount may be in use by a program that cannot be named: one that looked at it in passing,
// vhdxfs list for one.
const glanceEnds = time.Second

// questionEnds is how long a question that a mount did not answer may still keep it in use, once it is given up.
const questionEnds = 2 * time.Second

// A serverProcess is the process that serves a mount.
type serverProcess struct {
	pid int
	fd  int // a pidfd, which stands for the process also when the number is another's
}

// findServer returns the process that serves the mount m, and nil for a mount whose program has died. An
// error says why it cannot be told.
func findServer(m *mountinfo.Info) (*serverProcess, error) {
	pid, err := mounts.ServerPID(m)
	if errors.Is(err, unix.ENOTCONN) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	s := &serverProcess{pid, fd}
	// An answer counts only if it comes now: then it is from a process that lives, and this is its descriptor.
	if again, err := mounts.ServerPID(m); err != nil || again != pid {
		s.close()
		return nil, mounts.ErrUnknownServer
	}
	return s, nil
}

// waitNotice is how long the process may take to end before anything is said about it.
const waitNotice = 3 * time.Second

// noLimit is for a wait that ends when the process does.
const noLimit = -time.Millisecond

// foreignPatience is how long the server of another user's mount may take to end: it may be a program that never does.
const foreignPatience = 30 * time.Second

// wait returns when the process has ended, or when the time is over that late, called once after a while, gives it.
func (s *serverProcess) wait(late func() time.Duration) error {
	timeout, told := waitNotice, false
	for end := time.Now().Add(timeout); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR) && timeout != noLimit:
			timeout = max(0, time.Until(end))
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0, told:
			return nil
		}
		timeout, told = late(), true
		end = time.Now().Add(timeout)
	}
}

func (s *serverProcess) close() {
	if s != nil {
		unix.Close(s.fd)
	}
}

// busyError says what uses the mount at dir.
func busyError(dir string, err error) error {
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if users := mountUsers(dir); len(users) > 0 {
		return fmt.Errorf("%s is in use by %s", dir, strings.Join(users, ", "))
	}
	return fmt.Errorf("%s is in use", dir)
}
