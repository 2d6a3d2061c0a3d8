package vhdx

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// openWritable opens the chain as chain.open does, its image for writing.
func (c chain) openWritable(t testing.TB, o Options) *Image {
	t.Helper()
	files := make([]File, len(c))
	for i, im := range c {
		files[i] = im.memFile
	}
	im, err := loadWritable(o, files...)
	if err != nil {
		t.Fatalf("open for writing: %v", err)
	}
	return im
}

// loadWritable opens the chain of the given files, its first for writing. It does not look for parents.
func loadWritable(o Options, files ...File) (*Image, error) {
	op := newOpener(o)
	top, err := loadFiles(op, files...)
	if err != nil {
		return nil, err
	}
	w, err := newWriter(op, top)
	if err != nil {
		return nil, err
	}
	im := &Image{own: w.own, writer: w}
	im.close = im.closeAll
	return im, nil
}

// loadReadOnly opens the chain of the given files, which passes every check then.
func loadReadOnly(files ...File) (*Image, error) {
	top, err := loadFiles(newOpener(Options{}), files...)
	if err != nil {
		return nil, err
	}
	return newImage(top), nil
}

func loadFiles(op *opener, files ...File) (top *layer, err error) {
	var last *layer
	for _, f := range files {
		l := op.newLayer(f, "memory")
		if err := l.load(); err != nil {
			return nil, err
		}
		if last == nil {
			top = l
		} else {
			last.setParent(l)
		}
		last = l
	}
	return top, nil
}

// A model is what the disk should read as.
type model struct {
	*memFile
}

func newModel(c chain) model {
	m := model{newMemFile(c[0].diskSize)}
	buf := make([]byte, ondisk.MiB)
	for off := int64(0); off < c[0].diskSize; off += ondisk.MiB {
		b := buf[:min(ondisk.MiB, c[0].diskSize-off)]
		c.want(b, off)
		m.WriteAt(b, off)
	}
	return m
}

// compare reads the whole disk and compares.
func (m model) compare(t *testing.T, im *Image) {
	t.Helper()
	got, want := make([]byte, ondisk.MiB), make([]byte, ondisk.MiB)
	for off := int64(0); off < m.size; off += ondisk.MiB {
		n := min(ondisk.MiB, m.size-off)
		if _, err := im.ReadAt(got[:n], off); err != nil {
			t.Fatalf("read %d bytes at %#x: %v", n, off, err)
		}
		if _, err := m.ReadAt(want[:n], off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], want[:n]) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			t.Fatalf("byte %#x of the disk is %#x, want %#x", off+int64(i), got[i], want[i])
		}
	}
}

// modelSpecs are chains of all types, with small blocks and chunks crossed where that is cheap.
func modelSpecs() map[string]func() chain {
	const sector4K = 4096
	blocks := []blockSpec{{1, ondisk.FullyPresent}, {2, ondisk.Zero}, {3, ondisk.Unmapped}, {4, ondisk.Undefined}}
	return map[string]func() chain{
		"dynamic": func() chain { return chain{build(spec{diskSize: 9*ondisk.MiB + 512*3, blocks: blocks})} },
		"dynamic 4K sectors": func() chain {
			return chain{build(spec{diskSize: 7*ondisk.MiB + sector4K, sectorSize: sector4K, blocks: blocks})}
		},
		"dynamic 2 MiB": func() chain {
			return chain{build(spec{diskSize: 17 * ondisk.MiB, blockSize: 2 * ondisk.MiB, blocks: blocks})}
		},
		"fixed": func() chain {
			var all []blockSpec
			for b := int64(0); b < 5; b++ {
				all = append(all, blockSpec{b, ondisk.FullyPresent})
			}
			return chain{build(spec{typ: Fixed, diskSize: 5 * ondisk.MiB, blocks: all})}
		},
		"differencing": func() chain {
			parent := build(spec{diskSize: 7 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {3, ondisk.FullyPresent}, {5, ondisk.FullyPresent}, {6, ondisk.FullyPresent}}})
			child := build(spec{typ: Differencing, diskSize: 9 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.PartiallyPresent}, {2, ondisk.FullyPresent}, {3, ondisk.Zero}, {4, ondisk.Unmapped}}})
			return chain{child, parent}
		},
		"three levels, 4K, mixed blocks": func() chain {
			base := build(spec{diskSize: 16 * ondisk.MiB, blockSize: 4 * ondisk.MiB, sectorSize: sector4K, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {3, ondisk.FullyPresent}}})
			middle := build(spec{typ: Differencing, diskSize: 16 * ondisk.MiB, blockSize: ondisk.MiB, sectorSize: sector4K, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {5, ondisk.FullyPresent}, {6, ondisk.Zero}}})
			child := build(spec{typ: Differencing, diskSize: 14 * ondisk.MiB, blockSize: 2 * ondisk.MiB, sectorSize: sector4K, blocks: []blockSpec{{1, ondisk.PartiallyPresent}}})
			return chain{child, middle, base}
		},
	}
}

