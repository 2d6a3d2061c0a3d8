package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const differsStatus = 5

// randomRaw makes a raw disk with data in places and holes between, to its last byte.
func randomRaw(t *testing.T, size int64, seed uint64) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	must(t, "truncate", "--size", strconv.FormatInt(size, 10), raw)
	rng := rand.New(rand.NewPCG(seed, 6))
	for range 12 {
		b := randomBytes(rng, 1+rng.IntN(300_000))
		off := rng.Int64N(size - int64(len(b)))
		writeAt(t, raw, b, off)
	}
	writeAt(t, raw, []byte{1}, size-1)
	return raw
}

// What convert makes of a raw disk, other programs read as that disk; and what it makes of it again is the disk.
func TestConvertThereAndBack(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireFUSE(t)
	requireTools(t, "qemu-img", "vhdimount")
	const size = 50*mib + 3*512
	raw := randomRaw(t, size, 1)
	for _, tc := range []struct {
		name    string
		options []string
		sector  int64
	}{
		{"defaults", nil, 512},
		{"1 MiB", []string{"--block-size", "1M"}, 512},
		{"256 MiB", []string{"--block-size", "256M"}, 512},
		{"fixed", []string{"--type", "fixed", "--block-size", "4M"}, 512},
		{"zero blocks", []string{"--zero-blocks", "--block-size", "2M", "--log-size", "4M"}, 512},
		{"4096-byte sectors", []string{"--logical-sector-size", "4096"}, 4096},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img, back := filepath.Join(t.TempDir(), "disk.vhdx"), filepath.Join(t.TempDir(), "back.raw")
			mustVhdxfs(t, append(append([]string{"convert", "--verify"}, tc.options...), raw, img)...)
			checkClean(t, img)
			mustVhdxfs(t, "convert", "--verify", img, back)
			if tc.sector == 512 {
				must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", img, raw)
				sameContent(t, back, raw)
			}
			mustVhdxfs(t, "compare", raw, back)
			// What has no data takes no space.
			if got, most := used(t, back), used(t, raw)+12*64<<10; got > most {
				t.Errorf("the copy takes %d bytes, the disk %d", got, used(t, raw))
			}
			dir := newDir(t)
			must(t, "vhdimount", img, dir)
			defer unmount(t, dir)
			sameContent(t, filepath.Join(dir, "vhdi1"), back)
		})
	}
}

// What QEMU makes, convert reads.
func TestConvertFromQemu(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	const size = 40*mib + 512
	raw := randomRaw(t, size, 2)
	for _, options := range some([]string{"subformat=dynamic,block_size=1M", "subformat=dynamic,block_size=8M,block_state_zero=off", "subformat=fixed"}) {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			qemu, back, again := filepath.Join(dir, "qemu.vhdx"), filepath.Join(dir, "back.raw"), filepath.Join(dir, "again.vhdx")
			must(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, qemu)
			before := sha256File(t, qemu)
			mustVhdxfs(t, "convert", qemu, back)
			must(t, "cmp", "--bytes", strconv.Itoa(size), raw, back)
			mustVhdxfs(t, "convert", "--type", "dynamic", "--block-size", "2M", qemu, again)
			must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "vhdx", qemu, again)
			checkClean(t, again)
			mustVhdxfs(t, "compare", qemu, again)
			unchanged(t, qemu, before)
		})
	}
}

func TestConvertFromAPipe(t *testing.T) {
	t.Parallel()
	raw := randomRaw(t, 20*mib+100, 3) // in the middle of a sector
	for _, name := range []string{"disk.vhdx", "disk.raw"} {
		out := filepath.Join(t.TempDir(), name)
		must(t, "sh", "-c", `cat "$1" | "$2" convert --verify - "$3"`, "sh", raw, program.path(t), out)
		mustVhdxfs(t, "compare", raw, out)
		if name == "disk.raw" {
			sameContent(t, out, raw)
		} else {
			checkClean(t, out)
		}
	}
}

