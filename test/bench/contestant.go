package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A contestant is a way to come by a raw disk.
type contestant struct {
	name   string
	mount  func(image, dir, options string) (*mounted, error)
	format string // of its image, as qemu-img names it

	convert []string // the command that makes a raw file of an image, before the two
}

// mounted is a disk that is served.
type mounted struct {
	disk    string
	pid     int // of who serves it; 0 if nobody does
	began   time.Time
	unmount func() error
}

func mountNothing(image, _, _ string) (*mounted, error) {
	return &mounted{disk: image, unmount: func() error { return nil }}, nil
}

func mountVHDXFS(program, always string) func(image, dir, options string) (*mounted, error) {
	return func(image, dir, options string) (*mounted, error) {
		if options != "" {
			options = "," + options
		}
		return serve(exec.Command(program, "-f", "-o", always+options, image, dir), filepath.Join(dir, "disk.raw"), dir)
	}
}

func mountQEMU(image, dir, _ string) (*mounted, error) {
	disk := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return nil, err
	}
	return serve(exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,discard=unmap,filename="+image,
		"--blockdev", "driver=vhdx,node-name=disk,discard=unmap,file=file",
		"--export", "type=fuse,id=export,node-name=disk,writable=on,mountpoint="+disk), disk, disk)
}

// serve starts a program and returns when something is mounted at point.
func serve(cmd *exec.Cmd, disk, point string) (*mounted, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for !isMounted(point) {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("%s: %w: %s", cmd.Path, err, &stderr)
		case <-time.After(time.Millisecond):
		}
	}
	return &mounted{disk: disk, pid: cmd.Process.Pid, unmount: func() error {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			return err
		}
		return <-ended
	}}, nil
}

func isMounted(point string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(table), " "+point+" ")
}

// cpu returns the processor time that a process has used.
func cpu(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field behind it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}
