package loop

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// undoPatience is how long it may take to detach a device again whose attach failed halfway.
const undoPatience = 5 * time.Second

// control is the device by which the kernel gives out loop devices.
const control = "/dev/loop-control"

// Options says how to attach a device.
type Options struct {
	ReadOnly   bool
	SectorSize int64 // logical, bytes
	Buffered   bool  // through the page cache of the file
}

// CanAttach returns an error where this process cannot attach a device at all, and says why.
func CanAttach() error {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("no loop devices: %w; load the module (modprobe loop), or give the container %s", err, control)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("attaching a loop device needs root: %w; run with sudo", err)
	case err != nil:
		return fmt.Errorf("cannot attach a loop device: %w", err)
	}
	f.Close()
	if _, err := os.Stat(sysBlock); err != nil {
		return fmt.Errorf("cannot attach a loop device: %w; mount sysfs (mount -t sysfs sysfs /sys)", err)
	}
	_, err = tool("losetup")
	return err
}

// Attach attaches a free device to a file and makes its partitions known. It leaves nothing behind when it fails.
//
// Reads and writes pass by the page cache of the file (--direct-io): what uses the device has a cache of its own, and
// without a second one below, both are two to four times as fast on a FUSE file, measured on Linux 6.18. With Options.Buffered they do
// not: that is for a file that knows no O_DIRECT.
func Attach(ctx context.Context, file string, o Options) (*Device, error) {
	direct := "--direct-io=on"
	if o.Buffered {
		direct = "--direct-io=off"
	}
	args := []string{"--find", "--show", "--partscan", direct, "--sector-size", strconv.FormatInt(o.SectorSize, 10)}
	if o.ReadOnly {
		args = append(args, "--read-only")
	}
	out, err := run(ctx, "losetup", append(args, "--", file)...)
	if err != nil {
		return nil, err
	}
	path := strings.TrimSpace(out)
	settle(ctx)
	d, err := scan(ctx, path)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		return nil, errors.Join(err, Detach(undo, path))
	}
	return d, nil
}

// settle waits until udev has seen a new device. It reads the partition table once more, and while it does, the partitions
// are away for a moment. Where no udev runs, there is nothing to wait for.
func settle(ctx context.Context) {
	if _, err := os.Stat("/run/udev/control"); err != nil {
		return
	}
	run(ctx, "udevadm", "settle", "--timeout=10") // if it fails, all is as without udev
}

// scan returns the device at path with its partitions. A kernel that is built without partition tables knows none;
// there partx(8) reads the table and tells the kernel.
func scan(ctx context.Context, path string) (*Device, error) {
	d, err := attached(path)
	if err != nil || len(d.Partitions) > 0 {
		return d, err
	}
	if _, err := tool("partx"); err != nil {
		return d, nil
	}
	// It fails where there is no table, which is no error.
	if out, err := run(ctx, "partx", "--show", "--noheadings", "--output", "NR", path); err != nil || strings.TrimSpace(out) == "" {
		return d, ctx.Err()
	}
	if _, err := run(ctx, "partx", "--add", path); err != nil {
		return nil, fmt.Errorf("the kernel does not accept its partitions; one may lie beyond the end of the disk, as fdisk -l shows: %w", err)
	}
	return attached(path)
}

func attached(path string) (*Device, error) {
	d, err := At(path)
	if err == nil && d == nil {
		err = fmt.Errorf("%s is no longer attached: another program has detached it", path)
	}
	return d, err
}

// ErrInUse says that a device was not detached because it is in use.
var ErrInUse = errors.New("in use")

// Detach detaches the device at path, with its partitions, and returns when it is free. Where it is in use, the
// error matches ErrInUse, and the device stays attached. One that is free already is no error.
func Detach(ctx context.Context, path string) error {
	before, err := At(path)
	if err != nil || before == nil {
		return err
	}
	if err := claim(before); err != nil {
		return err
	}
	if _, err := run(ctx, "losetup", "--detach", path); err != nil {
		return err
	}
	// The kernel detaches a device when the last program that has it open closes it.
	for {
		d, err := At(path)
		if err != nil || d == nil || d.File != before.File {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; it is detached when it is no longer open: %w", path, ErrInUse, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DetachUnused detaches the device at path when no program has it open any more: now, or when the last closes it. It reports
// whether the device is free.
func DetachUnused(ctx context.Context, path string) (free bool, err error) {
	before, err := At(path)
	if err != nil || before == nil {
		return err == nil, err
	}
	if _, err := run(ctx, "losetup", "--detach", path); err != nil {
		return false, err
	}
	after, err := At(path)
	return err == nil && (after == nil || after.File != before.File), err
}

// claim returns an error that matches ErrInUse where the device or a partition of it is mounted, used as swap or part
// of another device, in any namespace: the kernel then gives no other program the sole use of it.
func claim(d *Device) error {
	paths := []string{d.Path}
	for _, p := range d.Partitions {
		paths = append(paths, p.Path)
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		switch {
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%s is %w: mounted in another namespace, or part of another device", path, ErrInUse)
		case errors.Is(err, unix.EACCES):
			return fmt.Errorf("detaching %s needs root: %w; run with sudo", path, err)
		case err == nil:
			unix.Close(fd)
		}
		// Any other error is losetup's to tell.
	}
	return nil
}

func sortByNumber(list []Partition) {
	slices.SortFunc(list, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
}

// tool returns the path of a program of util-linux, also where the environment is empty.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if err == nil {
			return path, nil
		}
		path, err = exec.LookPath(dir + name)
	}
	if err != nil {
		return "", fmt.Errorf("the program %s is missing; install util-linux (on Debian the package mount)", name)
	}
	return path, nil
}

// run runs a program of util-linux and returns what it wrote. An error is what it said.
func run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := tool(name)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if msg := terminal.Said(stderr.String()); msg != "" {
			return "", errors.New(msg)
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return stdout.String(), nil
}
