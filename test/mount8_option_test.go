package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// optionTrials are options for mounting, with what is expected of each.
var optionTrials = []struct {
	list string
	says string // of what is refused, with status 1
}{
	{"rw", ""}, {"ro", ""}, {"ro_fallback", ""},
	{"allow_other", ""}, {"no_allow_other", ""}, {"allow_root", ""}, {"default_permissions", ""},
	{"uid=1000,gid=1000", ""}, {"umask=077", ""}, {"mode=0640", ""}, {"uid=-1", "a number from 0"}, {"mode=999", "give an octal number"},
	{"subtype=x", ""}, {"max_read=131072", ""}, {"nonempty", ""},
	{"noatime", ""}, {"nodiratime", ""}, {"relatime", ""}, {"strictatime", ""},
	{"nodev", ""}, {"nosuid", ""}, {"noexec", ""}, {"suid", ""}, {"dev", ""}, {"exec", ""}, {"dirsync", ""},
	{"parent=/none", ""}, {"parent_dir=/none", ""},
	{"ignore_parent_mismatch", "needs ro"}, {"ro,ignore_parent_mismatch", ""},
	{"lock=on", ""}, {"lock=try", ""}, {"lock=off", ""}, {"lock=maybe", "must be on, lease, try or off"},
	{"discard=auto", ""}, {"discard=unmap", ""}, {"discard=punch", ""}, {"discard=off", ""}, {"discard=always", "must be auto, unmap, punch or off"},
	{"detect_zeroes=on", ""}, {"detect_zeroes=off", ""},
	{"cache_size=16M", ""}, {"cache_size=lots", "give a positive size"},
	{"bat_cache=16M", "set its size with cache_size="},
	{"commit=1,idle_clean=0", ""}, {"commit=soon", "give whole seconds"},
	{"errors=eio", ""}, {"errors=remount-ro", ""}, {"errors=never", "must be eio or remount-ro"},
	{"replay=auto", ""}, {"replay=no", ""}, {"ro,replay=memory", ""}, {"replay=memory", "needs ro"}, {"replay=often", "must be auto, memory or no"},
	{"overlay=tmp", ""}, {"ro,overlay=tmp", "exclude each other"}, {"partition=first", "give the number of a partition"},
	{"sync", ""}, {"async", ""}, {"direct_io", ""},
	{"kernel=auto", ""}, {"ro,kernel=on", ""}, {"kernel=on", ""}, {"kernel=off", ""}, {"kernel=maybe", "must be auto, on or off"},
	{"loglevel=debug", ""}, {"loglevel=loud", "must be error, warn, info or debug"},
	{"oom_score_adj=keep", ""}, {"clean_stale", ""}, {"noclean_stale", ""},
	{"auto,noauto,user,nouser,users,owner,group,nofail,_netdev,_rnetdev,defaults,comment=x,x-a,X-b", ""},
	{"user_id=0,group_id=0,rootmode=40000,blksize=4096", ""},
	{"direct_io=1", `takes no value, not "1"`}, {"commit", "needs a value: commit=SECONDS"}, {"parents=/x", "did you mean parent?"},
}

