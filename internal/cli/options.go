package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/spelling"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// options is what a list of mount options asks for.
type options struct {
	image          vhdx.Options
	mount          mount.Options
	readOnly       bool
	roFallback     bool // read-only where the image cannot be written
	orphanChildren bool // write to the image also where it is a parent
	partition      int  // what disk.raw shows of the disk; 0 is all
	remount        bool
	foreground     bool
	allowAsked     bool   // an option says which users may use the mount
	replay         string // one of replayModes
	user           string // the user that the process is to become; "" is its own
	pidFile        string // "" is none
	sandbox        string // one of sandboxModes
	noFail         bool   // for mount(8), an image that is missing is no failure
	oomScore       *int   // oom_score_adj of the process; nil leaves it as it is
	log            string // "stderr", "syslog", a path, or "" for what suits
	metrics        string // path of the socket for Prometheus, "" for none
	logLevel       logrus.Level
}

// The values of the option replay.
const (
	replayAuto   = "auto"
	replayMemory = "memory"
	replayNo     = "no"
)

var replayModes = []string{replayAuto, replayMemory, replayNo}

// The values of the option kernel. auto stands for the kernel's way where no program can tell the difference. There is no
// such case yet (see fs/kernel.go), so it is off.
const (
	kernelAuto = "auto"
	kernelOn   = "on"
	kernelOff  = "off"
)

var kernelModes = []string{kernelAuto, kernelOn, kernelOff}

// check returns an error where options do not go together.
func (o *options) check() error {
	switch {
	case o.remount:
		return nil
	case o.mount.Overlay != "" && o.readOnly:
		return usageError("options overlay and ro exclude each other; to read an overlay, mount it with -o ro,parent=IMAGE")
	case o.mount.Overlay != "" && o.roFallback:
		return usageError("options overlay and ro_fallback exclude each other: an overlay never writes to the image")
	case o.readOnly:
		return nil
	case o.replay == replayMemory:
		return usageError("option replay=memory needs ro: a writable mount must replay the log into the file")
	case o.image.AnyParent:
		return usageError("option ignore_parent_mismatch needs ro: writes would not fit the parent")
	}
	return nil
}

func defaultOptions() options {
	oomScore := neverKill
	return options{
		image: vhdx.Options{
			DetectZeroes: true,
			Commit:       5 * time.Second,
			IdleClean:    5 * time.Second,
		},
		replay:   replayAuto,
		sandbox:  sandboxTry,
		oomScore: &oomScore,
		mount: mount.Options{
			// A loop device, or another user's program, could not read a mount that is root's alone.
			AllowOther:         unix.Geteuid() == 0,
			DefaultPermissions: true,
			Flags:              unix.MS_NOSUID | unix.MS_NODEV,
		},
		logLevel: logrus.WarnLevel,
	}
}

// parseOptions reads lists of options, as -o has them, for a command that knows the options about what.
func parseOptions(lists []string, about scope) (*options, error) {
	o := defaultOptions()
	for _, list := range lists {
		words, err := splitOptions(list)
		if err != nil {
			return nil, usageError("-o %s: %w", list, err)
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
	o.image.ParentDirs = append(o.image.ParentDirs, dirs...)
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
		return usageError("option %s is for the file system on the disk; %s", names[0], insideHelp)
	}
	return usageError("options %s and %s are for the file system on the disk; %s", strings.Join(names[:len(names)-1], ", "), names[len(names)-1], insideHelp)
}

// isForeign reports whether an option belongs to another program, by the convention of mount(8).
func isForeign(name string) bool {
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

// findOption returns the entry of the table for a name, and nil where there is none.
func findOption(name string) *option {
	i := slices.IndexFunc(optionTable, func(t option) bool { return t.name == name })
	if i < 0 {
		return nil
	}
	return &optionTable[i]
}

// apply sets one option, a name or name=value.
func (o *options) apply(word string, about scope) error {
	name, value, hasValue := strings.Cut(word, "=")
	if isForeign(name) {
		return nil
	}
	t := findOption(name)
	if t == nil && about&sloppy != 0 {
		return nil
	}
	if t == nil {
		hint := "; see vhdxfs help options"
		if n := spelling.Nearest(name, optionNames(about)); n != "" {
			hint = fmt.Sprintf("; did you mean %s?", n)
		}
		return usageError("unknown option %q%s", name, hint)
	}
	switch {
	case t.about&refusedOption != 0:
		return usageError("option %s is not supported: %w", name, t.set(o, value))
	case t.about&(about|forOthers) == 0:
		return usageError("option %s applies only to mounting", name)
	case t.value == "" && hasValue:
		return usageError("option %s takes no value, not %q", name, value)
	case t.value != "" && value == "" && (hasValue || t.name != "discard"):
		return usageError("option %s needs a value: %s=%s", name, name, t.value)
	}
	if err := t.set(o, value); err != nil {
		return usageError("option %s: %w", word, err)
	}
	return nil
}
