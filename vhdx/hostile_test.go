package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// farOffsets are file offsets that no block can have, in a BAT entry.
var farOffsets = []uint64{1 << 63, math.MaxUint64 - ondisk.MiB + 1, 1<<63 - ondisk.MiB, 1 << 48, 1<<48 + 1<<40, 0}

// within fails the test where do takes longer than a user would wait.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", what)
	}
}

// The space map refuses what no file can hold, and leaves everything as it is.
func TestSpaceMapRefuses(t *testing.T) {
	for _, off := range []int64{-1, -ondisk.MiB, math.MinInt64, math.MaxInt64, math.MaxInt64 - ondisk.MiB + 1, ondisk.MaxFileSize, ondisk.MaxFileSize - ondisk.MiB + 1} {
		m := newSpaceMap(8 * ondisk.MiB)
		m.mark(0, 8*ondisk.MiB)
		if m.mark(off, ondisk.MiB) {
			t.Errorf("mark(%#x) takes it", off)
		}
		if m.clear(off, ondisk.MiB) {
			t.Errorf("clear(%#x) gives it back", off)
		}
		if m.mark(0, -ondisk.MiB) || m.clear(0, math.MaxInt64) {
			t.Error("a length that cannot be is taken")
		}
		if m.free() != 0 {
			t.Errorf("%d bytes are free after %#x", m.free(), off)
		}
	}
	m := newSpaceMap(8 * ondisk.MiB)
	m.mark(2*ondisk.MiB, ondisk.MiB)
	if m.clear(2*ondisk.MiB, 2*ondisk.MiB) || m.clear(4*ondisk.MiB, ondisk.MiB) {
		t.Error("space that is free already can be given back")
	}
	if m.free() != 7*ondisk.MiB {
		t.Errorf("%d bytes are free, want 7 MiB", m.free())
	}
}

// A draft is read and written at any offset, as a file is.
func TestDraftAtTheEdges(t *testing.T) {
	base := newMemFile(4 * ondisk.MiB)
	d, err := newDraft(base)
	if err != nil {
		t.Fatal(err)
	}
	d.WriteAt([]byte("x"), 5000)
	for _, off := range []int64{math.MaxInt64, math.MaxInt64 - 1, math.MaxInt64 - ondisk.PageSize, 1 << 62, 4 * ondisk.MiB, 4*ondisk.MiB + 1, -1, math.MinInt64} {
		within(t, fmt.Sprintf("ReadAt(%#x)", off), func() {
			if n, err := d.ReadAt(make([]byte, 8), off); n != 0 || err == nil {
				t.Errorf("ReadAt(%#x) = %d, %v", off, n, err)
			}
		})
		if off == 4*ondisk.MiB || off == 4*ondisk.MiB+1 {
			continue // there it can grow
		}
		within(t, fmt.Sprintf("WriteAt(%#x)", off), func() {
			if n, err := d.WriteAt(make([]byte, 8), off); n != 0 || err == nil {
				t.Errorf("WriteAt(%#x) = %d, %v", off, n, err)
			}
		})
	}
	if _, err := d.append(math.MaxInt64-4*ondisk.MiB, newSpaceMap(0)); err == nil {
		t.Error("a draft grows to what no file can have")
	}
	if d.size != 4*ondisk.MiB || len(d.pages) != 1 {
		t.Errorf("the draft has %d bytes and %d changed pages", d.size, len(d.pages))
	}
}

// A block that is not present may keep any offset, which no code follows: such an image can be opened, is described, and is
// repaired.
func TestKeptPlaceOutsideEveryFile(t *testing.T) {
	for _, state := range []ondisk.BlockState{ondisk.NotPresent, ondisk.Undefined, ondisk.Zero, ondisk.Unmapped, ondisk.UnmappedDraft} {
		for _, off := range farOffsets {
			t.Run(fmt.Sprintf("%v %d at %#x", state, state, off), func(t *testing.T) {
				im := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
				im.setBlockEntry(1, ondisk.BATEntry(off|uint64(state)))
				within(t, "the examination", func() {
					disk, err := loadReadOnly(im.memFile)
					if err != nil {
						t.Fatal(err)
					}
					if in := disk.Info(); in.FreeBytes != 0 || in.FileSize != im.size {
						t.Errorf("%+v", in)
					}
					if r, err := disk.Reclaimable(t.Context(), true, CompactOptions{}); err != nil || r.Unmapped != 0 || r.Total < 0 {
						t.Errorf("Reclaimable = %+v, %v", r, err)
					}
					chain{im}.verify(t, disk)
					if w, err := loadWritable(Options{}, im.memFile); err == nil {
						if _, err := w.Compact(t.Context(), CompactOptions{}); err != nil {
							t.Errorf("Compact: %v", err)
						}
						if err := w.Close(); err != nil {
							t.Errorf("Close: %v", err)
						}
					}
					if r := planLeft(t, im.memFile); len(r.left) > 0 {
						t.Errorf("a repair leaves %+v", r.left)
					}
				})
			})
		}
	}
}

