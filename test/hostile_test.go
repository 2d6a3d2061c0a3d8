package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A hostileImage is made to cost as much as it can. Offsets and states are those of MS-VHDX 2.5.
type hostileImage struct {
	name string
	make func(t *testing.T, dir string) string
}

const hostileBlocks = 32 << 10 // of 1 MiB

// hostileImages are the worst that were found.
var hostileImages = []hostileImage{
	{"each block has an offset without a state", hostileTable(func(n uint64) uint64 { return (n + 4) << 20 })},
	{"each block refers to a place outside the file", hostileTable(func(n uint64) uint64 { return 1<<63 | n<<20 | 3 })},
	{"each block keeps one place", hostileTable(func(n uint64) uint64 { return 4<<20 | 1 + n%2*2 })},
	{"each block has a state that there is not", hostileTable(func(n uint64) uint64 { return n<<20 | 4 })},
	{"each block has reserved bits", hostileTable(func(n uint64) uint64 { return 2 | (n%0xFFFF+1)<<4 })},
	{"each block lies outside the file", hostileTable(func(n uint64) uint64 { return (1<<43+n)<<20 & ^uint64(7) | 6 })},
	{"each block lies in one place", hostileTable(func(uint64) uint64 { return 4<<20 | 6 })},
	{"each block lies in the last of 2000 regions", func(t *testing.T, dir string) string {
		img := hostileTable(func(uint64) uint64 { return 4000<<20 | 6 })(t, dir)
		addRegions(t, img, 2000)
		return img
	}},
	{"every second block is zero", hostileTable(func(n uint64) uint64 { return n % 2 * 2 })},
	{"sixty layers", func(t *testing.T, dir string) string {
		img := hostileTable(func(n uint64) uint64 { return n % 2 * 2 })(t, dir)
		for i := range 60 {
			child := filepath.Join(dir, fmt.Sprintf("child%d.vhdx", i))
			mustVhdxfs(t, "create", "--parent", img, child)
			img = child
		}
		return img
	}},
	{"every second sector is the parent's", func(t *testing.T, dir string) string {
		img := hostileTable(func(n uint64) uint64 { return 0 })(t, dir)
		child := filepath.Join(dir, "child.vhdx")
		mustVhdxfs(t, "create", "--parent", img, child)
		end, err := os.Stat(child)
		if err != nil {
			t.Fatal(err)
		}
		const blocks = 32
		bitmap := (end.Size() + mib - 1) &^ (mib - 1)
		for n := range int64(blocks) {
			writeAt(t, child, binary.LittleEndian.AppendUint64(nil, uint64(bitmap+(n+1)*mib|7)), regionOffset(t, child, batRegion)+n*8)
		}
		writeAt(t, child, binary.LittleEndian.AppendUint64(nil, uint64(bitmap|6)), regionOffset(t, child, batRegion)+4096*8)
		writeAt(t, child, bytes.Repeat([]byte{0x55}, blocks*mib/512/8), bitmap)
		if err := os.Truncate(child, bitmap+(blocks+1)*mib); err != nil {
			t.Fatal(err)
		}
		return child
	}},
	{"the log zeroes all of a large file again and again", hostileLog(func(i uint64) journal.Update {
		return journal.Update{FileOffset: 1<<40 + i<<12, ZeroLength: 1 << 44}
	}, 1<<46)},
	{"the log zeroes every second page", hostileLog(func(i uint64) journal.Update {
		return journal.Update{FileOffset: 1<<30 + i<<13, ZeroLength: 1 << 12}
	}, 1<<31)},
	{"the log changes the same page again and again", hostileLog(func(i uint64) journal.Update {
		return journal.Update{FileOffset: 1 << 30, Data: new([4096]byte)}
	}, 1<<31)},
}

