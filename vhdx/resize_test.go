package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A resizeCase is a disk and the sizes that it gets in turn.
type resizeCase struct {
	chain func() chain
	sizes []int64
}

// garbage puts something into BAT entries that describe nothing, as the standard allows: in the page of those that do,
// in some that follow, and in the last.
func (im *image) garbage() *image {
	for i := int64(0); i < im.batLen/ondisk.BATEntrySize; i++ {
		if page := i / ondisk.EntriesPerPage; !im.geo.Describes(i) && i%50 < 2 && (page < 4 || page == im.batLen/ondisk.PageSize-1) {
			im.setEntry(i, ondisk.NewBATEntry(ondisk.FullyPresent, 3*ondisk.MiB))
		}
	}
	return im
}

func resizeCases() map[string]resizeCase {
	blocks := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.Zero}, {4, ondisk.FullyPresent}}
	const big = (1<<17 + 5) * ondisk.MiB // more entries than a region of 1 MiB holds
	return map[string]resizeCase{
		"dynamic, garbage behind the BAT": {func() chain {
			return chain{build(spec{diskSize: 5 * ondisk.MiB, blocks: blocks}).garbage()}
		}, []int64{9 * ondisk.MiB, 2000 * ondisk.MiB, 3*ondisk.MiB + 512, 4*ondisk.MiB + 1024, ondisk.MiB}},
		"dynamic, ends inside a block that the file cuts": {func() chain {
			c := chain{build(spec{diskSize: 19*ondisk.MiB - 512, blockSize: 4 * ondisk.MiB, blocks: blocks})}
			if err := c[0].memFile.Truncate(c[0].entries[4].FileOff() + 3*ondisk.MiB - 512); err != nil {
				panic(err)
			}
			return c
		}, []int64{19 * ondisk.MiB, 64 * ondisk.MiB, 18 * ondisk.MiB, 20 * ondisk.MiB}},
		"dynamic, old bytes behind the end of the disk": {func() chain {
			c := chain{build(spec{diskSize: 5*ondisk.MiB - 4096, blocks: blocks})}
			c[0].put(c[0].random(ondisk.MiB), 4*ondisk.MiB)
			return c
		}, []int64{6 * ondisk.MiB}},
		"dynamic, the BAT moves": {func() chain {
			return chain{build(spec{diskSize: 5 * ondisk.MiB, blocks: blocks}).garbage()}
		}, []int64{big, big - 7*ondisk.MiB, 4 * ondisk.MiB, 9 * ondisk.MiB}},
		"dynamic, the BAT moves into free space": {func() chain {
			c := chain{build(spec{diskSize: 9 * ondisk.MiB, blocks: blocks})}
			for b := int64(5); b < 9; b++ {
				c[0].setBlock(b, ondisk.FullyPresent)
				c[0].put(bytes.Repeat([]byte("stale..."), ondisk.MiB/8), b*ondisk.MiB)
				c[0].setBlock(b, ondisk.NotPresent)
			}
			c[0].disk.WriteAt(make([]byte, 4*ondisk.MiB), 5*ondisk.MiB)
			c[0].setBlock(8, ondisk.FullyPresent)
			return c
		}, []int64{big}},
		"fixed": {func() chain {
			return chain{build(spec{typ: Fixed, diskSize: 3 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}}).garbage()}
		}, []int64{6 * ondisk.MiB, 2*ondisk.MiB + 512, 700 * ondisk.MiB, ondisk.MiB}},
		"differencing": {func() chain {
			parent := build(spec{diskSize: 5 * ondisk.MiB, blocks: blocks})
			child := build(spec{typ: Differencing, diskSize: 5 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {4, ondisk.PartiallyPresent}}}).garbage()
			return chain{child, parent}
		}, []int64{9 * ondisk.MiB, 5000 * ondisk.MiB, 8 * ondisk.MiB}},
		"4K sectors": {func() chain {
			return chain{build(spec{diskSize: 5 * ondisk.MiB, sectorSize: 4096, blocks: blocks})}
		}, []int64{33 * ondisk.MiB, 4*ondisk.MiB + 4096}},
	}
}

// resized returns what the disk reads as with another size.
func (m model) resized(size int64) model {
	n := model{m.clone()}
	n.Truncate(min(size, n.size))
	n.Truncate(size)
	return n
}