// A program that may write to the file can change the BAT beneath a mount. Entries are checked when they are used: an invalid
// entry is an error of the request, and no panic; other blocks can still be read, and the image can be closed.
func TestBATChangesBeneath(t *testing.T) {
	const blocks, victim, other = 600, 5, 0
	ops := map[string]func(im *Image) error{
		"read":         func(im *Image) error { return readErr(im.ReadAt(make([]byte, 5000), victim*ondisk.MiB+100)) },
		"write":        func(im *Image) error { return writeErr(im.WriteAt([]byte("here"), victim*ondisk.MiB+100)) },
		"write all":    func(im *Image) error { return writeErr(im.WriteAt(make([]byte, ondisk.MiB), victim*ondisk.MiB)) },
		"zero":         func(im *Image) error { return im.Zero(victim*ondisk.MiB+512, 512) },
		"discard all":  func(im *Image) error { return im.Discard(victim*ondisk.MiB, ondisk.MiB) },
		"allocate":     func(im *Image) error { return im.Allocate(victim*ondisk.MiB, ondisk.MiB) },
		"extents":      func(im *Image) error { return eachExtent(im) },
		"seek":         func(im *Image) error { _, err := im.SeekHole(victim * ondisk.MiB); return err },
		"look at zero": func(im *Image) error { _, err := im.IsHole(victim*ondisk.MiB, ondisk.MiB); return err },
		"compact":      func(im *Image) error { _, err := im.Compact(context.Background(), CompactOptions{}); return err },
		"reclaimable": func(im *Image) error {
			_, err := im.Reclaimable(context.Background(), true, CompactOptions{})
			return err
		},
		"grow":   func(im *Image) error { return im.Grow(context.Background(), (blocks+3)*ondisk.MiB) },
		"shrink": func(im *Image) error { return im.Resize(context.Background(), (victim+1)*ondisk.MiB-4096) },
		"info":   func(im *Image) error { im.Info(); return nil },
	}
	bases := map[string]*image{
		"dynamic": build(spec{diskSize: blocks * ondisk.MiB, blocks: []blockSpec{{other, ondisk.FullyPresent}, {victim, ondisk.FullyPresent}, {8, ondisk.FullyPresent}}}),
		"child":   build(spec{typ: Differencing, diskSize: blocks * ondisk.MiB, blocks: []blockSpec{{other, ondisk.FullyPresent}, {victim, ondisk.PartiallyPresent}, {8, ondisk.FullyPresent}}}),
	}
	parent := build(spec{dataWrite: parentGUID, diskSize: blocks * ondisk.MiB})
	for state := ondisk.BlockState(0); state < 8; state++ {
		for _, off := range []uint64{0, 3 * ondisk.MiB, 1 << 48, 1 << 63, math.MaxUint64 - ondisk.MiB + 1} {
			for name, base := range bases {
				for what, op := range ops {
					im := &image{memFile: base.clone(), spec: base.spec, geo: base.geo}
					files := []File{im.memFile}
					if base.typ == Differencing {
						files = append(files, parent.memFile)
					}
					disk, err := loadWritable(Options{CacheSize: 1, Discard: DiscardPunch}, files...)
					if err != nil {
						t.Fatal(err)
					}
					im.setEntry(im.geo.PayloadEntry(victim), ondisk.BATEntry(off|uint64(state)))
					within(t, what, func() {
						for _, err := range []error{op(disk), disk.Sync(), disk.Clean(), readErr(disk.ReadAt(make([]byte, 512), other*ondisk.MiB)), disk.Close()} {
							if f, ok := errors.AsType[*fault.Error](err); ok {
								t.Errorf("%s of %s, state %d at %#x: %v\n%s", what, name, state, off, err, f.Stack)
							}
						}
					})
				}
			}
		}
	}
}

