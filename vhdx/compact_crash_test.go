package vhdx

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// compactingWorkload compacts between writes and trims: to the end, or until it is interrupted after some steps, so
// that what was given up is not durable when the writes go on.
func compactingWorkload(im *Image, h *history, seed uint64, each func(w *writer)) error {
	rng := rand.New(rand.NewPCG(seed, 9))
	h.watch(64 * ondisk.KiB)
	for range 5 {
		for range rng.IntN(5) {
			off := rng.Int64N(h.disk.size) &^ 4095
			n := min(h.disk.size-off, []int64{4096, 70000, ondisk.MiB}[rng.IntN(3)])
			var err error
			if rng.IntN(3) > 0 {
				p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
				h.write(p, off)
				_, err = im.WriteAt(p, off)
			} else {
				h.write(make([]byte, n), off)
				err = im.Zero(off, n)
			}
			if err != nil {
				return err
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		steps := rng.IntN(12)
		_, err := im.Compact(ctx, CompactOptions{Progress: func(int64) {
			if steps--; steps == 0 {
				cancel()
			}
		}})
		interrupted := ctx.Err() != nil
		cancel()
		if err != nil && !interrupted {
			return err
		}
		if err == nil {
			h.synced()
		}
		if each != nil {
			each(im.writer)
		}
	}
	return im.Close()
}

// watch has check look at a sector of each n bytes, also where nothing was written.
func (h *history) watch(n int64) {
	for at := int64(0); at < h.disk.size; at += n {
		old := make([]byte, h.sector)
		h.disk.ReadAt(old, at)
		if h.versions[at] == nil {
			h.versions[at] = []version{{0, old}}
		}
	}
}

// newCompactTest returns a test of a compaction that loses power.
func newCompactTest(name string, seed uint64) *crashTest {
	ct := newCrashTest(looseChains()[name](), seed)
	ct.work = compactingWorkload
	return ct
}

// A power cut at any moment of a compaction loses nothing. Sectors of 4096 bytes are left out, since the power may
// fail between the parts of one that is overwritten in its place.
func TestPowerCutWhileCompacting(t *testing.T) {
	for _, name := range []string{"dynamic", "dynamic 2 MiB, ends inside a block", "dynamic, the BAT behind all", "dynamic, the BAT too long", "differencing"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(*crashRounds) {
				states, err := newCompactTest(name, seed).runOnHosts(3)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				t.Logf("%d states", states)
			}
		})
	}
}
