package vhdx

import "sync"

// A sharedRun is work that many goroutines ask for at once. One run serves all calls that came before it began.
type sharedRun struct {
	mu           sync.Mutex // guards what follows; not held by a run that is under way
	cond         sync.Cond  // a run has ended; its L is mu
	begun, ended uint64     // runs; they differ while one is under way
	err          error      // of the last run that ended
}

// run returns when a run has ended that began after the call, with its error or that of a later one. A run that is under
// way does not serve the call: it may have looked at the changes before the caller made its own. One of the waiting
// callers does the work, without mu; the others sleep until it is done for them.
func (r *sharedRun) run(do func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for mine := r.begun + 1; r.ended < mine; {
		if r.begun > r.ended {
			r.cond.Wait()
			continue
		}
		r.begun++
		r.mu.Unlock()
		err := do()
		r.mu.Lock()
		r.ended, r.err = r.begun, err
		r.cond.Broadcast()
	}
	return r.err
}
