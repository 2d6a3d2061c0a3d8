package vhdx

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A heldFile lets the late scan of its BAT wait. Pages are read as ever.
type heldFile struct {
	*memFile
	late    int64         // file offset of what is scanned late
	release chan struct{} // closed when the scan may go on
	fail    error         // of what is scanned late
}

func (f *heldFile) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > ondisk.PageSize && off >= f.late {
		<-f.release
		if f.fail != nil {
			return 0, f.fail
		}
	}
	return f.memFile.ReadAt(p, off)
}

// largeBAT returns an image with a BAT of 16 MiB, every page of which says something, and the file held.
func largeBAT(change func(im *image)) (*image, *heldFile) {
	return holdBAT(spec{diskSize: 2 * ondisk.TiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {2*ondisk.TiB/ondisk.MiB - 1, ondisk.FullyPresent}}}, change)
}

func holdBAT(s spec, change func(im *image)) (*image, *heldFile) {
	im := build(s)
	for i := int64(1); i < im.geo.BATEntries(); i += ondisk.EntriesPerPage {
		if _, bitmap := im.geo.Entry(i); !bitmap {
			im.setEntry(i, ondisk.BATEntry(ondisk.Zero))
		}
	}
	if change != nil {
		change(im)
	}
	return im, &heldFile{im.memFile.clone(), im.batOff + promptScan, make(chan struct{}), nil}
}

// openLate opens the file with a late scan, which is under way.
func openLate(t *testing.T, f File, o Options) *Image {
	t.Helper()
	o.LateScan = true
	var im *Image
	var err error
	if o.Writable {
		im, err = loadWritable(o, f)
	} else {
		var top *layer
		if top, err = loadFiles(newOpener(o), f); err == nil {
			im = newImage(top)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if im.current().wasValidated() {
		t.Fatal("the whole BAT was validated at once")
	}
	im.startLateScan(o.Log)
	return im
}

func checkRead(t *testing.T, im *Image, f *image, off int64) {
	t.Helper()
	got, want := make([]byte, 4096), make([]byte, 4096)
	f.disk.ReadAt(want, off)
	if _, err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read at %#x: %v, or other bytes than there are", off, err)
	}
}

// The disk can be read before its BAT is validated. What is written waits.
func TestLateScan(t *testing.T) {
	f, held := largeBAT(nil)
	im := openLate(t, held, Options{Writable: true})
	checkRead(t, im, f, 0)
	checkRead(t, im, f, 2*ondisk.TiB-4096)
	checkRead(t, im, f, ondisk.TiB)
	if n := im.AllocatedBytes(); n != held.size {
		t.Errorf("%d bytes allocated, want those of the file, %d, while it is not known", n, held.size)
	}

	written := make(chan error)
	p := bytes.Repeat([]byte{7}, 4096)
	go func() {
		_, err := im.WriteAt(p, ondisk.TiB)
		written <- err
	}()
	// It had every chance to be too early.
	for range 100 {
		checkRead(t, im, f, 0)
	}
	if n := held.changes.Load(); n != 0 {
		t.Errorf("%d changes of the file before its BAT was validated", n)
	}
	close(held.release)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if err := im.Validated(); err != nil {
		t.Fatal(err)
	}
	f.disk.WriteAt(p, ondisk.TiB)
	checkRead(t, im, f, ondisk.TiB)
	checkRead(t, im, f, 2*ondisk.TiB-4096)
	if n := im.AllocatedBytes(); n != 3*ondisk.MiB {
		t.Errorf("%d bytes allocated, want 3 MiB", n)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := loadReadOnly(held.memFile)
	if err != nil {
		t.Fatal(err)
	}
	checkRead(t, again, f, ondisk.TiB)
}

// What is known in the end is the same, whenever it was looked at.
func TestLateScanKnowsTheSame(t *testing.T) {
	f, held := largeBAT(func(im *image) {
		im.setEntry(im.geo.BATEntries()-2, ondisk.NewBATEntry(ondisk.Unmapped, 900*ondisk.TiB)) // a warning
	})
	late := openLate(t, held, Options{})
	at, err := loadReadOnly(f.memFile)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan *Info)
	go func() { told <- late.Info() }()
	for range 100 { // it had every chance to be too early
		checkRead(t, late, f, 0)
	}
	close(held.release)
	got, want := <-told, at.Info()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the late scan tells\n%+v\nwant\n%+v", got, want)
	}
	if len(want.Warnings) != 1 {
		t.Errorf("warnings %q, want one", want.Warnings)
	}
}

