package cli

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

func TestParseOptions(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	num := func(n uint32) *uint32 { return &n }
	for _, tc := range []struct {
		lists []string
		want  func(*options)
	}{
		{nil, func(*options) {}},
		{[]string{"rw"}, func(*options) {}},
		{[]string{"ro"}, func(o *options) { o.readOnly = true }},
		{[]string{"rw,ro"}, func(o *options) { o.readOnly = true }},
		{[]string{"ro,rw"}, func(*options) {}},
		{[]string{"remount,ro"}, func(o *options) { o.remount, o.readOnly = true, true }},
		{[]string{"ro_fallback"}, func(o *options) { o.roFallback = true }},
		{[]string{"orphan_children"}, func(o *options) { o.orphanChildren = true }},
		{[]string{"discard=off"}, func(o *options) { o.image.Discard = vhdx.DiscardOff }},
		{[]string{"discard=unmap,discard=auto"}, func(o *options) { o.image.Discard = vhdx.DiscardAuto }},
		{[]string{"discard=off,discard"}, func(o *options) { o.image.Discard = vhdx.DiscardAuto }},
		{[]string{"uid=root,gid=root"}, func(o *options) { o.mount.UID, o.mount.GID = num(0), num(0) }},
		{[]string{"cache_size=1Gi"}, func(o *options) { o.image.CacheSize = 1 << 30 }},
		{[]string{"detect_zeroes=off"}, func(o *options) { o.image.DetectZeroes = false }},
		{[]string{"detect_zeroes=off,detect_zeroes=on"}, func(*options) {}},
		{[]string{"commit=30,idle_clean=0"}, func(o *options) { o.image.Commit, o.image.IdleClean = 30*time.Second, 0 }},
		{[]string{"sync,direct_io"}, func(o *options) { o.mount.Flags, o.mount.DirectIO = o.mount.Flags|unix.MS_SYNCHRONOUS, true }},
		{[]string{"sync,async"}, func(*options) {}},
		{[]string{"oom_score_adj=-17"}, func(o *options) { *o.oomScore = -17 }},
		{[]string{"oom_score_adj=keep"}, func(o *options) { o.oomScore = nil }},
		{[]string{"parent=/a,parent=/b", `parent="/c,d"`}, func(o *options) { o.image.Parents = []string{"/a", "/b", "/c,d"} }},
		{[]string{"parent_dir=.,parent_dir=x/../y"}, func(o *options) { o.image.ParentDirs = []string{wd, filepath.Join(wd, "y")} }},
		{[]string{"lock=try"}, func(o *options) { o.image.Lock = vhdx.LockTry }},
		{[]string{"lock=off,lock=on"}, func(o *options) { o.image.Lock = vhdx.LockOn }},
		{[]string{"cache_size=64M"}, func(o *options) { o.image.CacheSize = 64 << 20 }},
		{[]string{"cache_size=1.5GiB"}, func(o *options) { o.image.CacheSize = 3 << 29 }},
		{[]string{"allow_other"}, func(o *options) { o.mount.AllowOther, o.allowAsked = true, true }},
		{[]string{"no_allow_other"}, func(o *options) { o.mount.AllowOther, o.allowAsked = false, true }},
		{[]string{"allow_other,allow_root"}, func(o *options) { o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = false, true, true }},
		{[]string{"allow_root,allow_other"}, func(o *options) { o.mount.AllowOther, o.mount.AllowRoot, o.allowAsked = true, false, true }},
		{[]string{"uid=0,gid=1000"}, func(o *options) { o.mount.UID, o.mount.GID = num(0), num(1000) }},
		{[]string{"umask=077,mode=0640"}, func(o *options) { o.mount.Umask, o.mount.Mode = num(0o77), num(0o640) }},
		{[]string{"fsname=a=b"}, func(o *options) { o.mount.Source = "a=b" }},
		{[]string{"nonempty,foreground"}, func(o *options) { o.mount.NonEmpty, o.foreground = true, true }},
		{[]string{"log=syslog,loglevel=debug"}, func(o *options) { o.log, o.logLevel = logSyslog, logrus.DebugLevel }},
		{[]string{"log=x.log"}, func(o *options) { o.log = filepath.Join(wd, "x.log") }},
		{[]string{"suid,dev,noexec,noatime"}, func(o *options) { o.mount.Flags = unix.MS_NOEXEC | unix.MS_NOATIME }},
		{[]string{"noexec,exec"}, func(*options) {}},
		// What mount(8) and a remount pass on.
		{[]string{"ro,noexec,nosuid,nodev,user,users,auto,noauto,nofail,_netdev,defaults,owner,group,comment=x y,x-systemd.automount,X-mount.mkdir=755"},
			func(o *options) { o.mount.Flags, o.readOnly, o.noFail = o.mount.Flags|unix.MS_NOEXEC, true, true }},
		{[]string{"user_id=0,group_id=0,max_read=131072,subtype=x,default_permissions,sync"},
			func(o *options) { o.mount.Flags |= unix.MS_SYNCHRONOUS }},
	} {
		want := defaultOptions()
		tc.want(&want)
		got, err := parseOptions(tc.lists, forImage|forMount)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%q: %+v, %v\nwant %+v", tc.lists, got, err, want)
		}
	}
}