// A chain is flattened to what it shows when it is mounted.
func TestFlattenAChain(t *testing.T) {
	t.Parallel()
	v := variants[3]
	img := v.create(t, "32MiB")
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	writePattern(t, f, 0x77, 3*mib+512, 5*mib)
	f.Close()
	raw := filepath.Join(t.TempDir(), "want.raw")
	must(t, "cp", s.disk, raw)
	s.end(t)

	flat := filepath.Join(t.TempDir(), "flat.vhdx")
	mustVhdxfs(t, "flatten", "--verify", img, flat)
	checkClean(t, flat)
	sameContent(t, readOnly(t, flat).disk, raw)
	mustVhdxfs(t, "compare", "--strict", img, flat)

	var changed []struct{ Offset, Length int64 }
	if err := json.Unmarshal([]byte(mustVhdxfs(t, "diff", "--json", img)), &changed); err != nil {
		t.Fatal(err)
	}
	if len(changed) != 1 || changed[0].Offset != 3*mib+512 || changed[0].Length != 5*mib {
		t.Errorf("diff --json: %+v", changed)
	}
}

// backup copies the ranges that diff tells onto an old copy, which then is the new disk.
func TestDiffIsEnoughForABackup(t *testing.T) {
	t.Parallel()
	old := create(t, "64MiB", "--block-size", "1MiB")
	s := serve(t, old)
	f := openDisk(t, s.disk, 0)
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20 {
		writePattern(t, f, byte(1+rng.IntN(255)), rng.Int64N(60*mib), 1+rng.Int64N(2*mib))
	}
	f.Close()
	s.end(t)
	copied := filepath.Join(t.TempDir(), "copy.raw")
	mustVhdxfs(t, "convert", old, copied)

	child := childOf(t, old, "64MiB")
	s = serve(t, child)
	f = openDisk(t, s.disk, 0)
	for range 20 {
		writePattern(t, f, byte(rng.IntN(2)*(1+rng.IntN(255))), rng.Int64N(60*mib), 1+rng.Int64N(mib))
	}
	f.Close()
	s.end(t)
	s = readOnly(t, child)
	for _, args := range [][]string{{child}, {"--content", child}, {old, child}} {
		var ranges []struct {
			Offset, Length int64
			Zero           bool
		}
		if err := json.Unmarshal([]byte(mustVhdxfs(t, append([]string{"diff", "--json"}, args...)...)), &ranges); err != nil {
			t.Fatal(err)
		}
		backup := filepath.Join(t.TempDir(), "backup.raw")
		must(t, "cp", copied, backup)
		for _, r := range ranges {
			b := make([]byte, r.Length)
			if !r.Zero {
				b = readAt(t, s.disk, r.Offset, int(r.Length))
			}
			writeAt(t, backup, b, r.Offset)
		}
		sameContent(t, backup, s.disk)
	}
}

// A converting process reads a pipe that the test feeds.
type converting struct {
	cmd    *exec.Cmd
	feed   io.WriteCloser
	stderr logBuffer
}

// startConvert starts to convert a pipe, and returns when some MiB of it have been read.
func startConvert(t *testing.T, out string) *converting {
	t.Helper()
	c := &converting{cmd: exec.Command(program.path(t), "convert", "-", out)}
	c.cmd.Stderr = &c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if c.feed, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.feed.Close() })
	// More than a pipe and all buffers hold, so that some of it is written.
	if _, err := c.feed.Write(bytes.Repeat([]byte{0xA5}, 64*mib)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Whatever ends the command, there is no file under the final name, and none that could be taken for an image.
func TestInterruptedConvertLeavesNoImage(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := newDir(t)
			c := startConvert(t, filepath.Join(dir, "out.vhdx"))
			if err := c.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			c.cmd.Wait() // its status is looked at below
			left, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if sig == syscall.SIGKILL {
				// Where the file system knows no files without a name there is one with a name of its own.
				for _, e := range left {
					path := filepath.Join(dir, e.Name())
					if r := vhdxfs(t, "info", path); r.status != damagedStatus || !strings.HasSuffix(path, ".part") || unnamedFiles(dir) {
						t.Errorf("%s is left: info says %s%s", path, r.stdout, r.stderr)
					}
				}
				return
			}
			if len(left) > 0 || c.cmd.ProcessState.ExitCode() != 130 || c.stderr.String() != "vhdxfs: interrupted; no file is left\n" {
				t.Errorf("%v, %q; left: %v", c.cmd.ProcessState, c.stderr.String(), left)
			}
		})
	}
}