// A seeded mix of everything that changes a disk must read as the model says, at once and after each reopening,
// and must leave an image that breaks no rule.
func TestWriteModel(t *testing.T) {
	for name, newChain := range modelSpecs() {
		seeds := uint64(3)
		if testing.Short() {
			seeds = 1
		}
		for seed := range seeds {
			t.Run(fmt.Sprintf("%s/%d", name, seed), func(t *testing.T) {
				t.Parallel()
				c := newChain()
				m := newModel(c)
				rng := rand.New(rand.NewPCG(seed, 1))
				o := Options{Writable: true, DetectZeroes: seed%2 == 0}
				for range max(fewer(4), 2) {
					im := c.openWritable(t, o)
					m.compare(t, im)
					for range 60 {
						step(t, im, m, rng)
					}
					m.compare(t, im)
					if err := im.Close(); err != nil {
						t.Fatalf("close: %v", err)
					}
					files := []File{}
					for _, l := range c {
						files = append(files, l.memFile)
					}
					ro, err := loadReadOnly(files...)
					if err != nil {
						t.Fatalf("open what was written: %v", err)
					}
					m.compare(t, ro)
					if ro.current().headers.header().Dirty() {
						t.Error("the image is not clean after Close")
					}
				}
			})
		}
	}
}

// step makes one random change to the image and to the model.
func step(t *testing.T, im *Image, m model, rng *rand.Rand) {
	t.Helper()
	off := rng.Int64N(m.size)
	n := min(m.size-off, []int64{1, 512, 4096, 70000, ondisk.MiB, 3 * ondisk.MiB}[rng.IntN(6)])
	if rng.IntN(2) == 0 { // aligned
		off = off &^ 4095
		n = min(ondisk.RoundUp(n, 4096), m.size-off)
	}
	switch k := rng.IntN(10); {
	case k < 5:
		p := make([]byte, n)
		if k > 0 {
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
		if _, err := im.WriteAt(p, off); err != nil {
			t.Fatalf("write %d bytes at %#x: %v", n, off, err)
		}
		m.WriteAt(p, off)
	case k < 7:
		if k == 5 { // blocks
			off = off &^ (ondisk.MiB - 1)
			n = min(4*ondisk.MiB, m.size-off)
		}
		if err := im.Zero(off, n); err != nil {
			t.Fatalf("zero %d bytes at %#x: %v", n, off, err)
		}
		m.WriteAt(make([]byte, n), off)
	case k == 7:
		if err := im.Allocate(off, n); err != nil {
			t.Fatalf("allocate %d bytes at %#x: %v", n, off, err)
		}
	case k == 8:
		if err := im.Sync(); err != nil {
			t.Fatalf("sync: %v", err)
		}
	default:
		got, want := make([]byte, n), make([]byte, n)
		if _, err := im.ReadAt(got, off); err != nil {
			t.Fatalf("read: %v", err)
		}
		m.ReadAt(want, off)
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes at %#x differ from the model", n, off)
		}
	}
}
