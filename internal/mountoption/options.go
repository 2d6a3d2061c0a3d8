// Package mountoption is the list of mount options behind -o: its syntax, the table of the options with their help, the values
// that each takes, and what they ask for. Nothing of it touches an image or a mount.
package mountoption

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/spelling"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Options is what a list of mount options asks for.
type Options struct {
	Open  vhdx.Options // how to open the image; Writable and Log are left to the caller
	Mount fs.Options   // how to mount it; what no option says is left to the caller

	ReadOnly       bool
	ROFallback     bool   // read-only where the image cannot be written
	OrphanChildren bool   // write to the image also where it is a parent
	Partition      int    // what disk.raw shows of the disk, counted from 1; 0 is all
	Replay         string // ReplayAuto, ReplayMemory or ReplayNo
	Sandbox        string // SandboxOn, SandboxTry or SandboxOff
	User           string // the user that the process is to become; "" is its own
	AccessGiven    bool   // an option says which users may use the mount
	Foreground     bool
	Remount        bool // change a mount that is there
	NoFail         bool // for mount(8), an image that is missing is no failure

	PIDFile  string // absolute path; "" is none
	OOMScore *int   // oom_score_adj of the process; nil leaves it as it is
	Metrics  string // absolute path of the socket for Prometheus; "" is none
	Log      string // LogStderr, LogSyslog, an absolute path, or "" for what suits
	LogLevel logrus.Level
}

// AllowOthers lets all users use the mount, as the option allow_other does.
func (o *Options) AllowOthers() {
	o.Mount.AllowOther, o.Mount.AllowRoot, o.AccessGiven = true, false, true
}

// A Scope says which commands an option concerns. A command gives those that it knows.
type Scope int

// The scopes of options.
const (
	Image  Scope = 1 << iota // all that open an image
	Mount                    // mounting alone
	Sloppy                   // no option: an unknown one is ignored, not refused

	others      // another program that reads the same list: accepted and not used
	unsupported // nothing, as it says when it is given
	remountable // what a remount can change
)

// OverlayTmp is the value of the option overlay for one that is gone with the mount.
const OverlayTmp = "tmp"

// The values of the option sandbox.
const (
	SandboxOn  = "on"
	SandboxTry = "try"
	SandboxOff = "off"
)

var sandboxModes = []string{SandboxOn, SandboxTry, SandboxOff}

// The values of the option log, besides a path.
const (
	LogStderr = "stderr"
	LogSyslog = "syslog"
)

var logLevels = []string{"error", "warn", "info", "debug"}

// NeverKill is the oom_score_adj of a process that the OOM killer leaves alone.
const NeverKill = -1000

// The values of the option replay.
const (
	ReplayAuto   = "auto"
	ReplayMemory = "memory"
	ReplayNo     = "no"
)

var replayModes = []string{ReplayAuto, ReplayMemory, ReplayNo}

// The values of the option kernel. auto stands for the kernel's way where no program can tell the difference. There is no
// such case yet (see fs/kernel.go), so it is off.
const (
	kernelAuto = "auto"
	KernelOn   = "on"
	kernelOff  = "off"
)

var kernelModes = []string{kernelAuto, KernelOn, kernelOff}

// Check returns an error where options do not go together. It is a *UsageError.
func (o *Options) Check() error {
	switch {
	case o.Remount:
		return nil
	case o.Mount.Overlay != "" && o.ReadOnly:
		return usage("options overlay and ro exclude each other; to read an overlay, mount it with -o ro,parent=IMAGE")
	case o.Mount.Overlay != "" && o.ROFallback:
		return usage("options overlay and ro_fallback exclude each other: an overlay never writes to the image")
	case o.ReadOnly:
		return nil
	case o.Replay == ReplayMemory:
		return usage("option replay=memory needs ro: a writable mount must replay the log into the file")
	case o.Open.AnyParent:
		return usage("option ignore_parent_mismatch needs ro: writes would not fit the parent")
	}
	return nil
}

func defaults() Options {
	oomScore := NeverKill
	return Options{
		Open: vhdx.Options{
			DetectZeroes: true,
			Commit:       5 * time.Second,
			IdleClean:    5 * time.Second,
		},
		Replay:   ReplayAuto,
		Sandbox:  SandboxTry,
		OOMScore: &oomScore,
		Mount: fs.Options{
			// A loop device, or another user's program, could not read a mount that is root's alone.
			AllowOther:         unix.Geteuid() == 0,
			DefaultPermissions: true,
			Flags:              unix.MS_NOSUID | unix.MS_NODEV,
		},
		LogLevel: logrus.WarnLevel,
	}
}

// Parse reads lists of options, as -o has them, for a command that knows the options about what. A later option overrides an
// earlier one. The directories of parents that the environment and the configuration of this machine name come last. An error
// in what was given is a *UsageError.
func Parse(lists []string, about Scope) (*Options, error) {
	o := defaults()
	for _, list := range lists {
		words, err := Split(list)
		if err != nil {
			return nil, usage("-o %s: %w", list, err)
		}
		if err := refuseInside(words); err != nil {
			return nil, err
		}
		for _, word := range words {
			if err := o.apply(word, about); err != nil {
				return nil, err
			}
		}
	}
	dirs, err := defaultParentDirs()
	if err != nil {
		return nil, err
	}
	o.Open.ParentDirs = append(o.Open.ParentDirs, dirs...)
	return &o, nil
}

// refuseInside refuses options for the mount of a file system on the disk, and names all of them at once.
func refuseInside(words []string) error {
	var names []string
	for _, word := range words {
		name, _, _ := strings.Cut(word, "=")
		if slices.Contains(insideOptions, name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	switch len(names) {
	case 0:
		return nil
	case 1:
		return usage("option %s is for the file system on the disk; %s", names[0], insideHelp)
	}
	return usage("options %s and %s are for the file system on the disk; %s", strings.Join(names[:len(names)-1], ", "), names[len(names)-1], insideHelp)
}

// isForeign reports whether an option belongs to another program, by the convention of mount(8).
func isForeign(name string) bool {
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

// find returns the entry of the table for a name, and nil where there is none.
func find(name string) *option {
	i := slices.IndexFunc(table, func(t option) bool { return t.name == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// apply sets one option, a name or name=value.
func (o *Options) apply(word string, about Scope) error {
	name, value, hasValue := strings.Cut(word, "=")
	if isForeign(name) {
		return nil
	}
	t := find(name)
	if t == nil && about&Sloppy != 0 {
		return nil
	}
	if t == nil {
		hint := "; see vhdxfs help options"
		if n := spelling.Nearest(name, names(about)); n != "" {
			hint = fmt.Sprintf("; did you mean %s?", n)
		}
		return usage("unknown option %q%s", name, hint)
	}
	switch {
	case t.about&unsupported != 0:
		return usage("option %s is not supported: %w", name, t.set(o, value))
	case t.about&(about|others) == 0:
		return usage("option %s applies only to mounting", name)
	case t.value == "" && hasValue:
		return usage("option %s takes no value, not %q", name, value)
	case t.value != "" && value == "" && (hasValue || t.name != "discard"):
		return usage("option %s needs a value: %s=%s", name, name, t.value)
	}
	if err := t.set(o, value); err != nil {
		return usage("option %s: %w", word, err)
	}
	return nil
}

// A UsageError is an error in what the user has given, and not of the system.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }
