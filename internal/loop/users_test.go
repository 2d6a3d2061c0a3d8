package loop

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// A use is found by the device's number and by its name, and through the devices on top of it.
func TestUses(t *testing.T) {
	sys := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(lower, upper string) {
		t.Helper()
		dir := filepath.Join(sys, lower, "holders")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, upper), filepath.Join(dir, filepath.Base(upper))); err != nil {
			t.Fatal(err)
		}
	}
	write("loop0/dev", "7:0")
	write("loop0/loop0p1/dev", "259:1")
	write("loop0/loop0p2/dev", "259:2")
	write("loop0/loop0p3/dev", "259:3")
	write("dm-0/dev", "253:0")
	write("dm-0/dm/name", "secret")
	write("dm-1/dev", "253:1")
	write("dm-1/dm/name", "vg-home")
	write("md0/dev", "9:0")
	holds("loop0/loop0p2", "dm-0")
	holds("dm-0", "dm-1")
	holds("loop0/loop0p3", "md0")
	holds("md0", "md0") // a cycle, which the kernel never has; the search must end
	u := &users{
		mounts: []*mountinfo.Info{
			{Major: 259, Minor: 1, Source: "/dev/disk/by-label/data", Mountpoint: "/mnt/data"},
			{Major: 0, Minor: 44, Source: "/dev/loop0p1", Mountpoint: "/mnt/btrfs"},
			{Major: 253, Minor: 1, Source: "/dev/mapper/vg-home", Mountpoint: "/home"},
			{Major: 7, Minor: 1, Source: "/dev/loop1", Mountpoint: "/mnt/other"},
		},
		swaps: map[string]bool{"/dev/loop0": true, "/dev/loop0p11": true},
	}
	for dir, want := range map[string][]string{
		"loop0":         {"used as swap"},
		"loop0/loop0p1": {"mounted at /mnt/data", "mounted at /mnt/btrfs"},
		"loop0/loop0p2": {"part of /dev/mapper/secret", "part of /dev/mapper/vg-home", "mounted at /home"},
		"dm-1":          {"mounted at /home"},
	} {
		if got := u.of(filepath.Join(sys, dir)); !slices.Equal(got, want) {
			t.Errorf("uses of %s: %q, want %q", dir, got, want)
		}
	}
	if got := u.of(filepath.Join(sys, "loop0/loop0p3")); len(got) == 0 || len(got) > maxHolders+2 {
		t.Errorf("uses of a device that is part of itself: %q", got)
	}
}

// Partitions come in the order of their numbers, not of their names.
func TestPartitions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loop7")
	for name, files := range map[string][3]string{
		"loop7p10": {"10", "4096", "8"}, "loop7p2": {"2", "2048", "16"}, "loop7pool": {"", "", ""},
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range []string{"partition", "start", "size"} {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(files[i]+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := partitions(dir, &users{})
	if len(got) != 2 || got[0].Path != "/dev/loop7p2" || got[0].Number != 2 || got[0].Start != 1<<20 || got[0].Size != 8192 ||
		got[1].Path != "/dev/loop7p10" || got[1].Start != 2<<20 {
		t.Errorf("partitions %+v", got)
	}
}
