package cli

import (
	"errors"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vhdxfs/vhdx"
)

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
	{"orphan_children", "", aboutMount, "write also to an image that is the parent of one in its folder, which is lost then", func(o *options, _ string) error {
		o.orphanChildren = true
		return nil
	}},
	{"overlay", "FILE|" + overlayTmp, aboutMount, "leave the image as it is, and write to FILE, a differencing image that is made\n" +
		"if there is none, and else used again; or to a file that is gone with the mount", func(o *options, v string) (err error) {
		if o.mount.Overlay = v; v != overlayTmp {
			o.mount.Overlay, err = absPath(v)
		}
		return err
	}},
	{"partition", "NUMBER", aboutMount, "disk.raw is this partition, of a GPT or an MBR, and not the whole disk", func(o *options, v string) error {
		return parsePartition(&o.partition, v)
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
	{"writeback_cache", "", aboutMount, "the kernel collects small writes: faster for programs that make many without\nO_DIRECT, but that the image has no more space, or the disk has ended, they learn\nat fsync or close", func(o *options, _ string) error {
		o.mount.WritebackCache = true
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
	{"uid", "NUMBER", aboutMount, "owner of disk.raw; the image's by default, with overlay= who mounts", func(o *options, v string) error {
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
	{"log", "stderr|syslog|FILE", aboutMount, "where messages go once mounted: by default to standard error in the\nforeground, to syslog in the background; what a FIFO has no room for is lost", func(o *options, v string) error {
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
