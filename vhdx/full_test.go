package vhdx

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A fullFile lies on a host that has room for some more pages. What reads as zero need not have space.
type fullFile struct {
	*memFile
	left  int            // pages
	has   map[int64]bool // by page number: it has space
	cow   bool           // the host copies on write: what is overwritten takes space, too, and no space can be reserved
	loose int            // pages that a sync gives back: those copied
}

func newFullFile(f *memFile, left int) *fullFile {
	has := make(map[int64]bool)
	for n := range f.pages {
		has[n] = true
	}
	return &fullFile{memFile: f, left: left, has: has}
}

func (f *fullFile) Sparse() bool { return true }

// take gives the pages of a range their space, or none of them.
func (f *fullFile) take(off, n int64, copies bool) error {
	var need []int64
	for i := off / ondisk.PageSize; i*ondisk.PageSize < off+n; i++ {
		if !f.has[i] || copies {
			need = append(need, i)
		}
	}
	if len(need) > f.left {
		return unix.ENOSPC
	}
	f.left -= len(need)
	for _, i := range need {
		if f.has[i] {
			f.loose++
		}
		f.has[i] = true
	}
	return nil
}

// drop takes the space of the pages from number first to end away.
func (f *fullFile) drop(first, end int64) {
	for i := range f.has {
		if i >= first && i < end {
			delete(f.has, i)
			f.left++
		}
	}
}

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.take(off, int64(len(p)), f.cow); err != nil {
		return 0, err
	}
	return f.memFile.WriteAt(p, off)
}

func (f *fullFile) Allocate(off, n int64) error {
	if f.cow {
		return nil
	}
	if err := f.take(off, n, false); err != nil {
		return err
	}
	f.memFile.size = max(f.memFile.size, off+n)
	return nil
}

func (f *fullFile) ZeroRange(off, n int64) error {
	if err := f.take(off, n, f.cow); err != nil {
		return err
	}
	return f.memFile.PunchHole(off, n)
}

func (f *fullFile) PunchHole(off, n int64) error {
	f.drop((off+ondisk.PageSize-1)/ondisk.PageSize, (off+n)/ondisk.PageSize)
	return f.memFile.PunchHole(off, n)
}

func (f *fullFile) Truncate(size int64) error {
	f.drop((size+ondisk.PageSize-1)/ondisk.PageSize, 1<<62)
	return f.memFile.Truncate(size)
}

func (f *fullFile) Sync() error {
	f.left, f.loose = f.left+f.loose, 0
	return f.memFile.Sync()
}

// A page of a sector bitmap that reads as zero may be a hole of the file, for which a full disk has no space. A change
// that needs it learns that before anything changes.
func TestBitmapPageWithoutSpace(t *testing.T) {
	child := build(spec{typ: Differencing, diskSize: 32 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}}})
	child.setBlock(20, ondisk.FullyPresent)
	child.put(bytes.Repeat([]byte("stale..."), ondisk.MiB/8), 20*ondisk.MiB) // a free place that has space
	child.setBlock(20, ondisk.NotPresent)
	c := chain{child, build(spec{diskSize: 32 * ondisk.MiB})}
	m := newModel(c)
	f := newFullFile(c[0].memFile, 1000)
	if err := f.Allocate(c[0].logOff, c[0].logLen); err != nil {
		t.Fatal(err)
	}
	f.left = 0
	im, err := loadWritable(Options{Writable: true, Discard: DiscardPunch}, f, c[1].memFile)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	im.writer.stop()
	p := bytes.Repeat([]byte{7}, 4096)
	if _, err := im.WriteAt(p, 20*ondisk.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write for whose sector bitmap there is no space: %v", err)
	}
	if err := im.Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
	if err := im.Clean(); err != nil {
		t.Errorf("clean: %v", err)
	}
	m.compare(t, im)
	f.left = 2
	m.WriteAt(p, 20*ondisk.MiB)
	if _, err := im.WriteAt(p, 20*ondisk.MiB); err != nil {
		t.Errorf("when there is space again: %v", err)
	}
	f.left = 0
	if err := im.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	ro, err := loadReadOnly(f.memFile, c[1].memFile)
	if err != nil {
		t.Fatal(err)
	}
	m.compare(t, ro)
}

var errAny = errors.New("any")