// compareParts compares the begin and the end of a disk, and what the model holds.
func (m model) compareParts(t *testing.T, im *Image) {
	t.Helper()
	if im.Size() != m.size {
		t.Fatalf("the disk has %d bytes, want %d", im.Size(), m.size)
	}
	if m.size <= 64*ondisk.MiB {
		m.compare(t, im)
		return
	}
	got, want := make([]byte, ondisk.MiB), make([]byte, ondisk.MiB)
	for off := int64(0); off < m.size; off += ondisk.MiB {
		if off == 32*ondisk.MiB {
			off = (m.size - 8*ondisk.MiB) &^ (ondisk.MiB - 1)
		}
		n := min(ondisk.MiB, m.size-off)
		if _, err := im.ReadAt(got[:n], off); err != nil {
			t.Fatal(err)
		}
		if _, err := m.ReadAt(want[:n], off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("the MiB at %#x differs", off)
		}
	}
}

// A disk that is resized keeps what it had as far as both sizes have it, and gains zeros, also where it had other bytes
// once. The image breaks no rule after each step, and can be written.
func TestResize(t *testing.T) {
	for name, tc := range resizeCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.chain()
			m := newModel(c)
			for i, size := range tc.sizes {
				im := c.openWritable(t, Options{Discard: DiscardPunch})
				before := im.Info()
				if err := im.Resize(t.Context(), size); err != nil {
					t.Fatalf("from %d to %d: %v", m.size, size, err)
				}
				m = m.resized(size)
				m.compareParts(t, im)
				if after := im.Info(); after.Headers[after.CurrentHeader-1].DataWriteGUID == before.Headers[before.CurrentHeader-1].DataWriteGUID {
					t.Error("DataWriteGuid stayed, though the disk has changed")
				}
				if n := im.Info().Blocks.FullyPresent; c[0].typ == Fixed && n != (size+ondisk.MiB-1)/ondisk.MiB {
					t.Errorf("%d blocks are present of a fixed disk of %d bytes", n, size)
				}
				p := c[0].random(c[0].sectorSize)
				for _, off := range []int64{0, size - int64(len(p))} {
					m.WriteAt(p, off)
					if _, err := im.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
				}
				if err := im.Close(); err != nil {
					t.Fatal(err)
				}
				ro, err := loadReadOnly(c.files()...)
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				m.compareParts(t, ro)
				if free := ro.Info().FreeBytes; i == 0 && ro.Info().FileSize-free > before.FileSize+size+8*ondisk.MiB {
					t.Errorf("%d bytes of %d are in use", ro.Info().FileSize-free, ro.Info().FileSize)
				}
			}
		})
	}
}

