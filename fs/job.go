package fs

import (
	"context"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Causes of the end of a job before it is done.
var (
	errStopped   = errors.New("it was stopped")
	errRemounted = errors.New("the mount was made read-only")
	errUnasked   = errors.New("the program that asked for it has ended")
)

// remountWatch is how often a job looks whether the mount was made read-only.
const remountWatch = time.Second

// A job is work on the disk in the background, one at a time, whose result is an R: the kernel would hold a program that has asked
// for it in a request until it is done.
type job[R any] struct {
	readOnly func() bool   // reports whether the mount was made read-only; nil where that cannot be known
	patience time.Duration // how long it goes on if no program asks how far it is; 0 is for ever
	running  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	state  *mounts.Job[R]
	asked  time.Time
	cancel context.CancelCauseFunc
	ended  bool // no further one may begin
}

// begin begins work that the id stands for. It returns EBUSY while some is under way.
func (j *job[R]) begin(id string, work func(context.Context) (*R, error)) fuse.Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || j.state != nil && j.state.Running {
		return fuse.EBUSY
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	j.state, j.cancel, j.asked = &mounts.Job[R]{ID: id, Running: true}, cancel, time.Now()
	j.running.Go(func() {
		defer cancel(nil)
		defer fault.Then(func(err error) { j.finish(nil, err) })
		go j.watch(ctx, cancel)
		j.finish(work(ctx))
	})
	return fuse.OK
}

// phase, progress and shared note how far the work is.
func (j *job[R]) phase(name string, total int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Phase, j.state.Done, j.state.Total, j.state.Shared = name, 0, total, 0
}

func (j *job[R]) progress(n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Done += n
}

func (j *job[R]) shared(n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Shared += n
}

// finish notes how the work ended.
func (j *job[R]) finish(r *R, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Running, j.state.Result = false, r
	if err != nil {
		j.state.Error = err.Error()
		j.state.Refused = errors.Is(err, vhdx.ErrOptions) || errors.Is(err, iofs.ErrPermission)
	}
}

// watch ends the work when the mount is made read-only, which the kernel does without telling the program, and when no program
// asks about it any more.
func (j *job[R]) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	look := time.NewTicker(remountWatch)
	defer look.Stop()
	defer fault.Then(func(err error) { cancel(err) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if j.readOnly != nil && j.readOnly() {
				cancel(errRemounted)
				return
			}
			if j.unasked() {
				cancel(errUnasked)
				return
			}
		}
	}
}

func (j *job[R]) unasked() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.patience > 0 && time.Since(j.asked) > j.patience
}

// stop asks the work that the id stands for to end, and does not wait for that.
func (j *job[R]) stop(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cancel != nil && j.state.ID == id {
		j.cancel(errStopped)
	}
}

// end ends the work, lets no other begin, and returns when the disk is not used any more.
func (j *job[R]) end() {
	j.mu.Lock()
	j.ended = true
	if j.cancel != nil {
		j.cancel(errStopped)
	}
	j.mu.Unlock()
	j.running.Wait()
}

// xattr is the named attribute, which tells of the work where there is something to tell.
func (j *job[R]) xattr(name string) map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == nil {
		return nil
	}
	j.asked = time.Now()
	b, err := json.Marshal(j.state)
	if err != nil {
		return nil
	}
	return map[string]string{name: string(b)}
}
