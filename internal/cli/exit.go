package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/charmbracelet/x/ansi"

	mount "vhdxfs/fs"
	"vhdxfs/vhdx"
)

// The exit statuses. Those of a mount are what mount(8) expects of its helpers.
const (
	statusOK       = 0
	statusUsage    = 1
	statusSystem   = 2
	statusWarnings = 3
	statusDamaged  = 4
	statusDiffers  = 5
	statusMount    = 32

	statusInterrupted = 130 // as shells have it for SIGINT
)

// exitStatuses is what the help and the manual say of them.
var exitStatuses = []struct {
	status int
	help   string
}{
	{statusOK, "done; of check: no error and no warning"},
	{statusUsage, "wrong usage, or no permission"},
	{statusSystem, "the system failed: a file that cannot be opened or read, no FUSE, no memory"},
	{statusWarnings, "check: the image can be used, but there are warnings, or a repair found that data is lost or suspect; chain: not all parents fit; convert: something was skipped"},
	{statusDamaged, "the image breaks a rule of the format"},
	{statusDiffers, "compare: the disks differ"},
	{statusMount, "the mount failed: image damaged, which of a large one is known some time after the mount, locked or not there, the mount point no use; or what is to be unmounted is in use"},
	{statusInterrupted, "interrupted by a signal; nothing half-made is left"},
}

func exitStatusHelp() string {
	var b strings.Builder
	for _, s := range exitStatuses {
		const indent = "      "
		fmt.Fprintf(&b, "  %-3d %s\n", s.status, strings.ReplaceAll(ansi.Wordwrap(s.help, helpWidth-len(indent), ""), "\n", "\n"+indent))
	}
	return b.String()
}

// A statusError is an error that says with which status the program ends. Its message may be empty, where
// all has been said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &statusError{statusUsage, fmt.Errorf(format, args...)}
}

// statusOf returns the status for an error of any command.
func statusOf(err error) int {
	var s *statusError
	switch {
	case errors.As(err, &s):
		return s.status
	case errors.Is(err, vhdx.ErrCorrupt):
		return statusDamaged
	case errors.Is(err, fs.ErrPermission):
		return statusUsage
	}
	return statusSystem
}

// mountError gives an error of a mount the status that mount(8) has for it.
func mountError(err error) error {
	var s *statusError
	switch {
	case err == nil || errors.As(err, &s):
		return err
	case errors.Is(err, fs.ErrPermission):
		return &statusError{statusUsage, err}
	case errors.Is(err, mount.ErrNoFUSE):
		return &statusError{statusSystem, err}
	}
	return &statusError{statusMount, err}
}
