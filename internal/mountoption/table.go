package mountoption

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An option is an entry of the table that parsing and help go by.
type option struct {
	name  string
	value string // what stands behind the "=", "" for an option without a value
	about Scope
	help  string // "" hides the option from the help, as one of a group that is explained as a whole
	set   func(*Options, string) error
}

// table has every option, in the order of the help.
var table = []option{
	{"rw", "", Mount | remountable, "mount read/write; the default", func(o *Options, _ string) error {
		o.ReadOnly = false
		return nil
	}},
	{"ro", "", Mount | remountable, "mount read-only; no byte of the image changes, not even to replay its log", func(o *Options, _ string) error {
		o.ReadOnly = true
		return nil
	}},
	{"ro_fallback", "", Mount, "mount read-only if the image cannot be opened for writing", func(o *Options, _ string) error {
		o.ROFallback = true
		return nil
	}},
	{"orphan_children", "", Mount, "allow writing to an image that has children in its directory, which become unusable, or into which a merge was interrupted", func(o *Options, _ string) error {
		o.OrphanChildren = true
		return nil
	}},
	{"overlay", "FILE|" + OverlayTmp, Mount, "leave the image unchanged and write to FILE, a differencing image that is created if it does not exist; with tmp, to a file that is removed with the mount", func(o *Options, v string) (err error) {
		if o.Mount.Overlay = v; v != OverlayTmp {
			o.Mount.Overlay, err = filepath.Abs(v)
		}
		return err
	}},
	{"partition", "NUMBER", Mount, "show this partition of the GPT or MBR as disk.raw, not the whole disk", func(o *Options, v string) error {
		return parsePartition(&o.Partition, v)
	}},
	{"replay", strings.Join(replayModes, "|"), Mount, "how to treat the log of an image that was not closed cleanly: auto (default) replays it in the file, or in memory with ro; memory replays it in memory and needs ro; no refuses the image", func(o *Options, v string) error {
		o.Replay = v
		return oneOf(v, replayModes...)
	}},
	{"errors", "eio|remount-ro", Mount, "after a failed sync, changes fail with EIO (default), or with EROFS; then the mount becomes read-only when the last writer closes disk.raw", func(o *Options, v string) error {
		o.Mount.ReadOnlyOnError = v == "remount-ro"
		return oneOf(v, "eio", "remount-ro")
	}},
	{"discard", "auto|unmap|punch|off", Mount, "how to release discarded space, such as by fstrim: unmap reuses it for other blocks; punch also punches holes in the image; auto (default, also discard alone) is punch on file systems where holes are harmless, else unmap; off refuses discards", func(o *Options, v string) error {
		if v == "" {
			v = string(vhdx.DiscardAuto)
		}
		o.Open.Discard = vhdx.DiscardMode(v)
		return oneOf(v, string(vhdx.DiscardAuto), string(vhdx.DiscardUnmap), string(vhdx.DiscardPunch), string(vhdx.DiscardOff))
	}},
	{"detect_zeroes", "on|off", Mount, "do not allocate blocks for zeros; on by default", func(o *Options, v string) error {
		o.Open.DetectZeroes = v == "on"
		return oneOf(v, "on", "off")
	}},
	{"sync", "", Mount, "make each write durable before it returns", func(o *Options, _ string) error {
		o.Mount.Flags |= unix.MS_SYNCHRONOUS
		return nil
	}},
	{"commit", "SECONDS", Mount, "flush unsynced changes every SECONDS; 5 by default, 0 never", func(o *Options, v string) error {
		return parseSeconds(&o.Open.Commit, v)
	}},
	{"idle_clean", "SECONDS", Mount, "mark the image clean after SECONDS without changes; 5 by default, 0 only at unmount", func(o *Options, v string) error {
		return parseSeconds(&o.Open.IdleClean, v)
	}},
	{"direct_io", "", Mount, "do not cache disk.raw in the page cache", func(o *Options, _ string) error {
		o.Mount.DirectIO = true
		return nil
	}},
	{"kernel", strings.Join(kernelModes, "|"), Mount, "what reads a read-only disk: with on, the kernel itself through a map of the image, if it can; disk.raw then cannot be opened with O_DIRECT. With auto (default) and off, the server reads it", func(o *Options, v string) error {
		o.Mount.Kernel = v == KernelOn
		return oneOf(v, kernelModes...)
	}},
	{"writeback_cache", "", Mount, "let the kernel collect small writes: faster without O_DIRECT, but errors such as \"no space left\" are reported only by fsync or close", func(o *Options, _ string) error {
		o.Mount.WritebackCache = true
		return nil
	}},
	{"parent", "FILE", Image, "the parent of a differencing image; repeat it for further levels", func(o *Options, v string) error {
		return appendPath(&o.Open.Parents, v)
	}},
	{"parent_dir", "DIR", Image, "another directory to search for parents; can be repeated", func(o *Options, v string) error {
		return appendPath(&o.Open.ParentDirs, v)
	}},
	{"ignore_parent_mismatch", "", Image, "accept a parent that has changed since the child was created; for rescue, needs ro", func(o *Options, _ string) error {
		o.Open.AnyParent = true
		return nil
	}},
	{"lock", "lease|on|try|off", Image, "lock the image and its parents against other programs; try proceeds even if another program holds the lock; lease also keeps other hosts from writing an image that is written here. lease is the default on network and FUSE file systems; on is the default elsewhere", func(o *Options, v string) error {
		o.Open.Lock = vhdx.LockMode(v)
		return oneOf(v, string(vhdx.LockOn), string(vhdx.LockLease), string(vhdx.LockTry), string(vhdx.LockOff))
	}},
	{"cache_size", "SIZE", Image, "memory for block tables, such as 64M; 32M by default", func(o *Options, v string) error {
		var err error
		o.Open.CacheSize, err = size.Parse(v)
		return err
	}},
	refused("bat_cache", "one cache holds all block tables; set its size with cache_size="),
	{"allow_other", "", Mount, "let all users access the mount, as the mode of disk.raw permits; the default for root", func(o *Options, _ string) error {
		o.AllowOthers()
		return nil
	}},
	{"no_allow_other", "", Mount, "let only the user who mounts access the mount; the default for other users", func(o *Options, _ string) error {
		o.Mount.AllowOther, o.Mount.AllowRoot, o.AccessGiven = false, false, true
		return nil
	}},
	{"allow_root", "", Mount, "let only root and the user who mounts access the mount", func(o *Options, _ string) error {
		o.Mount.AllowOther, o.Mount.AllowRoot, o.AccessGiven = false, true, true
		return nil
	}},
	{"default_permissions", "", Mount, "let the kernel check the mode of disk.raw; always on", func(o *Options, _ string) error {
		o.Mount.DefaultPermissions = true
		return nil
	}},
	{"uid", "USER", Mount, "owner of disk.raw, a name or a number; by default the owner of the image, with overlay= the user who mounts", func(o *Options, v string) error {
		return parseID(&o.Mount.UID, v, userID)
	}},
	{"gid", "GROUP", Mount, "group of disk.raw, a name or a number; by default the group of the image", func(o *Options, v string) error {
		return parseID(&o.Mount.GID, v, groupID)
	}},
	{"mode", "OCTAL", Mount, "permission bits of disk.raw; by default the read and write bits of the image", func(o *Options, v string) error {
		return parseMode(&o.Mount.Mode, v)
	}},
	{"umask", "OCTAL", Mount, "permission bits to clear for disk.raw and the directory", func(o *Options, v string) error {
		return parseMode(&o.Mount.Umask, v)
	}},
	{"fsname", "NAME", Mount, "source in the mount table; IMAGE by default", func(o *Options, v string) error {
		o.Mount.Source = v
		return nil
	}},
	{"nonempty", "", Mount, "mount even if the mount point is not empty; its files are hidden", func(o *Options, _ string) error {
		o.Mount.NonEmpty = true
		return nil
	}},
	{"clean_stale", "", Mount, "remove the dead mount of a killed vhdxfs from the mount point; the default", func(o *Options, _ string) error {
		o.Mount.KeepStale = false
		return nil
	}},
	{"noclean_stale", "", Mount, "refuse a mount point with a dead mount", func(o *Options, _ string) error {
		o.Mount.KeepStale = true
		return nil
	}},
	{"sandbox", strings.Join(sandboxModes, "|"), Mount, "take from the process that reads the image all rights that it does not need: on fails " +
		"if the kernel cannot take them all; try (default) takes those that it can; off takes none", func(o *Options, v string) error {
		o.Sandbox = v
		return oneOf(v, sandboxModes...)
	}},
	{"setuid", "USER", Mount, "open the image and mount as this user, with fusermount3", func(o *Options, v string) error {
		o.User = v
		return nil
	}},
	{"pidfile", "FILE", Mount, "write the process ID of the server to this file; it is removed when the server ends", func(o *Options, v string) error {
		var err error
		o.PIDFile, err = filepath.Abs(v)
		return err
	}},
	{"foreground", "", Mount, "same as -f", func(o *Options, _ string) error {
		o.Foreground = true
		return nil
	}},
	{"oom_score_adj", "NUMBER|keep", Mount, "how likely the kernel is to kill the server when memory is short: -1000 (never; the default if permitted) to 1000; keep leaves it unchanged", func(o *Options, v string) error {
		return parseOOMScore(&o.OOMScore, v)
	}},
	{"log", "stderr|syslog|FILE", Mount, "destination of messages once mounted; by default standard error in the foreground and syslog in the background; lines are lost while a FIFO is full", func(o *Options, v string) error {
		o.Log = v
		if v == LogStderr || v == LogSyslog {
			return nil
		}
		var err error
		o.Log, err = filepath.Abs(v)
		return err
	}},
	{"loglevel", strings.Join(logLevels, "|"), Mount, "the least severe messages to log; warn by default", func(o *Options, v string) error {
		if err := oneOf(v, logLevels...); err != nil {
			return err
		}
		var err error
		o.LogLevel, err = logrus.ParseLevel(v)
		return err
	}},
	{"metrics", "unix:PATH", Mount, "serve statistics for Prometheus over HTTP at this socket: GET /metrics", func(o *Options, v string) error {
		var err error
		o.Metrics, err = parseMetrics(v)
		return err
	}},
	setFlag("nosuid", unix.MS_NOSUID), clearFlag("suid", unix.MS_NOSUID),
	setFlag("nodev", unix.MS_NODEV), clearFlag("dev", unix.MS_NODEV),
	setFlag("noexec", unix.MS_NOEXEC), clearFlag("exec", unix.MS_NOEXEC),
	atimeFlag("noatime", unix.MS_NOATIME), clearFlag("atime", unix.MS_NOATIME),
	setFlag("nodiratime", unix.MS_NODIRATIME), clearFlag("diratime", unix.MS_NODIRATIME),
	atimeFlag("relatime", unix.MS_RELATIME), clearFlag("norelatime", unix.MS_RELATIME),
	atimeFlag("strictatime", unix.MS_STRICTATIME), clearFlag("nostrictatime", unix.MS_STRICTATIME),
	{"async", "", Mount, "", func(o *Options, _ string) error {
		o.Mount.Flags &^= unix.MS_SYNCHRONOUS
		return nil
	}},
	setFlag("dirsync", unix.MS_DIRSYNC),
	{"remount", "", Mount | remountable, "", func(o *Options, _ string) error {
		o.Remount = true
		return nil
	}},

	// Meant for mount(8), fstab or systemd.
	unused("auto", ""), unused("noauto", ""), unused("defaults", ""),
	{"nofail", "", others, "", func(o *Options, _ string) error {
		o.NoFail = true
		return nil
	}},
	unused("user", ""), unused("nouser", ""), unused("users", ""), unused("owner", ""), unused("group", ""),
	unused("_netdev", ""), unused("_rnetdev", ""), unused("comment", "TEXT"),
	// Meant for the kernel, and fixed by this program or passed back by a remount.
	unused("max_read", "NUMBER"), unused("subtype", "NAME"), unused("blksize", "NUMBER"),
	unused("user_id", "NUMBER"), unused("group_id", "NUMBER"), unused("rootmode", "OCTAL"),
}

