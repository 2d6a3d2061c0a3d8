package vhdx

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// What lies at the edges: files and devices whose end is no multiple of 1 MiB, places that are used in unusual ways,
// hosts that can do less than most.

// A noAlloc is a file that cannot reserve space, on a host where holes are harmless or not.
type noAlloc struct {
	File
	sparse bool
}

func (f noAlloc) Sparse() bool                 { return f.sparse }
func (f noAlloc) Allocate(off, n int64) error  { return errors.ErrUnsupported }
func (f noAlloc) ZeroRange(off, n int64) error { return errors.ErrUnsupported }

// A noSpace file fails writes into the given range with ENOSPC while full is set.
type noSpace struct {
	noAlloc
	off, n int64
	full   *bool
}

func (f noSpace) WriteAt(p []byte, off int64) (int, error) {
	if *f.full && off < f.off+f.n && off+int64(len(p)) > f.off {
		return 0, unix.ENOSPC
	}
	return f.noAlloc.WriteAt(p, off)
}

// A bdev is a block device: it has the size that it has, and zeroes only whole sectors.
type bdev struct{ noAlloc }

func (f bdev) IsDevice() bool       { return true }
func (f bdev) Truncate(int64) error { return unix.ENOSPC }
func (f bdev) PunchHole(off, n int64) error {
	if (off|n)&511 != 0 {
		return unix.EINVAL
	}
	return f.noAlloc.PunchHole(off, n)
}
func (f bdev) WriteAt(p []byte, off int64) (int, error) {
	if size, _ := f.Size(); off+int64(len(p)) > size {
		return 0, unix.ENOSPC
	}
	return f.noAlloc.WriteAt(p, off)
}

// A file may end inside a MiB (T5). That piece is no place for a block, which would end behind the file.
func TestFileEndsInsideAMiB(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(path)
	if err := os.Truncate(path, st.Size()+512); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err != nil {
		t.Errorf("refused after a clean close: %v", err)
	}
}

// On a host on which growing writes zeros, growing the file must not wipe what lies there either.
func TestFileEndsInsideAMiBWithoutHoles(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	b.grow(b.next + 512)
	im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, false})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{7}, 4096)
	for blk := int64(0); blk < 2; blk++ {
		if _, err := im.WriteAt(want, blk*ondisk.MiB+8192); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4096)
	for blk := int64(0); blk < 2; blk++ {
		im.ReadAt(got, blk*ondisk.MiB+8192)
		if !bytes.Equal(got, want) {
			t.Errorf("block %d reads %x…, want %x…", blk, got[:4], want[:4])
		}
	}
}

// A file may end inside the last block of the disk (T6). The rest of the block is not free.
func TestFileEndsInsideTheLastBlock(t *testing.T) {
	b := build(spec{diskSize: 8*ondisk.MiB + 3*ondisk.MiB, blockSize: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}}})
	off := b.entries[1].FileOff()
	if err := b.memFile.Truncate(off + 3*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := loadReadOnly(b.memFile); err != nil {
		t.Errorf("refused after a clean close: %v", err)
	}
}

// A file with an optional region outside of it can be read, but must not grow into the region.
func TestRegionOutsideTheFileIsNotOvergrown(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	end := b.size
	b.setRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: uuid.New(), Offset: uint64(end + ondisk.MiB), Length: 4 * ondisk.MiB})
	})
	if _, err := loadReadOnly(b.memFile); err != nil {
		t.Errorf("open for reading: %v", err)
	}
	if _, err := loadWritable(Options{}, b.memFile); err == nil {
		t.Error("opened for writing")
	}
}

