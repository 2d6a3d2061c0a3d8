package vhdx

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

var (
	crashRounds = flag.Int("crash.rounds", 1, "how many seeds the crash test tries for each kind of disk; each is some thousand states")
	crashEvery  = flag.Bool("crash.every", false, "cut the power at every operation, also where a test usually leaves some out")
)

// notShort skips a test that takes long where -short is given.
func notShort(t *testing.T, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: " + why)
	}
}

// fewer returns n, which is how often a test tries something, and with -short a tenth of it, but two at least.
func fewer(n int) int {
	if testing.Short() {
		return max(n/10, 2)
	}
	return n
}

// crashStates is how many of the states that a power cut can leave are looked at, for each cut.
const crashStates = 6

// history knows what each sector of a disk may read as after a power cut (rule: one version that was written,
// at or after the last one that an acknowledged sync covered). The sectors are those that the host's disk writes as a
// whole: of a disk with sectors of 4096 bytes each is eight.
type history struct {
	sector   int64
	versions map[int64][]version // by sector; the first is what the disk held at the beginning
	begun    int                 // versions begun so far
	disk     model               // what the disk reads as now
}

type version struct {
	n    int
	data []byte
}

func newHistory(disk model) *history {
	return &history{sector: powercut.SectorSize, versions: make(map[int64][]version), disk: model{disk.clone()}}
}

// write notes that p is going to be written at off.
func (h *history) write(p []byte, off int64) {
	h.begun++
	from, end := off/h.sector*h.sector, off+int64(len(p))
	before := make([]byte, ondisk.RoundUp(end-from, h.sector))
	h.disk.ReadAt(before, from)
	after := bytes.Clone(before)
	copy(after[off-from:], p)
	for at := from; at < end; at += h.sector {
		i, j := at-from, at-from+h.sector
		if h.versions[at] == nil {
			h.versions[at] = []version{{0, before[i:j:j]}}
		}
		h.versions[at] = append(h.versions[at], version{h.begun, after[i:j:j]})
	}
	h.disk.WriteAt(p, off)
}

// synced notes that everything written so far is durable.
func (h *history) synced() {
	for at, v := range h.versions {
		h.versions[at] = v[len(v)-1:]
	}
}

// check compares what the disk reads as with what it may.
func (h *history) check(im *Image) error {
	sectors := slices.Sorted(maps.Keys(h.versions))
	got := make([]byte, 0, ondisk.MiB)
	for len(sectors) > 0 {
		// Those that follow one another are read at once.
		first, n := sectors[0], 1
		for n < len(sectors) && sectors[n] == first+int64(n)*h.sector && int64(n+1)*h.sector <= int64(cap(got)) {
			n++
		}
		got = got[:int64(n)*h.sector]
		if _, err := im.ReadAt(got, first); err != nil {
			return fmt.Errorf("read %d bytes at %#x: %w", len(got), first, err)
		}
		for i, at := range sectors[:n] {
			is, versions := got[int64(i)*h.sector:][:h.sector], h.versions[at]
			if slices.ContainsFunc(versions, func(v version) bool { return bytes.Equal(is, v.data) }) {
				continue
			}
			want := ""
			for _, v := range versions {
				want += fmt.Sprintf(" [%d] %x…", v.n, v.data[:8])
			}
			return fmt.Errorf("sector at %#x reads %x…, which is none of the versions%s", at, is[:8], want)
		}
		sectors = sectors[n:]
	}
	return nil
}

// A host is what the file system can do on which an image lies.
type host struct {
	noHoles     bool // holes do harm
	noFallocate bool // space cannot be reserved, nor a range be zeroed, but by writing
	shares      bool // files can share space
}

// crashHosts are those on which the power is cut; most people have the first.
var crashHosts = []host{{}, {noFallocate: true}, {noHoles: true}, {noHoles: true, noFallocate: true}, {shares: true}}

// hostTurn is whose turn it is with -short.
var hostTurn atomic.Uint64

