package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compact says where it wins nothing since the file system inside was not trimmed, and with --trim it trims that, also where
// it is mounted. --dry-run changes nothing.
func TestCompactTrim(t *testing.T) {
	requireFUSE(t)
	requireLoop(t)
	requireTools(t, "mkfs.ext4", "fstrim", "partx", "sfdisk")
	img, point := filepath.Join(newDir(t), "disk.vhdx"), newDir(t)
	mustVhdxfs(t, "create", "--size", "320M", "--block-size", "1M", img)
	fill := func(dev string) {
		must(t, "mount", dev, point)
		t.Cleanup(func() { _ = exec.Command("umount", point).Run() }) // after a failure
		writeFile(t, filepath.Join(point, "kept"), []byte("kept"))
		writeFile(t, filepath.Join(point, "deleted"), []byte(strings.Repeat("deleted", 150*mib/7)))
		must(t, "sync", "-f", point)
		if err := os.Remove(filepath.Join(point, "deleted")); err != nil {
			t.Fatal(err)
		}
		must(t, "sync", "-f", point)
	}
	size := func() int64 {
		st, err := os.Stat(img)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	dev := attachImage(t, img).Devices[0].Device
	must(t, "sh", "-c", "printf 'label: gpt\\n,,\\n' | sfdisk --quiet --no-reread --no-tell-kernel "+dev)
	mustVhdxfs(t, "detach", img)
	dev = attachImage(t, img).Devices[0].Device
	must(t, "mkfs.ext4", "-q", "-m", "0", dev+"p1")
	fill(dev + "p1")
	must(t, "umount", point)
	mustVhdxfs(t, "detach", img)

	if out := mustVhdxfs(t, "info", img); !strings.Contains(out, "compact --trim reclaims about 1") { // 150 MiB or a little more
		t.Errorf("info: %s", out)
	}
	before := size()
	out := mustVhdxfs(t, "compact", "--dry-run", img)
	if !strings.Contains(out, "nothing was changed") || !strings.Contains(out, "--trim") || size() != before {
		t.Errorf("compact --dry-run of %d bytes: %d bytes, %s", before, size(), out)
	}
	if out := mustVhdxfs(t, "compact", img); !strings.Contains(out, "free space of the file systems inside") || size() < 150*mib {
		t.Errorf("compact: %d bytes, %s", size(), out)
	}
	if out := mustVhdxfs(t, "compact", "--trim", "--bytes", img); size() > 60*mib || !strings.Contains(out, fmt.Sprintf("was %d", before)) {
		t.Errorf("compact --trim: %d bytes, %s", size(), out)
	}
	if _, still := list(t, img); still {
		t.Error("compact --trim has left the image attached")
	}
	checkClean(t, img)

	// Mounted, what is mounted of it is trimmed.
	dev = attachImage(t, img).Devices[0].Device
	fill(dev + "p1")
	if out := mustVhdxfs(t, "compact", "--trim", img); size() > 60*mib {
		t.Errorf("compact --trim of a mounted disk: %d bytes, %s", size(), out)
	}
	if b, err := os.ReadFile(filepath.Join(point, "kept")); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, "umount", point)
	// Attached, but not mounted, there is nothing to trim.
	if r := vhdxfs(t, "compact", "--trim", img); r.status != warningsStatus || !strings.Contains(r.stderr, "none is trimmed") {
		t.Errorf("compact --trim of what is only attached: status %d, %q", r.status, r.stderr)
	}
	mustVhdxfs(t, "detach", img)
	checkClean(t, img)
}

// A file system that cannot be trimmed is named, also with the exit status. What can be reclaimed without it is, and nothing stays
// mounted or attached. What is no file system is no fault beside one.
func TestCompactTrimOfDamage(t *testing.T) {
	img := partitioned(t, "200M",
		part{"40MiB", "mkfs.ext4 -q -L good", nil}, part{"40MiB", "mkfs.ext4 -q -L bad", nil}, part{"20MiB", "mkswap", nil},
	)
	damage := func(n int) {
		t.Helper()
		dev := attachImage(t, img).Devices[0].Partitions[n-1].Device
		must(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1k", "seek=2", "count=60", "conv=notrunc", "status=none") // the group descriptors
		mustVhdxfs(t, "detach", img)
	}
	for _, tc := range []struct {
		damage, status int
		says           []string
	}{
		{0, 0, []string{"partition 3 (swap) is not trimmed"}},
		{2, warningsStatus, []string{`partition 2 (ext4 "bad") is not trimmed`, "damaged"}},
		{1, warningsStatus, []string{`partition 1 (ext4 "good") is not trimmed`, "no file system could be trimmed"}},
	} {
		if tc.damage > 0 {
			damage(tc.damage)
		}
		r := vhdxfs(t, "compact", "--trim", img)
		for _, says := range tc.says {
			if r.status != tc.status || !strings.Contains(r.stderr, says) || !strings.Contains(r.stdout, img+": ") {
				t.Errorf("with %d damaged: status %d, %q%q; want %d and %q", tc.damage, r.status, r.stdout, r.stderr, tc.status, says)
			}
		}
		checkClosed(t, img)
		checkClean(t, img)
	}
}