// On a host that copies on write there may be no space for what has a place already: metadata, the log, the headers. Nothing
// is lost by that: what is in the log stays there, what is not is not acknowledged, new changes get ENOSPC, and all goes on
// when there is space.
func TestNoSpaceForWhatHasAPlace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		where func(b *image) (off, n int64)
		begun bool  // the first change is made before
		sync  error // of what is changed then; either of both if it is errAny
	}{
		{"block allocation table", func(b *image) (int64, int64) { return b.batOff, b.batLen }, true, nil},
		{"log", func(b *image) (int64, int64) { return b.logOff, b.logLen }, true, unix.ENOSPC},
		{"header 2", func(*image) (int64, int64) { return ondisk.HeaderOffsets[1], ondisk.HeaderSize }, false, errAny},
		{"header 1", func(*image) (int64, int64) { return ondisk.HeaderOffsets[0], ondisk.HeaderSize }, false, errAny},
	} {
		for _, reopen := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				b := build(spec{diskSize: 16 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
				m := newModel(chain{b})
				full := false
				f := noSpace{noAlloc: noAlloc{b.memFile, true}, full: &full}
				f.off, f.n = tt.where(b)
				im, err := loadWritable(Options{Writable: true}, f)
				if err != nil {
					t.Fatal(err)
				}
				im.writer.stop()
				write := func(off int64, v byte, mayFail bool) error {
					p := bytes.Repeat([]byte{v}, 4096)
					_, err := im.WriteAt(p, off)
					switch {
					case err == nil:
						m.WriteAt(p, off)
					case !mayFail || !errors.Is(err, unix.ENOSPC):
						t.Fatalf("write at %#x: %v", off, err)
					}
					return err
				}
				if tt.begun {
					write(0, 1, false)
					write(3*ondisk.MiB, 2, false) // the page of the BAT has space
				}
				full = true
				write(4*ondisk.MiB, 3, !tt.begun)
				err = im.Sync()
				if tt.sync != errAny && !errors.Is(err, tt.sync) || err != nil && !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("sync: %v", err)
				}
				if err := im.Clean(); err != nil && !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("clean: %v", err)
				}
				write(5*ondisk.MiB, 4, true)
				write(100, 5, true)
				m.compare(t, im)
				if reopen && tt.sync == nil {
					if err := im.Close(); !errors.Is(err, unix.ENOSPC) {
						t.Errorf("close: %v", err)
					}
					if im, err = loadWritable(Options{Writable: true}, noAlloc{b.memFile, true}); err != nil {
						t.Fatal(err)
					}
					m.compare(t, im)
				}
				full = false
				write(6*ondisk.MiB, 6, false)
				write(7*ondisk.MiB, 7, false)
				if err := im.Sync(); err != nil {
					t.Fatal(err)
				}
				if err := im.Close(); err != nil {
					t.Fatal(err)
				}
				ro, err := loadReadOnly(b.memFile)
				if err != nil {
					t.Fatal(err)
				}
				m.compare(t, ro)
			})
		}
	}
}