func TestParseOptionsErrors(t *testing.T) {
	for _, tc := range []struct {
		list  string
		about scope
		want  string
	}{
		{"xyzzy", forImage | forMount, `unknown option "xyzzy"`},
		{"parent_dri=/x", forImage | forMount, "did you mean parent_dir?"},
		{"loop", forImage | forMount, "mount -o loop,... MOUNTPOINT/disk.raw DIR"},
		{"offset=1048576", forImage | forMount, "option offset is for the file system on the disk"},
		{"RO", forImage | forMount, `unknown option "RO"`},
		{"uid=1", forImage, "option uid applies only to mounting"},
		{"ui=1", forImage, `unknown option "ui"`},
		{"ro=1", forImage | forMount, `option ro takes no value, not "1"`},
		{"parent", forImage, "option parent needs a value: parent=FILE"},
		{"parent=", forImage, "option parent needs a value"},
		{"uid=no-such-user", forMount, "no such user"},
		{"uid=4294967295", forMount, "a number from 0 to 4294967294"},
		{"gid=-1", forMount, "a number from 0"},
		{"mode=888", forMount, "an octal number from 0 to 777"},
		{"umask=1777", forMount, "an octal number from 0 to 777"},
		{"lock=yes", forImage, "must be on, lease, try or off"},
		{"loglevel=loud", forMount, "must be error, warn, info or debug"},
		{"discard=on", forMount, "must be auto, unmap, punch or off"},
		{"detect_zeroes=unmap", forMount, "must be on or off"},
		{"commit=-1", forMount, "give whole seconds"},
		{"commit=1h", forMount, "give whole seconds"},
		{"idle_clean=99999999999", forMount, "give whole seconds"},
		{"oom_score_adj=-1001", forMount, "give keep or a number from -1000 to 1000"},
		{"discard=off", forImage, "option discard applies only to mounting"},
		{"cache_size=0", forImage, "give a positive size"},
		{"cache_size=-1M", forImage, "give a positive size"},
		{"cache_size=many", forImage, "such as 64M"},
		{`parent="/x`, forImage, "unclosed double quote"},
	} {
		_, err := parseOptions([]string{tc.list}, tc.about)
		if err == nil || !strings.Contains(err.Error(), tc.want) || statusOf(err) != statusUsage {
			t.Errorf("%s: %v (status %d), want status %d and %q", tc.list, err, statusOf(err), statusUsage, tc.want)
		}
	}
}

// The table is what the help is made of: each option is in it once, and is explained or belongs to a group.
func TestOptionTable(t *testing.T) {
	help := optionsHelp()
	seen := map[string]bool{}
	for _, o := range optionTable {
		if seen[o.name] {
			t.Errorf("option %s is there twice", o.name)
		}
		seen[o.name] = true
		if o.help != "" && !strings.Contains(help, "  "+o.name) {
			t.Errorf("option %s is not in the help", o.name)
		}
	}
	for line := range strings.Lines(help) {
		if len(line) > 81 || strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("help has the line %q", line)
		}
	}
}