func readErr(_ int, err error) error { return err }

func eachExtent(im *Image) error {
	for off := int64(0); ; {
		e, err := im.Extent(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		off = e.End()
	}
}

// A panicFile panics in the n-th call from when it is armed.
type panicFile struct {
	File
	left atomic.Int64 // 0 is not armed
}

func (f *panicFile) step() {
	if f.left.Load() > 0 && f.left.Add(-1) == 0 {
		panic("the fault that the test wants")
	}
}

func (f *panicFile) ReadAt(p []byte, off int64) (int, error) { f.step(); return f.File.ReadAt(p, off) }

func (f *panicFile) WriteAt(p []byte, off int64) (int, error) {
	f.step()
	return f.File.WriteAt(p, off)
}
func (f *panicFile) Sync() error                  { f.step(); return f.File.Sync() }
func (f *panicFile) Truncate(size int64) error    { f.step(); return f.File.Truncate(size) }
func (f *panicFile) PunchHole(off, n int64) error { f.step(); return f.File.PunchHole(off, n) }
func (f *panicFile) NextData(off int64) (int64, error) {
	f.step()
	return f.File.NextData(off)
}
func (f *panicFile) Allocate(off, n int64) error  { f.step(); return f.File.Allocate(off, n) }
func (f *panicFile) ZeroRange(off, n int64) error { f.step(); return f.File.ZeroRange(off, n) }

// A panic in any change of the image is an error of that change. It holds no lock, no claim and no pin; from
// then on writes fail and say why, reads go on, and the image can be closed. What is left can be opened.
func TestPanicFailsTheWriterAlone(t *testing.T) {
	ops := map[string]func(im *Image) error{
		"write": func(im *Image) error { return writeErr(im.WriteAt([]byte("new"), 6*ondisk.MiB+100)) },
		"zero":  func(im *Image) error { return im.Zero(0, ondisk.MiB) },
		"trim":  func(im *Image) error { return errors.Join(im.Discard(0, 3*ondisk.MiB), im.Sync(), im.Clean()) },
		"sync": func(im *Image) error {
			return errors.Join(writeErr(im.WriteAt(make([]byte, 9000), ondisk.MiB-3)), im.Sync())
		},
		"compact": func(im *Image) error { _, err := im.Compact(context.Background(), CompactOptions{}); return err },
		"grow":    func(im *Image) error { return im.Grow(context.Background(), 12*ondisk.MiB) },
		"reserve": func(im *Image) error { return im.Allocate(5*ondisk.MiB, 3*ondisk.MiB) },
	}
	for what, op := range ops {
		panics := 0
		for name, newChain := range modelSpecs() {
			for n := int64(1); ; n++ {
				c := newChain()
				f := &panicFile{File: c[0].memFile}
				files := []File{f}
				for _, l := range c[1:] {
					files = append(files, l.memFile)
				}
				im, err := loadWritable(Options{Discard: DiscardPunch}, files...)
				if err != nil {
					t.Fatal(err)
				}
				f.left.Store(n)
				within(t, what, func() {
					err = op(im)
					happened := f.left.Swap(0) == 0
					if !happened {
						return
					}
					panics++
					// The space of a trim goes back in the background, whose faults are not those of the operation.
					if f, ok := errors.AsType[*fault.Error](err); !ok && !(what == "trim" && err == nil) {
						// In a read that comes before any change the caller has to recover; no caller does here.
						t.Errorf("%s of %s, call %d: %v", what, name, n, f)
					}
					again := writeErr(im.WriteAt([]byte("later"), ondisk.MiB))
					for tries := 0; again == nil && tries < 1000; tries++ { // until the background has failed the writer
						time.Sleep(time.Millisecond)
						again = writeErr(im.WriteAt([]byte("later"), ondisk.MiB))
					}
					if _, ok := errors.AsType[*fault.Error](again); !ok || !errors.Is(again, ErrFailed) {
						t.Errorf("%s of %s, call %d: the next write: %v", what, name, n, again)
					}
					if w := im.writer; w.dirty.claimed != 0 {
						t.Errorf("%s of %s, call %d: %d pages are still claimed", what, name, n, w.dirty.claimed)
					}
					if err := readErr(im.ReadAt(make([]byte, 512), 2*ondisk.MiB)); err != nil {
						t.Errorf("%s of %s, call %d: a read: %v", what, name, n, err)
					}
					im.Info()
					if err := im.Clean(); !errors.Is(err, ErrFailed) {
						t.Errorf("%s of %s, call %d: Clean: %v", what, name, n, err)
					}
				})
				done := false
				within(t, "close", func() { done = im.Close() == nil })
				files[0] = c[0].memFile
				left, err := loadWritable(Options{}, files...)
				if err != nil {
					t.Fatalf("%s of %s, call %d: open what is left: %v", what, name, n, err)
				}
				left.Close()
				if done {
					break
				}
			}
		}
		if panics < 10 {
			t.Errorf("%s panicked only %d times", what, panics)
		}
	}
}

// What is wrong with a BAT entry is told of the first thousand alone, and no text is made of the others: there may be 64 Mi.
func TestManyFindingsCostLittle(t *testing.T) {
	const blocks = 200_000
	for name, entry := range map[string]func(n int64) ondisk.BATEntry{
		"offset without a state": func(n int64) ondisk.BATEntry { return ondisk.BATEntry(n+4) << 20 },
		"place kept outside":     func(n int64) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.Unmapped, math.MinInt64|n<<20) },
		"reserved bits": func(n int64) ondisk.BATEntry {
			return ondisk.NewBATEntry(ondisk.Zero, 0) | ondisk.BATEntry(n%0xFFFF+1)<<3
		},
		"no such state":    func(n int64) ondisk.BATEntry { return ondisk.BATEntry(n)<<20 | 4 },
		"outside":          func(n int64) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.FullyPresent, 1<<50|n<<20) },
		"all in one place": func(int64) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.FullyPresent, 4*ondisk.MiB) },
	} {
		im := build(spec{diskSize: blocks * ondisk.MiB})
		var bat []byte
		for i := range im.geo.BATEntries() {
			n, bitmap := im.geo.Entry(i)
			if bitmap {
				bat = append(bat, make([]byte, ondisk.BATEntrySize)...)
				continue
			}
			bat = ondisk.LE.AppendUint64(bat, uint64(entry(n)))
		}
		im.write(bat, im.batOff)
		op := newOpener(Options{})
		op.collect = true
		l := op.newLayer(im.memFile, "memory")
		var err error
		n := allocated(func() { err = l.load() })
		if err != nil || len(l.errors)+len(l.warnings) != maxFindings || l.dropped != blocks-maxFindings-1 && l.dropped != blocks-maxFindings {
			t.Errorf("%s: %d errors, %d warnings, %d dropped, %v", name, len(l.errors), len(l.warnings), l.dropped, err)
		}
		if n > 8*ondisk.MiB {
			t.Errorf("%s: %d bytes are allocated to look at %d entries", name, n, blocks)
		}
	}
}

