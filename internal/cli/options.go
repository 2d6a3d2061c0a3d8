package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	mount "vhdxfs/fs"
	"vhdxfs/vhdx"
)

// options is what a list of mount options asks for.
type options struct {
	image      vhdx.Options
	mount      mount.Options
	readOnly   bool
	roFallback bool // read-only where the image cannot be written
	remount    bool
	foreground bool
	allowAsked bool   // who may use the mount was said
	replay     string // one of replayModes
	user       string // whom the process is to become; "" is who it is
	pidFile    string // "" is none
	noFail     bool   // for mount(8), an image that is missing is no failure
	oomScore   *int   // oom_score_adj of the process; nil leaves it as it is
	log        string // "stderr", "syslog", a path, or "" for what suits
	metrics    string // path of the socket for Prometheus, "" for none
	logLevel   logrus.Level
}

// The values of the option replay.
const (
	replayAuto   = "auto"
	replayMemory = "memory"
	replayNo     = "no"
)

var replayModes = []string{replayAuto, replayMemory, replayNo}

// check returns an error where options do not go together.
func (o *options) check() error {
	switch {
	case o.readOnly || o.remount:
		return nil
	case o.replay == replayMemory:
		return usageError("option replay=memory needs ro: who writes has to replay the log in the file")
	case o.image.AnyParent:
		return usageError("option ignore_parent_mismatch needs ro: what is written would not fit the parent")
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

// aboutness says which commands an option concerns.
type aboutness int

const (
	aboutImage   aboutness = 1 << iota // all that open an image
	aboutMount                         // mounting alone
	aboutOther                         // another program that reads the same list: accepted and not used
	aboutRefused                       // nothing, as it says when it is given
	aboutRemount                       // what a remount can change
	sloppy                             // what nobody knows: ignored, not refused
)

// An option is an entry of the table that parsing and help go by.
type option struct {
	name  string
	value string // what stands behind the "=", "" for an option without a value
	about aboutness
	help  string // "" hides the option from the help, as one of a group that is explained as a whole
	set   func(*options, string) error
}

// optionTable has every option, in the order of the help.
var optionTable = []option{
	{"rw", "", aboutMount | aboutRemount, "mount for reading and writing; the default", func(o *options, _ string) error {
		o.readOnly = false
		return nil
	}},
	{"ro", "", aboutMount | aboutRemount, "mount read-only: no byte of the image is changed, not even to replay its log", func(o *options, _ string) error {
		o.readOnly = true
		return nil
	}},
	{"ro_fallback", "", aboutMount, "mount read-only where the image cannot be opened for writing", func(o *options, _ string) error {
		o.roFallback = true
		return nil
	}},
	{"replay", strings.Join(replayModes, "|"), aboutMount, "the log of an image that was not closed cleanly: auto, the default, replays it in\n" +
		"the file, with ro in memory; memory is auto that needs ro; no refuses the image", func(o *options, v string) error {
		o.replay = v
		return oneOf(v, replayModes...)
	}},
	{"errors", "eio|remount-ro", aboutMount, "after a failed sync, changes fail with EIO, the default; or with EROFS, and the\n" +
		"mount becomes read-only as soon as nobody has disk.raw open for writing", func(o *options, v string) error {
		o.mount.ReadOnlyOnError = v == "remount-ro"
		return oneOf(v, "eio", "remount-ro")
	}},
	{"discard", "auto|unmap|punch|off", aboutMount, "what becomes of space that is discarded, as by fstrim: unmap uses it for other\n" +
		"blocks, punch also leaves holes in the image; auto, the default, is punch on\n" +
		"file systems where holes are harmless, else unmap; off refuses discards", func(o *options, v string) error {
		o.image.Discard = vhdx.DiscardMode(v)
		return oneOf(v, string(vhdx.DiscardAuto), string(vhdx.DiscardUnmap), string(vhdx.DiscardPunch), string(vhdx.DiscardOff))
	}},
	{"detect_zeroes", "on|off", aboutMount, "writing zeros where nothing is takes no space; on by default", func(o *options, v string) error {
		o.image.DetectZeroes = v == "on"
		return oneOf(v, "on", "off")
	}},
	{"sync", "", aboutMount, "a write is durable when it returns", func(o *options, _ string) error {
		o.mount.Flags |= unix.MS_SYNCHRONOUS
		return nil
	}},
	{"commit", "SECONDS", aboutMount, "after which changes are made durable that nobody syncs; 5 by default, 0 never", func(o *options, v string) error {
		return parseSeconds(&o.image.Commit, v)
	}},
	{"idle_clean", "SECONDS", aboutMount, "without changes, after which nothing is left in the image's log to replay;\n5 by default, 0 only at the unmount", func(o *options, v string) error {
		return parseSeconds(&o.image.IdleClean, v)
	}},
	{"direct_io", "", aboutMount, "the kernel caches nothing of disk.raw", func(o *options, _ string) error {
		o.mount.DirectIO = true
		return nil
	}},
	{"parent", "FILE", aboutImage, "the parent of a differencing image; repeated, the parents of the levels in turn", func(o *options, v string) error {
		return appendPath(&o.image.Parents, v)
	}},
	{"parent_dir", "DIR", aboutImage, "a further directory to look for parents in; can be repeated", func(o *options, v string) error {
		return appendPath(&o.image.ParentDirs, v)
	}},
	{"ignore_parent_mismatch", "", aboutImage, "take a parent that was changed after the child was made: for rescue, with ro", func(o *options, _ string) error {
		o.image.AnyParent = true
		return nil
	}},
	{"lock", "on|try|off", aboutImage, "lock the image and its parents against other programs, on by default;\n" +
		"try uses an image all the same that another program holds", func(o *options, v string) error {
		o.image.Lock = vhdx.LockMode(v)
		return oneOf(v, string(vhdx.LockOn), string(vhdx.LockTry), string(vhdx.LockOff))
	}},
	{"cache_size", "SIZE", aboutImage, "memory for block tables, such as 64M; 32M by default", func(o *options, v string) error {
		var err error
		o.image.CacheSize, err = parseSize(v)
		return err
	}},
	refused("bat_cache", "there is one cache for all block tables; its size is cache_size="),
	{"allow_other", "", aboutMount, "all users may use the mount, as far as the mode of disk.raw lets them;\nthe default for root", func(o *options, _ string) error {
		o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = true, false, true
		return nil
	}},
	{"no_allow_other", "", aboutMount, "only the user who mounts may use the mount; the default for others", func(o *options, _ string) error {
		o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = false, false, true
		return nil
	}},
	{"allow_root", "", aboutMount, "only root and the user who mounts may use the mount", func(o *options, _ string) error {
		o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = false, true, true
		return nil
	}},
	{"default_permissions", "", aboutMount, "the kernel checks the mode of disk.raw; always on", func(o *options, _ string) error {
		o.mount.DefaultPermissions = true
		return nil
	}},
	{"uid", "NUMBER", aboutMount, "owner of disk.raw; the image's by default", func(o *options, v string) error {
		return parseID(&o.mount.UID, v)
	}},
	{"gid", "NUMBER", aboutMount, "group of disk.raw; the image's by default", func(o *options, v string) error {
		return parseID(&o.mount.GID, v)
	}},
	{"mode", "OCTAL", aboutMount, "permissions of disk.raw; by default those of the image to read and write", func(o *options, v string) error {
		return parseMode(&o.mount.Mode, v)
	}},
	{"umask", "OCTAL", aboutMount, "permissions that disk.raw and the directory do not have", func(o *options, v string) error {
		return parseMode(&o.mount.Umask, v)
	}},
	{"fsname", "NAME", aboutMount, "source in the mount table; IMAGE as given by default", func(o *options, v string) error {
		o.mount.Source = v
		return nil
	}},
	{"nonempty", "", aboutMount, "hide what the mount point holds", func(o *options, _ string) error {
		o.mount.NonEmpty = true
		return nil
	}},
	{"clean_stale", "", aboutMount, "take away the dead mount of a killed vhdxfs at the mount point; the default", func(o *options, _ string) error {
		o.mount.KeepStale = false
		return nil
	}},
	{"noclean_stale", "", aboutMount, "refuse to mount there", func(o *options, _ string) error {
		o.mount.KeepStale = true
		return nil
	}},
	{"setuid", "USER", aboutMount, "open the image and mount as this user, by fusermount3", func(o *options, v string) error {
		o.user = v
		return nil
	}},
	{"pidfile", "FILE", aboutMount, "holds the number of the process that serves, as long as it does", func(o *options, v string) error {
		var err error
		o.pidFile, err = absPath(v)
		return err
	}},
	{"foreground", "", aboutMount, "as -f", func(o *options, _ string) error {
		o.foreground = true
		return nil
	}},
	{"oom_score_adj", "NUMBER|keep", aboutMount, "how readily the system ends the program when memory is short, from -1000, never,\n" +
		"which is the default where it is permitted, to 1000; keep leaves it as it is", func(o *options, v string) error {
		return parseOOMScore(&o.oomScore, v)
	}},
	{"log", "stderr|syslog|FILE", aboutMount, "where messages go once mounted: by default to standard error in the\nforeground, to syslog in the background", func(o *options, v string) error {
		o.log = v
		if v == logStderr || v == logSyslog {
			return nil
		}
		var err error
		o.log, err = absPath(v)
		return err
	}},
	{"loglevel", strings.Join(logLevels, "|"), aboutMount, "the least of what is logged; warn by default", func(o *options, v string) error {
		if err := oneOf(v, logLevels...); err != nil {
			return err
		}
		var err error
		o.logLevel, err = logrus.ParseLevel(v)
		return err
	}},
	{"metrics", "unix:PATH", aboutMount, "tell statistics by HTTP at this socket, as Prometheus reads them: GET /metrics", func(o *options, v string) error {
		var err error
		o.metrics, err = parseMetrics(v)
		return err
	}},
	setFlag("nosuid", unix.MS_NOSUID), clearFlag("suid", unix.MS_NOSUID),
	setFlag("nodev", unix.MS_NODEV), clearFlag("dev", unix.MS_NODEV),
	setFlag("noexec", unix.MS_NOEXEC), clearFlag("exec", unix.MS_NOEXEC),
	atimeFlag("noatime", unix.MS_NOATIME), clearFlag("atime", unix.MS_NOATIME),
	setFlag("nodiratime", unix.MS_NODIRATIME), clearFlag("diratime", unix.MS_NODIRATIME),
	atimeFlag("relatime", unix.MS_RELATIME), clearFlag("norelatime", unix.MS_RELATIME),
	atimeFlag("strictatime", unix.MS_STRICTATIME), clearFlag("nostrictatime", unix.MS_STRICTATIME),
	{"async", "", aboutMount, "", func(o *options, _ string) error {
		o.mount.Flags &^= unix.MS_SYNCHRONOUS
		return nil
	}},
	setFlag("dirsync", unix.MS_DIRSYNC),
	{"remount", "", aboutMount | aboutRemount, "", func(o *options, _ string) error {
		o.remount = true
		return nil
	}},

	// Meant for mount(8), fstab or systemd.
	unused("auto", ""), unused("noauto", ""), unused("defaults", ""),
	{"nofail", "", aboutOther, "", func(o *options, _ string) error {
		o.noFail = true
		return nil
	}},
	unused("user", ""), unused("nouser", ""), unused("users", ""), unused("owner", ""), unused("group", ""),
	unused("_netdev", ""), unused("_rnetdev", ""), unused("comment", "TEXT"),
	// Meant for the kernel, and fixed by this program or passed back by a remount.
	unused("max_read", "NUMBER"), unused("subtype", "NAME"), unused("blksize", "NUMBER"),
	unused("user_id", "NUMBER"), unused("group_id", "NUMBER"), unused("rootmode", "OCTAL"),
}

func setFlag(name string, flag uintptr) option {
	return option{name, "", aboutMount | aboutRemount, "", func(o *options, _ string) error {
		o.mount.Flags |= flag
		return nil
	}}
}

// atimeFlag is one of the flags for access times, of which a mount has one.
func atimeFlag(name string, flag uintptr) option {
	o := setFlag(name, flag)
	o.set = func(o *options, _ string) error {
		o.mount.Flags = o.mount.Flags&^(unix.MS_NOATIME|unix.MS_RELATIME|unix.MS_STRICTATIME) | flag
		return nil
	}
	return o
}

func clearFlag(name string, flag uintptr) option {
	return option{name, "", aboutMount | aboutRemount, "", func(o *options, _ string) error {
		o.mount.Flags &^= flag
		return nil
	}}
}

// refused is an option of others that has no meaning here, or a bad one.
func refused(name, why string) option {
	return option{name, "", aboutImage | aboutRefused, "", func(*options, string) error { return errors.New(why) }}
}

func unused(name, value string) option {
	return option{name, value, aboutOther, "", func(*options, string) error { return nil }}
}

// parseOptions reads lists of options, as -o has them, for a command that knows the options about what.
func parseOptions(lists []string, about aboutness) (*options, error) {
	o := defaultOptions()
	for _, list := range lists {
		words, err := splitOptions(list)
		if err != nil {
			return nil, usageError("-o %s: %w", list, err)
		}
		for _, word := range words {
			if err := o.apply(word, about); err != nil {
				return nil, err
			}
		}
	}
	return &o, nil
}

// isForeign reports whether an option is anybody's, by the convention of mount(8).
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
func (o *options) apply(word string, about aboutness) error {
	name, value, hasValue := strings.Cut(word, "=")
	if isForeign(name) {
		return nil
	}
	t := findOption(name)
	if t == nil && about&sloppy != 0 {
		return nil
	}
	if t == nil {
		hint := ""
		if n := nearest(name, optionNames(about)); n != "" {
			hint = fmt.Sprintf("; do you mean %s?", n)
		}
		return usageError("unknown option %q%s", name, hint)
	}
	switch {
	case t.about&aboutRefused != 0:
		return usageError("option %s is not supported: %w", name, t.set(o, value))
	case t.about&(about|aboutOther) == 0:
		return usageError("option %s is for mounting; here it has no use", name)
	case t.value == "" && hasValue:
		return usageError("option %s takes no value, but has %q", name, value)
	case t.value != "" && value == "":
		return usageError("option %s needs a value: %s=%s", name, name, t.value)
	}
	if err := t.set(o, value); err != nil {
		return usageError("option %s=%s: %w", name, value, err)
	}
	return nil
}

// optionNames lists the options about what is asked for, those of other programs left out.
func optionNames(about aboutness) []string {
	var names []string
	for _, t := range optionTable {
		if t.about&about != 0 {
			names = append(names, t.name)
		}
	}
	return names
}

// completeOptions has the shell complete -o by the options' names.
func completeOptions(cmd *cobra.Command, about aboutness) {
	complete := func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		done := typed[:strings.LastIndexByte(typed, ',')+1]
		var words []string
		for _, t := range optionTable {
			if t.about&about == 0 || t.help == "" {
				continue
			}
			word := done + t.name
			if t.value != "" {
				word += "="
			}
			words = append(words, word+"\t"+strings.ReplaceAll(t.help, "\n", " "))
		}
		return words, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("options", complete); err != nil {
		panic(err) // a command without the flag: every start of the program would show it
	}
}

func optionsHelp() string {
	const column = 24
	var b strings.Builder
	for _, t := range optionTable {
		if t.help == "" {
			continue
		}
		name := t.name
		if t.value != "" {
			name += "=" + t.value
		}
		for i, line := range strings.Split(t.help, "\n") {
			if i == 0 && len(name) > column {
				fmt.Fprintf(&b, "  %s\n", name)
				name = ""
			}
			fmt.Fprintf(&b, "  %-*s %s\n", column, name, line)
			name = ""
		}
	}
	for _, help := range otherOptionsHelp {
		fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(help, "\n", "\n  "))
	}
	return b.String()
}

// otherOptionsHelp explains the options that are hidden in the table.
var otherOptionsHelp = []string{
	"nosuid, nodev, noexec, noatime, ... and their opposites, as mount(8) has them; nosuid and nodev are\non by default",
	"auto, noauto, user, users, nofail, _netdev, comment=, x-*, ... are accepted for fstab and not used",
}

func oneOf(v string, allowed ...string) error {
	if slices.Contains(allowed, v) {
		return nil
	}
	return fmt.Errorf("it can be %s or %s", strings.Join(allowed[:len(allowed)-1], ", "), allowed[len(allowed)-1])
}

// absPath makes a path absolute, since the program leaves the working directory when it is mounted.
func absPath(path string) (string, error) { return filepath.Abs(path) }

func appendPath(list *[]string, path string) error {
	path, err := absPath(path)
	*list = append(*list, path)
	return err
}

func parseID(p **uint32, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 1<<32-1 { // the highest means "none" to the system
		return fmt.Errorf("it is a number from 0 to %d", uint32(1<<32-2))
	}
	id := uint32(n)
	*p = &id
	return nil
}

func parseMode(p **uint32, v string) error {
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("it is an octal number from 0 to 777")
	}
	mode := uint32(n)
	*p = &mode
	return nil
}

// maxSeconds bounds the times in options: a year.
const maxSeconds = 365 * 24 * 60 * 60

func parseSeconds(d *time.Duration, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > maxSeconds {
		return fmt.Errorf("it is a number of seconds from 0 to %d", maxSeconds)
	}
	*d = time.Duration(n) * time.Second
	return nil
}

func parseOOMScore(p **int, v string) error {
	if v == "keep" {
		*p = nil
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < neverKill || n > -neverKill {
		return fmt.Errorf("it is keep or a number from %d to %d", neverKill, -neverKill)
	}
	*p = &n
	return nil
}

// parseSize reads a number of bytes, with a unit or without. Units are powers of 1024: K, M, G, T, P, also
// written KiB or KB.
func parseSize(v string) (int64, error) {
	n, err := units.RAMInBytes(v)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("it is a size above zero in bytes, or with a unit, such as 64M or 10GiB")
	}
	return n, nil
}
