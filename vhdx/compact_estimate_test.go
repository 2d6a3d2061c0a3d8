package vhdx

import (
	"math/rand/v2"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// scattered returns a disk whose blocks lie in its file in no order and with gaps of all sizes between them, and with the
// BAT somewhere.
func scattered(rng *rand.Rand) chain {
	size := int64(ondisk.MiB) << rng.IntN(4)
	s := spec{diskSize: 24 * size, blockSize: size, dataOff: 3 * ondisk.MiB, batOff: 3 * ondisk.MiB}
	if rng.IntN(2) == 0 {
		s.batOff, s.batLen = (40+rng.Int64N(400))*ondisk.MiB, (1+rng.Int64N(3))*ondisk.MiB
	} else {
		s.dataOff = 4 * ondisk.MiB
	}
	child := rng.IntN(2) == 0
	if child {
		s.typ = Differencing
	}
	im := build(s)
	for i, b := range rng.Perm(24)[:8+rng.IntN(16)] {
		im.allocate(rng.Int64N(5) * ondisk.MiB)
		if end := im.next + size + 2*ondisk.MiB; s.batOff > s.dataOff && im.next < s.batOff+s.batLen && end > s.batOff {
			im.next = s.batOff + s.batLen
		}
		st := ondisk.FullyPresent
		if child && i%3 == 0 {
			st = ondisk.PartiallyPresent
		}
		im.setBlock(int64(b), st)
		if st == ondisk.FullyPresent && i%4 != 0 { // the others hold zeros
			im.put(im.random(4096), int64(b)*size)
		}
	}
	c := chain{im}
	if child {
		c = append(c, build(spec{diskSize: s.diskSize, blockSize: size}))
	}
	return c
}

// What Reclaimable says is what Compact wins, to the byte, also where gaps have to stay.
func TestForetold(t *testing.T) {
	notShort(t, "it compacts 60 images")
	stayed := 0
	for seed := range uint64(60) {
		c := scattered(rand.New(rand.NewPCG(seed, 1)))
		m := newModel(c)
		im := c.openWritable(t, Options{Discard: DiscardPunch})
		can, err := im.Reclaimable(t.Context(), true, CompactOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := im.Compact(t.Context(), CompactOptions{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if r.Before-r.After != can.Total {
			t.Errorf("seed %d: blocks of %d, %d bytes of %d were won; foretold was %+v", seed, c[0].blockSize, r.Before-r.After, r.Before, can)
		}
		m.compare(t, im)
		if again, err := im.Reclaimable(t.Context(), true, CompactOptions{}); err != nil || again.Total != 0 {
			t.Errorf("seed %d: then %+v, %v; want nothing to win", seed, again, err)
		}
		if im.Info().FreeBytes > 0 {
			stayed++
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if stayed < 5 {
		t.Errorf("gaps stayed in %d images; that tries little", stayed)
	}
}