// unnamedFiles reports whether the file system of a directory knows files without a name.
func unnamedFiles(dir string) bool {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// On a full disk the command says so and leaves nothing, and what it was to replace is still there.
func TestConvertToAFullDisk(t *testing.T) {
	t.Parallel()
	raw := randomRaw(t, 60*mib, 4)
	writeAt(t, raw, bytes.Repeat([]byte{0x5A}, 16*mib), 8*mib)
	for _, fstype := range []string{"tmpfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) {
			dir := smallFS(t, fstype, "12")
			old := filepath.Join(dir, "out.vhdx")
			mustVhdxfs(t, "create", "--size", "1M", old)
			before := sha256File(t, old)
			list := func() []string {
				l, _ := filepath.Glob(filepath.Join(dir, "[!l]*"))
				h, _ := filepath.Glob(filepath.Join(dir, ".*"))
				return append(l, h...)
			}
			files := fmt.Sprint(list())
			for _, args := range [][]string{
				{"convert", "--force", raw, old},
				{"convert", raw, filepath.Join(dir, "new.raw")},
				{"convert", "--type", "fixed", raw, filepath.Join(dir, "new.vhdx")},
				{"create", "--type", "fixed", "--size", "60M", filepath.Join(dir, "new.vhdx")},
			} {
				r := vhdxfs(t, args...)
				if r.status != 2 || !strings.Contains(r.stderr, "no space left") || strings.Count(r.stderr, "\n") != 1 {
					t.Errorf("vhdxfs %s: exit status %d, %q", strings.Join(args, " "), r.status, r.stderr)
				}
				unchanged(t, old, before)
				if now := fmt.Sprint(list()); now != files {
					t.Errorf("vhdxfs %s: %s is left, before it was %s", strings.Join(args, " "), now, files)
				}
			}
		})
	}
}