// Space that was freed while a read went on comes back when the read has ended, though nothing else is freed.
func TestSpaceFreedDuringAReadComesBack(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	f := noAlloc{b.memFile, true}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	e := im.BeginRead()
	for blk := int64(0); blk < 2; blk++ {
		if err := im.Zero(blk*ondisk.MiB, ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	im.EndRead(e)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if size, _ := f.Size(); size != b.dataOff {
		t.Errorf("the file has %d MiB after close, of which %d are used", size/ondisk.MiB, b.dataOff/ondisk.MiB)
	}
}

// What is discarded is given back to the host when the image is clean, without waiting for another allocation.
func TestDiscardGivesSpaceToTheHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true, Discard: DiscardPunch})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	du := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 32*ondisk.MiB), 0); err != nil {
		t.Fatal(err)
	}
	im.Sync()
	before := du()
	if err := im.Discard(0, 32*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	im.Sync()
	im.Clean()
	if after := du(); after > before-30*ondisk.MiB {
		t.Errorf("du before the discard %d KiB, after discard, sync and clean %d KiB", before>>10, after>>10)
	}
}

// Allocate reserves space on the host too, or writing could still fail.
func TestAllocateReserves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Allocate(0, 32*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	im.Sync()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 < 32*ondisk.MiB {
		t.Errorf("the file takes %d KiB on the host after 32 MiB were allocated", st.Blocks/2)
	}
}

// A whole block is discarded as a whole even where it begins with what reads as zero.
func TestDiscardOfAWholeBlockAllocatesNothing(t *testing.T) {
	parent := build(spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}}})
	child := build(spec{typ: Differencing, diskSize: 4 * ondisk.MiB, blockSize: 2 * ondisk.MiB})
	im, err := loadWritable(Options{Writable: true}, noAlloc{child.memFile, true}, parent.memFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Zero(0, 2*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if c := im.current().counts; c.Zero != 1 || c.PartiallyPresent != 0 {
		t.Errorf("after a discard of the whole block: %+v", c)
	}
	im.Close()
}

// The place that an UNMAPPED block kept is free when the block gets another one.
func TestKeptPlaceIsGivenUp(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	b.setBlockEntry(0, ondisk.NewBATEntry(ondisk.Unmapped, b.entries[0].FileOff()))
	im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	for blk := range int64(2) {
		if _, err := im.WriteAt([]byte{1}, blk*ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		im.Sync()
	}
	im.Close()
	ro, err := loadReadOnly(b.memFile)
	if err != nil {
		t.Fatal(err)
	}
	if free := ro.current().space.free(); free != 0 {
		t.Errorf("%d MiB inside the file are lost", free/ondisk.MiB)
	}
}

// A place that a block names without being present may be that of a present block, or of another that names it: no
// change of the block gives the place away. The same holds for the start of the file, where the block names no place.
func TestSharedKeptPlaceStays(t *testing.T) {
	for name, give := range map[string]func(im *Image) error{
		"trim":    func(im *Image) error { return im.Discard(ondisk.MiB, 2*ondisk.MiB) },
		"zeros":   func(im *Image) error { return writeErr(im.WriteAt(make([]byte, 2*ondisk.MiB), ondisk.MiB)) },
		"data":    func(im *Image) error { return writeErr(im.WriteAt(bytes.Repeat([]byte{7}, 2*ondisk.MiB), ondisk.MiB)) },
		"reserve": func(im *Image) error { return im.Allocate(ondisk.MiB, 2*ondisk.MiB) },
		"compact": func(im *Image) error { _, err := im.Compact(t.Context(), CompactOptions{}); return err },
	} {
		for with, state := range map[string]ondisk.BlockState{
			"a present block": ondisk.Unmapped, "a present block, UNDEFINED": ondisk.Undefined, "a present block, ZERO": ondisk.Zero,
			"a present block, NOT PRESENT": ondisk.NotPresent, "another UNMAPPED block": ondisk.Unmapped, "nothing": ondisk.Unmapped,
		} {
			t.Run(name+" beside "+with, func(t *testing.T) {
				b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}})
				place := b.entries[0].FileOff()
				switch with {
				case "another UNMAPPED block":
					place = b.allocate(ondisk.MiB)
					b.setBlockEntry(2, ondisk.NewBATEntry(ondisk.Unmapped, place))
				case "nothing":
					place = 0
				}
				b.setBlockEntry(1, ondisk.NewBATEntry(state, place))
				want := make([]byte, 4*ondisk.MiB)
				chain{b}.want(want, 0)
				im, err := loadWritable(Options{Writable: true, DetectZeroes: true}, b.memFile)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(give(im), im.Sync()); err != nil {
					t.Fatal(err)
				}
				if name == "data" {
					copy(want[ondisk.MiB:], bytes.Repeat([]byte{7}, 2*ondisk.MiB))
				}
				// What was given away is taken by the next blocks.
				if _, err := im.WriteAt(bytes.Repeat([]byte{9}, 8*ondisk.MiB), 16*ondisk.MiB); err != nil {
					t.Fatal(err)
				}
				if err := im.Close(); err != nil {
					t.Fatal(err)
				}
				ro, err := loadReadOnly(b.memFile)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(want))
				if _, err := ro.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				if i := firstDifference(got, want); i >= 0 {
					t.Errorf("byte %#x is %d, want %d", i, got[i], want[i])
				}
			})
		}
	}
}