// hostileLog returns a function that makes an image whose log has one entry that fills it, of the given updates.
func hostileLog(update func(i uint64) journal.Update, last uint64) func(t *testing.T, dir string) string {
	return func(t *testing.T, dir string) string {
		t.Helper()
		img := filepath.Join(dir, "hostile.vhdx")
		mustVhdxfs(t, "create", "--size", "1GiB", img)
		e := journal.Entry{LogGUID: uuid.New(), SequenceNumber: 1, FlushedFileOffset: mib, LastFileOffset: last}
		for i := uint64(0); ; i++ {
			e.Updates = append(e.Updates, update(i))
			if e.Length() > mib {
				e.Updates = e.Updates[:i]
				break
			}
		}
		log := readAt(t, img, 64<<10+72, 8)
		writeAt(t, img, journal.AppendEntry(nil, &e), int64(binary.LittleEndian.Uint64(log)))
		for _, off := range []int64{64 << 10, 128 << 10} {
			header := readAt(t, img, off, 4096)
			ondisk.PutGUID(header[48:], e.LogGUID)
			writeAt(t, img, stamp(header), off)
		}
		return img
	}
}

// hostileTable returns a function that makes an image of many blocks with the given BAT entries.
func hostileTable(entry func(n uint64) uint64) func(t *testing.T, dir string) string {
	return func(t *testing.T, dir string) string {
		t.Helper()
		img := filepath.Join(dir, "hostile.vhdx")
		mustVhdxfs(t, "create", "--size", fmt.Sprint(hostileBlocks*mib), "--block-size", "1MiB", img)
		const chunkRatio = 4096
		table := make([]byte, 0, hostileBlocks*8+hostileBlocks/chunkRatio*8)
		for n := range uint64(hostileBlocks) {
			if n > 0 && n%chunkRatio == 0 {
				table = binary.LittleEndian.AppendUint64(table, 0) // of a sector bitmap block
			}
			table = binary.LittleEndian.AppendUint64(table, entry(n))
		}
		writeAt(t, img, table, regionOffset(t, img, batRegion))
		return img
	}
}

// stamp stores a checksum in its four bytes at byte 4 of a structure.
func stamp(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// addRegions adds regions that nobody knows or needs to both region tables, 1 MiB each, up to 4001 MiB of the file.
func addRegions(t *testing.T, img string, n int) {
	t.Helper()
	table := readAt(t, img, 192<<10, 64<<10)
	have := int(binary.LittleEndian.Uint32(table[8:]))
	for i := range n {
		e := table[16+(have+i)*32:]
		binary.LittleEndian.PutUint64(e, uint64(i+1))
		binary.LittleEndian.PutUint64(e[16:], uint64(4001-n+i)<<20)
		binary.LittleEndian.PutUint32(e[24:], mib)
	}
	binary.LittleEndian.PutUint32(table[8:], uint32(have+n))
	stamp(table)
	writeAt(t, img, table, 192<<10)
	writeAt(t, img, table, 256<<10)
	if err := os.Truncate(img, 4100<<20); err != nil {
		t.Fatal(err)
	}
}

// measure runs a command and prints what it took. The kernel counts memory of who starts a process as its own, up to when it
// is another program; so a small one has to do it.
const measure = `import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
u = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, int((u.ru_utime + u.ru_stime) * 1000), u.ru_maxrss)`

// A commandCost is what a command took.
type commandCost struct {
	status int
	used   time.Duration // of processor
	peak   int           // of memory, kB
	stderr string
}

// cost runs a command, for a minute at most.
func cost(t *testing.T, args ...string) (c commandCost) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", append([]string{"-c", measure}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	c.stderr = stderr.String()
	var ms int
	if err == nil {
		_, err = fmt.Sscan(string(out), &c.status, &ms, &c.peak)
	}
	if err != nil {
		t.Fatalf("%s: %v, %s", strings.Join(args, " "), err, c.stderr)
	}
	c.used = time.Duration(ms) * time.Millisecond
	return c
}

