package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const vmFstab = `LABEL=srv              /srv          ext4  defaults                         0 2
/srv/data.vhdx         /vhdx/data    vhdx  nofail,X-mount.mkdir             0 0
/vhdx/data/disk.raw    /mnt/data     ext4  loop,nofail,X-mount.mkdir        0 0
/srv/ro.vhdx           /vhdx/ro      vhdx  ro,nofail,X-mount.mkdir          0 0
/vhdx/ro/disk.raw      /mnt/ro       ext4  ro,loop,nofail,X-mount.mkdir     0 0
/srv/missing.vhdx      /vhdx/none    vhdx  nofail,X-mount.mkdir             0 0
/vhdx/none/disk.raw    /mnt/none     ext4  loop,nofail,X-mount.mkdir        0 0
/srv/seldom.vhdx       /vhdx/seldom  vhdx  noauto,x-systemd.automount,x-systemd.idle-timeout=10       0 0
/vhdx/seldom/disk.raw  /mnt/seldom   ext4  loop,noauto,x-systemd.automount,x-systemd.idle-timeout=10  0 0
`

// A service for an image whose name needs escapes, and a file system on its disk, as in packaging/systemd/examples.
const (
	serviceImage = "/srv/it's one disk.vhdx"
	serviceUnit  = `vhdxfs@srv-it\x27s\x20one\x20disk.vhdx.service`
	serviceMount = `[Unit]
BindsTo=` + serviceUnit + `
After=` + serviceUnit + `

[Mount]
What=/run/vhdx/srv/it's one disk.vhdx/disk.raw
Where=/mnt/service
Type=ext4
Options=loop,nofail

[Install]
WantedBy=multi-user.target
`
	// The service of an image with partitions.
	loopUnit  = "vhdxfs-loop@srv-parts.vhdx.service"
	loopMount = `[Unit]
Requires=` + loopUnit + `
After=` + loopUnit + `

[Mount]
What=/dev/disk/by-label/second
Where=/mnt/second
Type=ext4
Options=nofail

[Install]
WantedBy=multi-user.target
`
)

// A machine with systemd goes through all that happens to mounts in its life: boots, restarts, the loss of its power.
func TestSystemdMachine(t *testing.T) {
	directory := requireVM(t, "")
	srv := newDir(t)
	for _, name := range []string{"data", "ro", "seldom", "it's one disk"} {
		imageWith(t, filepath.Join(srv, name+".vhdx"), name)
	}
	imageWithPartitions(t, filepath.Join(srv, "parts.vhdx"))
	readOnlyImage := sha256File(t, filepath.Join(srv, "ro.vhdx"))
	m := newMachine(t, directory, srv)
	m.edit(t, m.root, func(root string) {
		units := filepath.Join(root, "etc/systemd/system")
		writeText(t, filepath.Join(root, "etc/fstab"), vmFstab)
		must(t, "sh", "-c", `cp ../packaging/systemd/*.service "$1"`, "-", units)
		writeText(t, filepath.Join(units, "mnt-service.mount"), serviceMount)
		writeText(t, filepath.Join(units, "mnt-second.mount"), loopMount)
		must(t, "systemctl", "--quiet", "--root="+root, "enable", "mnt-service.mount", "mnt-second.mount")
		writeText(t, filepath.Join(root, "usr/local/sbin/without-systemd"), withoutSystemd)
		must(t, "chmod", "+x", filepath.Join(root, "usr/local/sbin/without-systemd"))
	})

	first := m.boot(t, "")
	t.Run("boot", func(t *testing.T) { comesUp(t, first) })
	t.Run("automount", func(t *testing.T) { comesOnDemand(t, first) })
	t.Run("stop and restart", func(t *testing.T) { stopsAndRestarts(t, first) })
	t.Run("service", func(t *testing.T) { servesAsUnit(t, first) })
	t.Run("watchdog", func(t *testing.T) { isWatched(t, first) })
	first.must(t, "echo written >/mnt/data/at-first && echo written >/mnt/service/at-first")
	goesDown(t, first, "systemctl reboot --no-block")
	for _, name := range []string{"data", "seldom", "it's one disk", "parts"} {
		m.check(t, name+".vhdx")
	}
	m.edit(t, m.srv, func(dir string) { unchanged(t, filepath.Join(dir, "ro.vhdx"), readOnlyImage) })

	second := m.boot(t, "")
	second.settle(t)
	second.want(t, "cat /mnt/data/at-first /mnt/service/at-first", "written\nwritten")
	done := losesPower(t, second)

	third := m.boot(t, "")
	third.settle(t)
	if n, err := strconv.Atoi(third.must(t, "cat /mnt/data/count")); err != nil || n < done {
		t.Errorf("%d, %v were written before the power was lost, at least %d were synced", n, err, done)
	}
	third.must(t, "for d in /mnt/data/part*; do cd $d && sha256sum --check --quiet sum || exit; done")
	goesDown(t, third, "systemctl poweroff --no-block")
	m.check(t, "data.vhdx")

	runsWithoutSystemd(t, m)
}