// Damage behind what is validated at once is an error of reads that meet it, refuses all writes, and is logged.
func TestLateScanFindsDamage(t *testing.T) {
	const last = 2*ondisk.TiB/ondisk.MiB - 1
	for _, tc := range []struct {
		name  string
		rule  ondisk.Rule
		entry ondisk.BATEntry
		reads error // of the damaged block
	}{
		{"overlap", ondisk.RuleBlockOverlap, 0, nil}, // cannot be known from the entry alone
		{"behind the file", ondisk.RuleBlockBeyondFile, ondisk.NewBATEntry(ondisk.FullyPresent, 200*ondisk.TiB), ErrCorrupt},
		{"in the log", ondisk.RuleBlockOverlapsRegion, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.MiB), ErrCorrupt},
		{"header section", ondisk.RuleBlockInHeaderSection, ondisk.NewBATEntry(ondisk.FullyPresent, 0), ErrCorrupt},
		{"state 4", ondisk.RuleBlockState, ondisk.NewBATEntry(4, 0), ErrCorrupt},
		{"no parent", ondisk.RulePartialWithoutParent, ondisk.NewBATEntry(ondisk.PartiallyPresent, 30*ondisk.MiB), ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, held := largeBAT(func(im *image) {
				e := tc.entry
				if e == 0 {
					e = im.entries[0]
				}
				im.setBlockEntry(last, e)
			})
			var logged bytes.Buffer
			log := &logrus.Logger{Out: &logged, Formatter: new(logrus.TextFormatter), Level: logrus.InfoLevel}
			im := openLate(t, held, Options{Writable: true, Log: log})
			checkRead(t, im, f, 0)
			if _, err := im.ReadAt(make([]byte, 512), last*ondisk.MiB); !errors.Is(err, tc.reads) {
				t.Errorf("read of the damaged block before the scan came there: %v, want %v", err, tc.reads)
			}
			close(held.release)
			for range 2 {
				_, err := im.WriteAt(make([]byte, 512), 0)
				if ruleOf(err) != tc.rule {
					t.Errorf("write: %v, want the broken rule %v", err, tc.rule.Name())
				}
			}
			for name, err := range map[string]error{
				"Discard": im.Discard(0, ondisk.MiB), "Allocate": im.Allocate(0, ondisk.MiB), "Zero": im.Zero(0, ondisk.MiB), "Validated": im.Validated(),
				"Grow": im.Grow(t.Context(), 3*ondisk.TiB),
			} {
				if ruleOf(err) != tc.rule {
					t.Errorf("%s: %v, want the broken rule %v", name, err, tc.rule.Name())
				}
			}
			if _, err := im.Compact(t.Context(), CompactOptions{}); ruleOf(err) != tc.rule {
				t.Errorf("Compact: %v, want the broken rule %v", err, tc.rule.Name())
			}
			if _, err := im.Snapshot(t.Context(), "", SnapshotOptions{}); ruleOf(err) != tc.rule {
				t.Errorf("Snapshot: %v, want the broken rule %v", err, tc.rule.Name())
			}
			if _, err := im.Reclaimable(t.Context(), false, CompactOptions{}); ruleOf(err) != tc.rule {
				t.Errorf("Reclaimable: %v, want the broken rule %v", err, tc.rule.Name())
			}
			if _, err := im.ReadAt(make([]byte, 512), last*ondisk.MiB); !errors.Is(err, tc.reads) {
				t.Errorf("read of the damaged block after the scan: %v, want %v", err, tc.reads)
			}
			im.Info()
			if n := im.AllocatedBytes(); n != held.size {
				t.Errorf("%d bytes allocated, want those of the file, %d, since it is not known", n, held.size)
			}
			im.FreeRanges(func(off, n int64) { t.Errorf("%d bytes at %#x are said to be free", n, off) })
			if err := im.Sync(); err != nil {
				t.Errorf("sync of nothing: %v", err)
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
			if n := held.changes.Load(); n != 0 {
				t.Errorf("%d changes of a damaged file", n)
			}
			if s := logged.String(); !strings.Contains(s, tc.rule.Name()) || !strings.Contains(s, "vhdxfs check") {
				t.Errorf("logged: %s", s)
			}
		})
	}
}

// A place outside the file that a block keeps without being present is no damage, but no place to write either.
func TestLateScanUnwritable(t *testing.T) {
	_, held := largeBAT(func(im *image) {
		im.setBlockEntry(2*ondisk.TiB/ondisk.MiB-1, ondisk.NewBATEntry(ondisk.Unmapped, 900*ondisk.TiB))
	})
	close(held.release)
	im := openLate(t, held, Options{Writable: true})
	if _, err := im.WriteAt(make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "mount the image read-only") {
		t.Errorf("write: %v", err)
	}
	if err := im.Close(); err != nil || held.changes.Load() > 0 {
		t.Errorf("close: %v, %d changes", err, held.changes.Load())
	}
}