// Pages of metadata are pinned once however often they are changed, and by no change that fails: when the image is clean
// the cache can give all of them up.
func TestNoPinStays(t *testing.T) {
	const pages = 40
	b := build(spec{diskSize: pages * ondisk.EntriesPerPage * ondisk.MiB})
	f := &faultFile{File: b.memFile}
	im, err := loadWritable(Options{Writable: true, CacheSize: 1}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	bound := -1
	for i := range int64(pages) {
		for blk := range int64(3) {
			f.set(func(f *faultFile) {
				f.failWrite = func(off int64) error {
					if blk == 2 && off >= b.dataOff {
						return errInjected
					}
					return nil
				}
			})
			if _, err := im.WriteAt([]byte{1}, (i*ondisk.EntriesPerPage+blk)*ondisk.MiB); (err != nil) != (blk == 2) {
				t.Fatal(err)
			}
		}
		if err := im.Clean(); err != nil {
			t.Fatal(err)
		}
		if n := im.current().cache.Pages(); i == pages/2 {
			bound = n
		} else if bound >= 0 && n > bound {
			t.Fatalf("%d pages are cached after %d pages of the BAT were changed, %d were in the middle", n, i+1, bound)
		}
	}
}

// The log gets its space before the first block does, and where there is none nothing is changed.
func TestLogIsReserved(t *testing.T) {
	b := build(spec{})
	f := &allocFile{memFile: b.memFile, err: unix.ENOSPC}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for range 2 {
		changes := b.changes.Load()
		if _, err := im.WriteAt([]byte{1}, 0); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("without space for the log: %v, want ENOSPC", err)
		}
		if n := b.changes.Load(); n != changes {
			t.Errorf("the file was changed %d times", n-changes)
		}
	}
	f.err, f.first = nil, nil
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if want := (fileRange{b.logOff, b.logLen}); f.first == nil || !slices.Contains(f.first, want) {
		t.Errorf("space was allocated for %v, want %v among it", f.first, want)
	}
}

// An allocFile remembers what it was asked to allocate, and fails with err.
type allocFile struct {
	*memFile
	err   error
	first []fileRange
}

func (f *allocFile) Allocate(off, n int64) error {
	if f.err != nil {
		return f.err
	}
	f.first = append(f.first, fileRange{off, n})
	return f.memFile.Allocate(off, n)
}

