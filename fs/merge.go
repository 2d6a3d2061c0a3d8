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
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// errUnasked is the cause of the end of a merge whose program has gone.
var errUnasked = errors.New("the program that asked for it has ended")

// mergePatience is how long a merge goes on that nobody asks for. The program that has begun it does so all the time.
const mergePatience = time.Minute

// A merger merges images of the chain, once at a time.
type merger struct {
	disk     Control
	readOnly func() bool // reports whether the mount was made read-only; nil where that cannot be known
	running  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	state  *mounts.Merge
	asked  time.Time
	cancel context.CancelCauseFunc
	ended  bool // no further one may begin
}

// set begins or stops a merge, as data says. It returns EBUSY if one is to begin while one is running.
func (m *merger) set(data []byte) fuse.Status {
	var r mounts.MergeRequest
	if json.Unmarshal(data, &r) != nil || r.Rate < 0 {
		return fuse.EINVAL
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Stop {
		if m.cancel != nil && m.state.ID == r.ID {
			m.cancel(errStopped)
		}
		return fuse.OK
	}
	if m.ended || m.state != nil && m.state.Running {
		return fuse.EBUSY
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m.state, m.cancel, m.asked = &mounts.Merge{ID: r.ID, Running: true}, cancel, time.Now()
	o := vhdx.MergeOptions{Into: r.Into, Delete: r.Delete, KeepName: r.KeepName, DryRun: r.DryRun, Rate: r.Rate,
		Reflink: imagefile.Reflink(r.Reflink), Phase: m.phase, Progress: m.progress, Shared: m.shared}
	m.running.Go(func() {
		defer cancel(nil)
		defer fault.Then(func(err error) { m.finish(nil, err) })
		go m.watch(ctx, cancel)
		m.finish(m.disk.Merge(ctx, r.Child, o))
	})
	return fuse.OK
}

func (m *merger) phase(name string, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Phase, m.state.Done, m.state.Total, m.state.Shared = name, 0, total, 0
}

func (m *merger) progress(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Done += n
}

func (m *merger) shared(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Shared += n
}

// finish notes how the merge ended.
func (m *merger) finish(r *vhdx.MergeResult, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Running, m.state.Result = false, r
	if err != nil {
		m.state.Error = err.Error()
		m.state.Refused = errors.Is(err, vhdx.ErrOptions) || errors.Is(err, iofs.ErrPermission)
	}
}

// watch ends the merge when the mount is made read-only, which the kernel does without telling the program, and when nobody asks
// for it any more.
func (m *merger) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	look := time.NewTicker(remountWatch)
	defer look.Stop()
	defer fault.Then(func(err error) { cancel(err) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if m.readOnly != nil && m.readOnly() {
				cancel(errRemounted)
				return
			}
			if m.unasked() {
				cancel(errUnasked)
				return
			}
		}
	}
}

func (m *merger) unasked() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.asked) > mergePatience
}

// end ends the merge, lets no other begin, and returns when the disk is not used any more.
func (m *merger) end() {
	m.mu.Lock()
	m.ended = true
	if m.cancel != nil {
		m.cancel(errStopped)
	}
	m.mu.Unlock()
	m.running.Wait()
}

// xattrs is the attribute that tells of a merge, where there is something to tell.
func (m *merger) xattrs() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return nil
	}
	m.asked = time.Now()
	b, err := json.Marshal(m.state)
	if err != nil {
		return nil
	}
	return map[string]string{mounts.MergeXAttr: string(b)}
}
