package test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What check answers, besides damagedStatus.
const (
	soundStatus   = 0
	warningStatus = 3
)

// batEntry returns where the BAT entry of payload block n is, in a small image.
func batEntry(t *testing.T, img string, n int64) int64 {
	t.Helper()
	return regionOffset(t, img, batRegion) + 8*n
}

// setBATEntry stores a BAT entry of a small image, and returns the one that was there.
func setBATEntry(t *testing.T, img string, n int64, e uint64) (before uint64) {
	t.Helper()
	at := batEntry(t, img, n)
	before = binary.LittleEndian.Uint64(readAt(t, img, at, 8))
	writeAt(t, img, binary.LittleEndian.AppendUint64(nil, e), at)
	return before
}

// A repairCase damages the image of a disk with blocks of 1 MiB, the first four of them full of the byte i+1.
type repairCase struct {
	name   string
	damage func(t *testing.T, img string)
	found  int               // what check answers before
	status int               // what check --repair answers
	says   string            // part of what it says
	want   func(disk []byte) // changes what the disk should read as
}

var repairCases = []repairCase{
	{"header 1", func(t *testing.T, img string) { writeAt(t, img, []byte{0xFF}, 64<<10+30) }, warningStatus, soundStatus, "header 1 is invalid", nil},
	{"header 2", func(t *testing.T, img string) { writeAt(t, img, make([]byte, 4096), 128<<10) }, warningStatus, soundStatus, "header 2 is invalid", nil},
	{"region table 1", func(t *testing.T, img string) { writeAt(t, img, []byte{0xFF}, 192<<10+40) }, warningStatus, soundStatus, "copy 1 is written from copy 2", nil},
	{"region table 2", func(t *testing.T, img string) { writeAt(t, img, []byte{0xFF}, 256<<10+40) }, warningStatus, soundStatus, "copy 2 is written from copy 1", nil},
	{"identifier", func(t *testing.T, img string) { writeAt(t, img, make([]byte, 512), 0) }, damagedStatus, soundStatus, "rewritten, because everything else is present", nil},
	{"block outside the file", func(t *testing.T, img string) { setBATEntry(t, img, 1, 1<<50|6) }, damagedStatus, warningStatus,
		"lost, on the disk at 0x100000 (1 MiB)", func(disk []byte) { clear(disk[mib : 2*mib]) }},
	{"block in the metadata", func(t *testing.T, img string) { setBATEntry(t, img, 1, uint64(regionOffset(t, img, metadataRegion))|6) }, damagedStatus, warningStatus,
		"lost, on the disk at 0x100000 (1 MiB)", func(disk []byte) { clear(disk[mib : 2*mib]) }},
	{"overlap", func(t *testing.T, img string) {
		first := setBATEntry(t, img, 0, 0)
		setBATEntry(t, img, 0, first)
		setBATEntry(t, img, 3, first)
	}, damagedStatus, warningStatus, "suspect, on the disk at 0x300000 (1 MiB), 0x0 (1 MiB)", func(disk []byte) { copy(disk[3*mib:4*mib], disk) }},
	{"flipped state", func(t *testing.T, img string) {
		e := setBATEntry(t, img, 2, 0)
		setBATEntry(t, img, 2, e&^7|4)
	}, damagedStatus, warningStatus, "suspect, on the disk at 0x200000 (1 MiB)", nil},
	{"reserved bits", func(t *testing.T, img string) {
		e := setBATEntry(t, img, 2, 0)
		setBATEntry(t, img, 2, e|0x1000)
	}, warningStatus, soundStatus, "the reserved bits are cleared", nil},
	{"truncated", func(t *testing.T, img string) {
		if err := os.Truncate(img, stat(t, img).Size-mib-mib/4); err != nil {
			t.Fatal(err)
		}
	}, damagedStatus, warningStatus, "the file ends inside block 2", func(disk []byte) { clear(disk[3*mib-mib/4 : 4*mib]) }},
	{"longer", func(t *testing.T, img string) { writeAt(t, img, make([]byte, 5), stat(t, img).Size+3*mib+5) }, soundStatus, soundStatus, "3 MiB removed from the end of the file", nil},
}

// repairSample makes an image for a repairCase, and returns it with what its disk holds.
func repairSample(t *testing.T) (img string, disk []byte) {
	t.Helper()
	img = create(t, "8M", "--block-size", "1M")
	placeBlocks(t, img, map[int64]byte{0: 1, 1: 2, 2: 3, 3: 4})
	checkClean(t, img)
	for b := range byte(4) {
		disk = append(disk, fill(b+1)...)
	}
	return img, append(disk, make([]byte, 4*mib)...)
}

