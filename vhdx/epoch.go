package vhdx

import (
	"sync"
	"sync/atomic"
)

// readEpochs tells when every read has ended that may have found a block where it no longer is. Space that a
// block gave up is given to another only then. Readers never wait: they announce themselves in the counter of
// the current epoch, and the writer turns the epoch before it gives space away, and waits for the
// old counter to drain.
//
// All images of a chain that have a writer share them, since a read may use each.
type readEpochs struct {
	turning sync.Mutex // held for a turn; no other lock is taken under it
	current atomic.Uint64
	readers [2]struct {
		n atomic.Int64
		_ [56]byte // keeps the counters on cache lines of their own
	}
}

// enter announces a read and returns the epoch to leave.
func (r *readEpochs) enter() uint64 {
	for {
		e := r.current.Load()
		r.readers[e&1].n.Add(1)
		// If the epoch turned in between, the writer may have read the counter before this read was in it: the space
		// that this read is about to use might be given away. So it announces itself again.
		if r.current.Load() == e {
			return e
		}
		r.readers[e&1].n.Add(-1)
	}
}

// newReadEpochs returns those in which epoch 0 has ended.
func newReadEpochs() *readEpochs {
	r := new(readEpochs)
	r.current.Store(1)
	return r
}

func (r *readEpochs) leave(e uint64) { r.readers[e&1].n.Add(-1) }

// turn begins a new epoch, unless reads from before the last turn are still going on. It returns the epoch whose
// end means that every read has ended that began before the call.
func (r *readEpochs) turn() uint64 {
	r.turning.Lock()
	defer r.turning.Unlock()
	e := r.current.Load()
	if !r.ended(e - 1) {
		return e
	}
	r.current.Store(e + 1)
	return e
}

// ended reports whether every read of epoch e has ended, and of all epochs before it.
func (r *readEpochs) ended(e uint64) bool {
	now := r.current.Load()
	if e >= now {
		return false
	}
	// An epoch ends before the one after the next begins, see turn. So two counters are enough, and with the current epoch
	// at e+1 that of e counts only reads of e, or late ones that are about to find the turn and leave: they only delay this.
	return e+1 < now || r.readers[e&1].n.Load() == 0
}
