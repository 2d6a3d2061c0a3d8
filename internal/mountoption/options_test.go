package mountoption

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

func TestParse(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	num := func(n uint32) *uint32 { return &n }
	for _, tc := range []struct {
		lists []string
		want  func(*Options)
	}{
		{nil, func(*Options) {}},
		{[]string{"rw"}, func(*Options) {}},
		{[]string{"ro"}, func(o *Options) { o.ReadOnly = true }},
		{[]string{"rw,ro"}, func(o *Options) { o.ReadOnly = true }},
		{[]string{"ro,rw"}, func(*Options) {}},
		{[]string{"remount,ro"}, func(o *Options) { o.Remount, o.ReadOnly = true, true }},
		{[]string{"ro_fallback"}, func(o *Options) { o.ROFallback = true }},
		{[]string{"orphan_children"}, func(o *Options) { o.OrphanChildren = true }},
		{[]string{"discard=off"}, func(o *Options) { o.Open.Discard = vhdx.DiscardOff }},
		{[]string{"discard=unmap,discard=auto"}, func(o *Options) { o.Open.Discard = vhdx.DiscardAuto }},
		{[]string{"discard=off,discard"}, func(o *Options) { o.Open.Discard = vhdx.DiscardAuto }},
		{[]string{"uid=root,gid=root"}, func(o *Options) { o.Mount.UID, o.Mount.GID = num(0), num(0) }},
		{[]string{"cache_size=1Gi"}, func(o *Options) { o.Open.CacheSize = 1 << 30 }},
		{[]string{"detect_zeroes=off"}, func(o *Options) { o.Open.DetectZeroes = false }},
		{[]string{"detect_zeroes=off,detect_zeroes=on"}, func(*Options) {}},
		{[]string{"commit=30,idle_clean=0"}, func(o *Options) { o.Open.Commit, o.Open.IdleClean = 30*time.Second, 0 }},
		{[]string{"sync,direct_io"}, func(o *Options) { o.Mount.Flags, o.Mount.DirectIO = o.Mount.Flags|unix.MS_SYNCHRONOUS, true }},
		{[]string{"sync,async"}, func(*Options) {}},
		{[]string{"oom_score_adj=-17"}, func(o *Options) { *o.OOMScore = -17 }},
		{[]string{"oom_score_adj=keep"}, func(o *Options) { o.OOMScore = nil }},
		{[]string{"parent=/a,parent=/b", `parent="/c,d"`}, func(o *Options) { o.Open.Parents = []string{"/a", "/b", "/c,d"} }},
		{[]string{"parent_dir=.,parent_dir=x/../y"}, func(o *Options) { o.Open.ParentDirs = []string{wd, filepath.Join(wd, "y")} }},
		{[]string{"lock=try"}, func(o *Options) { o.Open.Lock = vhdx.LockTry }},
		{[]string{"lock=off,lock=on"}, func(o *Options) { o.Open.Lock = vhdx.LockOn }},
		{[]string{"cache_size=64M"}, func(o *Options) { o.Open.CacheSize = 64 << 20 }},
		{[]string{"cache_size=1.5GiB"}, func(o *Options) { o.Open.CacheSize = 3 << 29 }},
		{[]string{"allow_other"}, func(o *Options) { o.Mount.AllowOther, o.AccessGiven = true, true }},
		{[]string{"no_allow_other"}, func(o *Options) { o.Mount.AllowOther, o.AccessGiven = false, true }},
		{[]string{"allow_other,allow_root"}, func(o *Options) { o.Mount.AllowOther, o.Mount.AllowRoot, o.AccessGiven = false, true, true }},
		{[]string{"allow_root,allow_other"}, func(o *Options) { o.Mount.AllowOther, o.Mount.AllowRoot, o.AccessGiven = true, false, true }},
		{[]string{"uid=0,gid=1000"}, func(o *Options) { o.Mount.UID, o.Mount.GID = num(0), num(1000) }},
		{[]string{"umask=077,mode=0640"}, func(o *Options) { o.Mount.Umask, o.Mount.Mode = num(0o77), num(0o640) }},
		{[]string{"fsname=a=b"}, func(o *Options) { o.Mount.Source = "a=b" }},
		{[]string{"nonempty,foreground"}, func(o *Options) { o.Mount.NonEmpty, o.Foreground = true, true }},
		{[]string{"log=syslog,loglevel=debug"}, func(o *Options) { o.Log, o.LogLevel = LogSyslog, logrus.DebugLevel }},
		{[]string{"log=x.log"}, func(o *Options) { o.Log = filepath.Join(wd, "x.log") }},
		{[]string{"suid,dev,noexec,noatime"}, func(o *Options) { o.Mount.Flags = unix.MS_NOEXEC | unix.MS_NOATIME }},
		{[]string{"noexec,exec"}, func(*Options) {}},
		// What mount(8) and a remount pass on.
		{[]string{"ro,noexec,nosuid,nodev,user,users,auto,noauto,nofail,_netdev,defaults,owner,group,comment=x y,x-systemd.automount,X-mount.mkdir=755"},
			func(o *Options) { o.Mount.Flags, o.ReadOnly, o.NoFail = o.Mount.Flags|unix.MS_NOEXEC, true, true }},
		{[]string{"user_id=0,group_id=0,max_read=131072,subtype=x,default_permissions,sync"},
			func(o *Options) { o.Mount.Flags |= unix.MS_SYNCHRONOUS }},
	} {
		want := defaults()
		tc.want(&want)
		got, err := Parse(tc.lists, Image|Mount)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%q: %+v, %v\nwant %+v", tc.lists, got, err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		list  string
		about Scope
		want  string
	}{
		{"xyzzy", Image | Mount, `unknown option "xyzzy"`},
		{"parent_dri=/x", Image | Mount, "did you mean parent_dir?"},
		{"loop", Image | Mount, "mount -o loop,... MOUNTPOINT/disk.raw DIR"},
		{"offset=1048576", Image | Mount, "option offset is for the file system on the disk"},
		{"RO", Image | Mount, `unknown option "RO"`},
		{"uid=1", Image, "option uid applies only to mounting"},
		{"ui=1", Image, `unknown option "ui"`},
		{"ro=1", Image | Mount, `option ro takes no value, not "1"`},
		{"parent", Image, "option parent needs a value: parent=FILE"},
		{"parent=", Image, "option parent needs a value"},
		{"uid=no-such-user", Mount, "no such user"},
		{"uid=4294967295", Mount, "a number from 0 to 4294967294"},
		{"gid=-1", Mount, "a number from 0"},
		{"mode=888", Mount, "an octal number from 0 to 777"},
		{"umask=1777", Mount, "an octal number from 0 to 777"},
		{"lock=yes", Image, "must be on, lease, try or off"},
		{"loglevel=loud", Mount, "must be error, warn, info or debug"},
		{"discard=on", Mount, "must be auto, unmap, punch or off"},
		{"detect_zeroes=unmap", Mount, "must be on or off"},
		{"commit=-1", Mount, "give whole seconds"},
		{"commit=1h", Mount, "give whole seconds"},
		{"idle_clean=99999999999", Mount, "give whole seconds"},
		{"oom_score_adj=-1001", Mount, "give keep or a number from -1000 to 1000"},
		{"discard=off", Image, "option discard applies only to mounting"},
		{"cache_size=0", Image, "give a positive size"},
		{"cache_size=-1M", Image, "give a positive size"},
		{"cache_size=many", Image, "such as 64M"},
		{`parent="/x`, Image, "unclosed double quote"},
	} {
		_, err := Parse([]string{tc.list}, tc.about)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !isUsage(err) {
			t.Errorf("%s: %T %v, want a *UsageError with %q", tc.list, err, err, tc.want)
		}
	}
}