// A hostile image costs no command more than some seconds of processor time and 200 MB. The bound on time is what even a slow
// machine keeps; what it finds is minutes.
func TestHostileImagesCostLittle(t *testing.T) {
	t.Parallel()
	const (
		limit  = 15 * time.Second // of processor
		memory = 200_000          // kB
	)
	notShort(t, "it measures what a hundred commands cost")
	requireTools(t, "python3")
	path := release.path(t)
	for _, h := range hostileImages {
		t.Run(h.name, func(t *testing.T) {
			dir := t.TempDir()
			img := h.make(t, dir)
			for _, args := range [][]string{
				{"info", "--json", img}, {"check", "--json", img}, {"check", "--repair", "--dry-run", img}, {"check", "--repair", img}, {"check", "--undo", img + ".undo"}, {"map", "--json", img}, {"chain", img},
				{"convert", "--skip-errors", img, filepath.Join(dir, "copy.vhdx")}, {"compare", img, img}, {"diff", img, img},
				{"resize", img, "+1G"}, {"compact", img},
			} {
				c := cost(t, append([]string{path}, args...)...)
				t.Logf("%-8s status %d, %5d ms, %3d MB, %.150s", args[0], c.status, c.used.Milliseconds(), c.peak/1000, c.stderr)
				if c.status < 0 || c.status == 70 || strings.Contains(c.stderr, "panic:") {
					t.Errorf("%s: status %d, %s", strings.Join(args, " "), c.status, c.stderr)
				}
				if c.used > limit || c.peak > memory {
					t.Errorf("%s takes %v of processor and %d kB", strings.Join(args, " "), c.used, c.peak)
				}
			}
		})
	}
}

// A user may change the image beneath a mount of root. Whatever is written there, the process goes on to serve: requests
// succeed or fail, none hangs, and the mount can be ended.
func TestImageChangesBeneathAMount(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount what is left behind")
	}
	for _, v := range []variant{variants[0], variants[3]} {
		good := v.create(t, "16GiB")
		s := serve(t, good)
		f := openDisk(t, s.disk, 0)
		for off := int64(0); off < 16<<30; off += 1<<30 + 3*mib {
			if _, err := f.WriteAt(fill(7), off); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		s.end(t)
		for round := range uint64(4) {
			t.Run(fmt.Sprintf("%s %d", v.name, round), func(t *testing.T) {
				img := filepath.Join(filepath.Dir(good), "changed.vhdx")
				must(t, "cp", "--sparse=always", good, img)
				changeBeneath(t, img, rand.New(rand.NewPCG(*seed, round)))
			})
		}
	}
}

func changeBeneath(t *testing.T, img string, rng *rand.Rand) {
	bat := regionOffset(t, img, batRegion)
	log := int64(binary.LittleEndian.Uint64(readAt(t, img, 64<<10+72, 8)))
	owner, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	s := serveToKill(t, img, "-o", "cache_size=64K,commit=1,idle_clean=1")
	f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 70_000)
	failed, ops := 0, 0
	for range 60 {
		// What the owner writes: an entry, random bytes, or zeros, most of it in the BAT.
		at := bat + rng.Int64N(16<<10)*8
		p := binary.LittleEndian.AppendUint64(nil, []uint64{1 << 63, 1<<64 - mib, 3 << 20, 1 << 48, 0}[rng.IntN(5)]|rng.Uint64N(8))
		switch rng.IntN(4) {
		case 0:
			at = []int64{64 << 10, 128 << 10, 192 << 10, log, mib, 2 * mib, 3 * mib, 4 * mib}[rng.IntN(8)] + rng.Int64N(8<<10)
			fallthrough
		case 1:
			p = randomBytes(rng, 1+rng.IntN(4096))
		}
		if _, err := owner.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(40) == 0 {
			if err := owner.Truncate(bat + rng.Int64N(8*mib)); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			off := rng.Int64N(16<<30 - int64(len(buf)))
			ops++
			var err error
			switch rng.IntN(7) {
			case 0, 1:
				_, err = f.ReadAt(buf, off)
			case 2, 3:
				_, err = f.WriteAt(buf, off)
			case 4:
				err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 3*mib)
			case 5:
				err = f.Sync()
			case 6:
				_, err = f.Seek(off, unix.SEEK_DATA)
			}
			if err != nil {
				failed++
			}
			if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || !s.running() {
				t.Fatalf("the process has ended after %d operations: %v\n%s", ops, err, s.log.String())
			}
		}
	}
	vhdxfs(t, "compact", s.dir) // may fail, but not by a fault
	vhdxfs(t, "stats", s.dir)
	f.Close()
	if !s.running() {
		t.Fatalf("the process has ended\n%s", s.log.String())
	}
	unmount(t, s.dir)
	s.wait(t)
	checkLog(t, s.log.String())
	if strings.Contains(s.log.String(), "a fault of this program") {
		t.Errorf("a fault of the program:\n%s", s.log.String())
	}
	t.Logf("%d of %d operations failed", failed, ops)
}