// A last block that the end of the file cuts is a whole block, also if it is found late: no other is put into it.
func TestLateScanCutBlock(t *testing.T) {
	const blocks = 2 * ondisk.TiB / ondisk.MiB
	size := int64(blocks*2*ondisk.MiB - 3*ondisk.MiB/2)
	_, held := holdBAT(spec{diskSize: size, blockSize: 2 * ondisk.MiB, blocks: []blockSpec{{blocks - 1, ondisk.FullyPresent}}}, func(im *image) {
		im.size = im.entries[blocks-1].FileOff() + ondisk.MiB/2
	})
	close(held.release)
	im := openLate(t, held, Options{Writable: true})
	if _, err := im.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := loadReadOnly(held.memFile); err != nil {
		t.Error(err)
	}
}

// A BAT that cannot be read is no damage, but writes are still refused. What can be read is read.
func TestLateScanReadError(t *testing.T) {
	f, held := largeBAT(nil)
	held.fail = unix.EIO
	var logged bytes.Buffer
	im := openLate(t, held, Options{Writable: true, Log: &logrus.Logger{Out: &logged, Formatter: new(logrus.TextFormatter), Level: logrus.InfoLevel}})
	close(held.release)
	if err := im.Discard(0, ondisk.MiB); !errors.Is(err, unix.EIO) || errors.Is(err, ErrCorrupt) {
		t.Errorf("discard: %v", err)
	}
	checkRead(t, im, f, 0)
	checkRead(t, im, f, 2*ondisk.TiB-4096)
	if err := im.Close(); err != nil || held.changes.Load() > 0 {
		t.Errorf("close: %v, %d changes", err, held.changes.Load())
	}
	if s := logged.String(); !strings.Contains(s, "cannot be read") || strings.Contains(s, "damaged") {
		t.Errorf("logged: %s", s)
	}
}

