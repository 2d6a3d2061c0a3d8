package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// mountRows are calls of mount(8) with a type, an image and a mount point.
var mountRows = []row{
	{"type vhdx", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "rw", "nosuid", "nodev")
		m, _ := p.mountAt(p.dir)
		p.that(t, "the source is the image", m.source, m.source == p.img)
	}},
	{"type vhdxfs", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdxfs", p.img, p.dir)
		p.mounted(t, "rw")
	}},
	{"type fuse.vhdxfs", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "fuse.vhdxfs", p.img, p.dir)
		p.mounted(t, "rw")
	}},
	{"it returns when the disk can be read", func(t *testing.T, p *place) {
		p.run(t, 0, "", "sh", "-c", `mount -t vhdx "$1" "$2" && cmp -n 4096 "$2/disk.raw" /dev/zero`, "sh", p.img, p.dir)
	}},
	{"options behind the paths", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount.vhdx", p.img, p.dir, "-n", "-o", "ro,noexec", "-t", "vhdx")
		p.mounted(t, "ro", "noexec")
	}},
	{"-r", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-r", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "ro")
	}},
	{"-n", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-n", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "rw")
	}},
	{"-v", func(t *testing.T, p *place) {
		p.run(t, 0, p.img+" mounted on "+p.dir, "mount", "-v", "-t", "vhdx", p.img, p.dir)
		p.mounted(t, "rw")
	}},
	{"-f mounts nothing", func(t *testing.T, p *place) {
		before := sha256File(t, p.img)
		p.run(t, 0, "", "mount", "-f", "-t", "vhdx", p.img, p.dir)
		p.unmounted(t)
		unchanged(t, p.img, before)
		p.run(t, 32, "does not exist", "mount", "-f", "-t", "vhdx", p.img, p.dir+"/none")
		p.run(t, 32, "no such file", "mount", "-f", "-t", "vhdx", p.img+".none", p.dir)
		p.run(t, 1, "unknown option", "mount", "-f", "-t", "vhdx", "-o", "frobnicate", p.img, p.dir)
	}},
	{"an unknown option, and -s", func(t *testing.T, p *place) {
		p.run(t, 1, `unknown option "idle_claen"; did you mean idle_clean?`, "mount", "-t", "vhdx", "-o", "idle_claen=1", p.img, p.dir)
		p.unmounted(t)
		p.run(t, 0, "", "mount", "-s", "-t", "vhdx", "-o", "idle_claen=1,ro", p.img, p.dir)
		p.mounted(t, "ro")
	}},
	{"a comma and a blank in an option", func(t *testing.T, p *place) {
		dir := filepath.Join(filepath.Dir(p.img), "a,b c")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		child := childOf(t, p.img, "64M", "--block-size", "1M")
		parent := filepath.Join(dir, "moved.vhdx")
		if err := os.Rename(p.img, parent); err != nil {
			t.Fatal(err)
		}
		p.rename(child, "CHILD", parent, "/a,b c/PARENT")
		p.run(t, 32, "parent disk.vhdx not found", "mount", "-t", "vhdx", child, p.dir)
		p.run(t, 0, "", "mount", "-t", "vhdx", "-o", `ro,parent="`+parent+`",noexec`, child, p.dir)
		p.mounted(t, "ro", "noexec")
	}},
	{"what is meant for others is accepted", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdx",
			"-o", "defaults,nofail,_netdev,noauto,user,group,comment=x,x-systemd.automount,x-gvfs-hide", p.img, p.dir)
		p.mounted(t, "rw", "noexec") // which user implies
	}},
	{"flags are set on the mount", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdx", "-o", "noatime,noexec,nodiratime", p.img, p.dir)
		p.mounted(t, "rw", "nosuid", "nodev", "noexec", "noatime", "nodiratime")
		p.run(t, 0, "", "umount", p.dir)
		p.run(t, 0, "", "mount.vhdx", p.img, p.dir, "-o", "dev,suid,exec,strictatime")
		p.mounted(t, "rw")
		m, _ := p.mountAt(p.dir)
		p.that(t, "dev, suid, exec, strictatime", m.options, m.options == "rw")
	}},
	{"X-mount.mkdir", func(t *testing.T, p *place) {
		dir := filepath.Join(p.dir, "new")
		p.run(t, 0, "", "mount", "-t", "vhdx", "-o", "X-mount.mkdir", p.img, dir)
		_, n := p.mountAt(dir)
		p.that(t, "a mount at the new directory", fmt.Sprint(n, " mounts"), n == 1)
		p.run(t, 0, "", "umount", dir)
	}},
	{"a link to the mount point", func(t *testing.T, p *place) {
		link := p.dir + "-link"
		if err := os.Symlink(p.dir, link); err != nil {
			t.Fatal(err)
		}
		p.rename(link, "LINK")
		p.run(t, 0, "", "mount.vhdx", p.img, link)
		p.mounted(t, "rw")
		p.run(t, 0, "", "mount.vhdx", p.img, link)
		p.that(t, "one process", fmt.Sprint(p.daemons()), len(p.daemons()) == 1)
		p.run(t, 0, "", "umount.fuse.vhdxfs", link)
		p.unmounted(t)
	}},
	{"mounted twice", func(t *testing.T, p *place) {
		p.run(t, 0, "", "mount", "-t", "vhdx", "-o", "ro", p.img, p.dir)
		p.run(t, 0, "", "mount.vhdx", p.img, p.dir, "-o", "ro")
		p.run(t, 0, "", "mount.vhdx", p.img, p.dir, "-o", "ro,nonempty")
		p.run(t, 32, "is already mounted on ", "mount.vhdx", p.img, p.dir)
		p.mounted(t, "ro")
		n := len(p.daemons())
		p.that(t, "one process", fmt.Sprint(n, " processes"), n == 1)
	}},
	{"another image at the same place", func(t *testing.T, p *place) {
		other := create(t, "64M")
		p.rename(other, "OTHER")
		p.run(t, 0, "", "mount", "-t", "vhdx", p.img, p.dir)
		p.run(t, 32, p.img+" is already mounted on ", "mount", "-t", "vhdx", other, p.dir)
		p.mounted(t, "rw")
	}},
	{"-N: another mount namespace", func(t *testing.T, p *place) {
		sleep := exec.Command("nsenter", "--target", strconv.Itoa(p.holder), "--mount", "--",
			"unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep infinity")
		sleep.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := sleep.StdoutPipe()
		if err == nil {
			err = sleep.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer sleep.Wait()
		defer sleep.Process.Kill()
		pid := sleep.Process.Pid
		p.rename(strconv.Itoa(pid), "OTHER")
		in := func() (n int) {
			for _, m := range mountsOf(pid) {
				if m.point == p.dir && m.fstype == "fuse.vhdxfs" {
					n++
				}
			}
			return n
		}
		p.run(t, 0, "", "mount", "-N", strconv.Itoa(pid), "-t", "vhdx", p.img, p.dir)
		p.that(t, "a mount in the other namespace", fmt.Sprint(in(), " mounts"), in() == 1)
		p.unmounted(t)
		p.run(t, 0, "", "umount", "-N", strconv.Itoa(pid), p.dir)
		p.that(t, "no mount in the other namespace", fmt.Sprint(in(), " mounts"), in() == 0)
		checkClean(t, p.img)
		p.run(t, 32, "option -N", "mount.vhdx", p.img, p.dir, "-N", "/none")
	}},
}

