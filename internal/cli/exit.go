package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The exit statuses. Those of a mount are what mount(8) expects of its helpers.
const (
	statusOK         = 0
	statusUsage      = 1
	statusSystem     = 2
	statusWarnings   = 3
	statusDamaged    = 4
	statusDiffers    = 5
	statusNotMounted = 6
	statusMount      = 32
	statusFault      = 70 // as sysexits.h has it

	statusInterrupted = 130 // as shells have it for SIGINT
)

// An exitStatus is a status and what it means, for the help and the manual.
type exitStatus struct {
	status int
	help   string
}

// What the statuses mean that nearly every command has.
var (
	okStatus          = exitStatus{statusOK, "success"}
	usageStatus       = exitStatus{statusUsage, "wrong usage, or permission denied"}
	systemStatus      = exitStatus{statusSystem, "system failure: a file cannot be opened or read, no FUSE, no memory"}
	damagedStatus     = exitStatus{statusDamaged, "the image breaks a rule of the format"}
	mountStatus       = exitStatus{statusMount, "the mount failed: the image is damaged, locked or missing, or the mount point is unusable"}
	notMountedStatus  = exitStatus{statusNotMounted, "not mounted"}
	unmountStatus     = exitStatus{statusMount, "not mounted, or still in use"}
	faultStatus       = exitStatus{statusFault, "a fault of this program; please report what it printed"}
	interruptedStatus = exitStatus{statusInterrupted, "interrupted by a signal; no partial output is left"}
)

// exitStatuses are all of them, for the manual of the program and the topic exit-status.
var exitStatuses = []exitStatus{
	okStatus, usageStatus, systemStatus,
	{statusWarnings, "success with warnings: check found warnings only, or a repair lost data; chain found a parent that does not fit; convert skipped unreadable ranges; extract left out some files; compact --trim could not trim a file system"},
	damagedStatus,
	{statusDiffers, "compare, hash --check: the disks differ"},
	{statusNotMounted, "close, detach, umount, stats: " + notMountedStatus.help},
	{statusMount, mountStatus.help + "; or what was to be unmounted is not mounted, or in use"},
	faultStatus, interruptedStatus,
}

// commandStatuses are the statuses of each command beside success, wrong usage and a system failure, by its name.
var commandStatuses = map[string][]exitStatus{
	"vhdxfs": {mountStatus},
	"mount":  {mountStatus},
	"umount": {notMountedStatus, {statusMount, "still in use"}},
	"open":   {mountStatus, interruptedStatus},
	"close":  {notMountedStatus, {statusMount, "still in use"}},
	"attach": {mountStatus, interruptedStatus},
	"detach": {notMountedStatus, {statusMount, "still in use"}},
	"stats":  {notMountedStatus},
	"info":   {damagedStatus, interruptedStatus},
	"files":  {damagedStatus, interruptedStatus},
	"extract": {
		{statusWarnings, "complete except for files that cannot be copied, such as devices"}, damagedStatus, interruptedStatus,
	},
	"check": {
		{statusWarnings, "warnings only, or the repair found that data is lost or suspect"},
		{statusDamaged, "the image breaks a rule of the format, or could not be repaired"}, interruptedStatus,
	},
	"map":     {damagedStatus},
	"chain":   {{statusWarnings, "a parent is missing, has changed, or cannot be used"}, damagedStatus},
	"compare": {damagedStatus, {statusDiffers, "the disks differ"}, interruptedStatus},
	"diff":    {damagedStatus, interruptedStatus},
	"hash":    {damagedStatus, {statusDiffers, "--check: the disk differs"}, interruptedStatus},
	"create":  {damagedStatus, interruptedStatus},
	"convert": {
		{statusWarnings, "the copy is complete except for unreadable ranges, which are zeros (--skip-errors)"}, damagedStatus, interruptedStatus,
	},
	"flatten":    {damagedStatus, interruptedStatus},
	"snapshot":   {damagedStatus, interruptedStatus},
	"merge":      {damagedStatus, interruptedStatus},
	"apply":      {damagedStatus, interruptedStatus},
	"set-parent": {damagedStatus},
	"compact":    {{statusWarnings, "compacted, but --trim could not trim a file system, or found none"}, damagedStatus, interruptedStatus},
	"resize":     {damagedStatus, interruptedStatus},

	"break-lease": {damagedStatus},

	"mount.vhdx":         {mountStatus},
	"umount.fuse.vhdxfs": {unmountStatus},
}

// statusesOf returns the exit statuses that a command can have.
func statusesOf(command string) []exitStatus {
	return append([]exitStatus{okStatus, usageStatus, systemStatus}, commandStatuses[command]...)
}

func exitStatusHelp(statuses []exitStatus) string {
	var b strings.Builder
	for _, s := range statuses {
		writeEntry(&b, 4, fmt.Sprint(s.status), s.help)
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
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return statusFault
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
	case errors.Is(err, active.ErrNotMounted):
		return &statusError{statusNotMounted, err}
	case errors.Is(err, fs.ErrPermission):
		return &statusError{statusUsage, err}
	case errors.Is(err, mounts.ErrNoFUSE):
		return &statusError{statusSystem, err}
	}
	return &statusError{statusMount, err}
}
