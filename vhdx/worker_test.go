package vhdx

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A tendedImage is an image that needs what its fields say, and writes down what its worker does.
type tendedImage struct {
	mu     sync.Mutex
	used   bool
	free   bool
	fail   error
	panics bool
	did    []string // with the whole seconds since start
	start  time.Time
}

func (i *tendedImage) inUse() bool    { i.mu.Lock(); defer i.mu.Unlock(); return i.used }
func (i *tendedImage) anyFreed() bool { i.mu.Lock(); defer i.mu.Unlock(); return i.free }

func (i *tendedImage) giveBack() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.free {
		i.did, i.free = append(i.did, "give back"), false
	}
}

func (i *tendedImage) tidy() error { return i.do("tidy", false) }

func (i *tendedImage) clean() error { return i.do("clean", true) }

func (i *tendedImage) do(what string, cleans bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.did = append(i.did, what+" "+time.Since(i.start).Round(time.Second).String())
	if i.panics {
		panic("in " + what)
	}
	if i.fail == nil && cleans {
		i.used = false
	}
	return i.fail
}

func (i *tendedImage) set(do func()) { i.mu.Lock(); defer i.mu.Unlock(); do() }

func (i *tendedImage) all() []string { i.mu.Lock(); defer i.mu.Unlock(); return slices.Clone(i.did) }

// tend runs do with a worker that commits after 2 s and cleans after 5, in time that passes at once.
func tend(t *testing.T, do func(i *tendedImage, k *worker)) {
	synctest.Test(t, func(t *testing.T) {
		i := &tendedImage{start: time.Now()}
		k := newWorker(i, &failure{log: nowhere()}, 2*time.Second, 5*time.Second)
		go k.run()
		do(i, k)
		k.stop()
		k.stop() // once more does nothing
		before := len(i.all())
		i.set(func() { i.used, i.free = true, true })
		k.used()
		k.awake()
		k.freed()
		time.Sleep(time.Minute)
		if len(i.all()) != before {
			t.Errorf("after stop it did %q", i.all()[before:])
		}
	})
}

func (i *tendedImage) wantDone(t *testing.T, want ...string) {
	t.Helper()
	if got := i.all(); !slices.Equal(got, want) {
		t.Errorf("the worker did %q; want %q", got, want)
	}
}

func TestWorkerCommitsThenCleans(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		time.Sleep(time.Minute) // nothing to do
		i.wantDone(t)
		i.set(func() { i.used, i.start = true, time.Now() })
		k.used()
		k.awake()
		time.Sleep(3*time.Second + workerTick/2)
		k.used() // a change that moves the time at which it is idle
		time.Sleep(time.Hour)
		i.wantDone(t, "tidy 2s", "tidy 4s", "tidy 6s", "tidy 8s", "clean 8s")
	})
}

func TestWorkerGivesSpaceBackAtOnce(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		i.set(func() { i.used = true })
		k.used()
		k.awake()
		synctest.Wait()
		i.set(func() { i.free = true })
		k.freed()
		synctest.Wait()
		i.wantDone(t, "give back")
	})
}

// Space may come when the image is clean and the worker asleep.
func TestWorkerWakesForSpace(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		i.set(func() { i.free = true })
		k.freed()
		synctest.Wait()
		i.wantDone(t, "give back")
	})
}

func TestWorkerRetriesLater(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		i.set(func() { i.used, i.fail, i.start = true, unix.ENOSPC, time.Now() })
		k.used()
		k.awake()
		time.Sleep(7 * time.Second)
		i.set(func() { i.fail = nil })
		time.Sleep(time.Hour)
		i.wantDone(t, "tidy 2s", "clean 12s")
	})
}

func TestWorkerLeavesABrokenImageAlone(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		i.set(func() { i.used = true })
		_ = k.fail(errors.New("a sync has failed"))
		k.used()
		k.awake()
		time.Sleep(time.Minute)
		i.wantDone(t)
	})
}

func TestWorkerPanicEndsAllWriting(t *testing.T) {
	tend(t, func(i *tendedImage, k *worker) {
		i.set(func() { i.used, i.panics, i.start = true, true, time.Now() })
		k.used()
		k.awake()
		time.Sleep(time.Minute)
		i.wantDone(t, "tidy 2s")
		if !errors.Is(k.err(), ErrFailed) {
			t.Errorf("err = %v; want one that matches ErrFailed", k.err())
		}
	})
}
