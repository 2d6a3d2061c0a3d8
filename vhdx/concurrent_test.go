package vhdx

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Goroutines that write, trim, sync and read at once, each in sectors of its own of the same blocks, find their own
// sectors as they left them, and so does the next open of the image.
func TestConcurrentUse(t *testing.T) {
	for name, newChain := range modelSpecs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain()
			sector := c[0].sectorSize
			im := c.openWritable(t, Options{Commit: time.Millisecond, IdleClean: 2 * time.Millisecond, CacheSize: 1})
			m := newModel(c)
			crew := startCrew(t, im, m, crewOptions{workers: 6, steps: 150, seed: 3, sector: sector})
			crew.Wait()
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

// A crew is goroutines that use an image at once, each in sectors of its own of the same blocks.
type crew struct {
	sync.WaitGroup
	disk []model // by worker; of each only its own sectors count
}

type crewOptions struct {
	workers, steps int
	seed           uint64
	sector         int64
	also           func(rng *rand.Rand) error // done in each step, too; may be nil
}

// startCrew has workers use the disk, which is as m says.
func startCrew(t *testing.T, im *Image, m model, o crewOptions) *crew {
	c := &crew{disk: make([]model, o.workers)}
	for w := range c.disk {
		c.disk[w] = model{m.clone()}
		c.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), o.seed))
			for i := range o.steps {
				err := workInOwnSectors(im, c.disk[w], rng, int64(w), int64(o.workers), o.sector)
				if err == nil && o.also != nil {
					err = o.also(rng)
				}
				if err != nil {
					t.Errorf("worker %d, step %d: %v", w, i, err)
					return
				}
			}
		})
	}
	return c
}

// gather takes each sector from the model of the worker whose own it is.
func (m model) gather(workers []model, sector int64) {
	b := make([]byte, sector)
	for off, i := int64(0), 0; off < m.size; off, i = off+sector, i+1 {
		workers[i%len(workers)].ReadAt(b, off)
		m.WriteAt(b, off)
	}
}

// workInOwnSectors changes or reads one of the sectors that are the worker's own: every n-th of the disk.
func workInOwnSectors(im *Image, m model, rng *rand.Rand, worker, n, sector int64) error {
	off := (rng.Int64N(m.size/sector/n)*n + worker) * sector
	if off >= m.size {
		return nil
	}
	p := make([]byte, sector)
	switch rng.IntN(8) {
	case 0:
		m.WriteAt(p, off)
		return im.Zero(off, sector)
	case 1:
		return im.Sync()
	case 2, 3:
		if _, err := im.ReadAt(p, off); err != nil {
			return err
		}
		want := make([]byte, sector)
		m.ReadAt(want, off)
		if !bytes.Equal(p, want) {
			return fmt.Errorf("the sector at %#x reads %x…, want %x…", off, p[:8], want[:8])
		}
		return nil
	}
	for i := range p {
		p[i] = byte(rng.Uint32() | 1)
	}
	m.WriteAt(p, off)
	_, err := im.WriteAt(p, off)
	return err
}

// Writers that come to one block without a place at the same time give it one.
func TestOneBlockOnePlace(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB})}
	im := c.openWritable(t, Options{})
	var wg sync.WaitGroup
	for i := range int64(32) {
		wg.Go(func() {
			if _, err := im.WriteAt([]byte{byte(i + 1)}, 3*ondisk.MiB+i*1000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := im.Info().Blocks.FullyPresent; n != 1 {
		t.Errorf("%d blocks are present, want 1", n)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if want := c[0].dataOff + ondisk.MiB; c[0].memFile.size != want {
		t.Errorf("the file has %d bytes, want %d", c[0].memFile.size, want)
	}
}

// A reader of a block that is trimmed and written anew, over and over, sees the block as it was at one moment: no
// bytes of the other block that takes its space in turns.
func TestReadsDuringReuse(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB})}
	im := c.openWritable(t, Options{})
	defer im.Close()
	fill := func(b int64, v byte) []byte { return bytes.Repeat([]byte{v}, 64<<10) }
	done := make(chan struct{})
	var wg sync.WaitGroup
	for b := range int64(2) {
		v := byte(b + 1)
		wg.Go(func() {
			for range 40 {
				for _, err := range []error{writeErr(im.WriteAt(fill(b, v), b*ondisk.MiB)), im.Sync(), im.Zero(b*ondisk.MiB, ondisk.MiB), im.Sync()} {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
		go func() {
			p := make([]byte, 64<<10)
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := im.ReadAt(p, b*ondisk.MiB); err != nil {
					t.Error(err)
					return
				}
				for _, x := range p {
					if x != 0 && x != v {
						t.Errorf("block %d reads %d, which was never written there", b, x)
						return
					}
				}
			}
		}()
	}
	wg.Wait()
	close(done)
}
