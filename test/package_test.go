package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// packages builds the packages when a test first asks for them, and returns the .deb and the .rpm.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	notShort(t, "it builds packages")
	requireTools(t, "git")
	dist := filepath.Join(root, "dist")
	packagesOnce.Do(func() {
		if out, err := command("env", "DIST="+dist, "VERSION=1.2.3", "../internal/scripts/package"); err != nil {
			packagesErr = out
		}
	})
	if packagesErr != "" {
		t.Fatalf("the packages were not built: %s", packagesErr)
	}
	find := func(pattern string) string {
		list, err := filepath.Glob(filepath.Join(dist, pattern))
		if err != nil || len(list) != 1 {
			t.Fatalf("packages %s: %v, %v", pattern, list, err)
		}
		return list[0]
	}
	return find("vhdxfs_1.2.3-1_*.deb"), find("vhdxfs-1.2.3-1.*.rpm")
}

var (
	packagesOnce sync.Once
	packagesErr  string
)

// What both packages hold; the sources of the documentation are left out.
var packaged = []string{
	"/usr/bin/vhdxfs",
	"/usr/sbin/mount.vhdx", "/usr/sbin/mount.vhdxfs", "/usr/sbin/mount.fuse.vhdxfs", "/usr/sbin/umount.fuse.vhdxfs",
	"/usr/lib/systemd/system/vhdxfs@.service", "/usr/lib/ocf/resource.d/vhdxfs/image",
	"/usr/share/man/man8/vhdxfs.8.gz", "/usr/share/man/man8/vhdxfs-check.8.gz", "/usr/share/man/man8/mount.vhdx.8.gz",
	"/usr/share/man/man8/umount.fuse.vhdxfs.8.gz",
	"/usr/share/bash-completion/completions/vhdxfs", "/usr/share/fish/vendor_completions.d/vhdxfs.fish",
	"/usr/share/doc/vhdxfs/copyright", "/usr/share/doc/vhdxfs/licences.gz", "/usr/share/doc/vhdxfs/changelog.gz",
	"/usr/share/doc/vhdxfs/README.md",
}

func TestPackagesHoldEverything(t *testing.T) {
	t.Parallel()
	requireTools(t, "dpkg-deb", "rpm")
	deb, rpm := packages(t)
	for _, list := range []struct{ name, files, zsh string }{ // zsh is where it looks for completions
		{"deb", must(t, "dpkg-deb", "--contents", deb), "/usr/share/zsh/vendor-completions/_vhdxfs"},
		{"rpm", must(t, "rpm", "--query", "--package", "--list", rpm), "/usr/share/zsh/site-functions/_vhdxfs"},
	} {
		for _, want := range append(slices.Clone(packaged), list.zsh) {
			if !strings.Contains(list.files, want) {
				t.Errorf("the %s has no %s", list.name, want)
			}
		}
	}
	if needs := must(t, "rpm", "--query", "--package", "--requires", rpm); !strings.Contains(needs, "fuse3") {
		t.Errorf("the rpm needs %s", needs)
	}
}

func TestPackageSatisfiesLintian(t *testing.T) {
	t.Parallel()
	requireTools(t, "lintian")
	deb, _ := packages(t)
	if out, err := command("lintian", "--allow-root", "--fail-on", "error,warning", deb); err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

// usePackage runs in the root that it is given: it installs the package, uses it and purges it. A file that is
// there then and was not before is an error.
const usePackage = `set -eu
files() { # without what dpkg keeps about itself
	find /etc /opt /usr /var/lib -path /var/lib/dpkg -prune -o -print | sort
}
unmounted() { # umount returns when the program has ended and the image may be looked at
	umount disk
	if pidof vhdxfs; then exit 1; fi
}
cd /tmp && mkdir disk
files >before

dpkg --install vhdxfs.deb
[ -z "$(dpkg --verify vhdxfs)" ]
[ "$(vhdxfs --version)" = "vhdxfs 1.2.3" ]
for name in mount.vhdx mount.vhdxfs mount.fuse.vhdxfs umount.fuse.vhdxfs; do
	[ "$(readlink -f /sbin/$name)" = /usr/bin/vhdxfs ]
done
bash -n /usr/share/bash-completion/completions/vhdxfs
zcat /usr/share/man/man8/mount.fuse.vhdxfs.8.gz | grep -q FSTAB

vhdxfs create --size 64M data.vhdx
mount -t vhdx data.vhdx disk
head -c 3000000 /dev/urandom >data
dd if=data of=disk/disk.raw bs=64k conv=notrunc,fsync status=none
unmounted
vhdxfs check data.vhdx
mount -t fuse.vhdxfs -o ro /tmp/data.vhdx disk
cmp -n 3000000 data disk/disk.raw
unmounted
echo "/tmp/data.vhdx /tmp/disk vhdx nofail 0 0" >fstab
mount -a -T fstab
cmp -n 3000000 data disk/disk.raw
unmounted
if mountpoint -q disk || grep -s vhdx /run/mount/utab; then exit 1; fi

dpkg --purge vhdxfs
files >after
diff before after
echo used and purged
`

// noDebian is the exit status of a preparation that could not make a Debian.
const noDebian = 77

// packageIn installs, uses and purges the package in a root that prepare, lines of shell, sets up at $root. It all
// happens in namespaces of its own, which take mounts and processes with them when they end.
func packageIn(t *testing.T, prepare string) {
	t.Helper()
	requireFUSE(t)
	requireTools(t, "unshare", "chroot", "dpkg")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to install a package")
	}
	deb, _ := packages(t)
	dir := t.TempDir()
	steps := filepath.Join(dir, "steps")
	if err := os.WriteFile(steps, []byte(usePackage), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", leaveMounts+`
		dir=$1 root=$1/root
		mkdir "$root"
		`+prepare+`
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount -t tmpfs tmpfs "$root/tmp"
		cp "$2" "$root/tmp/vhdxfs.deb"
		cp "$dir/steps" "$root/tmp/steps"
		env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$root" sh -x /tmp/steps`,
		"sh", dir, deb)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == noDebian {
		t.Skipf("needs a Debian mirror to install from:\n%s", out)
	}
	if err != nil || !strings.HasSuffix(out, "used and purged\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// In a layer over this machine's own files: quick, and not a change stays.
func TestPackageInstallsAndPurges(t *testing.T) {
	t.Parallel()
	requireTools(t, "dpkg")
	requireKernelFS(t, "overlay")
	packageIn(t, `
		mkdir "$dir/layer"
		mount -t tmpfs tmpfs "$dir/layer"
		mkdir "$dir/layer/files" "$dir/layer/work"
		mount -t overlay -o "lowerdir=/,upperdir=$dir/layer/files,workdir=$dir/layer/work" overlay "$root"
		rm -f "$root"/usr/local/bin/vhdxfs "$root"/sbin/mount.vhdx* "$root"/sbin/*mount.fuse.vhdxfs`)
}

// In a Debian with nothing but its essential packages, mount(8) and fuse3. Making it takes most of a minute.
func TestPackageInCleanDebian(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("left out without -long: it makes a Debian first")
	}
	requireTools(t, "mmdebstrap")
	packageIn(t, `
		mmdebstrap --variant=essential --include=fuse3,mount bookworm "$root" >"$dir/log" 2>&1 ||
			{ tail "$dir/log"; exit `+strconv.Itoa(noDebian)+`; }`)
}
