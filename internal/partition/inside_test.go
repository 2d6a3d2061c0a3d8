package partition

import (
	"os/exec"
	"strings"
	"testing"
)

// Inside names each file system and its label, as the programs that make them write it.
func TestInside(t *testing.T) {
	const size = 400 * mib
	for _, tc := range []struct{ fs, mkfs string }{
		{"ext4", "mkfs.ext4 -q -L label"}, {"XFS", "mkfs.xfs -q -L label"}, {"Btrfs", "mkfs.btrfs -q -L label"},
		{"NTFS", "mkfs.ntfs -F -q -Q -L label"}, {"exFAT", "mkfs.exfat -n label"}, {"FAT", "mkfs.vfat -n label"},
		{"FAT", "mkfs.vfat -F 32 -n label"}, {"swap", "mkswap -L label"}, {"F2FS", "mkfs.f2fs -q -l label"},
	} {
		t.Run(tc.mkfs, func(t *testing.T) {
			args := strings.Fields(tc.mkfs)
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skip(err)
			}
			c := Inside(raw(t, size, "", args...), size, 512)
			if c.Table != "" || len(c.Volumes) != 1 || c.Volumes[0].FileSystem != tc.fs || !strings.EqualFold(c.Volumes[0].Label, "label") || c.Volumes[0].Len != size {
				t.Errorf("%+v", c)
			}
		})
	}
	for table, want := range map[string]int{"label: gpt\nsize=100MiB\nsize=50MiB\n": 2, "label: dos\nsize=100MiB\n": 1} {
		c := Inside(raw(t, size, table, "sfdisk", "-q"), size, 512)
		if len(c.Volumes) != want || c.Volumes[0].Len != 100*mib || c.Volumes[0].Number != 1 || c.Volumes[0].FileSystem != "" || c.Table == "" {
			t.Errorf("%q: %+v", table, c)
		}
	}
	if c := Inside(raw(t, size, "", "true"), size, 512); c.Table != "" || len(c.Volumes) != 0 {
		t.Errorf("an empty disk: %+v", c)
	}
}
