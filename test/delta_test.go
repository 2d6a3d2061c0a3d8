package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A backup of a disk that is written every day: each night the disk is frozen by a snapshot, what changed since the last
// night goes to the backup as a delta, by a file or over a pipe, and the older snapshot is merged. The chain stays short, and
// the backup is the disk of that night.
func TestNightlyIncrements(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "bash")
	nights := 30
	if testing.Short() {
		nights = 5
	}
	const size = 24 * mib
	here, there := t.TempDir(), t.TempDir()
	live, last := filepath.Join(here, "disk.vhdx"), filepath.Join(here, "night0.vhdx")
	backup := filepath.Join(there, "backup.vhdx")
	mustVhdxfs(t, "create", live, fmt.Sprint(size))
	writeADay(t, live, 0, size)
	mustVhdxfs(t, "snapshot", "--keep-name", live, last)
	must(t, "cp", last, backup)
	for night := 1; night <= nights; night++ {
		writeADay(t, live, night, size)
		frozen := filepath.Join(here, fmt.Sprintf("night%d.vhdx", night))
		mustVhdxfs(t, "snapshot", "--keep-name", live, frozen)
		if night%2 == 0 {
			mustPipe(t, `$vhdxfs diff --output - "$1" "$2" | $vhdxfs apply - "$3"`, last, frozen, backup)
		} else {
			delta := filepath.Join(there, "delta.avhdx")
			mustVhdxfs(t, "diff", "--output", delta, last, frozen)
			mustVhdxfs(t, "apply", delta, backup)
			if got := mustVhdxfs(t, "apply", delta, backup); !strings.Contains(got, "already") {
				t.Errorf("a second time: %s", got)
			}
			must(t, "rm", delta)
		}
		if want, got := digestOf(t, frozen), digestOf(t, backup); got != want {
			t.Fatalf("night %d: the backup is another disk", night)
		}
		mustVhdxfs(t, "merge", "--keep-name", frozen)
		if want, got := digestOf(t, frozen), digestOf(t, backup); got != want {
			t.Fatalf("night %d: the merge has changed the disk", night)
		}
		last = frozen
	}
	checkClean(t, backup)
	checkClean(t, live)
	if list := strings.Fields(must(t, "ls", here)); len(list) != 2 {
		t.Errorf("files: %q", list)
	}
	if list := strings.Fields(must(t, "ls", there)); len(list) != 1 {
		t.Errorf("files of the backup: %q", list)
	}
}

// writeADay mounts the image and changes its disk: data of any size, and trims.
func writeADay(t *testing.T, image string, day int, size int64) {
	t.Helper()
	point := newDir(t)
	mustVhdxfs(t, image, point)
	defer vhdxfs(t, "umount", point) // where something fails
	disk := filepath.Join(point, "disk.raw")
	rng := rand.New(rand.NewPCG(uint64(day), 41))
	for range 6 {
		b := randomBytes(rng, 1+rng.IntN(200_000))
		writeAt(t, disk, b, rng.Int64N(size-int64(len(b))))
	}
	off := rng.Int64N(size-2*mib) / 4096 * 4096
	must(t, "fallocate", "--punch-hole", "--offset", fmt.Sprint(off), "--length", fmt.Sprint(mib+rng.Int64N(mib)/512*512), disk)
	mustVhdxfs(t, "umount", point) // which waits until the image is closed
}

func digestOf(t *testing.T, image string) string {
	t.Helper()
	return strings.Fields(mustVhdxfs(t, "hash", image))[0]
}

