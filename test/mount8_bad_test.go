package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// badRows are what cannot be mounted. Each has a sentence of its own that says what to do, and leaves nothing behind.
var badRows = []row{
	{"no such image", func(t *testing.T, p *place) {
		p.bad(t, 32, "none.vhdx: no such file or directory", "mount", "-t", "vhdx", "/none.vhdx", p.dir)
	}},
	{"not a VHDX", func(t *testing.T, p *place) {
		text := p.file(t, strings.Repeat("This is not a disk. ", 1<<17))
		p.bad(t, 32, "not a VHDX file", "mount", "-t", "vhdx", text, p.dir)
	}},
	{"an empty file", func(t *testing.T, p *place) {
		p.bad(t, 32, "not a VHDX file", "mount", "-t", "vhdx", p.file(t, ""), p.dir)
	}},
	{"a damaged image", func(t *testing.T, p *place) {
		writeAt(t, p.img, []byte("HEAD"), 64<<10)
		writeAt(t, p.img, []byte("HEAD"), 128<<10)
		p.bad(t, 32, "run vhdxfs check for details", "mount", "-t", "vhdx", p.img, p.dir)
	}},
	{"a directory as image", func(t *testing.T, p *place) {
		p.bad(t, 32, "is a directory; give the VHDX file in it", "mount", "-t", "vhdx", filepath.Dir(p.img), p.dir)
	}},
	{"an image that another mount writes", func(t *testing.T, p *place) {
		p.mount(t)
		other := newDir(t)
		p.rename(other, "OTHER")
		pid := strconv.Itoa(p.server(t))
		r := p.run(t, 32, "(process "+pid+")", "mount", "-t", "vhdx", p.img, other)
		p.that(t, "no advice to mount it read-only, which is refused as well", meaningful(r.stderr), !strings.Contains(r.stderr, "-o ro"))
		p.run(t, 32, "(process "+pid+")", "mount", "-t", "vhdx", "-o", "ro", p.img, other)
	}},
	{"an image that another mount reads", func(t *testing.T, p *place) {
		p.mount(t, "ro")
		other := newDir(t)
		p.rename(other, "OTHER")
		p.run(t, 32, "to only read it, use -o ro", "mount", "-t", "vhdx", p.img, other)
	}},
	{"no such mount point", func(t *testing.T, p *place) {
		p.bad(t, 32, "does not exist; create it with: mkdir -p", "mount.vhdx", p.img, p.dir+"/none")
	}},
	{"a file as mount point", func(t *testing.T, p *place) {
		p.bad(t, 32, "is not a directory; the mount point must be one", "mount", "-t", "vhdx", p.img, p.img)
	}},
	{"a mount point with files", func(t *testing.T, p *place) {
		if err := os.WriteFile(filepath.Join(p.dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		p.bad(t, 32, "is not empty; choose an empty directory", "mount", "-t", "vhdx", p.img, p.dir)
		p.mount(t, "nonempty")
		p.mounted(t, "rw")
	}},
	{"a log that has to be replayed, where the mount point is wrong", func(t *testing.T, p *place) {
		p.dirty(t)
		before := sha256File(t, p.img)
		p.bad(t, 32, "does not exist", "mount.vhdx", p.img, p.dir+"/none")
		unchanged(t, p.img, before)
	}},
	{"no /dev/fuse", func(t *testing.T, p *place) {
		p.bad(t, 2, "load the module (modprobe fuse), or start the container with --device /dev/fuse",
			"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec mount -t vhdx "$@"`, "sh", p.img, p.dir)
	}},
	{"a /dev/fuse that the user may not open", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.bad(t, 1, "give this user read and write access to the device", "unshare", "--mount", "sh", "-c",
			`mount -t tmpfs none /dev && mknod /dev/null -m 666 c 1 3 && mknod -m 600 /dev/fuse c 10 229 && `+
				`exec setpriv --reuid 65534 --regid 65534 --clear-groups mount.vhdx "$@"`, "sh", p.img, p.dir)
	}},
	{"neither root nor fusermount3", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.bad(t, 1, "needs root, or the program fusermount3 for ordinary users; install the package fuse3", "unshare", "--mount", "sh", "-c",
			`mount --bind /dev/null "$(command -v fusermount3)" && `+
				`exec setpriv --reuid 65534 --regid 65534 --clear-groups mount.vhdx "$@"`, "sh", p.img, p.dir)
	}},
	{"wrong usage", func(t *testing.T, p *place) {
		p.bad(t, 1, "missing MOUNTPOINT", "mount.vhdx", p.img)
		p.bad(t, 1, "unexpected argument", "mount.vhdx", p.img, p.dir, "more")
		p.bad(t, 1, "MOUNTPOINT is empty", "mount.vhdx", p.img, "")
		p.bad(t, 1, "IMAGE is empty", "mount.vhdx", "", p.dir)
		p.bad(t, 1, "did you mean list?", program.path(t), "lits")
		p.bad(t, 1, "unknown flag -q", "mount.vhdx", p.img, p.dir, "-q")
		p.bad(t, 1, `option commit=often: give whole seconds`, "mount", "-t", "vhdx", "-o", "commit=often", p.img, p.dir)
		p.bad(t, 1, "option replay=memory needs ro", "mount", "-t", "vhdx", "-o", "replay=memory", p.img, p.dir)
	}},
}

// bad runs what must fail with one line on standard error, leaving no mount and no process behind.
func (p *place) bad(t *testing.T, status int, says string, args ...string) {
	t.Helper()
	r := p.run(t, status, says, args...)
	if n := strings.Count(r.stderr, "\n"); n != 1 {
		t.Errorf("%d lines on standard error:\n%s", n, r.stderr)
	}
	_, mounts := p.mountAt(p.dir)
	if n := len(p.daemons()); mounts > 0 || n > 0 {
		p.that(t, "nothing left behind", fmt.Sprintf("%d mounts, %d processes", mounts, n), false)
	}
}

// file makes a file with that content beside the image.
func (p *place) file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(p.img), "file")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	p.rename(path, "FILE")
	return path
}