// holdsDisk fails the test unless the disk of the image reads as it should, for us and for QEMU.
func holdsDisk(t *testing.T, img string, disk []byte) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "want.raw")
	if err := os.WriteFile(raw, disk, 0o666); err != nil {
		t.Fatal(err)
	}
	mustVhdxfs(t, "compare", img, raw)
	must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", img, raw)
}

// Damage is found, repaired to what check and QEMU call sound, costs the disk no more than it says, and the repair can be
// undone to the byte.
func TestRepair(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	for _, tc := range some(repairCases) {
		t.Run(tc.name, func(t *testing.T) {
			img, disk := repairSample(t)
			tc.damage(t, img)
			before := sha256File(t, img)
			if r := vhdxfs(t, "check", img); r.status != tc.found {
				t.Errorf("check: exit status %d, want %d\n%s", r.status, tc.found, r.stdout)
			}
			dry := vhdxfs(t, "check", "--repair", "--dry-run", img)
			if dry.status != tc.found || !strings.Contains(dry.stdout, "would be repaired") || !strings.Contains(dry.stdout, tc.says) {
				t.Errorf("dry run: exit status %d\n%s", dry.status, dry.stdout)
			}
			unchanged(t, img, before)

			r := vhdxfs(t, "check", "--repair", img)
			if r.status != tc.status || !strings.Contains(r.stdout, tc.says) || r.stderr != "" {
				t.Errorf("repair: exit status %d, want %d\n%s%s", r.status, tc.status, r.stdout, r.stderr)
			}
			checkClean(t, img)
			if tc.want != nil {
				tc.want(disk)
			}
			holdsDisk(t, img, disk)

			mustVhdxfs(t, "check", "--undo", img+".undo")
			unchanged(t, img, before)
		})
	}
}

// What is lost hides the parent, and is not replaced by its old bytes.
func TestRepairOfAChildHidesItsParent(t *testing.T) {
	t.Parallel()
	parent := create(t, "8M", "--block-size", "1M")
	placeBlocks(t, parent, map[int64]byte{0: 0xA, 1: 0xB})
	child := childOf(t, parent, "8M")
	placeBlocks(t, child, map[int64]byte{0: 1, 1: 2})
	setBATEntry(t, child, 0, 1<<50|6)
	before, parentBefore := sha256File(t, child), sha256File(t, parent)
	if r := vhdxfs(t, "check", "--repair", child); r.status != warningStatus {
		t.Fatalf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	checkClean(t, child)
	raw := filepath.Join(t.TempDir(), "child.raw")
	mustVhdxfs(t, "convert", child, raw)
	if got := readAt(t, raw, 0, 2*mib); !zero(got[:mib]) || !bytes.Equal(got[mib:], fill(2)) {
		t.Errorf("the lost block begins with %#x, the other with %#x", got[0], got[mib])
	}
	mustVhdxfs(t, "check", "--undo", child+".undo")
	unchanged(t, child, before)
	unchanged(t, parent, parentBefore)
}

// Nothing that is wrong is nothing that is changed.
func TestRepairOfSoundImages(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			img := v.create(t, "32M")
			before := sha256File(t, img)
			if out := mustVhdxfs(t, "check", "--repair", img); !strings.Contains(out, "nothing to repair") {
				t.Errorf("check --repair:\n%s", out)
			}
			unchanged(t, img, before)
			noUndoFile(t, img)
		})
	}
}

func noUndoFile(t *testing.T, img string) {
	t.Helper()
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(img), "*.undo*"))
	parts, _ := filepath.Glob(filepath.Join(filepath.Dir(img), ".*.part"))
	if len(left)+len(parts) > 0 {
		t.Errorf("left behind: %v %v", left, parts)
	}
}