// imageWith makes an image whose disk holds an ext4 file system with one file.
func imageWith(t *testing.T, img, text string) {
	t.Helper()
	mustVhdxfs(t, "create", "--size", "256MiB", "--block-size", "1MiB", img)
	dir := newDir(t)
	writeText(t, filepath.Join(dir, "file"), text)
	s := serve(t, img)
	must(t, "mkfs.ext4", "-q", "-F", "-d", dir, s.disk)
	s.end(t)
}

// imageWithPartitions makes an image of a disk with sectors of 4096 bytes and two partitions, the second with an
// ext4 file system by the label second.
func imageWithPartitions(t *testing.T, img string) {
	t.Helper()
	requireTools(t, "sfdisk")
	mustVhdxfs(t, "create", "--size", "256MiB", "--logical-sector-size", "4096", img)
	s := serve(t, img)
	l := attachRW(t, s.disk, 4096)
	must(t, "sh", "-c", `printf 'label: gpt\nsize=64MiB\n-\n' | sfdisk --quiet --no-reread --no-tell-kernel "$1"`, "-", l.dev)
	const second = (1 + 64) * mib
	part := strings.TrimSpace(must(t, "losetup", "--find", "--show", "--offset", fmt.Sprint(second), "--sizelimit", fmt.Sprint(128*mib), s.disk))
	must(t, "mkfs.ext4", "-q", "-L", "second", "-b", "4096", part)
	must(t, "losetup", "--detach", part)
	l.detach(t)
	s.end(t)
}

// settle waits until the machine has started all that it will.
func (b *boot) settle(t *testing.T) {
	t.Helper()
	b.run(t, "systemctl is-system-running --wait")
}

// comesUp looks at what two lines in fstab, and the units of a service, have brought up at boot.
func comesUp(t *testing.T, b *boot) {
	b.settle(t)
	b.want(t, "systemctl is-active multi-user.target", "active")
	b.want(t, "systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1", "vhdx-none.mount")
	if log := b.must(t, "journalctl --boot --unit=vhdx-none.mount"); !strings.Contains(log, "/srv/missing.vhdx: no such file") {
		t.Errorf("the journal does not say why:\n%s", log)
	}
	b.want(t, "cat /mnt/data/file", "data")
	b.want(t, "findmnt --noheadings --output SOURCE,FSTYPE /vhdx/data", "/srv/data.vhdx fuse.vhdxfs")
	b.want(t, "cat /mnt/ro/file", "ro")
	b.want(t, "touch /mnt/ro/new 2>&1 || echo refused", "touch: cannot touch '/mnt/ro/new': Read-only file system\nrefused")
	b.want(t, "touch /vhdx/ro/disk.raw 2>&1 || echo refused", "touch: cannot touch '/vhdx/ro/disk.raw': Read-only file system\nrefused")
	b.want(t, "cat /mnt/service/file", "it's one disk")
	b.want(t, `systemctl show --property=ActiveState,Type,StatusText `+quote(serviceUnit),
		"Type=notify\nStatusText=Serving "+serviceImage+" at /run/vhdx"+serviceImage+", read/write\nActiveState=active")
	b.must(t, "echo written >/mnt/second/new")
	b.want(t, "systemctl is-active "+loopUnit, "active")
	b.want(t, "lsblk --noheadings --nodeps --output LOG-SEC $(findmnt --noheadings --output SOURCE /mnt/second) | tr -d ' '", "4096")
	// Mounting all that fstab has once more starts nothing anew.
	before := b.must(t, "pgrep vhdxfs")
	b.run(t, "mount --all") // the image that is missing makes it fail
	b.want(t, "pgrep vhdxfs", before)
}

// comesOnDemand uses what is mounted when it is looked at, and not for long.
func comesOnDemand(t *testing.T, b *boot) {
	for range 2 {
		b.eventually(t, "! systemctl is-active mnt-seldom.mount vhdx-seldom.mount | grep -v ^inactive")
		b.want(t, "cat /mnt/seldom/file", "seldom")
		b.want(t, "systemctl is-active vhdx-seldom.mount mnt-seldom.mount", "active\nactive")
	}
	b.eventually(t, "! systemctl is-active mnt-seldom.mount vhdx-seldom.mount | grep -v ^inactive")
	b.must(t, "vhdxfs check /srv/seldom.vhdx")
	b.want(t, "systemctl is-active vhdx-seldom.automount mnt-seldom.automount", "active\nactive")
}