// A log is replayed into the file only if all of the image is valid. What was replayed may be scanned late.
func TestLateScanAfterReplay(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		f, held := largeBAT(func(im *image) {
			if damaged {
				im.setBlockEntry(2*ondisk.TiB/ondisk.MiB-1, ondisk.NewBATEntry(ondisk.FullyPresent, 200*ondisk.TiB))
			}
			im.logPages(im.batOff)
			im.nameLog()
		})
		close(held.release)
		if damaged {
			_, err := loadWritable(Options{Writable: true, LateScan: true}, held)
			if ruleOf(err) != ondisk.RuleBlockBeyondFile || held.changes.Load() > 0 {
				t.Errorf("a damaged image: %v, %d changes of its file", err, held.changes.Load())
			}
			continue
		}
		im, err := Open(chain{f}.writeTo(t, t.TempDir()), Options{Writable: true, LateScan: true})
		if err != nil {
			t.Fatal(err)
		}
		if im.current().late == nil {
			t.Error("the whole BAT was validated twice")
		}
		if _, err := im.WriteAt(make([]byte, 512), ondisk.TiB); err != nil {
			t.Fatal(err)
		}
		checkRead(t, im, f, 2*ondisk.TiB-4096)
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is odd is told once: what is seen at once by Warnings, the rest by the log.
func TestLateScanWarnings(t *testing.T) {
	_, held := largeBAT(func(im *image) {
		im.setBlockEntry(7, ondisk.NewBATEntry(ondisk.Zero, 30*ondisk.MiB))
		im.setBlockEntry(2*ondisk.TiB/ondisk.MiB-1, ondisk.NewBATEntry(ondisk.Zero, 40*ondisk.MiB))
	})
	close(held.release)
	var logged bytes.Buffer
	im := openLate(t, held, Options{Log: &logrus.Logger{Out: &logged, Formatter: new(logrus.TextFormatter), Level: logrus.InfoLevel}})
	if err := im.Validated(); err != nil {
		t.Fatal(err)
	}
	if w := im.Warnings(); len(w) != 1 || !strings.Contains(w[0], "block 7 ") {
		t.Errorf("warnings %q, want that of block 7", w)
	}
	if s := logged.String(); strings.Count(s, "has the file offset") != 1 || !strings.Contains(s, "block 2097151 ") {
		t.Errorf("logged: %s", s)
	}
}

// Everything may be asked and done while the scan is under way.
func TestLateScanInUse(t *testing.T) {
	const size = 2 * ondisk.TiB
	f, _ := largeBAT(func(im *image) {
		for b := int64(1); b < 100; b++ { // of which there are warnings
			im.setBlockEntry(size/ondisk.MiB-100*b-50, ondisk.NewBATEntry(ondisk.Zero, b*ondisk.MiB))
		}
	})
	for round := range 3 {
		path := chain{f}.writeTo(t, t.TempDir())
		im, err := Open(path, Options{LateScan: true, Writable: true, CacheSize: 1, Commit: time.Millisecond, IdleClean: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if im.current().late == nil {
			t.Fatal("the whole BAT was validated at once")
		}
		var all sync.WaitGroup
		each := func(do func(i int64) error) {
			all.Go(func() {
				for i := range int64(20) {
					if err := do(i); err != nil {
						t.Error(err)
					}
				}
			})
		}
		each(func(i int64) error { checkRead(t, im, f, size-4096); return nil })
		each(func(i int64) error { checkRead(t, im, f, i*size/20); return nil })
		each(func(i int64) error { _, err := im.Extent(i * size / 20); return err })
		each(func(i int64) error { im.Stats(); im.Warnings(); return nil })
		each(func(i int64) error { return errors.Join(im.Sync(), im.Clean()) })
		if round > 0 {
			each(func(i int64) error { im.Info(); im.FreeRanges(func(int64, int64) {}); return nil })
			each(func(i int64) error { _, err := im.SeekData(size - ondisk.MiB); return err })
			each(func(i int64) error { _, err := im.WriteAt([]byte{1, byte(i)}, i*size/20+ondisk.MiB); return err })
			each(func(i int64) error { return im.Zero(i*size/20+2*ondisk.MiB, ondisk.MiB) })
		}
		all.Wait()
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Check(path, Options{})
		if err != nil || len(r.Errors) > 0 || r.Leaked > 0 {
			t.Fatalf("check: %v, %+v", err, r)
		}
		again, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkRead(t, again, f, size-4096)
		for i := range int64(20) {
			var got [2]byte
			want := [2]byte{}
			if round > 0 {
				want = [2]byte{1, byte(i)}
			}
			if _, err := again.ReadAt(got[:], i*size/20+ondisk.MiB); err != nil || got != want {
				t.Errorf("write %d reads as %v, %v; want %v", i, got, err, want)
			}
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Close does not wait for the rest of a table, and leaves no goroutine that reads from a closed file.
func TestLateScanClose(t *testing.T) {
	f, _ := largeBAT(nil)
	path := chain{f}.writeTo(t, t.TempDir())
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, writable := range []bool{false, true} {
		im, err := Open(path, Options{LateScan: true, Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		late := im.current().late
		if late == nil {
			t.Fatal("the whole BAT was validated at once")
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-late.done:
		default:
			t.Error("the scan goes on after Close")
		}
	}
	if after, err := os.ReadFile(filepath.Clean(path)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file is another one, or %v", err)
	}
}

// The scan may be late only where nothing depends on it.
func TestLateScanNotWhereItMatters(t *testing.T) {
	dirty, _ := largeBAT(func(im *image) { im.logPages(im.batOff); im.nameLog() })
	child := build(spec{typ: Differencing, diskSize: 2 * ondisk.TiB})
	for i := int64(1); i < child.geo.BATEntries(); i += ondisk.EntriesPerPage {
		if _, bitmap := child.geo.Entry(i); !bitmap {
			child.setEntry(i, ondisk.BATEntry(ondisk.Zero))
		}
	}
	parent, _ := largeBAT(nil)
	salvaged, _ := largeBAT(nil)
	for name, f := range map[string]*image{"dirty": dirty, "differencing": child, "parent": parent, "salvaged": salvaged} {
		op := newOpener(Options{LateScan: true})
		op.collect = f == salvaged
		if f == parent {
			op.chain = []*layer{{}}
		}
		top, err := loadFiles(op, f.memFile)
		if err != nil {
			t.Fatal(err)
		}
		if top.late != nil {
			t.Errorf("%s: the scan is late", name)
		}
	}
	small := build(spec{})
	if top, err := loadFiles(newOpener(Options{LateScan: true}), small.memFile); err != nil || top.late != nil {
		t.Errorf("a small BAT was not validated at once, or %v", err)
	}
}

// A heldAgain is a file whose scan waits only after something was changed.
type heldAgain struct{ *heldFile }

func (f heldAgain) ReadAt(p []byte, off int64) (int, error) {
	if f.changes.Load() == 0 {
		return f.memFile.ReadAt(p, off)
	}
	return f.heldFile.ReadAt(p, off)
}

// An image whose log was replayed is made clean, as by a close, before it is known which space of its file is free: nothing is cut
// off then.
func TestLateScanCutsNothingOff(t *testing.T) {
	f, held := largeBAT(func(im *image) { im.logPages(im.batOff); im.nameLog() })
	size := held.size
	im := openLate(t, heldAgain{held}, Options{Writable: true})
	if err := im.Clean(); err != nil {
		t.Error(err)
	}
	if err := im.writer.close(); err != nil {
		t.Error(err)
	}
	if held.size < size {
		t.Errorf("the file was cut off at %d MiB, of %d", held.size/ondisk.MiB, size/ondisk.MiB)
	}
	close(held.release)
	again, err := loadReadOnly(held.memFile)
	if err != nil {
		t.Fatal(err)
	}
	checkRead(t, again, f, 2*ondisk.TiB-4096)
}