func TestResizeRefuses(t *testing.T) {
	c := chain{build(spec{diskSize: 5 * ondisk.MiB, sectorSize: 4096})}
	if err := c.open(t, Options{}).Resize(t.Context(), 9*ondisk.MiB); !errors.Is(err, ErrReadOnly) {
		t.Errorf("of an image that is open for reading: %v, want %v", err, ErrReadOnly)
	}
	im := c.openWritable(t, Options{})
	defer im.Close()
	changes := c[0].changes.Load()
	for _, size := range []int64{0, -ondisk.MiB, 5*ondisk.MiB + 512, 64*ondisk.TiB + 4096} {
		if err := im.Resize(t.Context(), size); !errors.Is(err, ErrSize) {
			t.Errorf("to %d bytes: %v, want %v", size, err, ErrSize)
		}
	}
	if err := im.Resize(t.Context(), 5*ondisk.MiB); err != nil {
		t.Errorf("to the size that it has: %v", err)
	}
	parent := build(spec{diskSize: 9 * ondisk.MiB, blocks: []blockSpec{{7, ondisk.FullyPresent}}})
	child := chain{build(spec{typ: Differencing, diskSize: 5 * ondisk.MiB}), parent}.openWritable(t, Options{})
	defer child.Close()
	if err := child.Resize(t.Context(), 9*ondisk.MiB); !errors.Is(err, ErrSize) {
		t.Errorf("of a child that is smaller than its parent: %v, want %v", err, ErrSize)
	}
	if n := c[0].changes.Load(); n != changes {
		t.Errorf("the file was changed %d times", n-changes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.Resize(ctx, 8*ondisk.MiB); !errors.Is(err, context.Canceled) || im.Size() != 5*ondisk.MiB {
		t.Errorf("interrupted: %v, and the disk has %d bytes", err, im.Size())
	}
}

// resizeCut resizes a disk with the power cut at the given operation, and looks at states that may be left: each has
// one of the two sizes, and holds what it should.
func resizeCut(c chain, h host, before model, size int64, cut int, dropSync string) (powered bool, err error) {
	disk := h.disk(c[0].memFile, c[0].memFile.size)
	disk.Tearable = func(off int64) bool { return off < c[0].batOff } // headers, log and metadata
	disk.CutAt(cut)
	files := c.files()
	files[0] = mutantFile{disk, dropSync}
	im, err := loadWritable(Options{Writable: true, Discard: DiscardPunch}, files...)
	if err == nil {
		if err = im.Resize(context.Background(), size); err == nil {
			err = im.Close()
		}
		im.writer.stop()
	}
	done := err == nil
	if disk.Powered() && err != nil {
		return true, fmt.Errorf("failed with the power on: %w", err)
	}
	for s := range uint64(fewer(crashStates)) {
		files[0] = mutantFile{disk.AfterCut(rand.New(rand.NewPCG(uint64(cut), s))), ""}
		if err := checkResized(files, before, size, done, s%2 == 1); err != nil {
			return disk.Powered(), fmt.Errorf("cut %d, state %d: %w", cut, s, err)
		}
	}
	return disk.Powered(), nil
}

func checkResized(files []File, before model, size int64, done, replay bool) error {
	if replay {
		im, err := loadWritable(Options{Writable: true}, files...)
		if err != nil {
			return fmt.Errorf("open for writing: %w", err)
		}
		if err := im.Close(); err != nil {
			return err
		}
	}
	im, err := loadReadOnly(files...)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	want := before
	switch {
	case im.Size() == size:
		want = before.resized(size)
	case done || im.Size() != before.size:
		return fmt.Errorf("the disk has %d bytes", im.Size())
	}
	got, p := make([]byte, 4096), make([]byte, 4096)
	for off := int64(0); off < min(want.size, 16*ondisk.MiB); off += 4096 * 9 {
		n := min(4096, want.size-off)
		if _, err := im.ReadAt(got[:n], off); err != nil {
			return err
		}
		want.ReadAt(p[:n], off)
		if !bytes.Equal(got[:n], p[:n]) {
			return fmt.Errorf("with %d bytes the disk differs at %#x", im.Size(), off)
		}
	}
	return nil
}

// cutAll cuts the power at every operation of the first resize of a case, and of the last.
func (tc resizeCase) cutAll(dropSync string) error {
	c := tc.chain()
	before := newModel(c)
	for _, size := range []int64{tc.sizes[0], tc.sizes[len(tc.sizes)-1]} {
		err := onHosts(0, func(h host, first, step int) error {
			return untilDone(first, step, func(cut int) (bool, error) { return resizeCut(c, h, before, size, cut, dropSync) })
		})
		if err != nil {
			return fmt.Errorf("to %d bytes: %w", size, err)
		}
	}
	return nil
}

// A power cut at any moment leaves the disk with its old size or the new one, whole.
func TestPowerCutWhileResizing(t *testing.T) {
	for name, tc := range resizeCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := tc.cutAll(""); err != nil {
				t.Error(err)
			}
		})
	}
}

// The test before is proven by what it finds: a barrier that is left out.
func TestPowerCutWhileResizingFindsMutants(t *testing.T) {
	notShort(t, "it needs a power cut at every operation")
	for _, m := range []struct{ disk, dropSync string }{
		{"dynamic, the BAT moves into free space", "(*committer).round"},
		{"fixed", "(*committer).syncLog"},
	} {
		if err := resizeCases()[m.disk].cutAll(m.dropSync); err == nil {
			t.Errorf("%s without %s: nothing was noticed", m.disk, m.dropSync)
		} else {
			t.Logf("%s without %s: %v", m.disk, m.dropSync, err)
		}
	}
}

// A resize for which there is no space leaves the image the DataWriteGuid that its children know.
func TestFailedResizeKeepsTheDataWriteGUID(t *testing.T) {
	b := build(spec{typ: Fixed, diskSize: ondisk.MiB, blocks: oneBlock})
	f := newFullFile(b.memFile, 1000)
	im, err := loadWritable(Options{Writable: true}, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Resize(t.Context(), 64*ondisk.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("resize on a full disk: %v", err)
	}
	if id := im.DataWriteGUID(); id != b.dataWrite {
		t.Errorf("DataWriteGuid %v, want %v", id, b.dataWrite)
	}
	if err := im.Resize(t.Context(), 2*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if id := im.DataWriteGUID(); id == b.dataWrite {
		t.Error("the disk has another size, and the DataWriteGuid from before")
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}