// stopsAndRestarts lets systemd stop and restart the mount of an image while a file system on its disk is mounted.
func stopsAndRestarts(t *testing.T, b *boot) {
	b.must(t, "echo kept >/mnt/data/kept")
	b.must(t, "systemctl stop vhdx-data.mount")
	b.want(t, "findmnt /mnt/data; findmnt /vhdx/data; losetup --associated /vhdx/data/disk.raw", "")
	b.must(t, "vhdxfs check /srv/data.vhdx") // at once: who stopped it waited for the program
	b.must(t, "systemctl start mnt-data.mount")
	b.want(t, "cat /mnt/data/kept", "kept")
	b.must(t, "systemctl restart vhdx-data.mount")
	b.eventually(t, "systemctl is-active mnt-data.mount") // its own restart follows
	b.want(t, "systemctl is-active vhdx-data.mount; cat /mnt/data/kept", "active\nkept")
	// By hand, too.
	b.must(t, "umount /mnt/data && umount /vhdx/data && vhdxfs check /srv/data.vhdx && mount /vhdx/data && mount /mnt/data")
	b.want(t, "systemctl is-active vhdx-data.mount mnt-data.mount; cat /mnt/data/kept", "active\nactive\nkept")
	b.must(t, "systemctl stop vhdx-data.mount && vhdxfs check /srv/data.vhdx && systemctl start mnt-data.mount")
}

// servesAsUnit stops the service from all sides.
func servesAsUnit(t *testing.T, b *boot) {
	unit := quote(serviceUnit)
	states := "{ systemctl is-active mnt-service.mount " + unit + " || true; }"
	failed := b.must(t, "systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1")
	check := "vhdxfs check " + quote(serviceImage)

	b.must(t, "echo kept >/mnt/service/kept; systemctl stop "+unit)
	b.want(t, states, "inactive\ninactive")
	b.must(t, check)
	b.must(t, "systemctl start mnt-service.mount")
	b.want(t, states+"; cat /mnt/service/kept", "active\nactive\nkept")

	// The mount of the service is no unit that another is bound to: it can be stopped when nobody needs it any more, and
	// then the service ends, too.
	mount := `"run-vhdx-$(systemd-escape --path ` + quote(serviceImage) + `).mount"`
	b.must(t, "! systemctl stop "+mount)
	b.want(t, states, "active\nactive")
	b.must(t, "systemctl stop mnt-service.mount && systemctl stop "+mount)
	b.want(t, states, "inactive\ninactive")
	b.must(t, check)

	b.must(t, "systemctl restart mnt-service.mount && systemctl restart "+unit)
	b.eventually(t, "systemctl is-active "+unit)
	b.want(t, "systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1", failed)

	// A program that dies takes nothing along that was synced, and nothing hangs.
	b.must(t, "systemctl start mnt-service.mount && echo synced >/mnt/service/synced && sync /mnt/service/synced")
	b.must(t, "systemctl kill --signal=KILL "+unit)
	b.eventually(t, "! systemctl is-active mnt-service.mount && ! systemctl is-active "+mount)
	b.want(t, "losetup --noheadings --list --output BACK-FILE | grep one.disk || echo none", "none")
	b.must(t, "systemctl start mnt-service.mount")
	b.want(t, "cat /mnt/service/synced", "synced")
	b.must(t, "systemctl stop "+unit+" && "+check+" && systemctl start mnt-service.mount")
}

// isWatched sets a watchdog, which is fed as long as the disk can be served, and bites when it cannot.
func isWatched(t *testing.T, b *boot) {
	unit := quote(serviceUnit)
	b.must(t, "systemctl stop "+unit)
	b.must(t, `mkdir -p /run/systemd/system/vhdxfs@.service.d
		printf '[Service]\nWatchdogSec=20\n' >/run/systemd/system/vhdxfs@.service.d/watchdog.conf
		systemctl daemon-reload && systemctl start mnt-service.mount`)
	fed := "systemctl show --property=WatchdogTimestampMonotonic --value " + unit
	at := b.must(t, fed)
	b.eventually(t, "["+" $("+fed+") -gt "+at+" ]")
	b.want(t, "systemctl is-active "+unit, "active")

	b.must(t, "systemctl kill --signal=STOP "+unit)
	b.eventually(t, `[ "$(systemctl show --property=Result --value `+unit+`)" = watchdog ] && ! systemctl is-active mnt-service.mount`)
	b.must(t, `rm -r /run/systemd/system/vhdxfs@.service.d
		systemctl daemon-reload && systemctl reset-failed `+unit+` && systemctl start mnt-service.mount`)
	b.want(t, "cat /mnt/service/synced", "synced")
}