func optionRows() []row {
	rows := []row{
		{"fsname=", func(t *testing.T, p *place) {
			p.mount(t, `fsname="a,b c"`)
			m, _ := p.mountAt(p.dir)
			p.that(t, "the source is a,b c", m.source, m.source == "a,b c")
		}},
		{"pidfile=", func(t *testing.T, p *place) {
			file := filepath.Join(t.TempDir(), "pid")
			p.rename(file, "FILE")
			p.mount(t, "pidfile="+file)
			b, err := os.ReadFile(file)
			p.that(t, "it holds the number of the process", fmt.Sprintf("%v", err), string(b) == fmt.Sprintln(p.server(t)))
			p.run(t, 0, "", "umount", p.dir)
			_, err = os.Stat(file)
			p.that(t, "then it is gone", fmt.Sprint(err), os.IsNotExist(err))
			p.run(t, 32, "option pidfile", "mount", "-t", "vhdx", "-o", "pidfile=/none/pid", p.img, p.dir)
			p.unmounted(t)
			p.bad(t, 1, "there is no pid", "unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=4k full /mnt && echo full >/mnt/full
mount -t vhdx -o pidfile=/mnt/pid "$@"; echo "$?, and there is $(ls /mnt/pid 2>/dev/null || echo no pid)"; exit 1`, "sh", p.img, p.dir)
		}},
		{"log=FILE", func(t *testing.T, p *place) {
			file := filepath.Join(t.TempDir(), "log")
			p.rename(file, "FILE")
			p.mount(t, "loglevel=info,log="+file)
			p.run(t, 0, "", "kill", fmt.Sprint(p.server(t)))
			p.eventuallyEndedAll(t)
			b, err := os.ReadFile(file)
			p.that(t, "it tells of the end", meaningful(lastLine(b)), err == nil && strings.Contains(string(b), "unmounting "+p.dir))
			p.run(t, 32, "option log: /none/log: no such file", "mount", "-t", "vhdx", "-o", "log=/none/log", p.img, p.dir)
		}},
		{"mode=, uid=, gid=", func(t *testing.T, p *place) {
			p.mount(t, "mode=0640,uid=1234,gid=4321")
			p.run(t, 0, "640 1234 4321", "stat", "-c", "%a %u %g", p.disk)
		}},
		{"replay= of an image with a log to replay", func(t *testing.T, p *place) {
			p.dirty(t)
			before := sha256File(t, p.img)
			p.run(t, 32, "replay=no forbids that", "mount", "-t", "vhdx", "-o", "replay=no", p.img, p.dir)
			p.run(t, 32, "replay=no forbids that", "mount", "-t", "vhdx", "-o", "ro,replay=no", p.img, p.dir)
			p.mount(t, "ro,replay=memory")
			p.mounted(t, "ro")
			p.run(t, 0, "", "umount", p.dir)
			unchanged(t, p.img, before)
			p.mount(t, "replay=auto")
			p.run(t, 0, "", "umount", p.dir)
			checkClean(t, p.img)
		}},
		{"orphan_children", func(t *testing.T, p *place) {
			p.rename(childOf(t, p.img, "64M", "--block-size", "1M"), "CHILD")
			p.run(t, 32, "is the parent of", "mount", "-t", "vhdx", p.img, p.dir)
			p.mount(t, "orphan_children")
			p.mounted(t, "rw")
		}},
		{"ignore_parent_mismatch", func(t *testing.T, p *place) {
			child := childOf(t, p.img, "64M", "--block-size", "1M")
			p.rename(child, "CHILD")
			p.mount(t, "orphan_children") // the parent, which is changed
			p.run(t, 0, "", "dd", "if=/dev/urandom", "of="+p.disk, "bs=1M", "count=1", "conv=notrunc,fsync")
			p.run(t, 0, "", "umount", p.dir)
			p.run(t, 32, "it has changed since the child was created", "mount", "-t", "vhdx", "-o", "ro", child, p.dir)
			p.run(t, 0, "", "mount", "-t", "vhdx", "-o", "ro,ignore_parent_mismatch", child, p.dir)
			p.mounted(t, "ro")
		}},
	}
	for _, o := range optionTrials {
		rows = append(rows, row{"-o " + o.list, func(t *testing.T, p *place) {
			p.short = strings.NewReplacer(p.img, "IMAGE", p.dir, "DIR")
			status := 0
			if o.says != "" {
				status = 1
			}
			p.run(t, status, o.says, "mount", "-t", "vhdx", "-o", o.list, p.img, p.dir)
			if status != 0 {
				p.unmounted(t)
				return
			}
			mode := "rw"
			if strings.HasPrefix(o.list, "ro") && o.list != "ro_fallback" {
				mode = "ro"
			}
			p.mounted(t, mode)
			p.run(t, 0, "", "umount", p.dir)
		}})
	}
	return rows
}

// eventuallyEndedAll waits until no process serves anything in the namespace.
func (p *place) eventuallyEndedAll(t *testing.T) {
	t.Helper()
	eventually(t, "the end of what serves", func() bool { return len(p.daemons()) == 0 })
}
