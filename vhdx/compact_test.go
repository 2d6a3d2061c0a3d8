package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// looseChains are disks whose files hold much that a compaction can win: free space with old bytes, blocks of zeros,
// places kept without need, and what is needed behind all of that.
func looseChains() map[string]func() chain {
	loosen := func(im *image) {
		for _, b := range []int64{2, 4, 5} { // free space inside the file, not empty
			im.put(bytes.Repeat([]byte("stale..."), int(im.blockSize)/8), b*im.blockSize)
			im.setBlock(b, ondisk.NotPresent)
		}
		off := im.allocate(im.blockSize)
		im.setBlockEntry(6, ondisk.NewBATEntry(ondisk.Unmapped, off))
		im.setBlock(7, ondisk.FullyPresent) // all zero, and the last in the file but for one
		im.setBlock(0, ondisk.FullyPresent)
		im.put(im.random(im.blockSize), 0)
		im.disk.WriteAt(make([]byte, 4*im.blockSize), 4*im.blockSize)
		im.disk.WriteAt(make([]byte, im.blockSize), 2*im.blockSize)
	}
	full := func(n int64) (blocks []blockSpec) {
		for b := range n {
			blocks = append(blocks, blockSpec{b, ondisk.FullyPresent})
		}
		return blocks
	}
	return map[string]func() chain{
		"dynamic": func() chain {
			im := build(spec{diskSize: 8 * ondisk.MiB, blocks: full(6)[1:]})
			loosen(im)
			return chain{im}
		},
		"dynamic 2 MiB, ends inside a block": func() chain {
			im := build(spec{diskSize: 15 * ondisk.MiB, blockSize: 2 * ondisk.MiB, blocks: full(6)[1:]})
			loosen(im)
			return chain{im}
		},
		"dynamic, the BAT behind all": func() chain {
			im := build(spec{diskSize: 8 * ondisk.MiB, dataOff: 3 * ondisk.MiB, batOff: 30 * ondisk.MiB, batLen: 2 * ondisk.MiB, blocks: full(6)[1:]})
			loosen(im)
			return chain{im}
		},
		"dynamic, the BAT too long": func() chain {
			im := build(spec{diskSize: 8 * ondisk.MiB, batLen: 5 * ondisk.MiB, blocks: full(6)[1:]}).garbage()
			loosen(im)
			im.dataOff = im.batOff + ondisk.MiB // what is behind comes to hold blocks, whose sectors no power cut tears
			return chain{im}
		},
		"differencing": func() chain {
			parent := build(spec{diskSize: 8 * ondisk.MiB, blocks: full(8)})
			for b := range parent.entries {
				parent.put(parent.random(ondisk.MiB), b*ondisk.MiB)
			}
			im := build(spec{typ: Differencing, diskSize: 8 * ondisk.MiB, blocks: full(6)[1:]})
			loosen(im)
			im.setBlock(3, ondisk.PartiallyPresent) // with a sector bitmap block at the end of the file
			im.setSectors(3, 0, 16, true)
			im.put(im.random(8192), 3*ondisk.MiB)
			return chain{im, parent}
		},
		"differencing 4K sectors": func() chain {
			parent := build(spec{diskSize: 8 * ondisk.MiB, sectorSize: 4096, blocks: full(3)})
			for b := range parent.entries {
				parent.put(parent.random(ondisk.MiB), b*ondisk.MiB)
			}
			im := build(spec{typ: Differencing, diskSize: 8 * ondisk.MiB, sectorSize: 4096, blocks: full(6)[1:]})
			loosen(im)
			im.setBlock(1, ondisk.PartiallyPresent)
			im.setSectors(1, 0, 7, true)
			im.put(im.random(7*4096), ondisk.MiB)
			return chain{im, parent}
		},
	}
}

