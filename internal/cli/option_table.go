package cli

import (
	"errors"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// scope says which commands an option concerns.
type scope int

const (
	forImage      scope = 1 << iota // all that open an image
	forMount                        // mounting alone
	forOthers                       // another program that reads the same list: accepted and not used
	refusedOption                   // nothing, as it says when it is given
	forRemount                      // what a remount can change
	sloppy                          // an unknown option is ignored, not refused
)

// An option is an entry of the table that parsing and help go by.
type option struct {
	name  string
	value string // what stands behind the "=", "" for an option without a value
	about scope
	help  string // "" hides the option from the help, as one of a group that is explained as a whole
	set   func(*options, string) error
}

// allowOther lets all users use the mount.
func (o *options) allowOther() {
	o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = true, false, true
}

// optionTable has every option, in the order of the help.
var optionTable = []option{
	{"rw", "", forMount | forRemount, "mount read/write; the default", func(o *options, _ string) error {
		o.readOnly = false
		return nil
	}},
	{"ro", "", forMount | forRemount, "mount read-only; no byte of the image changes, not even to replay its log", func(o *options, _ string) error {
		o.readOnly = true
		return nil
	}},
	{"ro_fallback", "", forMount, "mount read-only if the image cannot be opened for writing", func(o *options, _ string) error {
		o.roFallback = true
		return nil
	}},
	{"orphan_children", "", forMount, "allow writing to an image that has children in its directory; they become unusable", func(o *options, _ string) error {
		o.orphanChildren = true
		return nil
	}},
	{"overlay", "FILE|" + overlayTmp, forMount, "leave the image unchanged and write to FILE, a differencing image that is created if it does not exist; with tmp, to a file that is removed with the mount", func(o *options, v string) (err error) {
		if o.mount.Overlay = v; v != overlayTmp {
			o.mount.Overlay, err = absPath(v)
		}
		return err
	}},
	{"partition", "NUMBER", forMount, "show this partition of the GPT or MBR as disk.raw, not the whole disk", func(o *options, v string) error {
		return parsePartition(&o.partition, v)
	}},
	{"replay", strings.Join(replayModes, "|"), forMount, "how to treat the log of an image that was not closed cleanly: auto (default) replays it in the file, or in memory with ro; memory replays it in memory and needs ro; no refuses the image", func(o *options, v string) error {
		o.replay = v
		return oneOf(v, replayModes...)
	}},
	{"errors", "eio|remount-ro", forMount, "after a failed sync, changes fail with EIO (default), or with EROFS; then the mount becomes read-only when the last writer closes disk.raw", func(o *options, v string) error {
		o.mount.ReadOnlyOnError = v == "remount-ro"
		return oneOf(v, "eio", "remount-ro")
	}},
	{"discard", "auto|unmap|punch|off", forMount, "how to release discarded space, such as by fstrim: unmap reuses it for other blocks; punch also punches holes in the image; auto (default, also discard alone) is punch on file systems where holes are harmless, else unmap; off refuses discards", func(o *options, v string) error {
		if v == "" {
			v = string(vhdx.DiscardAuto)
		}
		o.image.Discard = vhdx.DiscardMode(v)
		return oneOf(v, string(vhdx.DiscardAuto), string(vhdx.DiscardUnmap), string(vhdx.DiscardPunch), string(vhdx.DiscardOff))
	}},
	{"detect_zeroes", "on|off", forMount, "do not allocate blocks for zeros; on by default", func(o *options, v string) error {
		o.image.DetectZeroes = v == "on"
		return oneOf(v, "on", "off")
	}},
	{"sync", "", forMount, "make each write durable before it returns", func(o *options, _ string) error {
		o.mount.Flags |= unix.MS_SYNCHRONOUS
		return nil
	}},
	{"commit", "SECONDS", forMount, "flush unsynced changes every SECONDS; 5 by default, 0 never", func(o *options, v string) error {
		return parseSeconds(&o.image.Commit, v)
	}},
	{"idle_clean", "SECONDS", forMount, "mark the image clean after SECONDS without changes; 5 by default, 0 only at unmount", func(o *options, v string) error {
		return parseSeconds(&o.image.IdleClean, v)
	}},
	{"direct_io", "", forMount, "do not cache disk.raw in the page cache", func(o *options, _ string) error {
		o.mount.DirectIO = true
		return nil
	}},
	{"kernel", strings.Join(kernelModes, "|"), forMount, "what reads a read-only disk: with on, the kernel itself through a map of the image, if it can; disk.raw then cannot be opened with O_DIRECT. With auto (default) and off, the server reads it", func(o *options, v string) error {
		o.mount.Kernel = v == kernelOn
		return oneOf(v, kernelModes...)
	}},
	{"writeback_cache", "", forMount, "let the kernel collect small writes: faster without O_DIRECT, but errors such as \"no space left\" are reported only by fsync or close", func(o *options, _ string) error {
		o.mount.WritebackCache = true
		return nil
	}},
	{"parent", "FILE", forImage, "the parent of a differencing image; repeat it for further levels", func(o *options, v string) error {
		return appendPath(&o.image.Parents, v)
	}},
	{"parent_dir", "DIR", forImage, "another directory to search for parents; can be repeated", func(o *options, v string) error {
		return appendPath(&o.image.ParentDirs, v)
	}},
	{"ignore_parent_mismatch", "", forImage, "accept a parent that has changed since the child was created; for rescue, needs ro", func(o *options, _ string) error {
		o.image.AnyParent = true
		return nil
	}},
	{"lock", "lease|on|try|off", forImage, "lock the image and its parents against other programs; try proceeds even if another program holds the lock; lease also keeps other hosts from writing an image that is written here. lease is the default on network and FUSE file systems; on is the default elsewhere", func(o *options, v string) error {
		o.image.Lock = vhdx.LockMode(v)
		return oneOf(v, string(vhdx.LockOn), string(vhdx.LockLease), string(vhdx.LockTry), string(vhdx.LockOff))
	}},
	{"cache_size", "SIZE", forImage, "memory for block tables, such as 64M; 32M by default", func(o *options, v string) error {
		var err error
		o.image.CacheSize, err = size.Parse(v)
		return err
	}},
	refused("bat_cache", "one cache holds all block tables; set its size with cache_size="),
	{"allow_other", "", forMount, "let all users access the mount, as the mode of disk.raw permits; the default for root", func(o *options, _ string) error {
		o.allowOther()
		return nil
	}},
	{"no_allow_other", "", forMount, "let only the user who mounts access the mount; the default for other users", func(o *options, _ string) error {
		o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = false, false, true
		return nil
	}},
	{"allow_root", "", forMount, "let only root and the user who mounts access the mount", func(o *options, _ string) error {
		o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = false, true, true
		return nil
	}},
	{"default_permissions", "", forMount, "let the kernel check the mode of disk.raw; always on", func(o *options, _ string) error {
		o.mount.DefaultPermissions = true
		return nil
	}},
	{"uid", "USER", forMount, "owner of disk.raw, a name or a number; by default the owner of the image, with overlay= the user who mounts", func(o *options, v string) error {
		return parseID(&o.mount.UID, v, userID)
	}},
	{"gid", "GROUP", forMount, "group of disk.raw, a name or a number; by default the group of the image", func(o *options, v string) error {
		return parseID(&o.mount.GID, v, groupID)
	}},
	{"mode", "OCTAL", forMount, "permission bits of disk.raw; by default the read and write bits of the image", func(o *options, v string) error {
		return parseMode(&o.mount.Mode, v)
	}},
	{"umask", "OCTAL", forMount, "permission bits to clear for disk.raw and the directory", func(o *options, v string) error {
		return parseMode(&o.mount.Umask, v)
	}},
	{"fsname", "NAME", forMount, "source in the mount table; IMAGE by default", func(o *options, v string) error {
		o.mount.Source = v
		return nil
	}},
	{"nonempty", "", forMount, "mount even if the mount point is not empty; its files are hidden", func(o *options, _ string) error {
		o.mount.NonEmpty = true
		return nil
	}},
	{"clean_stale", "", forMount, "remove the dead mount of a killed vhdxfs from the mount point; the default", func(o *options, _ string) error {
		o.mount.KeepStale = false
		return nil
	}},
	{"noclean_stale", "", forMount, "refuse a mount point with a dead mount", func(o *options, _ string) error {
		o.mount.KeepStale = true
		return nil
	}},
	{"sandbox", strings.Join(sandboxModes, "|"), forMount, "take from the process that reads the image all rights that it does not need: on fails " +
		"if the kernel cannot take them all; try (default) takes those that it can; off takes none", func(o *options, v string) error {
		o.sandbox = v
		return oneOf(v, sandboxModes...)
	}},
	{"setuid", "USER", forMount, "open the image and mount as this user, with fusermount3", func(o *options, v string) error {
		o.user = v
		return nil
	}},
	{"pidfile", "FILE", forMount, "write the process ID of the server to this file; it is removed when the server ends", func(o *options, v string) error {
		var err error
		o.pidFile, err = absPath(v)
		return err
	}},
	{"foreground", "", forMount, "same as -f", func(o *options, _ string) error {
		o.foreground = true
		return nil
	}},
	{"oom_score_adj", "NUMBER|keep", forMount, "how likely the kernel is to kill the server when memory is short: -1000 (never; the default if permitted) to 1000; keep leaves it unchanged", func(o *options, v string) error {
		return parseOOMScore(&o.oomScore, v)
	}},
	{"log", "stderr|syslog|FILE", forMount, "destination of messages once mounted; by default standard error in the foreground and syslog in the background; lines are lost while a FIFO is full", func(o *options, v string) error {
		o.log = v
		if v == logStderr || v == logSyslog {
			return nil
		}
		var err error
		o.log, err = absPath(v)
		return err
	}},
	{"loglevel", strings.Join(logLevels, "|"), forMount, "the least severe messages to log; warn by default", func(o *options, v string) error {
		if err := oneOf(v, logLevels...); err != nil {
			return err
		}
		var err error
		o.logLevel, err = logrus.ParseLevel(v)
		return err
	}},
	{"metrics", "unix:PATH", forMount, "serve statistics for Prometheus over HTTP at this socket: GET /metrics", func(o *options, v string) error {
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
	{"async", "", forMount, "", func(o *options, _ string) error {
		o.mount.Flags &^= unix.MS_SYNCHRONOUS
		return nil
	}},
	setFlag("dirsync", unix.MS_DIRSYNC),
	{"remount", "", forMount | forRemount, "", func(o *options, _ string) error {
		o.remount = true
		return nil
	}},

	// Meant for mount(8), fstab or systemd.
	unused("auto", ""), unused("noauto", ""), unused("defaults", ""),
	{"nofail", "", forOthers, "", func(o *options, _ string) error {
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
	return option{name, "", forMount | forRemount, "", func(o *options, _ string) error {
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
	return option{name, "", forMount | forRemount, "", func(o *options, _ string) error {
		o.mount.Flags &^= flag
		return nil
	}}
}

// refused is an option of others that does not apply here.
func refused(name, why string) option {
	return option{name, "", forImage | refusedOption, "", func(*options, string) error { return errors.New(why) }}
}

// insideOptions are options for the mount of a file system on the disk, which users give to the mount of the image.
var insideOptions = []string{"loop", "offset", "sizelimit", "noload", "norecovery", "subvol", "data"}

const insideHelp = "first mount the image alone, then: mount -o loop,... MOUNTPOINT/disk.raw DIR; or run vhdxfs attach IMAGE and mount the partition"

func unused(name, value string) option {
	return option{name, value, forOthers, "", func(*options, string) error { return nil }}
}
