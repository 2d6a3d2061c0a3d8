package fs

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Causes of a compaction's end before it is done.
var (
	errStopped   = errors.New("it was stopped")
	errRemounted = errors.New("the mount was made read-only")
)

// remountWatch is how often a compaction looks whether the mount was made read-only.
const remountWatch = time.Second

// A compactor runs one compaction at a time.
type compactor struct {
	disk     Control
	readOnly func() bool // reports whether the mount was made read-only; nil where that cannot be known
	running  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	state  *mounts.Compaction
	cancel context.CancelCauseFunc
	ended  bool // no further one may begin
}

// start begins a compaction. It returns EBUSY while one is running.
func (c *compactor) start(o vhdx.CompactOptions) fuse.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.state != nil && c.state.Running {
		return fuse.EBUSY
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.state, c.cancel = &mounts.Compaction{Running: true}, cancel
	o.Phase = func(name string, total int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.state.Phase, c.state.Done, c.state.Total = name, 0, total
	}
	o.Progress = func(n int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.state.Done += n
	}
	c.running.Go(func() {
		defer cancel(nil)
		defer fault.Then(func(err error) { c.finish(nil, err) })
		if c.readOnly != nil {
			go c.watch(ctx, cancel)
		}
		c.finish(c.disk.Compact(ctx, o))
	})
	return fuse.OK
}

// finish notes how the compaction ended.
func (c *compactor) finish(r *vhdx.CompactResult, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Running, c.state.Result = false, r
	if err != nil {
		c.state.Error = err.Error()
	}
}

// watch ends the compaction when the mount is made read-only, which the kernel does without telling the program.
func (c *compactor) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	look := time.NewTicker(remountWatch)
	defer look.Stop()
	defer fault.Then(func(err error) { cancel(err) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if c.readOnly() {
				cancel(errRemounted)
				return
			}
		}
	}
}

// stop asks the compaction to end, and does not wait for that.
func (c *compactor) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel(errStopped)
	}
}

// end ends the compaction, lets no other begin, and returns when the disk is not used any more.
func (c *compactor) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.stop()
	c.running.Wait()
}

// xattrs is the attribute that tells of a compaction, where there is something to tell.
func (c *compactor) xattrs() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == nil {
		return nil
	}
	b, err := json.Marshal(c.state)
	if err != nil {
		return nil
	}
	return map[string]string{mounts.CompactXAttr: string(b)}
}

// set begins or stops a compaction, as data says.
func (c *compactor) set(data []byte) fuse.Status {
	switch word := strings.TrimRight(string(data), "\x00\n"); word {
	case mounts.CompactStart, mounts.CompactKeepZeros:
		return c.start(vhdx.CompactOptions{KeepZeros: word == mounts.CompactKeepZeros})
	case mounts.CompactStop:
		c.stop()
		return fuse.OK
	}
	return fuse.EINVAL
}