// While metadata in the log waits for space, what takes space fails, and what gives up some does not.
func TestStuckUntilTrimmed(t *testing.T) {
	b := build(spec{diskSize: 16 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	full := false
	f := noSpace{noAlloc: noAlloc{b.memFile, true}, off: b.batOff, n: b.batLen, full: &full}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	im.writer.stop()
	if _, err := im.WriteAt([]byte{1}, 3*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	full = true
	if err := im.Clean(); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte{1}, 4*ondisk.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a new block: %v", err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); err != nil {
		t.Errorf("an overwrite: %v", err)
	}
	if err := im.Zero(ondisk.MiB, ondisk.MiB); err != nil {
		t.Errorf("a trim: %v", err)
	}
	if err := im.Sync(); err != nil {
		t.Errorf("a sync: %v", err)
	}
	full = false
	if _, err := im.WriteAt([]byte{1}, 4*ondisk.MiB); err != nil {
		t.Errorf("a new block when there is space: %v", err)
	}
}

// Space that was trimmed a moment ago serves the next write on a full host, whether or not the file has a hole to offer,
// for which there is no space.
func TestTrimmedSpaceOfAFullHost(t *testing.T) {
	for _, hole := range []bool{false, true} {
		b := build(spec{diskSize: 16 * ondisk.MiB})
		for blk := int64(0); blk < 4; blk++ {
			if blk == 2 && hole {
				b.allocate(ondisk.MiB)
			}
			b.setBlock(blk, ondisk.FullyPresent)
			b.put(bytes.Repeat([]byte{byte(blk + 1)}, ondisk.MiB), blk*ondisk.MiB)
		}
		m := newModel(chain{b})
		f := newFullFile(b.memFile, 1000)
		im, err := loadWritable(Options{Writable: true, Discard: DiscardPunch}, f)
		if err != nil {
			t.Fatal(err)
		}
		im.writer.stop()
		p := bytes.Repeat([]byte{9}, ondisk.MiB)
		if err := im.Zero(0, 4096); err != nil { // announces, and gives log and BAT their space
			t.Fatal(err)
		}
		m.WriteAt(make([]byte, 4096), 0)
		if err := im.Zero(3*ondisk.MiB, ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		m.WriteAt(make([]byte, ondisk.MiB), 3*ondisk.MiB)
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		im.writer.space.giveBack()
		f.left = 0
		if err := im.Zero(ondisk.MiB, ondisk.MiB); err != nil {
			t.Fatal(err)
		}
		m.WriteAt(make([]byte, ondisk.MiB), ondisk.MiB)
		m.WriteAt(p, 8*ondisk.MiB)
		if _, err := im.WriteAt(p, 8*ondisk.MiB); err != nil {
			t.Errorf("hole %v: a write into the space of a trimmed block: %v", hole, err)
		}
		if _, err := im.WriteAt(p, 9*ondisk.MiB); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("hole %v: another: %v", hole, err)
		}
		m.compare(t, im)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A change that fails for want of space, on hosts of both kinds, leaves the image as it was, and when space is back all
// goes on.
func TestFullHost(t *testing.T) {
	refused := 0
	seeds := max(fewer(30), 8) // so that each disk meets each host
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 11))
		c := crashSpecs()[[]string{"dynamic", "differencing", "recycled", "growing"}[seed%4]]()
		m := newModel(c)
		f := newFullFile(c[0].memFile, rng.IntN(300))
		f.cow = seed/4%2 == 1
		files := append([]File{f}, c.files()[1:]...)
		im, err := loadWritable(Options{Writable: true, Discard: DiscardPunch, DetectZeroes: seed%2 == 0}, files...)
		if err != nil {
			t.Fatal(err)
		}
		im.writer.stop()
		check := func(err error) bool {
			if err != nil && !errors.Is(err, unix.ENOSPC) || im.writer.err() != nil {
				t.Fatalf("seed %d: %v; the writer says %v", seed, err, im.writer.err())
			}
			if err != nil {
				refused++
			}
			return err == nil
		}
		for range 150 {
			off := rng.Int64N(min(m.size, 40*ondisk.MiB)) &^ 4095
			switch k := rng.IntN(16); {
			case k < 9:
				p := bytes.Repeat([]byte{byte(rng.Uint32())}, 4096)
				if _, err := im.WriteAt(p, off); check(err) {
					m.WriteAt(p, off)
				}
			case k < 11:
				n := min(ondisk.MiB, m.size-off&^(ondisk.MiB-1))
				if err := im.Zero(off&^(ondisk.MiB-1), n); check(err) {
					m.WriteAt(make([]byte, n), off&^(ondisk.MiB-1))
				}
			case k < 14:
				check(im.Sync())
			case k == 14:
				check(im.Clean())
			default:
				f.left = rng.IntN(40)
			}
		}
		m.compare(t, im)
		f.left = 1 << 20
		p := bytes.Repeat([]byte{77}, 4096)
		m.WriteAt(p, 0)
		if _, err := im.WriteAt(p, 0); err != nil {
			t.Fatalf("seed %d: with space again: %v", seed, err)
		}
		if err := im.Sync(); err != nil {
			t.Fatalf("seed %d: with space again: %v", seed, err)
		}
		m.compare(t, im)
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		ro, err := loadReadOnly(append([]File{f.memFile}, files[1:]...)...)
		if err != nil {
			t.Fatal(err)
		}
		m.compare(t, ro)
	}
	if refused < 200*seeds/30 {
		t.Errorf("%d operations were refused; that tries little", refused)
	}
}

// A resize that has no space for the metadata that it changes fails before there is no way back.
func TestResizeWithoutSpaceForMetadata(t *testing.T) {
	for _, what := range []string{"virtual disk size", "region table", "block allocation table"} {
		t.Run(what, func(t *testing.T) {
			b := build(spec{diskSize: 100 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {99, ondisk.FullyPresent}}})
			m := newModel(chain{b})
			full := false
			f := noSpace{noAlloc: noAlloc{b.memFile, true}, full: &full}
			im, err := loadWritable(Options{Writable: true}, f)
			if err != nil {
				t.Fatal(err)
			}
			_, size, err := im.writer.current().item(ondisk.DiskSizeGUID)
			if err != nil {
				t.Fatal(err)
			}
			to := int64(300 * ondisk.MiB)
			f.off, f.n = size, 1
			switch what {
			case "region table":
				f.off, to = ondisk.RegionTableOffsets[1], 1<<20*ondisk.MiB // the BAT outgrows its region
			case "block allocation table":
				f.off, to = b.batOff, 50*ondisk.MiB
			}
			im.writer.file, im.writer.current().file = f, f
			im.writer.space.file, im.writer.headers.file, im.writer.committer.file = f, f, f
			full = true
			if err := im.Resize(t.Context(), to); !errors.Is(err, unix.ENOSPC) || im.Size() != b.diskSize {
				t.Errorf("resize: %v; the disk has %d bytes", err, im.Size())
			}
			full = false
			p := bytes.Repeat([]byte{5}, 4096)
			m.WriteAt(p, 50*ondisk.MiB)
			if _, err := im.WriteAt(p, 50*ondisk.MiB); err != nil {
				t.Errorf("a write afterwards: %v", err)
			}
			m.compare(t, im)
			if err := im.Resize(t.Context(), to); err != nil {
				t.Errorf("resize when there is space: %v", err)
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