// loopDeviceOf attaches a file to a loop device that can be written.
func loopDeviceOf(t *testing.T, file string) string {
	t.Helper()
	requireLoop(t)
	return attachRW(t, file, 512).dev
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestConvertBlockDevices(t *testing.T) {
	raw := randomRaw(t, 20*mib, 5)
	back := filepath.Join(t.TempDir(), "device.raw")
	writeFile(t, back, bytes.Repeat([]byte{0xFF}, 24*mib)) // larger than the disk, and full of old bytes
	dev := loopDeviceOf(t, back)
	img := filepath.Join(t.TempDir(), "disk.vhdx")
	mustVhdxfs(t, "convert", raw, img)

	r := vhdxfs(t, "convert", img, dev)
	if r.status != usageStatus || !strings.Contains(r.stderr, "force") {
		t.Errorf("without force: exit status %d, %q", r.status, r.stderr)
	}
	if b := readAt(t, back, 0, mib); !bytes.Equal(b, bytes.Repeat([]byte{0xFF}, mib)) {
		t.Error("the device was changed")
	}
	mustVhdxfs(t, "convert", "--verify", "--force", img, dev)
	must(t, "cmp", "--bytes", strconv.Itoa(20*mib), raw, dev)
	if b := readAt(t, dev, 20*mib, 4*mib); !bytes.Equal(b, bytes.Repeat([]byte{0xFF}, 4*mib)) {
		t.Error("bytes behind the disk were changed")
	}
	// The device as the input.
	again := filepath.Join(t.TempDir(), "again.vhdx")
	mustVhdxfs(t, "convert", "--verify", dev, again)
	mustVhdxfs(t, "compare", dev, again)

	if r := vhdxfs(t, "convert", "--dry-run", "--force", img, dev); r.status != 0 || !strings.Contains(r.stdout, "would be overwritten") {
		t.Errorf("--dry-run: exit status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	must(t, "cmp", "--bytes", strconv.Itoa(20*mib), raw, dev)

	small := filepath.Join(t.TempDir(), "small.raw")
	writeFile(t, small, bytes.Repeat([]byte{0xFF}, 4*mib))
	before := sha256File(t, small)
	if r := vhdxfs(t, "convert", "--force", img, loopDeviceOf(t, small)); r.status != 2 || !strings.Contains(r.stderr, "too small: it has 4 MiB, the disk 20 MiB") {
		t.Errorf("a device that is too small: exit status %d, %q", r.status, r.stderr)
	}
	unchanged(t, small, before)

	// The file of a device is not taken from under it.
	before = sha256File(t, back)
	if r := vhdxfs(t, "convert", "--force", img, back); r.status != 2 || !strings.Contains(r.stderr, dev+" is attached to it") {
		t.Errorf("a raw file that a loop device shows: exit status %d, %q", r.status, r.stderr)
	}
	unchanged(t, back, before)

	must(t, "mkfs.ext4", "-q", "-F", dev)
	dir := newDir(t)
	must(t, "mount", dev, dir)
	defer unmount(t, dir)
	if r := vhdxfs(t, "convert", "--force", img, dev); r.status == 0 || !strings.Contains(r.stderr, "busy") {
		t.Errorf("a device that is mounted: exit status %d, %q", r.status, r.stderr)
	}
}

// An image that is being written is neither read nor replaced.
// The sectors of a device are those of its image, and a disk that goes to a device with others has a warning.
func TestConvertKeepsTheSectorsOfDevices(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "device.raw"), bytes.Repeat([]byte("disk"), 8*mib/4))
	requireLoop(t)
	dev := attachRW(t, filepath.Join(dir, "device.raw"), 4096).dev
	large, small := filepath.Join(dir, "large.vhdx"), filepath.Join(dir, "small.vhdx")
	for _, args := range [][]string{{"convert", dev, large}, {"create", "--from", dev, large}} {
		r := vhdxfs(t, append(args, "--force")...)
		if got := info(t, large).LogicalSectorSize; r.status != 0 || got != 4096 || strings.Contains(r.stderr, "warning") {
			t.Errorf("%q: exit status %d, %q, sectors of %d bytes", args, r.status, r.stderr, got)
		}
	}
	if r := vhdxfs(t, "convert", "--logical-sector-size", "512", dev, small); r.status != 0 || !strings.Contains(r.stderr, "warning") {
		t.Errorf("other sectors were asked for: exit status %d, %q", r.status, r.stderr)
	}
	// Nothing says so of a disk without partitions in sectors of 512 bytes, but for the image.
	if r := vhdxfs(t, "convert", "--force", small, dev); r.status != 0 || !strings.Contains(r.stderr, "sectors of 4096 bytes") {
		t.Errorf("to a device of other sectors: exit status %d, %q", r.status, r.stderr)
	}
}

func TestToolsKeepTheLocks(t *testing.T) {
	t.Parallel()
	img := create(t, "16MiB")
	s := serve(t, img)
	out := filepath.Join(t.TempDir(), "out.vhdx")
	raw := randomRaw(t, mib, 8)
	for _, args := range [][]string{
		{"convert", img, out},
		{"convert", "--force", raw, img},
		{"create", "--force", "--size", "1M", img},
		{"create", "--parent", img, out},
		{"flatten", img, out},
	} {
		refusedBy(t, s.cmd.Process.Pid, img, args...)
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.end(t)
	checkClean(t, img)
}

// On a terminal there is a bar, and it is gone in the end.
func TestProgressOnATerminal(t *testing.T) {
	requireTools(t, "script")
	raw, out := randomRaw(t, 30*mib, 9), filepath.Join(t.TempDir(), "out.vhdx")
	run := func(options string) string {
		line := fmt.Sprintf("%s convert --force %s --verify %s %s", program.path(t), options, raw, out)
		return must(t, "script", "--quiet", "--return", "--command", line, "/dev/null")
	}
	if text := run(""); !strings.Contains(text, "copy") || !strings.Contains(text, "verify") || !strings.Contains(text, "%") {
		t.Errorf("no bar:\n%q", text)
	}
	if text := run("--quiet"); strings.Contains(text, "%") {
		t.Errorf("a bar in spite of --quiet:\n%q", text)
	}
}

// A disk of 64 TiB takes the time and memory of what it holds.
func TestToolsOnAHugeDisk(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	img := create(t, "64TiB", "--block-size", "1MiB")
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	for i := range int64(5) {
		writePattern(t, f, byte(i+1), i*(13<<40)+mib/2, mib)
	}
	f.Close()
	s.end(t)
	other := filepath.Join(t.TempDir(), "other.vhdx")
	mustVhdxfs(t, "convert", "--verify", "--block-size", "64M", img, other)
	mustVhdxfs(t, "compare", img, other)
	child := childOf(t, img, "64TiB")
	mustVhdxfs(t, "chain", child)
	if out := mustVhdxfs(t, "map", "--draw", child); !strings.Contains(out, "10 MiB") {
		t.Errorf("map --draw:\n%s", out)
	}
	if r := vhdxfs(t, "compare", img, create(t, "64TiB")); r.status != differsStatus {
		t.Errorf("compare with an empty disk: exit status %d, %s", r.status, r.stderr)
	}
}

// A device is not overwritten by a copy of itself, of what lies on it, or of what it lies on.
func TestConvertRefusesDeviceOfInput(t *testing.T) {
	back := randomRaw(t, 20*mib, 7)
	sum := sha256File(t, back)
	whole := loopDeviceOf(t, back)
	part := func(of, offset, size string) string {
		dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", "--offset", offset, "--sizelimit", size, of))
		t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
		return dev
	}
	first, above, second := part(back, "1M", "8M"), part(whole, "2M", "4M"), part(back, "9M", "10M")
	for _, c := range [][2]string{
		{back, whole}, {back, first}, {whole, whole}, {whole, first}, {first, whole}, {above, first}, {first, above}, {back, above}, {"-", whole}, {"-", above},
	} {
		for _, more := range []string{"--dry-run", "--verify"} {
			cmd := exec.Command(program.path(t), "convert", "-f", "raw", "-O", "raw", "--force", more, c[0], c[1])
			stdin, err := os.Open(back)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin = stdin
			out, _ := cmd.CombinedOutput()
			stdin.Close()
			if cmd.ProcessState.ExitCode() != usageStatus || !strings.Contains(string(out), c[1]+" is also an input") {
				t.Errorf("%s to %s, %s: exit status %d, %q", c[0], c[1], more, cmd.ProcessState.ExitCode(), out)
			}
		}
	}
	if sha256File(t, back) != sum {
		t.Error("the input was changed")
	}
	mustVhdxfs(t, "convert", "-f", "raw", "-O", "raw", "--force", "--verify", first, second)
}

// What is made of a private file on standard input is as private.
func TestCopyOfPrivateStandardInputIsPrivate(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, "cp", randomRaw(t, 3*mib, 8), path("a.raw"))
	mustVhdxfs(t, "convert", path("a.raw"), path("a.vhdx"))
	mustVhdxfs(t, "convert", "-O", "vhd", path("a.raw"), path("a.vhd"))
	for _, in := range []string{"a.raw", "a.vhdx", "a.vhd"} {
		if err := os.Chmod(path(in), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"convert", "-", "out.raw"}, {"convert", "-", "out.vhdx"}, {"convert", "-O", "vhd", "-", "out.vhd"}, {"create", "--from", "-", "new.vhdx"}} {
			cmd := exec.Command(program.path(t), args...)
			cmd.Dir = dir
			stdin, err := os.Open(path(in))
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin = stdin
			text, err := cmd.CombinedOutput()
			stdin.Close()
			if err != nil {
				t.Fatalf("%v: %v, %s", args, err, text)
			}
			out := path(args[len(args)-1])
			if mode := stat(t, out).Mode & 0o777; mode&0o077 != 0 {
				t.Errorf("%v of %s: permissions %o", args, in, mode)
			}
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
		}
	}
}
