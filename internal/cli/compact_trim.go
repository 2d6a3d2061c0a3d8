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

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/filesystem"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// toolWait bounds how long a program of the system may take to end after the command was interrupted.
const toolWait = 2 * time.Minute

// fileSize returns the size of the file at path, or 0 where it is unknown: the report then starts after the trim, which alone
// can have made the file much smaller.
func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// trimMounted trims the file systems that are mounted from the loop devices of a mount.
func (c *compactCommand) trimMounted(ctx context.Context, cmd *cobra.Command, m *active.Mount) error {
	points := mountedFrom(m.Devices)
	if len(points) == 0 {
		c.untrimmed = true
		warn(cmd, "%s: no file system on it is mounted, so none is trimmed", printable(m.Image))
	}
	for _, point := range points {
		if _, err := runTool(ctx, "fstrim", point); err != nil {
			return err
		}
	}
	return nil
}

// mountedFrom returns where file systems on the devices and their partitions are mounted.
func mountedFrom(devices []loop.Device) (points []string) {
	for _, d := range devices {
		points = append(points, allMounted(d.Uses)...)
		for _, p := range d.Partitions {
			points = append(points, allMounted(p.Uses)...)
		}
	}
	return points
}

// allMounted returns the mounts among the uses of a device, also of what lies on top of it.
func allMounted(uses []string) (points []string) {
	for _, use := range uses {
		if point, ok := strings.CutPrefix(use, "mounted at "); ok {
			points = append(points, point)
		}
	}
	return points
}

// trimOffline attaches the image at path, mounts and trims each file system on it, and undoes all of this. The file systems
// get no place, so none is left mounted if the command fails or is killed.
func (c *compactCommand) trimOffline(ctx context.Context, cmd *cobra.Command, path string) (err error) {
	a := attachCommand{options: c.options, json: c.json}
	o, err := a.parse()
	if err != nil {
		return err
	}
	done, err := takeTurn(ctx, path) // or an attach meanwhile would find the device, which goes again
	if err != nil {
		return err
	}
	defer done()
	m, undo, err := a.bring(ctx, o, []string{path}, cmd.OutOrStdout(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo.run()) }()
	trimmed := 0
	for _, v := range volumesOf(ctx, m) {
		err := errors.New(v.Note)
		if v.mountable {
			err = v.trim(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && v.FileSystem != "":
			c.untrimmed = c.untrimmed || v.mountable
			warn(cmd, "%s: %s is not trimmed: %s", printable(path), v.describe(), err)
		case err == nil:
			trimmed++
		}
	}
	if trimmed == 0 {
		c.untrimmed = true
		warn(cmd, "%s: no file system could be trimmed", printable(path))
	}
	return nil
}

// trim mounts the file system without a place and trims it.
func (v *openVolume) trim(ctx context.Context) (err error) {
	t, err := filesystem.Mount(ctx, filesystem.Request{Device: v.Device, Kind: v.FileSystem, Options: []string{"noexec"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if t.ReadOnly {
		return errors.New(t.Note)
	}
	_, err = t.Trim(ctx)
	return err
}

// runTool runs a program of the system and returns what it prints.
func runTool(ctx context.Context, name string, args ...string) (string, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		program = filepath.Join("/usr/sbin", name) // which the path of a user may lack
	}
	return runProgram(ctx, program, args...)
}

func runProgram(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = toolWait
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if text := terminal.Said(stderr.String()); text != "" {
			err = errors.New(strings.TrimPrefix(text, "vhdxfs: "))
		}
		return "", fmt.Errorf("%s: %w", filepath.Base(program)+" "+args[0], err)
	}
	return stdout.String(), nil
}
