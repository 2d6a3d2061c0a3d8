package vhdx

import (
	"sync"
	"sync/atomic"
	"time"
)

// A worker looks after an image that is written, in the background: it commits changes that no sync has made durable, keeps
// room in the log, makes an idle image clean, and gives back space when the last read that may use it has ended.
//
// It has no lock and takes none. What it knows of the image it asks without one, and an old answer costs a tick, or cleans an
// image that was just changed again, which is correct at any time. What always holds:
//
//   - Between a change and the moment the image is clean, it is awake, or used has told it to wake.
//   - It calls one method of the image at a time, and none after stop has returned.
//   - After an error that may pass, such as a full disk, it waits for retryAfter; after one that ends all writing, for stop.
type worker struct {
	*failure
	image       tended
	commitAfter time.Duration // 0 is never
	idleAfter   time.Duration // likewise

	lastUsed atomic.Int64  // time of the last change, ns since began
	wake     chan struct{} // something is to be committed
	trimmed  chan struct{} // space is to be given back
	quit     chan struct{}
	ended    chan struct{}
	stopOnce sync.Once
}

// tended is what a worker looks after. It may call each method at any time.
type tended interface {
	inUse() bool    // a change was announced since the image was clean
	anyFreed() bool // space waits for reads to end
	giveBack()      // as much of that space as can be
	tidy() error    // commit, and empty a log that is half full
	clean() error   // commit, and leave nothing to replay
}

const (
	workerTick = 250 * time.Millisecond
	retryAfter = 10 * time.Second
)

// began is what times are measured from, so that it does not matter when the system's clock is set.
var began = time.Now()

func newWorker(image tended, f *failure, commitAfter, idleAfter time.Duration) *worker {
	return &worker{
		failure: f, image: image, commitAfter: commitAfter, idleAfter: idleAfter,
		wake: make(chan struct{}, 1), trimmed: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}),
	}
}

// used notes the time of a change.
func (k *worker) used() { k.lastUsed.Store(int64(time.Since(began))) }

// awake wakes the worker, if it sleeps: there is something to commit.
func (k *worker) awake() {
	select {
	case k.wake <- struct{}{}:
	default: // it is awake
	}
}

// freed tells the worker that space waits to be given back, so that there is little left to do where the image is closed next. It
// wakes it, too: the image may be clean by now, or may just have taken over the space of another.
func (k *worker) freed() {
	select {
	case k.trimmed <- struct{}{}:
	default:
	}
	k.awake()
}

// run works until stop is called. A panic ends it, and all writing.
func (k *worker) run() {
	defer close(k.ended)
	defer k.catch(new(error))
	for {
		select {
		case <-k.quit:
			return
		case <-k.wake:
		}
		if !k.untilClean() {
			return
		}
	}
}

// untilClean looks after the image until it is clean and all free space is given back, or until it is broken. It returns
// false when the worker ends.
func (k *worker) untilClean() bool {
	ticker := time.NewTicker(workerTick)
	defer ticker.Stop()
	committed := time.Now()
	var retry time.Time // after a failure, as where the file cannot grow
	for (k.image.inUse() || k.image.anyFreed()) && k.err() == nil {
		select {
		case <-k.quit:
			return false
		case <-k.trimmed:
			k.image.giveBack()
			continue
		case <-ticker.C:
		}
		k.image.giveBack() // what reads were in the way of
		now := time.Now()
		if !k.image.inUse() || now.Before(retry) {
			continue
		}
		var err error
		switch idle := now.Sub(began.Add(time.Duration(k.lastUsed.Load()))); {
		case k.idleAfter > 0 && idle >= k.idleAfter:
			err = k.image.clean()
		case k.commitAfter > 0 && now.Sub(committed) >= k.commitAfter:
			committed = now
			err = k.image.tidy()
		}
		if err != nil && k.err() == nil { // after a failure for good, which is logged already, nothing is tried again
			retry = now.Add(retryAfter)
			k.log.WithError(err).Warn("could not flush metadata; retrying")
		}
	}
	return true
}

// stop ends the worker, and returns when it has ended.
func (k *worker) stop() {
	k.stopOnce.Do(func() {
		close(k.quit)
		<-k.ended
	})
}