func setFlag(name string, flag uintptr) option {
	return option{name, "", Mount | remountable, "", func(o *Options, _ string) error {
		o.Mount.Flags |= flag
		return nil
	}}
}

// atimeFlag is one of the flags for access times, of which a mount has one.
func atimeFlag(name string, flag uintptr) option {
	o := setFlag(name, flag)
	o.set = func(o *Options, _ string) error {
		o.Mount.Flags = o.Mount.Flags&^(unix.MS_NOATIME|unix.MS_RELATIME|unix.MS_STRICTATIME) | flag
		return nil
	}
	return o
}

func clearFlag(name string, flag uintptr) option {
	return option{name, "", Mount | remountable, "", func(o *Options, _ string) error {
		o.Mount.Flags &^= flag
		return nil
	}}
}

// refused is an option of others that does not apply here.
func refused(name, why string) option {
	return option{name, "", Image | unsupported, "", func(*Options, string) error { return errors.New(why) }}
}

// insideOptions are options for the mount of a file system on the disk, which users give to the mount of the image.
var insideOptions = []string{"loop", "offset", "sizelimit", "noload", "norecovery", "subvol", "data"}

const insideHelp = "first mount the image alone, then: mount -o loop,... MOUNTPOINT/disk.raw DIR; or run vhdxfs attach IMAGE and mount the partition"

func unused(name, value string) option {
	return option{name, value, others, "", func(*Options, string) error { return nil }}
}