// What apply was doing when it was killed, it completes when it is called again; and what says otherwise changes nothing.
func TestApplyKilled(t *testing.T) {
	t.Parallel()
	notShort(t, "it kills a copy again and again")
	requireTools(t, "bash")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	a, b := randomRaw(t, 64*mib, 51), randomRaw(t, 64*mib, 52)
	writeAt(t, b, randomBytes(rand.New(rand.NewPCG(1, 53)), 30*mib), 20*mib)
	mustVhdxfs(t, "convert", a, path("a.vhdx"))
	mustVhdxfs(t, "convert", b, path("b.vhdx"))
	r := mustVhdxfs(t, "diff", "--json", "--output", path("delta.avhdx"), path("a.vhdx"), path("b.vhdx"))
	var report struct {
		Data, Zero int64
		Linkage    string `json:"parent_linkage"`
		ID         string `json:"data_write_guid"`
		SHA256     string
	}
	if err := json.Unmarshal([]byte(r), &report); err != nil || report.ID == "" || report.Linkage == report.ID || len(report.SHA256) != 64 {
		t.Fatalf("%v\n%s", err, r)
	}
	mustVhdxfs(t, "compare", "--strict", path("delta.avhdx"), b)
	checkClean(t, path("delta.avhdx"))
	base := path("sub/base.vhdx")
	must(t, "mkdir", path("sub"))
	for try := range 8 {
		must(t, "rm", "-f", base)
		must(t, "cp", path("a.vhdx"), base)
		cmd := exec.CommandContext(t.Context(), program.path(t), "apply", path("delta.avhdx"), base)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(try*try) * 12 * time.Millisecond) // it may be at any point, or done
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := os.Stat(base + ".apply"); err == nil {
			if r := vhdxfs(t, "apply", path("delta.avhdx"), base); r.status == 0 || !strings.Contains(r.stderr, "left from an interrupted") {
				t.Errorf("status %d, %q", r.status, r.stderr)
			}
			mustVhdxfs(t, "apply", base+".apply", base)
		} else {
			mustVhdxfs(t, "apply", path("delta.avhdx"), base)
		}
		mustVhdxfs(t, "compare", "--strict", base, b)
		checkClean(t, base)
		if list := strings.Fields(must(t, "ls", "-A", path("sub"))); len(list) != 1 {
			t.Errorf("files: %q", list)
		}
	}
	// Over a pipe that breaks.
	must(t, "cp", "-f", path("a.vhdx"), base)
	before := must(t, "sha256sum", base)
	for _, n := range []string{"100", "3M", "9M", "20M"} {
		said, ok := pipeline(t, `$vhdxfs diff --output - "$1" "$2" 2>/dev/null | head -c `+n+` | $vhdxfs apply - "$3"`, path("a.vhdx"), path("b.vhdx"), base)
		if ok || !strings.Contains(said, "standard input: ") {
			t.Errorf("%s: %t, %q", n, ok, said)
		}
	}
	if r := vhdxfs(t, "apply", path("delta.avhdx"), path("b.vhdx")); r.status != 0 || !strings.Contains(r.stdout, "already") {
		t.Errorf("status %d, %q%q", r.status, r.stdout, r.stderr)
	}
	mustVhdxfs(t, "convert", path("a.vhdx"), path("sub/other.vhdx"))
	if r := vhdxfs(t, "apply", path("delta.avhdx"), path("sub/other.vhdx")); r.status == 0 || !strings.Contains(r.stderr, "another disk") || !strings.Contains(r.stderr, "nothing was changed") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	mustVhdxfs(t, "compare", "--strict", path("sub/other.vhdx"), a)
	if after := must(t, "sha256sum", base); after != before {
		t.Error("the base was changed")
	}
}