// A log that cannot begin for want of space is no reason to give the image up: no header names it yet.
func TestNoSpaceForTheLog(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	full := true
	im, err := loadWritable(Options{Writable: true}, noSpace{noAlloc{b.memFile, true}, b.logOff, b.logLen, &full})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	full = false
	if err := im.Sync(); err != nil {
		t.Errorf("when there is space again: %v", err)
	}
}
func TestDeviceWantsAlignedRanges(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	b.grow(b.next + 16*ondisk.MiB)
	im, err := loadWritable(Options{Writable: true}, bdev{noAlloc{b.memFile, true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 100001); err != nil {
		t.Errorf("write of a byte into a new block: %v", err)
	}
}

// A tearing file looks at the memory that zeros over data are written from: a kill may end a write where a page of it begins.
type tearing struct {
	noAlloc
	t      *testing.T
	zeroed int64 // bytes
}

func (f *tearing) WriteAt(p []byte, off int64) (int, error) {
	if bytes.Count(p, []byte{0}) == len(p) {
		f.zeroed += int64(len(p))
		if at := -int64(uintptr(unsafe.Pointer(&p[0]))) & (ondisk.PageSize - 1); (off+at)%512 != 0 && at < int64(len(p)) {
			f.t.Errorf("a kill may leave a torn sector: %d bytes at %#x are written from memory with a page that begins at byte %d of them", len(p), off, at)
		}
	}
	return f.noAlloc.WriteAt(p, off)
}

// A program that is killed while it makes sectors zero leaves each of them as it was, or zero.
func TestZerosAreNotTorn(t *testing.T) {
	for _, c := range []struct {
		state ondisk.BlockState
		off   int64
	}{
		{ondisk.FullyPresent, 3 * 512}, {ondisk.FullyPresent, 100}, {ondisk.PartiallyPresent, 3 * 512},
	} {
		parent := build(spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
		child := build(spec{typ: Differencing, diskSize: 4 * ondisk.MiB, blockSize: 2 * ondisk.MiB, blocks: []blockSpec{{0, c.state}}})
		f := &tearing{noAlloc: noAlloc{child.memFile, true}, t: t}
		im, err := loadWritable(Options{Writable: true}, f, parent.memFile)
		if err != nil {
			t.Fatal(err)
		}
		f.zeroed = 0
		if err := im.Zero(c.off, 60*ondisk.KiB); err != nil || f.zeroed < 60*ondisk.KiB {
			t.Errorf("%v from byte %d on: %d bytes were written, %v", c.state, c.off, f.zeroed, err)
		}
		im.Close()
	}
}

// On a full device, space that was trimmed but not synced yet is used before a write fails.
func TestFullDiskUsesWhatWasTrimmed(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im, err := loadWritable(Options{Writable: true}, bdev{noAlloc{b.memFile, true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Zero(0, 2*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); errors.Is(err, unix.ENOSPC) {
		t.Errorf("first write after a discard of the whole disk: %v", err)
	}
}

// An image may lie on a block device, which neither grows nor shrinks.
func TestImageOnABlockDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	os.Truncate(path, 80*ondisk.MiB)
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %s", out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	im, err := Open(dev, Options{Writable: true, Lock: LockOff})
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range []int64{0, ondisk.MiB + 512, 2*ondisk.MiB + 100001} {
		if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 3000), off); err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if err := im.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if im, err = Open(dev, Options{Lock: LockOff}); err != nil {
		t.Errorf("reopen: %v", err)
	} else {
		im.Close()
	}
}

// Zeros over an UNMAPPED block that kept its place are a promise, and MS-VHDX lets a reader show the old content in
// that state. So it becomes ZERO.
func TestZerosOverAKeptPlace(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	b.setBlockEntry(0, ondisk.NewBATEntry(ondisk.Unmapped, b.entries[0].FileOff()))
	im, err := loadWritable(Options{Writable: true, DetectZeroes: true}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, ondisk.MiB), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Zero(0, ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	im.Close()
	ro, err := loadReadOnly(b.memFile)
	if err != nil {
		t.Fatal(err)
	}
	if e, _, _ := ro.current().lookup(0, 1); e.State() == ondisk.Unmapped {
		t.Errorf("after zeros were written and synced the block is %v at %#x, where another reader may see %x…", e.State(), e.FileOff(), b.read(e.FileOff(), 4))
	}
}

// Allocate changes nothing that the disk's user sees, so the image's children still know it.
func TestAllocateKeepsDataWriteGUID(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	before := im.current().headers.header().DataWriteGUID
	im.Allocate(0, ondisk.MiB)
	im.Close()
	if im.current().headers.header().DataWriteGUID != before {
		t.Error("Allocate renewed DataWriteGuid")
	}
}

// A damaged region table is repaired with the first change, through the log, and then left alone.
func TestRegionTablesAreRepairedOnce(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	b.write([]byte("xxxx"), ondisk.RegionTableOffsets[1])
	im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		im.WriteAt([]byte{1}, 0)
		if n := len(im.writer.dirty.raw); i == 1 && n > 0 {
			t.Errorf("%d pages of region tables are logged again", n)
		}
		im.Clean()
	}
	im.Close()
}

// What is in the log and not in its place has a bound in memory, however large the log is.
func TestLargeLogTakesBoundedMemory(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.TiB, blockSize: ondisk.MiB, logLen: 256 * ondisk.MiB})
	im, err := loadWritable(Options{Writable: true, CacheSize: ondisk.MiB}, noAlloc{b.memFile, true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(4000) { // a block in each BAT page
		if _, err := im.WriteAt([]byte{1}, i*600*ondisk.MiB); err != nil {
			t.Fatal(err)
		}
	}
	im.Sync()
	if n := len(im.writer.committer.session.logged); n > maxLoggedPages {
		t.Errorf("%d pages of the log in memory, want at most %d", n, maxLoggedPages)
	}
	im.writer.stop()
}

// stallFile holds back the first write that accept takes until release is closed.
type stallFile struct {
	noAlloc
	accept  func(p []byte, off int64) bool
	once    *atomic.Bool
	stalled chan struct{}
	release chan struct{}
}

func (f stallFile) WriteAt(p []byte, off int64) (int, error) {
	if f.accept(p, off) && f.once.CompareAndSwap(false, true) {
		close(f.stalled)
		<-f.release
	}
	return f.noAlloc.WriteAt(p, off)
}

// On a host without fallocate the space of a metadata page is taken by writing zeros to it. Two goroutines must not
// both do so to one page: the later one would wipe what the earlier one has put there since.
func TestPageGetsItsSpaceOnce(t *testing.T) {
	b := build(spec{diskSize: 64 * ondisk.MiB})
	fills := new(atomic.Int64)
	f := stallFile{noAlloc: noAlloc{b.memFile, true}, once: new(atomic.Bool), stalled: make(chan struct{}), release: make(chan struct{})}
	f.accept = func(p []byte, off int64) bool {
		fill := off == b.batOff && len(p) == ondisk.PageSize && allZero(p)
		if fill {
			fills.Add(1)
		}
		return fill
	}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	write := func(off int64) { done <- writeErr(im.WriteAt([]byte{1}, off)) }
	go write(0)
	<-f.stalled
	go write(ondisk.MiB)              // another block of the same BAT page
	time.Sleep(20 * time.Millisecond) // a moment in which it could overtake; if it does not get there, nothing is lost
	close(f.release)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := fills.Load(); n != 1 {
		t.Errorf("the page was filled %d times", n)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// A child's last block, of which the disk has only a part, is fully present when all sectors are written that the disk has.
func TestLastBlockBecomesFull(t *testing.T) {
	parent := build(spec{diskSize: 3*ondisk.MiB + ondisk.MiB/2, blocks: []blockSpec{{3, ondisk.FullyPresent}}})
	child := build(spec{typ: Differencing, diskSize: 3*ondisk.MiB + ondisk.MiB/2})
	im, err := loadWritable(Options{Writable: true}, child.memFile, parent.memFile)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	const part = 64 * ondisk.KiB
	for off := int64(3 * ondisk.MiB); off < child.diskSize; off += part {
		e, err := im.Extent(child.diskSize - 512)
		if err != nil {
			t.Fatal(err)
		}
		if e.Layer != 1 {
			t.Errorf("the last sector is in layer %d before it is written", e.Layer)
		}
		if _, err := im.WriteAt(bytes.Repeat([]byte{5}, part), off); err != nil {
			t.Fatal(err)
		}
	}
	if e, err := im.Extent(3 * ondisk.MiB); err != nil || e.State != ondisk.FullyPresent {
		t.Errorf("the block is %v in the end (%v), want %v", e.State, err, ondisk.FullyPresent)
	}
}

// A part of a block that shows its parent's data is zeroed to its end, however long it is.
func TestZerosOverALongPartOfABlock(t *testing.T) {
	const size, block = 16 * ondisk.MiB, 8 * ondisk.MiB
	c := chain{
		build(spec{typ: Differencing, diskSize: size, blockSize: block}),
		build(spec{diskSize: size, blockSize: block, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}}),
	}
	want := make([]byte, size)
	c.want(want, 0)
	im := c.openWritable(t, Options{})
	const from, to = 512, 13*ondisk.MiB - 512
	if err := im.Zero(from, to-from); err != nil {
		t.Fatal(err)
	}
	clear(want[from:to])
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	ro, err := loadReadOnly(c[0].memFile, c[1].memFile)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := ro.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Errorf("byte %#x is %d, want %d", i, got[i], want[i])
	}
}

// Zeros over any part of a block that kept its place without being present make it ZERO, and its place free.
func TestZerosOverAPartOfAKeptPlace(t *testing.T) {
	for _, state := range []ondisk.BlockState{ondisk.Unmapped, ondisk.Undefined} {
		for _, typ := range []DiskType{Dynamic, Differencing} {
			c := chain{build(spec{typ: typ, diskSize: 8 * ondisk.MiB})}
			if typ == Differencing {
				c = append(c, build(spec{diskSize: 8 * ondisk.MiB}))
			}
			c[0].setBlockEntry(0, ondisk.NewBATEntry(state, c[0].allocate(ondisk.MiB)))
			im := c.openWritable(t, Options{})
			if err := im.Zero(512, 1024); err != nil {
				t.Fatal(err)
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			ro, err := loadReadOnly(c.files()...)
			if err != nil {
				t.Fatal(err)
			}
			if e, _, _ := ro.current().lookup(0, 1); e != ondisk.NewBATEntry(ondisk.Zero, 0) || ro.current().space.free() != 0 {
				t.Errorf("%v block of a %v disk: it is %v now, with %d bytes free inside the file", state, typ, e.State(), ro.current().space.free())
			}
		}
	}
}

// Space for a block that is there is space up to the end of the block. An error of the file leaves the file as it was.
func TestAllocateABlockThatIsThere(t *testing.T) {
	b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	inner := &allocFile{memFile: b.memFile}
	f := &faultFile{File: inner}
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	f.set(func(f *faultFile) {
		f.failWrite = func(off int64) error {
			if off < ondisk.HeaderSectionSize {
				return unix.ENOSPC
			}
			return nil
		}
	})
	if err := im.Allocate(0, 1); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("without space for a header: %v, want ENOSPC", err)
	}
	want := fileRange{b.entries[0].FileOff(), ondisk.MiB}
	if slices.Contains(inner.first, want) {
		t.Error("space was allocated before the change was announced")
	}
	f.set(func(f *faultFile) { f.failWrite = nil })
	if err := im.Allocate(0, 1); err != nil || !slices.Contains(inner.first, want) {
		t.Errorf("space was allocated for %v, %v; want %v among it", inner.first, err, want)
	}
}