// losesPower cuts the machine's power while it writes. It returns how many rounds of writing had been synced.
func losesPower(t *testing.T, b *boot) int {
	b.must(t, `systemd-run --quiet sh -c 'i=0; cd /mnt/data; while :; do
		i=$((i+1)); part=part$((i % 8))
		mkdir -p new; head -c 700000 /dev/urandom >new/data; (cd new; sha256sum data >sum; sync data sum)
		rm -rf $part; mv new $part
		echo $i >count.new; sync count.new; mv count.new count; sync --file-system .
	done'`)
	b.eventually(t, "[ $(cat /mnt/data/count) -ge 20 ]")
	done, err := strconv.Atoi(b.must(t, "cat /mnt/data/count"))
	if err != nil {
		t.Fatal(err)
	}
	b.kill()
	return done
}

// goesDown switches the machine off, and sees from its console that everything was put away in order.
func goesDown(t *testing.T, b *boot, script string) {
	t.Helper()
	up := len(b.log())
	b.off(t, script)
	console := b.log()[up:]
	for _, bad := range []string{"FAILED", "imed out", "I/O error", "EXT4-fs error", "Waiting for process", "not all"} {
		if strings.Contains(console, bad) {
			t.Errorf("the console says %q", bad)
		}
	}
	for _, order := range [][]string{
		{"Unmounted mnt-data.mount", "Unmounted vhdx-data.mount", "Unmounted srv.mount"},
		{"Unmounted mnt-ro.mount", "Unmounted vhdx-ro.mount", "Unmounted srv.mount"},
		{"Unmounted mnt-service.mount", "Stopped vhdxfs@srv-it", "Unmounted srv.mount"},
		{"Unmounted mnt-second.mount", "Stopped vhdxfs-loop@srv-parts", "Stopped vhdxfs@srv-parts", "Unmounted srv.mount"},
	} {
		at := -1
		for _, event := range order {
			next := strings.Index(console, event)
			if next <= at {
				t.Errorf("%q does not come in the order %q", event, order)
			}
			at = next
		}
	}
}

// check looks, on this machine, at an image and at the file system that takes its whole disk, which the machine left
// as it went off.
func (m *machine) check(t *testing.T, name string) {
	t.Helper()
	m.edit(t, m.srv, func(dir string) {
		img := filepath.Join(dir, name)
		checkClean(t, img)
		if name == "parts.vhdx" {
			return
		}
		s := readOnly(t, img)
		fsck(t, "ext4", s.disk)
		s.end(t)
	})
}

// What runs as the first process where there is no systemd: it mounts what fstab has, and puts it away again.
const withoutSystemd = `#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
trap 'poweroff -f -f' EXIT
say() { echo "plain: $*"; }
modprobe fuse; modprobe loop
mkdir -p /srv && mount /srv || exit
mount -a; say "mount -a: $?"
mount -a
say "programs: $(pgrep --count vhdxfs)"
say "file: $(cat /mnt/data/file) $(cat /mnt/data/at-first)"
echo plain >/mnt/data/plain
umount -a -t nodevtmpfs,noproc,nosysfs,notmpfs,nodevpts; say "umount -a: $?"
say "programs left: $(pgrep --count vhdxfs)"
say "mounts left: $(grep -c -e vhdx -e loop -e srv /proc/self/mountinfo)"
mount /srv && vhdxfs check /srv/data.vhdx; say "check: $?"
umount /srv
`

// runsWithoutSystemd boots the machine with a script as its first process.
func runsWithoutSystemd(t *testing.T, m *machine) {
	b := m.start(t, "init=/usr/local/sbin/without-systemd")
	b.wait(t)
	console := b.log()
	for _, want := range []string{
		"mount -a: 64", // one image is missing
		"programs: 4",  // two mounts, each of two
		"file: data written",
		"umount -a: 0", "programs left: 0", "mounts left: 0", "check: 0",
	} {
		if !strings.Contains(console, "plain: "+want+"\n") {
			t.Errorf("the console lacks %q", want)
		}
	}
	m.check(t, "data.vhdx")
	m.edit(t, m.srv, func(dir string) {
		s := readOnly(t, filepath.Join(dir, "data.vhdx"))
		if out := must(t, "debugfs", "-R", "cat /plain", s.disk); !strings.Contains(out, "plain\n") {
			t.Errorf("the file written without systemd: %q", out)
		}
		s.end(t)
	})
}

// quote makes text one word for a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
