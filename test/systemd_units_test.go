package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The units and the examples are without fault, and systemd starts and stops them in the right order.
func TestSystemdUnits(t *testing.T) {
	requireTools(t, "systemd-analyze")
	sources, err := filepath.Glob("../packaging/systemd/*.service")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob("../packaging/systemd/examples/*.mount")
	if err != nil {
		t.Fatal(err)
	}
	units := newDir(t)
	// The verifier wants the program to be there, wherever it is installed in the end, and no manual page yet.
	for _, source := range append(sources, examples...) {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		unit := strings.ReplaceAll(string(text), "ExecStart=vhdxfs", "ExecStart=/bin/true")
		unit = strings.ReplaceAll(unit, "Documentation=", "#")
		writeText(t, filepath.Join(units, filepath.Base(source)), unit)
	}
	if got := len(sources) + len(examples); got != 6 {
		t.Errorf("%d units, want 6: %v %v", got, sources, examples)
	}

	for _, name := range []string{
		"vhdxfs@srv-data.vhdx.service", "vhdxfs-loop@srv-data.vhdx.service",
		"mnt-data.mount", "mnt-windows.mount", "vhdx-backup.mount", "mnt-backup.mount",
	} {
		t.Setenv("SYSTEMD_UNIT_PATH", units+":/usr/lib/systemd/system")
		if out, err := command("systemd-analyze", "verify", "--man=no", filepath.Join(units, name)); err != nil || out != "" {
			t.Errorf("systemd-analyze verify %s: %v\n%s", name, err, out)
		}
	}

	plan := planBoot(t, units, "mnt-data.mount", "mnt-windows.mount", "mnt-backup.mount")
	const data, windows, windowsLoop = "vhdxfs@srv-data.vhdx.service", "vhdxfs@srv-windows.vhdx.service", "vhdxfs-loop@srv-windows.vhdx.service"
	for _, tc := range []struct {
		unit string
		has  []string
	}{
		{data, []string{"RequiresMountsFor: /srv/data.vhdx", "Before: run-vhdx-srv-data.vhdx.mount", "Conflicts: umount.target", "Before: umount.target"}},
		{"mnt-data.mount", []string{"BindsTo: " + data, "After: " + data}},
		{windowsLoop, []string{"BindsTo: " + windows, "After: " + windows, "After: run-vhdx-srv-windows.vhdx.mount", "Conflicts: umount.target"}},
		{"mnt-windows.mount", []string{"Requires: " + windowsLoop, "After: " + windowsLoop, `After: dev-disk-by\x2dlabel-Windows.device`}},
		{"mnt-backup.mount", []string{"Requires: vhdx-backup.mount", "After: vhdx-backup.mount"}},
	} {
		for _, want := range tc.has {
			if !slices.Contains(plan[tc.unit], want) {
				t.Errorf("systemd does not know of %s %q:\n%s", tc.unit, want, strings.Join(plan[tc.unit], "\n"))
			}
		}
	}
	// What local-fs.target waits for must not wait for it in turn.
	for _, unit := range []string{data, windowsLoop} {
		for _, bad := range []string{"After: local-fs.target", "After: sysinit.target", "After: basic.target"} {
			if slices.Contains(plan[unit], bad) {
				t.Errorf("%s: %s", unit, bad)
			}
		}
	}
}
