package cli

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// readyVariable is the environment variable by which the process in the background learns that it is one:
// it holds the number of the descriptor to report to.
const readyVariable = "_VHDXFS_READY_FD"

// noSyslog is the last that a mount in the background says where there is no syslog.
const noSyslog = "no syslog; events of this mount are not logged. Use -o log=FILE"

// firstInherited is the first descriptor after standard input, output and error.
const firstInherited = 3

// startBackground starts the program again with the same arguments, and returns when the mount is there, or
// with the status of the process that failed to make it, which has told the reason. If that
// process was killed, no mount is left at mountPoint.
//
// The process stays in the caller's process group and session until it has mounted. An automounter depends
// on it: it lets through to the mount point only the group of the program that it has called.
func startBackground(args []string, mountPoint string, stdout, stderr io.Writer) error {
	program, err := selfPath()
	if err != nil {
		return fmt.Errorf("cannot start the background process: %w; use -f to stay in the foreground", err)
	}
	// What else the caller has open would stay open, and locked, as long as the mount. An old kernel cannot say it
	// in one call, and then it stays so.
	_ = unix.CloseRange(firstInherited, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(program, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w} // becomes descriptor 3
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the background process: %w; use -f to stay in the foreground", err)
	}
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil: // unmounted again, as by a signal, before it could be used
		return &statusError{statusMount, errors.New("unmounted before it was ready")}
	case errors.As(err, &exit) && exit.Exited():
		return &statusError{exit.ExitCode(), nil}
	}
	left := mount.Options{MountPoint: mountPoint, NonEmpty: true, Log: logrus.StandardLogger()}
	_ = left.CheckMountPoint() // which takes a dead mount away; all else does not matter any more
	return fmt.Errorf("the background process ended: %w", err)
}

// selfPath returns a path by which this program can be started again.
func selfPath() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err != nil { // in another mount namespace, or replaced by a newer one
		program = "/proc/self/exe"
	}
	return program, nil
}

// A readiness is where a process in the background reports that it is ready. It is nil in any other.
type readiness struct {
	pipe   *os.File
	null   *os.File    // /dev/null
	syslog *syslogHook // nil where none is wanted, or there is none
}

// takeReadiness returns what startBackground has left for this process, and removes all trace of it, so that
// no program that is started from here takes itself for one in the background.
func takeReadiness() *readiness {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	os.Unsetenv(readyVariable)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return &readiness{pipe: os.NewFile(uintptr(fd), "readiness")}
}

// prepare opens what report needs, which it cannot open any more once the process is confined.
func (r *readiness) prepare(j *mountJob, k monitor.Keeper) (err error) {
	if r.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return err
	}
	if j.Log == "" {
		r.syslog, _ = newSyslogHook(k.DialSyslog) // without one, report says so
	}
	return nil
}

// report leaves the caller's session, its terminal and its working directory, and tells the caller that the
// mount is there. It fails when the caller has gone meanwhile: then no program knows of the mount.
func (r *readiness) report(j *mountJob, log *logrus.Logger) error {
	defer r.pipe.Close()
	defer r.null.Close()
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // EPERM: it leads a session already
		return os.NewSyscallError("setsid", err)
	}
	if err := os.Chdir("/"); err != nil { // so as to keep no other file system from being unmounted
		return err
	}
	if j.Log == "" {
		if r.syslog != nil {
			r.syslog.take(log)
		} else {
			log.Warn(noSyslog)
			log.SetOutput(io.Discard)
		}
	}
	stdio := []int{syscall.Stdin, syscall.Stdout, syscall.Stderr}
	if j.Log == mountoption.LogStderr {
		stdio = stdio[:2]
	}
	for _, fd := range stdio {
		if err := unix.Dup3(int(r.null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	if _, err := r.pipe.Write([]byte{0}); err != nil {
		return fmt.Errorf("the program that waits for the mount has ended: %w", err)
	}
	return nil
}