// A compaction wins all that can be won, what the disk reads as stays, and so does DataWriteGuid: to a child, this is
// the same parent.
func TestCompact(t *testing.T) {
	for name, newChain := range looseChains() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain()
			m := newModel(c)
			im := c.openWritable(t, Options{Discard: DiscardPunch})
			before := im.Info()
			can, err := im.Reclaimable(t.Context(), true, CompactOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if bs := c[0].blockSize; can.Unmapped != bs || can.Zero != bs || can.Free < 3*bs {
				t.Errorf("Reclaimable says %+v; want %d in one block kept, %d in one of zeros, and three free", can, bs, bs)
			}
			r, err := im.Compact(t.Context(), CompactOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m.compare(t, im)
			after := im.Info()
			if r.Before != before.FileSize || r.After != after.FileSize || r.Before-r.After != can.Total {
				t.Errorf("the file has %d bytes, had %d, and %d could be won: %+v", after.FileSize, before.FileSize, can.Total, r)
			}
			if r.Zero != can.Zero || r.Unmapped != can.Unmapped || r.Moved == 0 {
				t.Errorf("%+v; want what Reclaimable says: %+v", r, can)
			}
			if g, w := after.Headers[after.CurrentHeader-1], before.Headers[before.CurrentHeader-1]; g.DataWriteGUID != w.DataWriteGUID || g.FileWriteGUID == w.FileWriteGUID {
				t.Errorf("DataWriteGuid went from %v to %v, FileWriteGuid from %v to %v", w.DataWriteGUID, g.DataWriteGUID, w.FileWriteGUID, g.FileWriteGUID)
			}
			if after.FreeBytes != 0 {
				t.Errorf("%d bytes are free yet", after.FreeBytes)
			}
			if r, err = im.Compact(t.Context(), CompactOptions{}); err != nil || r.Moved+r.Zero+r.Unmapped != 0 {
				t.Errorf("a second time: %+v, %v; want nothing to be done", r, err)
			}
			p := c[0].random(3 * c[0].sectorSize) // the file grows again
			m.WriteAt(p, 5*ondisk.MiB)
			if _, err := im.WriteAt(p, 5*ondisk.MiB); err != nil {
				t.Fatal(err)
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			ro, err := loadReadOnly(c.files()...)
			if err != nil {
				t.Fatal(err)
			}
			m.compare(t, ro)
		})
	}
}

// files returns the files of the chain.
func (c chain) files() (files []File) {
	for _, im := range c {
		files = append(files, im.memFile)
	}
	return files
}