func isUsage(err error) bool {
	_, ok := errors.AsType[*UsageError](err)
	return ok
}

// Options that contradict each other are refused, the reason is given, and a remount leaves that to the kernel.
func TestCheck(t *testing.T) {
	for list, want := range map[string]string{
		"ro,overlay=/x":             "overlay and ro exclude",
		"ro_fallback,overlay=tmp":   "overlay and ro_fallback exclude",
		"replay=memory":             "needs ro",
		"ignore_parent_mismatch":    "needs ro",
		"ro,replay=memory":          "",
		"ro,ignore_parent_mismatch": "",
		"overlay=tmp":               "",
		"remount,replay=memory":     "",
		"":                          "",
	} {
		o, err := Parse([]string{list}, Image|Mount)
		if err != nil {
			t.Fatal(err)
		}
		err = o.Check()
		if want == "" && err != nil || want != "" && (!isUsage(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", list, err, want)
		}
	}
}

// Each option is in the table once, and is explained or belongs to a group that Notes explains.
func TestTable(t *testing.T) {
	explained := Explained()
	seen := map[string]bool{}
	for _, o := range table {
		if seen[o.name] {
			t.Errorf("option %s is there twice", o.name)
		}
		seen[o.name] = true
		if got := slices.Contains(explained, Option{o.name, o.value, o.help}); got != (o.help != "") {
			t.Errorf("option %s is explained: %v", o.name, got)
		}
	}
}

func TestComplete(t *testing.T) {
	for _, tc := range []struct {
		typed string
		about Scope
		has   string
		not   string
	}{
		{"", Image, "parent=\tthe parent of", "ro\t"},
		{"", Image | Mount, "ro\tmount read-only", "nosuid\t"},
		{"ro,par", Image | Mount, "ro,parent_dir=\t", "parent_dir=\t"},
		{"ro,overlay=", Mount, "ro,overlay=tmp", "ro,overlay=FILE"},
		{"lock=", Image, "lock=lease", "lock=\t"},
	} {
		words := Complete(tc.typed, tc.about)
		begins := func(with string) bool {
			return slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, with) })
		}
		if !begins(tc.has) || begins(tc.not) {
			t.Errorf("%q: %q, want one that begins with %q and none with %q", tc.typed, words, tc.has, tc.not)
		}
	}
}