// onHosts has do cut the power: at every operation on the host of most people and, so that it ends soon, at every step-th
// from the first on each of the others, with each seed at others. With -short each call has one host, by turns.
func onHosts(seed uint64, do func(h host, first, step int) error) error {
	one := -1
	if testing.Short() && !*crashEvery {
		one = int(hostTurn.Add(1) % uint64(len(crashHosts)))
	}
	for i, h := range crashHosts {
		first, step := 1, 1
		if i > 0 && one < 0 {
			first, step = 1+int((seed+uint64(i))%uint64(len(crashHosts))), len(crashHosts)
		}
		if one >= 0 && i != one {
			continue
		}
		if err := do(h, first, step); err != nil {
			return fmt.Errorf("host %+v: %w", h, err)
		}
	}
	return nil
}

// disk returns a file that loses power there.
func (h host) disk(img io.ReaderAt, size int64) *powercut.Disk {
	d := powercut.New(img, size)
	d.NoHoles, d.NoFallocate, d.Shares = h.noHoles, h.noFallocate, h.shares
	return d
}

// crashSpecs are the disks on which power cuts are tried.
func crashSpecs() map[string]func() chain {
	blocks := []blockSpec{{1, ondisk.FullyPresent}, {2, ondisk.Zero}, {3, ondisk.Unmapped}, {4, ondisk.FullyPresent}}
	return map[string]func() chain{
		"dynamic": func() chain { return chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: blocks})} },
		"fixed": func() chain {
			return chain{build(spec{typ: Fixed, diskSize: 2 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})}
		},
		"growing": func() chain { return chain{build(spec{diskSize: 256 * ondisk.MiB, blockSize: 32 * ondisk.MiB})} },
		"ends inside a MiB": func() chain {
			c := chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: blocks})}
			c[0].grow(c[0].next + 512)
			return c
		},
		"ends inside the last block": func() chain {
			c := chain{build(spec{diskSize: 5 * ondisk.MiB, blockSize: 4 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}}})}
			if err := c[0].memFile.Truncate(c[0].entries[1].FileOff() + ondisk.MiB); err != nil {
				panic(err)
			}
			return c
		},
		"recycled": func() chain { // free space inside the file holds the bytes of blocks that are gone
			c := chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: blocks})}
			for b := int64(5); b < 8; b++ {
				c[0].setBlock(b, ondisk.FullyPresent)
				c[0].put(bytes.Repeat([]byte("stale..."), ondisk.MiB/8), b*ondisk.MiB)
				c[0].setBlock(b, ondisk.NotPresent)
			}
			return c
		},
		"differencing": func() chain {
			parent := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {3, ondisk.FullyPresent}, {5, ondisk.FullyPresent}, {6, ondisk.FullyPresent}}})
			for b := range parent.entries {
				parent.put(parent.random(ondisk.MiB), b*ondisk.MiB)
			}
			child := build(spec{typ: Differencing, diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}, {3, ondisk.Zero}}})
			child.setBlock(7, ondisk.FullyPresent)
			child.put(bytes.Repeat([]byte("stale..."), ondisk.MiB/8), 7*ondisk.MiB)
			child.setBlock(7, ondisk.NotPresent)
			return chain{child, parent}
		},
		"4K sectors": func() chain {
			parent := build(spec{diskSize: 4 * ondisk.MiB, sectorSize: 4096, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
			for b := range parent.entries {
				parent.put(parent.random(ondisk.MiB), b*ondisk.MiB)
			}
			return chain{build(spec{typ: Differencing, diskSize: 4 * ondisk.MiB, sectorSize: 4096}), parent}
		},
	}
}

// mixedWorkload does a bit of everything.
func mixedWorkload(im *Image, h *history, seed uint64, each func(w *writer)) error {
	rng := rand.New(rand.NewPCG(seed, 7))
	for range 24 {
		if each != nil {
			each(im.writer)
		}
		if err := oneChange(im, h, rng); err != nil {
			return err
		}
	}
	if err := untilSpace(im.Clean); err != nil {
		return err
	}
	return im.Close()
}