// fstabRows are calls of mount(8) that find the rest in /etc/fstab.
var fstabRows = []row{
	{"a line in fstab, by mount point and by image", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx noauto,ro 0 0", p.img, p.dir)
		for _, what := range []string{p.dir, p.img} {
			p.run(t, 0, "", "mount", what)
			p.mounted(t, "ro")
			p.run(t, 0, "", "umount", what)
			p.unmounted(t)
		}
	}},
	{"type fuse.vhdxfs in fstab", func(t *testing.T, p *place) {
		p.write(t, "%s %s fuse.vhdxfs noauto 0 0", p.img, p.dir)
		p.run(t, 0, "", "mount", p.dir)
		p.mounted(t, "rw")
	}},
	{"blanks in both paths", func(t *testing.T, p *place) {
		img, dir := p.img+" with blank", filepath.Join(filepath.Dir(p.dir), "a dir")
		if err := os.Rename(p.img, img); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		p.img, p.dir = img, dir
		p.rename()
		escape := strings.NewReplacer(" ", `\040`)
		p.write(t, `%s %s vhdx noauto,comment=a\040b 0 0`, escape.Replace(img), escape.Replace(dir))
		p.run(t, 0, "", "mount", dir)
		p.mounted(t, "rw")
		p.run(t, 0, "", "mount", "-a", "-O", "noauto")
		p.run(t, 0, "", "umount", dir)
	}},
	{"mount -a, twice", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx nofail 0 0", p.img, p.dir)
		p.run(t, 0, "", "mount", "-a")
		p.run(t, 0, "already mounted", "mount", "-a", "-v")
		p.mounted(t, "rw")
		n := len(p.daemons())
		p.that(t, "one process", fmt.Sprint(n, " processes"), n == 1)
	}},
	{"mount -a, twice at the same time", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx nofail 0 0", p.img, p.dir)
		for range 5 {
			p.run(t, 0, "", "sh", "-c", "mount -a 2>/dev/null & mount -a 2>/dev/null; wait; mountpoint -q "+p.dir)
			p.mounted(t, "rw")
			p.eventually(t, "the end of the other", 0, "umount", p.dir)
		}
	}},
	{"mount -a -T, and a link to the image", func(t *testing.T, p *place) {
		link := p.img + ".link"
		if err := os.Symlink(p.img, link); err != nil {
			t.Fatal(err)
		}
		tab := filepath.Join(t.TempDir(), "tab")
		if err := os.WriteFile(tab, fmt.Appendf(nil, "%s %s vhdx ro 0 0\n", link, p.dir), 0o644); err != nil {
			t.Fatal(err)
		}
		p.rename(link, "LINK", tab, "TAB")
		p.run(t, 0, "", "mount", "-a", "-T", tab)
		p.run(t, 0, "already mounted", "mount", "-a", "-v", "-T", tab)
		p.mounted(t, "ro")
	}},
	{"mounted by hand, then mount -a", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx defaults 0 0", p.img, p.dir)
		p.run(t, 0, "", "sh", "-c", `cd "${1%/*}" && exec "$3" "${1##*/}" "$2"`, "sh", p.img, p.dir, program.path(t))
		p.run(t, 0, "already mounted", "mount", "-a", "-v")
		p.mounted(t, "rw")
	}},
	{"two lines bring up what is inside, and umount takes it down", func(t *testing.T, p *place) {
		requireTools(t, "mkfs.ext4")
		inside := newDir(t)
		p.rename(inside, "INSIDE")
		p.run(t, 0, "", "mount", "-t", "vhdx", p.img, p.dir)
		p.run(t, 0, "", "mkfs.ext4", "-q", p.disk)
		p.run(t, 0, "", "umount", p.dir)
		p.write(t, "%s %s vhdx nofail 0 0\n%s %s ext4 loop,nofail 0 0", p.img, p.dir, p.disk, inside)
		p.run(t, 0, "", "mount", "-a")
		p.run(t, 0, "", "sh", "-c", `echo hello >"$1/file"`, "sh", inside)
		p.run(t, 32, "loop device /dev/loop", "umount", p.dir)
		p.run(t, 0, "", "umount", inside)
		p.eventually(t, "umount of the image", 0, "umount", p.dir)
		checkClean(t, p.img)
		p.run(t, 0, "", "mount", "-a")
		p.run(t, 0, "hello", "cat", filepath.Join(inside, "file"))
		p.run(t, 0, "", "umount", inside)
		p.eventually(t, "umount of the image", 0, "umount", p.dir)
	}},
	{"a missing image, with nofail and without", func(t *testing.T, p *place) {
		p.write(t, "%s.none %s vhdx nofail 0 0", p.img, p.dir)
		p.run(t, 0, "", "mount", "-a")
		p.write(t, "%s.none %s vhdx defaults 0 0", p.img, p.dir)
		p.run(t, 32, "no such file", "mount", "-a")
		p.unmounted(t)
	}},
	{"units that systemd makes of fstab", func(t *testing.T, p *place) {
		const generator = "/lib/systemd/system-generators/systemd-fstab-generator"
		if _, err := os.Stat(generator); err != nil {
			t.Skipf("needs systemd: %v", err)
		}
		p.write(t, "%s %s vhdx nofail,x-systemd.requires-mounts-for=/srv 0 0\n%s /mnt/data ext4 loop,nofail 0 0", p.img, p.dir, p.disk)
		units := newDir(t)
		p.rename(units, "UNITS")
		p.run(t, 0, "", generator, units, units, units)
		r := p.in(nil, "sh", "-c", `cat "$1"/*.mount`, "sh", units)
		for _, line := range []string{"What=" + p.img, "Where=" + p.dir, "Type=vhdx", "RequiresMountsFor=/srv", "What=" + p.disk} {
			p.that(t, p.short.Replace(line), fmt.Sprint(strings.Contains(r.stdout, line+"\n")), strings.Contains(r.stdout, line+"\n"))
		}
	}},
	{"findmnt --verify", func(t *testing.T, p *place) {
		p.write(t, "%s %s vhdx nofail 0 0", p.img, p.dir)
		p.run(t, 0, "0 errors", "findmnt", "--verify")
	}},
}

// write makes a line, or some, the whole of /etc/fstab.
func (p *place) write(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...) + "\n"
	if err := os.WriteFile(p.fstab, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(p.fstab, nil, 0o644) })
}

// eventually runs a program until its status is as expected: the kernel lets go of a loop device in its own time.
func (p *place) eventually(t *testing.T, what string, status int, args ...string) {
	t.Helper()
	var r result
	eventually(t, what, func() bool {
		r = p.in(nil, args...)
		return r.status == status
	})
	p.called = p.short.Replace(strings.Join(args, " "))
	p.that(t, fmt.Sprint("status ", status), fmt.Sprint("status ", r.status), true)
}
