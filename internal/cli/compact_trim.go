package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vhdxfs/internal/loop"
)

// trimWait bounds what has to be done even when the command was interrupted: to unmount and to detach.
const trimWait = 2 * time.Minute

// trimMounted trims the file systems that are mounted from the loop devices of a mount.
func trimMounted(ctx context.Context, cmd *cobra.Command, m *activeMount) error {
	points := mountedFrom(m.Devices)
	if len(points) == 0 {
		warn(cmd, "%s: no file system on it is mounted, so none is trimmed", printable(m.Image))
	}
	for _, point := range points {
		if err := runTool(ctx, "fstrim", point); err != nil {
			return err
		}
	}
	return nil
}

// mountedFrom returns where file systems on the devices and their partitions are mounted.
func mountedFrom(devices []loop.Device) (points []string) {
	add := func(uses []string) {
		for _, use := range uses {
			if point, ok := strings.CutPrefix(use, "mounted at "); ok {
				points = append(points, point)
			}
		}
	}
	for _, d := range devices {
		add(d.Uses)
		for _, p := range d.Partitions {
			add(p.Uses)
		}
	}
	return points
}

// trimOffline attaches the image at path, mounts and trims each file system on it, and undoes all of this.
func (c *compactCommand) trimOffline(ctx context.Context, cmd *cobra.Command, path string) (err error) {
	args := []string{"attach"}
	for _, o := range c.options {
		args = append(args, "-o", o)
	}
	out, err := runSelf(ctx, append(args, "--", path)...)
	if err != nil {
		return err
	}
	devices := strings.Fields(out)
	if len(devices) == 0 {
		return fmt.Errorf("attach %s: no device", path)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), trimWait)
		defer cancel()
		_, derr := runSelf(end, "detach", devices[0])
		err = errors.Join(err, derr)
	}()
	if len(devices) > 1 {
		devices = devices[1:] // the partitions
	}
	trimmed := 0
	for _, device := range devices {
		switch ok, err := trimDevice(ctx, device); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && ok: // it is mounted, which must not be left so
			return err
		case err != nil:
			warn(cmd, "%s: not trimmed: %s", printable(device), oneLine(err.Error()))
		default:
			trimmed++
		}
	}
	if trimmed == 0 {
		warn(cmd, "%s: no file system could be trimmed", printable(path))
	}
	return nil
}

// trimDevice mounts the file system on the device, trims it and unmounts it. It returns true with an error where it is
// still mounted.
func trimDevice(ctx context.Context, device string) (mounted bool, err error) {
	point, err := os.MkdirTemp("", "vhdxfs-trim-")
	if err != nil {
		return false, err
	}
	defer os.Remove(point) // what is mounted there keeps it
	if err := runTool(ctx, "mount", "-o", "nosuid,nodev,noexec", "--", device, point); err != nil {
		return false, err
	}
	trimErr := runTool(ctx, "fstrim", point)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), trimWait)
	defer cancel()
	if err := runTool(end, "umount", point); err != nil {
		return true, errors.Join(trimErr, fmt.Errorf("%s is still mounted at %s: %w", device, point, err))
	}
	return false, trimErr
}

// runSelf runs another command of this program and returns what it prints.
func runSelf(ctx context.Context, args ...string) (string, error) {
	program, err := selfPath()
	if err != nil {
		return "", err
	}
	return runProgram(ctx, program, args...)
}

// runTool runs a program of the system.
func runTool(ctx context.Context, name string, args ...string) error {
	program, err := exec.LookPath(name)
	if err != nil {
		program = filepath.Join("/usr/sbin", name) // which the path of a user may lack
	}
	_, err = runProgram(ctx, program, args...)
	return err
}

func runProgram(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = trimWait
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if text := strings.TrimSpace(stderr.String()); text != "" {
			err = errors.New(strings.TrimPrefix(text, "vhdxfs: "))
		}
		return "", fmt.Errorf("%s: %w", filepath.Base(program)+" "+args[0], err)
	}
	return stdout.String(), nil
}
