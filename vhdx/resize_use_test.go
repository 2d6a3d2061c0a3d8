package vhdx

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// While a disk grows, in steps, with a BAT that moves at last, reads, writes, trims and syncs go on, and each finds what
// it should; so do questions that are asked of the image.
func TestGrowWhileInUse(t *testing.T) {
	for name, newChain := range looseChains() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain()
			sector, m := c[0].sectorSize, newModel(c)
			im := c.openWritable(t, Options{Discard: DiscardPunch, Commit: time.Millisecond, IdleClean: 2 * time.Millisecond, CacheSize: 1})
			crew := startCrew(t, im, m, crewOptions{workers: 4, steps: 200, seed: 5, sector: sector, also: func(rng *rand.Rand) error {
				if _, err := im.SeekHole(rng.Int64N(m.size)); err != nil {
					return fmt.Errorf("seek: %w", err)
				}
				im.Info()
				im.InMemory(0, sector)
				return nil
			}})
			size := m.size
			for _, n := range []int64{ondisk.MiB, 5 * ondisk.MiB, 300 * ondisk.MiB, (1<<17 + 5) * c[0].blockSize} {
				size += n
				if err := im.Resize(t.Context(), size); err != nil {
					t.Fatal(err)
				}
				if _, err := im.Compact(t.Context(), CompactOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			crew.Wait()
			if t.Failed() {
				return
			}
			m.gather(crew.disk, sector)
			m = m.resized(size)
			p := c[0].random(2 * sector)
			m.WriteAt(p, size-2*sector)
			if _, err := im.WriteAt(p, size-2*sector); err != nil {
				t.Fatal(err)
			}
			m.compareParts(t, im)
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			ro, err := loadReadOnly(c.files()...)
			if err != nil {
				t.Fatal(err)
			}
			m.compareParts(t, ro)
		})
	}
}