// oneChange changes the disk once, or syncs it. It waits for space.
func oneChange(im *Image, h *history, rng *rand.Rand) error {
	size := h.disk.size
	off := rng.Int64N(size)
	n := min(size-off, []int64{100, 512, 4096, 9000, 70000}[rng.IntN(5)])
	if rng.IntN(3) > 0 {
		off &^= 4095
	}
	switch k := rng.IntN(12); {
	case k < 6:
		p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1), byte(rng.IntN(255) + 1), byte(rng.IntN(255) + 1)}, int(n/3)+1)[:n]
		h.write(p, off)
		return untilSpace(func() error { return writeErr(im.WriteAt(p, off)) })
	case k < 9:
		if k > 6 {
			off, n = off&^(ondisk.MiB-1), min(int64(1+rng.IntN(2))*ondisk.MiB, size-off&^(ondisk.MiB-1))
		}
		h.write(make([]byte, n), off)
		return untilSpace(func() error { return im.Zero(off, n) })
	case k == 9:
		if err := untilSpace(im.Clean); err != nil {
			return err
		}
	default:
		if err := untilSpace(im.Sync); err != nil {
			return err
		}
	}
	h.synced()
	return nil
}

// untilSpace calls do again and again while there is no space for it.
func untilSpace(do func() error) error {
	for {
		if err := do(); !outOfSpace(err) {
			return err
		}
	}
}

// syncingWorkload maps and unmaps blocks, on two pages of the BAT by turns, and syncs each time, so often that the log
// begins anew twice.
func syncingWorkload(im *Image, h *history, seed uint64, each func(w *writer)) error {
	rng := rand.New(rand.NewPCG(seed, 8))
	for i := range 320 {
		if each != nil {
			each(im.writer)
		}
		off := (int64(i%2)*ondisk.EntriesPerPage + rng.Int64N(3)) * ondisk.MiB
		p := make([]byte, 512)
		var err error
		if rng.IntN(2) == 0 {
			p[0], p[511] = byte(i), byte(i>>8)|0x80
			h.write(p, off)
			_, err = im.WriteAt(p, off)
		} else {
			h.write(p, off) // the rest of the block is zero as it is
			err = im.Zero(off, ondisk.MiB)
		}
		if err == nil {
			err = im.Sync()
		}
		if err != nil {
			return err
		}
		h.synced()
	}
	return im.Close()
}

// A crashTest is a kind of disk and a workload to cut the power of. mutant breaks the writer on purpose.
type crashTest struct {
	chain  chain
	disk   model // what it reads as at the beginning
	seed   uint64
	work   workload
	mutant mutant

	host   host
	scarce bool // the host often has no space, also for what has a place, and may write a part before it says so
	states int  // looked at so far
}

// A workload changes the disk until it is done or the power fails. What it does depends on the seed alone. It calls
// each, if that is not nil, before each step.
type workload func(im *Image, h *history, seed uint64, each func(w *writer)) error

func newCrashTest(c chain, seed uint64) *crashTest {
	return &crashTest{chain: c, disk: newModel(c), seed: seed, work: mixedWorkload}
}

// run runs the workload with the power cut at the given operation, and checks states that may be left. It
// reports whether the power was still there at the end.
func (ct *crashTest) run(cut int) (powered bool, err error) {
	c := ct.chain
	disk := ct.host.disk(c[0].memFile, c[0].memFile.size)
	disk.CutAt(cut)
	// Headers, log, metadata and BAT survive any tearing; a sector of payload is the disk's business.
	disk.Tearable = func(off int64) bool { return off < c[0].dataOff }
	files := []File{mutantFile{disk, ct.mutant.dropSync}}
	if ct.scarce {
		files[0] = &scarceFile{File: files[0], rng: rand.New(rand.NewPCG(ct.seed, 12))}
	}
	for _, p := range c[1:] {
		files = append(files, p.memFile)
	}
	h := newHistory(ct.disk)
	discard := DiscardPunch
	if ct.host.noHoles {
		discard = DiscardAuto
	}
	im, err := loadWritable(Options{Writable: true, Discard: discard, DetectZeroes: ct.seed%2 == 0}, files...)
	if err == nil {
		if err = ct.work(im, h, ct.seed, ct.mutant.step); err == nil {
			h.synced()
		}
		im.writer.stop()
	}
	if disk.Powered() && err != nil {
		return true, fmt.Errorf("failed with the power on: %w", err)
	}
	for s := range uint64(fewer(crashStates)) {
		ct.states++
		files[0] = mutantFile{disk.AfterCut(rand.New(rand.NewPCG(ct.seed, s))), ct.mutant.dropSync}
		if err := h.checkFiles(files, s%2 == 1); err != nil {
			return disk.Powered(), fmt.Errorf("cut %d, state %d: %w", cut, s, err)
		}
	}
	return disk.Powered(), nil
}