// An image whose program was killed has its log replayed, and the undo brings the log back.
func TestRepairReplaysTheLog(t *testing.T) {
	t.Parallel()
	img := create(t, "32M", "--block-size", "1M")
	s := serveToKill(t, img, "-o", "idle_clean=0,commit=0")
	f := openDisk(t, s.disk, 0)
	writePattern(t, f, 0x33, mib, 5*mib)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.kill()
	if state := info(t, img).Log.State; state == "clean" {
		t.Fatal("the image is clean, so there is nothing to replay")
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	mustVhdxfs(t, "convert", img, raw)
	before := sha256File(t, img)
	if out := mustVhdxfs(t, "check", "--repair", img); !strings.Contains(out, "replayed") {
		t.Errorf("check --repair:\n%s", out)
	}
	if state := info(t, img).Log.State; state != "clean" {
		t.Errorf("the log is %s", state)
	}
	checkClean(t, img)
	mustVhdxfs(t, "compare", img, raw)
	mustVhdxfs(t, "check", "--undo", img+".undo")
	unchanged(t, img, before)
}

// A log that cannot be replayed is given up only where the user says so.
func TestRepairDropsALog(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	img, disk := repairSample(t)
	// Both headers name a log that holds nothing.
	for i, off := range []int64{64 << 10, 128 << 10} {
		h := readAt(t, img, off, 4096)
		copy(h[48:64], "no log has this!")
		stampHeader(h, uint64(i)+100)
		writeAt(t, img, h, off)
	}
	before := sha256File(t, img)
	r := vhdxfs(t, "check", "--repair", img)
	if r.status != damagedStatus || !strings.Contains(r.stdout, "--drop-log") || !strings.Contains(r.stdout, "nothing was changed") {
		t.Errorf("without --drop-log: exit status %d\n%s", r.status, r.stdout)
	}
	unchanged(t, img, before)
	noUndoFile(t, img)
	r = vhdxfs(t, "check", "--repair", "--drop-log", img)
	if r.status != warningStatus || !strings.Contains(r.stdout, "the log is discarded") {
		t.Errorf("with --drop-log: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	checkClean(t, img)
	holdsDisk(t, img, disk)
	mustVhdxfs(t, "check", "--undo", img+".undo")
	unchanged(t, img, before)
}

// What cannot be repaired is told, with what can be done, and nothing is changed.
func TestRepairRefuses(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, img string){
		"both headers": func(t *testing.T, img string) {
			writeAt(t, img, []byte{0xFF}, 64<<10+30)
			writeAt(t, img, []byte{0xFF}, 128<<10+30)
		},
		"both region tables": func(t *testing.T, img string) {
			writeAt(t, img, []byte{0xFF}, 192<<10+30)
			writeAt(t, img, []byte{0xFF}, 256<<10+30)
		},
		"metadata": func(t *testing.T, img string) {
			writeAt(t, img, make([]byte, 4096), regionOffset(t, img, metadataRegion))
		},
		"no VHDX": func(t *testing.T, img string) { writeAt(t, img, make([]byte, mib), 0) },
		"a header and a block, and both region tables": func(t *testing.T, img string) {
			writeAt(t, img, []byte{0xFF}, 64<<10+30)
			setBATEntry(t, img, 1, 1<<50|6)
			writeAt(t, img, []byte{0xFF}, 192<<10+30)
			writeAt(t, img, []byte{0xFF}, 256<<10+30)
		},
	} {
		t.Run(name, func(t *testing.T) {
			img, _ := repairSample(t)
			damage(t, img)
			before := sha256File(t, img)
			for _, more := range []string{"--drop-log", "--free-leaks"} {
				r := vhdxfs(t, "check", "--repair", more, img)
				if r.status != damagedStatus || !strings.Contains(r.stdout, "cannot be repaired") || !strings.Contains(r.stdout, "nothing was changed") {
					t.Errorf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
				}
			}
			unchanged(t, img, before)
			noUndoFile(t, img)
		})
	}
}

// An image in use is left alone, whoever uses it, and by either command.
func TestRepairInUse(t *testing.T) {
	t.Parallel()
	img, _ := repairSample(t)
	writeAt(t, img, []byte{0xFF}, 128<<10+30)
	before := sha256File(t, img)
	s := serve(t, img, "-o", "ro")
	if r := vhdxfs(t, "check", "--repair", img); r.status == 0 || !strings.Contains(r.stderr, "already mounted") {
		t.Errorf("mounted: exit status %d\n%s", r.status, r.stderr)
	}
	s.end(t)
	unchanged(t, img, before)
	noUndoFile(t, img)
	if r := vhdxfs(t, "check", "--repair", img); r.status != soundStatus {
		t.Fatalf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	s = serve(t, img)
	if r := vhdxfs(t, "check", "--undo", img+".undo"); r.status == 0 || !strings.Contains(r.stderr, "already mounted") {
		t.Errorf("undo while mounted: exit status %d\n%s", r.status, r.stderr)
	}
	f := openDisk(t, s.disk, 0)
	writePattern(t, f, 0x44, 0, 100)
	f.Close()
	s.end(t)

	// It was written since, which an undo would destroy.
	now := sha256File(t, img)
	if r := vhdxfs(t, "check", "--undo", img+".undo"); r.status != 1 || !strings.Contains(r.stderr, "--force") {
		t.Errorf("undo after a write: exit status %d\n%s", r.status, r.stderr)
	}
	unchanged(t, img, now)
}

// Where the undo file has no room, the image is not touched.
func TestRepairWithoutRoomForTheUndoFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system without room")
	}
	t.Parallel()
	img, _ := repairSample(t)
	writeAt(t, img, bytes.Repeat([]byte("leak"), 2*mib), stat(t, img).Size)
	before := sha256File(t, img)
	small := newDir(t)
	must(t, "mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small)
	t.Cleanup(func() { unmount(t, small) })
	r := vhdxfs(t, "check", "--repair", "--free-leaks", "--undo-file", filepath.Join(small, "undo"), img)
	if r.status != 2 || !strings.Contains(r.stderr, "the image is unchanged") || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	unchanged(t, img, before)
	if list, err := os.ReadDir(small); err != nil || len(list) > 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	mustVhdxfs(t, "check", "--repair", img)
	unchanged(t, img, before)
}

// The undo file of a device is not put among the devices. A device cannot grow, and stays as it is where it would have to.
func TestRepairOfADevice(t *testing.T) {
	requireLoop(t)
	img, _ := repairSample(t)
	writeAt(t, img, []byte{0xFF}, 128<<10+30)
	before := sha256File(t, img)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", img))
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	if r := vhdxfs(t, "check", "--repair", dev); r.status != 1 || !strings.Contains(r.stderr, "--undo-file") {
		t.Errorf("without --undo-file: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	undo := filepath.Join(t.TempDir(), "undo")
	if r := vhdxfs(t, "check", "--repair", "--undo-file", undo, dev); r.status != soundStatus {
		t.Errorf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	// The undo file does not lead to a device: only an image beside it, or one that is named, is written.
	if r := vhdxfs(t, "check", "--undo", undo); r.status != systemStatus || !strings.Contains(r.stderr, "name it") {
		t.Errorf("undo without the device: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	mustVhdxfs(t, "check", "--undo", undo, dev)
	if got := sha256File(t, dev); got != before {
		t.Error("the undo did not restore the device")
	}
	first := binary.LittleEndian.Uint64(readAt(t, dev, batEntry(t, dev, 0), 8))
	setBATEntry(t, dev, 3, first)
	before = sha256File(t, dev)
	if r := vhdxfs(t, "check", "--repair", "--undo-file", undo+"2", dev); r.status != 2 || !strings.Contains(r.stderr, "device") {
		t.Errorf("overlap: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	if got := sha256File(t, dev); got != before {
		t.Error("the refused repair changed the device")
	}
}

// A device stays as large as it is, so check does not tell that compact makes it smaller.
func TestCheckOfADevice(t *testing.T) {
	requireLoop(t)
	img := create(t, "16M")
	if err := os.Truncate(img, 40<<20); err != nil {
		t.Fatal(err)
	}
	if out := mustVhdxfs(t, "check", img); !strings.Contains(out, "compact reclaims it") {
		t.Errorf("a file: %s", out)
	}
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", img))
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	if out := mustVhdxfs(t, "check", dev); !strings.Contains(out, "of the device is unused\n") {
		t.Errorf("a device: %s", out)
	}
}

// Killed at any moment, a repair leaves an image that nobody has touched, or an undo file that restores it, or both.
func TestRepairKilled(t *testing.T) {
	t.Parallel()
	notShort(t, "it kills a repair again and again")
	img := create(t, "64M", "--block-size", "1M")
	blocks := map[int64]byte{}
	for n := range int64(60) {
		blocks[n] = byte(n + 1)
	}
	placeBlocks(t, img, blocks)
	first := binary.LittleEndian.Uint64(readAt(t, img, batEntry(t, img, 0), 8))
	for n := range int64(60) {
		setBATEntry(t, img, n, first) // 59 blocks are to be copied
	}
	before := sha256File(t, img)
	undone := 0
	for i := range 12 {
		cmd := exec.Command(program.path(t), "check", "--repair", img)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 8 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		undo := img + ".undo"
		if _, err := os.Stat(undo); err == nil {
			mustVhdxfs(t, "check", "--undo", undo)
			undone++
			if err := os.Remove(undo); err != nil {
				t.Fatal(err)
			}
		}
		unchanged(t, img, before)
	}
	t.Logf("of 12 repairs %d were undone, the others had not begun", undone)
}

func TestRepairJSON(t *testing.T) {
	t.Parallel()
	img, _ := repairSample(t)
	setBATEntry(t, img, 1, 1<<50|6)
	r := vhdxfs(t, "check", "--repair", "--json", img)
	var report struct {
		Before, After struct{ Errors []struct{ Rule string } }
		Repairs       []struct {
			Rule, Structure, Message, Done, Effect string
			Offset                                 int64
			Ranges                                 []struct{ Start, Length int64 }
		}
		Left     []struct{}
		UndoFile string `json:"undo_file"`
		Undo     int64  `json:"undo_bytes"`
		Changed  bool
	}
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
	}
	if len(report.Before.Errors) != 1 || len(report.After.Errors) != 0 || len(report.Repairs) != 1 || report.Left == nil || !report.Changed ||
		report.UndoFile != img+".undo" || report.Undo != stat(t, report.UndoFile).Size || r.status != warningStatus {
		t.Fatalf("exit status %d, report %+v", r.status, report)
	}
	f := report.Repairs[0]
	if f.Rule != "R47" || f.Structure != "BAT entry" || f.Offset != batEntry(t, img, 1) || f.Effect != "lost" || f.Done == "" ||
		len(f.Ranges) != 1 || f.Ranges[0].Start != mib || f.Ranges[0].Length != mib {
		t.Errorf("repair %+v", f)
	}
	if r := vhdxfs(t, "check", "--undo", report.UndoFile, "--json"); r.status != 0 || !strings.Contains(r.stdout, `"restored_bytes"`) {
		t.Errorf("undo: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}

func TestRepairUsage(t *testing.T) {
	t.Parallel()
	img, _ := repairSample(t)
	before := sha256File(t, img)
	for _, args := range [][]string{
		{"--dry-run", img},
		{"--drop-log", img},
		{"--undo-file", "x", img},
		{"--force", img},
		{"--repair", "--force", img},
		{"--repair", "--undo", "x", img},
		{"--repair"},
		{"--repair", "-o", "ignore_parent_mismatch", img},
		{"--undo", "x", img, img},
	} {
		if r := vhdxfs(t, append([]string{"check"}, args...)...); r.status != 1 || r.stdout != "" {
			t.Errorf("check %q: exit status %d\n%s%s", args, r.status, r.stdout, r.stderr)
		}
	}
	for _, file := range []string{filepath.Join(t.TempDir(), "none"), img} {
		if r := vhdxfs(t, "check", "--undo", file, img); r.status != 2 || r.stderr == "" {
			t.Errorf("undo file %s: exit status %d\n%s", file, r.status, r.stderr)
		}
	}
	unchanged(t, img, before)
}

// Images of other programs: each is repaired as far as anything is wrong, shows the same disk, and is itself again
// after the undo. So it is with some damage done to it.
func TestRepairOfTheCorpus(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		for name, damage := range map[string]func(t *testing.T, img string){
			"as it is": func(*testing.T, string) {},
			"copies and junk": func(t *testing.T, img string) {
				writeAt(t, img, []byte{0xFF}, 64<<10+30)
				writeAt(t, img, []byte{0xFF}, 192<<10+30)
				writeAt(t, img, fill(7), (stat(t, img).Size+mib-1)/mib*mib+mib)
			},
			"metadata": func(t *testing.T, img string) { writeAt(t, img, make([]byte, 8), regionOffset(t, img, metadataRegion)) },
		} {
			t.Run(ci.Name+"/"+name, func(t *testing.T) {
				img, want := c.unpackChain(t, ci)
				damage(t, img)
				before := sha256File(t, img)
				r := vhdxfs(t, "check", "--repair", "--json", img)
				var report struct {
					Left    []struct{ Rule string }
					Repairs []struct{ Effect, Done string }
					Changed bool
				}
				if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
					t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
				}
				t.Logf("exit status %d: %+v", r.status, report)
				if len(report.Left) > 0 {
					unchanged(t, img, before)
					noUndoFile(t, img)
					return
				}
				for _, f := range report.Repairs {
					if f.Effect != "none" {
						t.Errorf("repair %+v", f)
					}
				}
				raw := filepath.Join(t.TempDir(), "disk.raw")
				mustVhdxfs(t, "convert", img, raw)
				if got, _ := sparseDigest(t, raw); got != want.Sparse {
					t.Errorf("sparse digest %s, want %s", got, want.Sparse)
				}
				if !report.Changed {
					unchanged(t, img, before)
					return
				}
				mustVhdxfs(t, "check", "--undo", img+".undo")
				unchanged(t, img, before)
			})
		}
	}
}

// stampHeader gives a header another sequence number, and the checksum that it needs (MS-VHDX 2.2.2).
func stampHeader(h []byte, sequence uint64) {
	binary.LittleEndian.PutUint64(h[8:], sequence)
	binary.LittleEndian.PutUint32(h[4:], 0)
	binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli)))
}