// A disk that is full leaves nothing half: no delta, no files, and a base that is as it was, or whose work is completed when there is
// space.
func TestFullDiskOfDeltasAndFiles(t *testing.T) {
	t.Parallel()
	requireTools(t, "mke2fs")
	dir, tree := t.TempDir(), newDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	a, b := randomRaw(t, 40*mib, 54), randomRaw(t, 40*mib, 55)
	data := randomBytes(rand.New(rand.NewPCG(1, 56)), 16*mib)
	writeAt(t, b, data, 20*mib)
	for i := range 4 {
		writeFile(t, filepath.Join(tree, fmt.Sprint("file", i)), data[:4*mib])
	}
	mustVhdxfs(t, "convert", a, path("a.vhdx"))
	mustVhdxfs(t, "convert", b, path("b.vhdx"))
	mustVhdxfs(t, "diff", "--output", path("delta.avhdx"), path("a.vhdx"), path("b.vhdx"))
	files := imageOfTree(t, tree)

	at := smallFS(t, "tmpfs", "12")
	full := func(left int, args ...string) {
		t.Helper()
		r := vhdxfs(t, args...)
		if r.status != 2 || r.stdout != "" || !strings.Contains(r.stderr, at) || !strings.Contains(r.stderr, "no space left") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: status %d, %q%q", args, r.status, r.stdout, r.stderr)
		}
		if list := strings.Fields(must(t, "ls", "-A", at)); len(list) != left {
			t.Errorf("%q has left %q", args, list)
		}
	}
	full(0, "diff", "--output", at+"/delta.avhdx", path("a.vhdx"), path("b.vhdx"))
	full(0, "extract", files, "/", at+"/out")
	full(0, "extract", files, "/", at)
	must(t, "mount", "-o", "remount,size=20m", at)
	base := at + "/base.vhdx"
	must(t, "cp", "--sparse=always", path("a.vhdx"), base)
	before := sha256File(t, base)
	full(1, "apply", path("delta.avhdx"), base) // there is no room for the copy of the delta
	unchanged(t, base, before)
	must(t, "mount", "-o", "remount,size=30m", at)
	full(2, "apply", path("delta.avhdx"), base) // there is, but none for what it changes
	must(t, "mount", "-o", "remount,size=64m", at)
	mustVhdxfs(t, "apply", base+".apply", base)
	mustVhdxfs(t, "compare", "--strict", base, b)
	checkClean(t, base)
	if list := strings.Fields(must(t, "ls", "-A", at)); len(list) != 1 {
		t.Errorf("left are %q", list)
	}
}

// A delta can be applied to an image that a device holds: its copy is where the user says, not in /dev, where it would be lost.
func TestApplyToADevice(t *testing.T) {
	requireLoop(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	a, b := path("a.vhdx"), path("b.vhdx")
	mustVhdxfs(t, "create", a, "16M")
	writeADay(t, a, 1, 16*mib)
	must(t, "cp", a, b)
	writeADay(t, b, 2, 16*mib)
	mustVhdxfs(t, "diff", "--output", path("delta.avhdx"), a, b)
	must(t, "truncate", "-s", "128M", a)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", a))
	t.Cleanup(func() { command("losetup", "--detach", dev) })
	before := must(t, "sha256sum", dev)
	r := vhdxfs(t, "apply", path("delta.avhdx"), dev)
	if r.status != usageStatus || !strings.Contains(r.stderr, "--copy") {
		t.Errorf("status %d, %q; want a hint", r.status, r.stderr)
	}
	if _, err := os.Lstat(dev + ".apply"); err == nil {
		t.Errorf("%s.apply was made", dev)
		os.Remove(dev + ".apply")
	}
	if after := must(t, "sha256sum", dev); after != before && r.status != 0 {
		t.Error("the device was changed")
	}
	copied := path("copied.avhdx")
	must(t, "cp", path("delta.avhdx"), copied) // as an interrupted apply has left it
	if r := vhdxfs(t, "apply", "--copy", copied, path("delta.avhdx"), dev); r.status == 0 || !strings.Contains(r.stderr, "vhdxfs apply --copy "+copied+" "+copied+" "+dev) {
		t.Errorf("beside the copy of another apply: status %d, %q", r.status, r.stderr)
	}
	mustVhdxfs(t, "apply", "--copy", copied, copied, dev)
	mustVhdxfs(t, "compare", "--strict", dev, b)
	if _, err := os.Lstat(copied); err == nil {
		t.Error("the copy is left")
	}
	if out := mustVhdxfs(t, "apply", "--copy", copied, path("delta.avhdx"), dev); !strings.Contains(out, "already") {
		t.Errorf("again: %q", out)
	}
}
