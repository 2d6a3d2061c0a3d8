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
	mustVhdxfs(t, "detach", img)
	checkClean(t, img)
}