// runFrom cuts the power at the first operation given, and at every step-th after it.
func (ct *crashTest) runFrom(first, step int) error {
	return untilDone(first, step, ct.run)
}

// runOnHosts runs the test on all hosts, from the first operation on or one soon after it, and at every step-th. It returns
// how many states it looked at.
func (ct *crashTest) runOnHosts(step int) (states int, err error) {
	err = onHosts(ct.seed, func(h host, first, more int) error {
		on := *ct
		on.host = h
		defer func() { states += on.states }()
		return on.runFrom(first, more*step)
	})
	return states, err
}

// checkFiles opens what a power cut left, for reading with the log in memory, or for writing with the log replayed
// into the file, and checks it.
func (h *history) checkFiles(files []File, replay bool) error {
	var im *Image
	var err error
	if replay {
		im, err = loadWritable(Options{Writable: true}, files...)
	} else {
		im, err = loadReadOnly(files...)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = h.check(im)
	if replay && err == nil {
		if err = im.Close(); err == nil {
			im, err = loadReadOnly(files...)
			if err == nil {
				err = h.check(im)
			}
		}
	}
	return err
}

// A power cut at any moment leaves an image that opens, breaks no rule, and shows each sector in a version that was
// written at or after the last sync that was acknowledged.
func TestPowerCut(t *testing.T) {
	for name, newChain := range crashSpecs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, states := newChain(), 0
			step := 1
			if name == "growing" && *crashRounds == 1 {
				step = 4 // its blocks have 32 MiB, which each cut copies
			}
			for seed := range uint64(*crashRounds) {
				n, err := newCrashTest(c, seed).runOnHosts(step)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				states += n
			}
			t.Logf("%d states", states)
		})
	}
}

// A scarceFile refuses a write now and then for want of space, after a part of it or at once.
type scarceFile struct {
	File
	mu  sync.Mutex
	rng *rand.Rand
}

func (f *scarceFile) refuse(n int) (part int, refused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(2) * f.rng.IntN(n/512+1) * 512, f.rng.IntN(10) == 0
}

func (f *scarceFile) WriteAt(p []byte, off int64) (int, error) {
	part, refused := f.refuse(len(p))
	if !refused {
		return f.File.WriteAt(p, off)
	}
	if part > 0 {
		if n, err := f.File.WriteAt(p[:part], off); err != nil {
			return n, err
		}
	}
	return part, unix.ENOSPC
}

func (f *scarceFile) Allocate(off, n int64) error {
	if _, refused := f.refuse(0); refused {
		return unix.ENOSPC
	}
	return f.File.Allocate(off, n)
}

func (f *scarceFile) Truncate(size int64) error {
	if _, refused := f.refuse(0); refused {
		return unix.ENOSPC
	}
	return f.File.Truncate(size)
}

// The same holds when there is often no space, also for the log, the headers and pages in their places.
func TestPowerCutWithoutSpace(t *testing.T) {
	for _, name := range []string{"dynamic", "recycled", "differencing"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, states := crashSpecs()[name](), 0
			for seed := range 2 * uint64(*crashRounds) {
				ct := newCrashTest(c, seed)
				ct.scarce, ct.host = true, crashHosts[seed%uint64(len(crashHosts))]
				if err := ct.runFrom(1, 7); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				states += ct.states
			}
			t.Logf("%d states", states)
		})
	}
}

// newFullLogTest returns a test in which the log has been full from the operation on that it returns.
func newFullLogTest(seed uint64) (ct *crashTest, first int) {
	ct = newCrashTest(chain{build(spec{diskSize: (ondisk.EntriesPerPage + 4) * ondisk.MiB})}, seed)
	ct.work = syncingWorkload
	return ct, 700
}

// The same holds when the log was full and has begun anew, which takes so many syncs that not every operation is tried.
func TestPowerCutInFullLog(t *testing.T) {
	for seed := range uint64(*crashRounds) {
		ct, first := newFullLogTest(seed)
		if err := ct.runFrom(first, 7); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if ct.states < 100 && !testing.Short() {
			t.Errorf("only %d states", ct.states)
		}
		t.Logf("%d states", ct.states)
	}
}