// The blocks of a fixed disk stay, even if they hold zeros; those behind a gap in the file move into it.
func TestCompactFixed(t *testing.T) {
	c := chain{build(spec{typ: Fixed, diskSize: 3 * ondisk.MiB})}
	c[0].allocate(2 * ondisk.MiB)
	for b := range int64(3) {
		c[0].setBlock(b, ondisk.FullyPresent)
	}
	c[0].put(c[0].random(ondisk.MiB), 2*ondisk.MiB)
	m := newModel(c)
	im := c.openWritable(t, Options{})
	r, err := im.Compact(t.Context(), CompactOptions{})
	if err != nil || r.Zero != 0 || r.Before-r.After != 2*ondisk.MiB {
		t.Errorf("%+v, %v; want 2 MiB less and no block given up", r, err)
	}
	m.compare(t, im)
	if n := im.Info().Blocks.FullyPresent; n != 3 {
		t.Errorf("%d blocks, want 3", n)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCompactRefuses(t *testing.T) {
	c := looseChains()["dynamic"]()
	if _, err := c.open(t, Options{}).Compact(t.Context(), CompactOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("of an image that is open for reading: %v, want %v", err, ErrReadOnly)
	}
	im := c.openWritable(t, Options{})
	defer im.Close()
	im.writer.reshaping.Lock()
	if _, err := im.Compact(t.Context(), CompactOptions{}); !errors.Is(err, ErrReshaping) {
		t.Errorf("during another one: %v, want %v", err, ErrReshaping)
	}
	im.writer.reshaping.Unlock()
	stop := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := im.Compact(ctx, CompactOptions{}); !errors.Is(err, stop) {
		t.Errorf("with a context that has ended: %v, want its cause", err)
	}
}

// Reads, writes, trims and syncs go on while the image is compacted again and again, and see nothing of it.
func TestCompactWhileInUse(t *testing.T) {
	for name, newChain := range looseChains() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain()
			sector, m := c[0].sectorSize, newModel(c)
			im := c.openWritable(t, Options{Discard: DiscardPunch, Commit: time.Millisecond, IdleClean: 2 * time.Millisecond, CacheSize: 1})
			crew := startCrew(t, im, m, crewOptions{workers: 4, steps: 200, seed: 4, sector: sector})
			done := make(chan struct{})
			go func() { crew.Wait(); close(done) }()
			for working := true; working; {
				select {
				case <-done:
					working = false
				default:
				}
				if _, err := im.Compact(t.Context(), CompactOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if t.Failed() {
				return
			}
			m.gather(crew.disk, sector)
			m.compare(t, im)
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			ro, err := loadReadOnly(c.files()...)
			if err != nil {
				t.Fatal(err)
			}
			m.compare(t, ro)
		})
	}
}

// A holeFile knows both ends of its holes, and does something else once when it is asked for one.
type holeFile struct {
	noAlloc
	asked func()
}

func (f *holeFile) NextData(off int64) (int64, error) {
	next, err := f.noAlloc.NextData(off)
	if do := f.asked; do != nil {
		f.asked = nil
		do()
	}
	return next, err
}

func (f *holeFile) NextHole(off int64) (int64, error) { return off + ondisk.PageSize, nil }

// A search for data (SEEK_DATA) finds a block while it moves, also where there was a hole before.
func TestSeekFindsWhatMoves(t *testing.T) {
	b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {5, ondisk.FullyPresent}}})
	b.put(make([]byte, 2*ondisk.MiB), 0)
	b.setBlock(1, ondisk.NotPresent)
	b.put(bytes.Repeat([]byte{1}, ondisk.MiB), 5*ondisk.MiB)
	f := &holeFile{noAlloc: noAlloc{b.memFile, true}}
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	moved := false
	f.asked = func() {
		err := im.writer.alone(5, func() (err error) {
			moved, err = im.writer.moveBlock(5, b.entries[5].FileOff())
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if off, err := im.SeekData(0); err != nil || off != 5*ondisk.MiB || !moved {
		t.Errorf("data at %#x, %v; want it at %#x; the block has moved: %v", off, err, 5*ondisk.MiB, moved)
	}
}

// A cloningFile counts what is shared.
type cloningFile struct {
	*powercut.Disk
	freesParts imagefile.Fact
	cloned     int64 // bytes
}

func (f *cloningFile) Clone(off int64, src File, from, n int64) error {
	err := f.Disk.Clone(off, src, from, n)
	if err == nil {
		f.cloned += n
	}
	return err
}

func (f *cloningFile) Host() imagefile.Host { return imagefile.Host{FreesParts: f.freesParts} }

// Where files share space and give it back in parts, blocks move without being read. The disk stays the same.
func TestCompactShares(t *testing.T) {
	for name, newChain := range looseChains() {
		for _, frees := range []imagefile.Fact{imagefile.Yes, imagefile.No} {
			t.Run(fmt.Sprintf("%s, %v", name, frees), func(t *testing.T) {
				c := newChain()
				want, got := make([]byte, c[0].diskSize), make([]byte, c[0].diskSize)
				newModel(c).ReadAt(want, 0)
				f := &cloningFile{Disk: powercut.New(c[0].memFile, c[0].memFile.size), freesParts: frees}
				f.Shares = true
				files := []File{f}
				for _, p := range c[1:] {
					files = append(files, p.memFile)
				}
				im, err := loadWritable(Options{Writable: true, Discard: DiscardPunch}, files...)
				if err != nil {
					t.Fatal(err)
				}
				r, err := im.Compact(context.Background(), CompactOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if r.Moved == 0 || f.cloned > 0 != (frees == imagefile.Yes) {
					t.Errorf("result %+v; %d bytes were shared", r, f.cloned)
				}
				if _, err := im.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				if d := firstDifference(got, want); d >= 0 {
					t.Errorf("byte %#x reads as %#x, want %#x", d, got[d], want[d])
				}
				if err := im.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