// dirty leaves the image with a log to replay.
func (p *place) dirty(t *testing.T) {
	t.Helper()
	p.mount(t, "idle_clean=0")
	user := p.process(t, "sh", "-c", `exec 3<>"$1"; dd if=/dev/urandom of="$1" bs=1M count=8 conv=notrunc,fsync status=none; echo ready; exec sleep infinity`,
		"sh", p.disk)
	p.killServer(t)
	user.Process.Kill()
	user.Wait()
	p.run(t, 0, "", "umount", p.dir)
}

const nobody = "65534"

// asNobody has an ordinary user run a program.
func asNobody(args ...string) []string {
	return append([]string{"setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups"}, args...)
}

// forNobody gives the image and the mount point to that user.
func (p *place) forNobody(t *testing.T) {
	t.Helper()
	id, _ := strconv.Atoi(nobody)
	for _, path := range []string{p.img, p.dir} {
		if err := os.Chown(path, id, id); err != nil {
			t.Fatal(err)
		}
	}
	// What T.TempDir makes is closed to others.
	for _, path := range []string{p.img, p.dir} {
		for d := filepath.Dir(path); d != root; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// userRows are mounts by an ordinary user.
var userRows = []row{
	{"a line with user in fstab", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.write(t, "%s %s vhdx noauto,user 0 0", p.img, p.dir)
		p.run(t, 0, "", asNobody("mount", p.dir)...)
		p.mounted(t, "rw", "nosuid", "nodev", "noexec")
		p.run(t, 0, "", asNobody("dd", "if=/dev/zero", "of="+p.disk, "bs=1M", "count=8", "conv=notrunc")...)
		r := p.in(nil, "ls", p.dir)
		p.that(t, "it is that user's alone", meaningful(r.stderr), strings.Contains(r.stderr, "Permission denied"))
		p.run(t, 0, "", asNobody("umount", p.dir)...)
		p.unmounted(t)
		checkClean(t, p.img)
	}},
	{"root unmounts a user's mount, and waits as well", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.run(t, 0, "", asNobody("mount", "-t", "vhdx", p.img, p.dir)...)
		pids := p.daemons()
		r := p.run(t, 0, "", "umount", p.dir)
		p.that(t, "not a word", meaningful(r.stderr), r.stderr == "" && len(pids) == 1)
		p.ended(t, pids[0])
	}},
	{"without such a line", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.run(t, 0, "", asNobody("mount", "-t", "vhdx", p.img, p.dir)...)
		p.mounted(t, "rw", "nosuid", "nodev")
		p.run(t, 0, "", asNobody("umount", p.dir)...)
		p.unmounted(t)
		p.run(t, 0, "", asNobody(program.path(t), p.img, p.dir)...)
		p.mounted(t, "rw")
		p.run(t, 0, "", asNobody("fusermount3", "-u", p.dir)...)
		p.unmounted(t)
	}},
	{"allow_other without leave", func(t *testing.T, p *place) {
		if b, err := os.ReadFile("/etc/fuse.conf"); err == nil && strings.Contains("\n"+string(b), "\nuser_allow_other") {
			t.Skip("this system allows it")
		}
		p.forNobody(t)
		p.write(t, "%s %s vhdx noauto,user,allow_other 0 0", p.img, p.dir)
		p.run(t, 1, "add the line user_allow_other to /etc/fuse.conf", asNobody("mount", p.dir)...)
		p.unmounted(t)
	}},
	{"an image that the user may not read", func(t *testing.T, p *place) {
		p.forNobody(t)
		if err := os.Chown(p.img, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p.img, 0o600); err != nil {
			t.Fatal(err)
		}
		p.write(t, "%s %s vhdx noauto,user 0 0", p.img, p.dir)
		p.run(t, 1, "permission denied; mount as root, or as a user with access", asNobody("mount", p.dir)...)
	}},
	{"a mount point of somebody else", func(t *testing.T, p *place) {
		p.forNobody(t)
		if err := os.Chown(p.dir, 0, 0); err != nil {
			t.Fatal(err)
		}
		p.write(t, "%s %s vhdx noauto,user 0 0", p.img, p.dir)
		p.run(t, 32, "user has no write access to mountpoint", asNobody("mount", p.dir)...)
	}},
	{"umount of root's mount", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.mount(t)
		p.run(t, 1, "it belongs to another user; unmount it as root", asNobody("umount", p.dir)...)
		p.mounted(t, "rw")
	}},
	{"remount by a user", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.write(t, "%s %s vhdx noauto,user 0 0", p.img, p.dir)
		p.run(t, 0, "", asNobody("mount", p.dir)...)
		p.run(t, 1, "needs root", asNobody("mount.vhdx", p.img, p.dir, "-o", "remount,ro")...)
		p.mounted(t, "rw")
		p.run(t, 0, "", asNobody("umount", p.dir)...)
	}},
	{"setuid=", func(t *testing.T, p *place) {
		p.forNobody(t)
		p.bad(t, 1, "no such user", "mount", "-t", "vhdx", "-o", "setuid=no-one", p.img, p.dir)
		p.mount(t, "setuid=nobody")
		p.mounted(t, "rw")
		pid := p.daemons()
		if len(pid) != 1 {
			t.Fatalf("processes %v", pid)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid[0]))
		uid := "\nUid:\t" + strings.Repeat(nobody+"\t", 3) + nobody + "\n"
		p.that(t, "the process is that user's", fmt.Sprintf("%v", err), err == nil && strings.Contains(string(b), uid))
		p.run(t, 0, "", "umount", p.dir)
	}},
}
