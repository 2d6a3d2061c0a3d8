package mountoption

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestParseRemount(t *testing.T) {
	m := &mountinfo.Info{Options: "rw,nosuid,nodev,noatime", VFSOptions: "rw,user_id=0,default_permissions,allow_other,max_read=131072"}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	given := []string{"commit=7", "parent=/a,b"}
	for _, tc := range []struct {
		list     string
		readOnly bool
		flags    uintptr
		changed  string
	}{
		{"remount,ro", true, flags | unix.MS_NOATIME, ""},
		{"rw,remount", false, flags | unix.MS_NOATIME, ""},
		{"ro,nosuid,nodev,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072", true, flags | unix.MS_RELATIME, ""},
		{"remount,noexec,dev", false, unix.MS_NOSUID | unix.MS_NOATIME | unix.MS_NOEXEC, ""},
		{"remount,ro,commit=7,nofail,x-systemd.automount", true, flags | unix.MS_NOATIME, ""},
		{`remount,ro,parent="/a,b"`, true, flags | unix.MS_NOATIME, ""},
		{"remount,ro,commit=8,sync", true, flags | unix.MS_NOATIME, "commit=8 sync"},
	} {
		o, changed, err := ParseRemount([]string{tc.list}, m, given)
		if err != nil || o.ReadOnly != tc.readOnly || o.Mount.Flags != tc.flags || strings.Join(changed, " ") != tc.changed {
			t.Errorf("%s: %+v, changed %q, %v", tc.list, o, changed, err)
		}
	}
	for _, list := range []string{"remount,nonsuch", `remount,parent="`} {
		if _, _, err := ParseRemount([]string{list}, m, nil); !isUsage(err) {
			t.Errorf("%s: %v", list, err)
		}
	}
}