// A repair copies no more than the image has and a block of the largest kind, however many blocks lie in one place. Before,
// an image of some MiB grew by terabytes.
func TestRepairCopiesLittle(t *testing.T) {
	for _, blocks := range []int64{250, 600} {
		im := build(spec{diskSize: blocks * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
		for b := int64(1); b < blocks; b++ {
			im.setBlockEntry(b, im.entries[0])
		}
		r := planLeft(t, im.memFile)
		if few := blocks < 256; few != (len(r.left) == 0) || r.d.size > 2*im.size+ondisk.MaxBlockSize || !few && (len(r.fixes) > 0 || len(r.advice) != 1) {
			t.Errorf("%d blocks: %d findings left, %d fixes, a file of %d bytes, advice %q", blocks, len(r.left), len(r.fixes), r.d.size, r.advice)
		}
	}
}

// The place of an unknown optional region may be any, and is shown as it is.
func TestFarRegionIsShown(t *testing.T) {
	const far = 1<<63 + 4*ondisk.MiB
	im := build(spec{regions: []ondisk.Region{{GUID: otherGUID, Offset: far, Length: ondisk.MiB}}})
	disk, err := loadReadOnly(im.memFile)
	if err != nil {
		t.Fatal(err)
	}
	if r := disk.Info().Regions; !slices.ContainsFunc(r, func(r RegionInfo) bool { return r.Offset == far }) {
		t.Errorf("%+v", r)
	}
}
