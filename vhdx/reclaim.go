package vhdx

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A freed is the place of a block that was unmapped. It can be given away when the log says so durably, and when
// every read has ended that may have found the block there.
type freed struct {
	place
	epoch uint64 // of the reads to wait for
}

// release puts back the space of a block that was never mapped.
func (a *allocator) release(p place) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used.clear(p.off, p.size)
}

// retire hands over space whose unmapping is durable. Before that a power cut would bring the old mapping back, and with it
// the bytes of the next block in this place. The space can be given away when the reads have ended that may still look
// there: those that began before the epoch turns here. Later ones find the new entries, which were changed in memory
// before the batch was taken.
func (a *allocator) retire(places []place) {
	if len(places) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	epoch := a.reads.turn()
	slices.SortFunc(places, func(p, q place) int { return cmp.Compare(p.off, q.off) })
	for _, p := range places {
		if n := len(a.freed); n > 0 && a.freed[n-1].epoch == epoch && a.freed[n-1].off+a.freed[n-1].size == p.off {
			a.freed[n-1].size += p.size // few large holes are made sooner than many small ones
			continue
		}
		a.freed = append(a.freed, freed{p, epoch})
	}
	a.gaveUp()
}

// anyFreed reports whether space waits for reads to end, or to be given back.
func (a *allocator) anyFreed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.freed) > 0
}

// handOver returns the size of the file, and the space that waits for reads to end, to another allocator that owns the file from now
// on. This one is not used any more.
func (a *allocator) handOver() (size int64, waiting []freed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting, a.freed = a.freed, nil
	return a.size, waiting
}

// inherit takes what handOver of another allocator has returned, which goes by the same reads.
func (a *allocator) inherit(waiting []freed) {
	if len(waiting) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.freed = append(a.freed, waiting...)
	a.gaveUp()
}

// reclaimStep is how many bytes one step of reclaim gives back to the host's file system. An allocation waits for one
// such step at a time.
const reclaimStep = 64 * ondisk.MiB

// giveBack does what reclaim does, in steps, so that an allocation that comes meanwhile waits for one of
// them only.
func (a *allocator) giveBack() {
	for a.reclaimStep() {
	}
}

func (a *allocator) reclaimStep() (more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reclaim(reclaimStep)
}

// reclaim makes up to n bytes of the space of unmapped blocks available whose time has come, and reports whether there
// was any. The caller holds mu.
func (a *allocator) reclaim(n int64) bool {
	places := a.takeFreed(n)
	for _, p := range places {
		if a.punch {
			// The hole only saves space on the host. It may fail: the next block in this place zeroes it anew.
			_ = a.file.PunchHole(p.off, p.size)
		}
	}
	return len(places) > 0
}

// takeFreed is reclaim without the holes in the file, and returns where they may be. The caller holds mu.
func (a *allocator) takeFreed(n int64) (places []place) {
	if len(a.freed) > 0 {
		a.reads.turn() // the reads that it waits for may have been those of an epoch that could not end before
	}
	for n > 0 && len(a.freed) > 0 && a.reads.ended(a.freed[0].epoch) {
		first := &a.freed[0].place
		p := place{off: first.off, size: min(first.size, n)}
		first.off, first.size, n = first.off+p.size, first.size-p.size, n-p.size
		if first.size == 0 {
			a.freed = a.freed[1:]
		}
		if !a.used.clear(p.off, p.size) {
			_ = a.fail(fmt.Errorf("a block gave up %d bytes at %#x of the file, which no block used: another program has changed the block table", p.size, uint64(p.off)))
			continue
		}
		places = append(places, p)
	}
	return places
}

// putBack undoes takeFreed for places that were not allocated since. The caller holds mu.
func (a *allocator) putBack(places []place) {
	again := make([]freed, 0, len(places)+len(a.freed))
	for _, p := range places {
		a.used.mark(p.off, p.size)
		again = append(again, freed{p, 0}) // the reads of that epoch have ended
	}
	a.freed = append(again, a.freed...)
}

// drain waits until every read has ended that may look at space given up before the call, and makes that space
// available.
func (a *allocator) drain(ctx context.Context) error {
	a.mu.Lock()
	epoch := a.reads.turn()
	a.mu.Unlock()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		done := !a.anyFreed() || a.reads.ended(epoch) // if so, what follows finds all of that space
		a.giveBack()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// awaitReads waits until every read has ended that began before the call, and may know the layer that was replaced:
// where its BAT was other bytes may come.
func (a *allocator) awaitReads() {
	a.mu.Lock()
	epoch := a.reads.turn()
	a.mu.Unlock()
	for !a.reads.ended(epoch) {
		time.Sleep(time.Millisecond)
		a.mu.Lock()
		a.reads.turn()
		a.mu.Unlock()
	}
}
