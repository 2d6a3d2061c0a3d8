package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The lines that docs/fstab.md tells users to write, as they stand there.
const documentedFstab = `
/srv/data.vhdx         /vhdx/data    vhdx  nofail,X-mount.mkdir       0 0
/vhdx/data/disk.raw    /mnt/data     ext4  loop,nofail,X-mount.mkdir  0 0

/net/share/far.vhdx    /vhdx/far     vhdx  _netdev,nofail,X-mount.mkdir,x-systemd.requires-mounts-for=/net/share  0 0
/vhdx/far/disk.raw     /mnt/far      ext4  loop,_netdev,nofail,X-mount.mkdir                                      0 0

/srv/seldom.vhdx       /vhdx/seldom  vhdx  noauto,x-systemd.automount,x-systemd.idle-timeout=10min       0 0
/vhdx/seldom/disk.raw  /mnt/seldom   ext4  loop,noauto,x-systemd.automount,x-systemd.idle-timeout=10min  0 0
`

// What else the lines may look like, and the file systems that hold the images.
const furtherFstab = `
LABEL=srv              /srv          ext4  defaults                   0 2
//server/share         /net/share    cifs  guest                      0 0
/srv/my\040disk.vhdx   /vhdx/must    fuse.vhdxfs  ro,parent_dir="/srv/a,b",x-systemd.mount-timeout=5min  0 0
/vhdx/must/disk.raw    /mnt/must     ext4  ro,loop,offset=1048576     0 0
`

func TestFstabIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/fstab.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(documentedFstab) {
		if !strings.Contains(string(text), line) {
			t.Errorf("docs/fstab.md lacks the line %q", line)
		}
	}
}

// What systemd makes of the lines: its generator writes units, and systemd itself, in its test mode, tells in what
// order it would start them. It stops them in the reverse order.
func TestFstabUnits(t *testing.T) {
	units := generateUnits(t, documentedFstab+furtherFstab)
	boot := planBoot(t, units, "mnt-data.mount", "mnt-far.mount", "mnt-seldom.mount", "mnt-must.mount")

	for _, tc := range []struct {
		unit string
		file []string // lines of the unit that the generator writes
		has  []string // what systemd knows of it
		not  []string
	}{
		{"vhdx-data.mount",
			[]string{"What=/srv/data.vhdx", "Where=/vhdx/data", "Type=vhdx", "Options=nofail,X-mount.mkdir"},
			[]string{"Requires: srv.mount", "After: srv.mount", "RequiresMountsFor: /srv/data.vhdx", "Conflicts: umount.target", "WantedBy: local-fs.target"},
			[]string{"Before: local-fs.target"}},
		{"mnt-data.mount",
			[]string{"What=/vhdx/data/disk.raw", "Options=loop,nofail,X-mount.mkdir"},
			[]string{"Requires: vhdx-data.mount", "After: vhdx-data.mount", "Conflicts: umount.target", "WantedBy: local-fs.target"},
			[]string{"Before: local-fs.target"}},

		// systemd takes the source of a network mount for no path, so that the line has to tell of it.
		{"vhdx-far.mount",
			[]string{"Options=_netdev,nofail,X-mount.mkdir,x-systemd.requires-mounts-for=/net/share", "RequiresMountsFor=/net/share"},
			[]string{"Requires: net-share.mount", "After: net-share.mount", "After: network-online.target", "WantedBy: remote-fs.target"},
			[]string{"WantedBy: local-fs.target"}},
		{"mnt-far.mount", nil,
			[]string{"Requires: vhdx-far.mount", "After: vhdx-far.mount", "WantedBy: remote-fs.target"},
			[]string{"WantedBy: local-fs.target"}},

		{"vhdx-seldom.automount",
			[]string{"Where=/vhdx/seldom", "TimeoutIdleSec=10min"},
			[]string{"RequiredBy: local-fs.target", "Before: local-fs.target"}, nil},
		{"mnt-seldom.mount", nil,
			[]string{"Requires: vhdx-seldom.mount", "After: vhdx-seldom.mount"},
			[]string{"RequiredBy: local-fs.target", "WantedBy: local-fs.target"}},

		// Without nofail the boot waits for the mount, and stops without it.
		{"vhdx-must.mount",
			[]string{"What=/srv/my disk.vhdx", "Type=fuse.vhdxfs", "TimeoutSec=5min", `Options=ro,parent_dir="/srv/a,b",x-systemd.mount-timeout=5min`},
			[]string{"Requires: srv.mount", "After: srv.mount", "RequiredBy: local-fs.target", "Before: local-fs.target"}, nil},
		{"mnt-must.mount",
			[]string{"Options=ro,loop,offset=1048576"},
			[]string{"Requires: vhdx-must.mount", "After: vhdx-must.mount", "RequiredBy: local-fs.target"}, nil},
	} {
		text, err := os.ReadFile(filepath.Join(units, tc.unit))
		if err != nil {
			t.Error(err)
		}
		lines := strings.Split(string(text), "\n")
		for _, want := range tc.file {
			if !slices.Contains(lines, want) {
				t.Errorf("the generator's %s lacks %q:\n%s", tc.unit, want, text)
			}
		}
		for _, want := range tc.has {
			if !slices.Contains(boot[tc.unit], want) {
				t.Errorf("systemd does not know of %s %q:\n%s", tc.unit, want, strings.Join(boot[tc.unit], "\n"))
			}
		}
		for _, bad := range tc.not {
			if slices.Contains(boot[tc.unit], bad) {
				t.Errorf("systemd takes %s to be %q", tc.unit, bad)
			}
		}
	}
}

// generateUnits has systemd's generator turn lines of fstab into units, and returns the directory with them.
func generateUnits(t *testing.T, fstab string) string {
	t.Helper()
	const generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
	requireTools(t, generator)
	dir := newDir(t)
	path := filepath.Join(dir, "fstab")
	writeText(t, path, fstab)
	units := filepath.Join(dir, "units")
	cmd := exec.Command(generator, units, units+".early", units+".late")
	cmd.Env = append(os.Environ(), "SYSTEMD_FSTAB="+path)
	for _, d := range cmd.Args[1:] {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("systemd-fstab-generator: %v\n%s", err, out)
	}
	return units
}

// planBoot asks systemd what it knows of units in a directory, for a start of some of them. It returns for each unit
// lines such as "After: srv.mount".
func planBoot(t *testing.T, directory string, start ...string) map[string][]string {
	t.Helper()
	const systemd = "/usr/lib/systemd/systemd"
	requireTools(t, systemd)
	args := []string{systemd, "--test", "--system", "--log-target=console", "--unit=start.target"}
	if os.Geteuid() == 0 { // whom the test mode does not serve
		requireTools(t, "setpriv")
		args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
		for dir := directory; len(dir) >= len(root); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	writeText(t, filepath.Join(directory, "start.target"),
		"[Unit]\nRequires=local-fs.target remote-fs.target "+strings.Join(start, " ")+"\n")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SYSTEMD_UNIT_PATH=" + directory + ":/usr/lib/systemd/system"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	plan := map[string][]string{}
	unit := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "-> Unit "); ok {
			unit = strings.TrimSuffix(name, ":")
			continue
		}
		// Behind the value stands where systemd has it from.
		line, _, _ = strings.Cut(line, " (")
		plan[unit] = append(plan[unit], line)
	}
	return plan
}
