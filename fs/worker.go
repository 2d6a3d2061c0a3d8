package fs

import (
	"errors"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// A worker answers what it has read from the device before it reads again. So one thread does all that a request
// takes, and no queue lies between the kernel and the image.
//
// There is always a worker that waits for a request, as long as there are fewer than maxWorkers. A worker that has
// one which may take long, as it waits for a disk, steps aside: if no other worker waits, it starts one. What
// can be answered from memory it answers at once, and counts as waiting all the while. To start or wake another
// thread for each of those would take longer than they do.
type worker struct {
	*transport
	buf    *buffer
	waits  bool   // counted in transport.waiting
	streak int    // requests in a row that were answered from memory
	aside  func() // stepAside
}

// maxStreak is after how many requests in a row that it answered from memory a worker leaves the next ones to the others
// that wait. The kernel wakes those in turn, and each finds other caches to be cold.
const maxStreak = 64

var (
	// enoughWaiting is how many workers wait where requests take long, at the least. Where many of them are under way, as
	// many wait as are at work: to have one begin takes longer than the kernel needs to wake one that waits.
	enoughWaiting = int32(2)

	// enoughQuick is how many wait where requests are answered from memory: one thread copies faster than one
	// program takes what was copied, and many programs need many processors.
	enoughQuick = int32(1 + min(runtime.NumCPU()/8, 3))
)

// startWorker starts a worker, unless there are too many.
func (t *transport) startWorker() {
	if !count(&t.workers, 1, func(n int32) bool { return n < maxWorkers }) {
		return
	}
	w := &worker{transport: t, waits: true}
	w.aside = w.stepAside
	t.waiting.Add(1)
	t.running.Add(1)
	go w.run()
}

// run serves requests until the connection ends, or until enough other workers wait for them.
func (w *worker) run() {
	defer w.running.Done()
	defer fault.Then(func(err error) {
		fault.Report(w.log, err)
		if w.waits {
			w.waiting.Add(-1)
		}
		w.leave()
	})
	w.buf = w.buffers.Get().(*buffer)
	defer w.buffers.Put(w.buf)
	for {
		req, err := w.receive(w.buf)
		if err != nil {
			w.waiting.Add(-1)
			w.workers.Add(-1)
			if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
				w.log.WithError(err).Error("cannot read from " + mounts.FUSEDevice)
			}
			return
		}
		w.serve(req)
		if !w.waitAgain() {
			w.leave()
			return
		}
	}
}

// leave makes room for another worker. Workers that make w needless may have stepped aside since w asked, and found
// no room.
func (t *transport) leave() {
	t.workers.Add(-1)
	if t.waiting.Load() == 0 {
		t.startWorker()
	}
}

// stepAside has another worker wait in place of w. It is called before anything that may take long.
func (w *worker) stepAside() {
	if !w.waits {
		return
	}
	w.waits, w.streak = false, 0
	if w.waiting.Add(-1) == 0 {
		w.startWorker()
	}
}

// waitAgain counts w among the workers that wait, and reports whether it is needed there.
func (w *worker) waitAgain() bool {
	if !w.waits {
		w.waits = count(&w.waiting, 1, func(n int32) bool { return n < max(enoughWaiting, w.workers.Load()/2) })
		return w.waits
	}
	if w.streak++; w.streak < maxStreak {
		return true
	}
	w.streak = 0
	w.waits = !count(&w.waiting, -1, func(n int32) bool { return n > enoughQuick })
	return w.waits
}

// count adds d to a number of workers, and reports that, if the number satisfies a condition.
func count(workers *atomic.Int32, d int32, condition func(int32) bool) bool {
	for {
		n := workers.Load()
		if !condition(n) {
			return false
		}
		if workers.CompareAndSwap(n, n+d) {
			return true
		}
	}
}
