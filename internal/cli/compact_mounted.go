package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// online has the program that serves a mount compact the image, shows how far it is, and waits for the end. Where ctx
// ends before, the compaction is stopped.
func (c *compactCommand) online(ctx context.Context, m *active.Mount, p *progress) (*vhdx.CompactResult, error) {
	word := mounts.CompactStart
	if c.keepZeros {
		word = mounts.CompactKeepZeros
	}
	if err := mounts.TellCompaction(m.MountPoint, word); err != nil {
		return nil, refusal(m, "compaction", err)
	}
	var shown shownProgress
	stopped := false
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-ctx.Done():
			if !stopped {
				stopped = true
				if err := mounts.TellCompaction(m.MountPoint, mounts.CompactStop); err != nil {
					return nil, refusal(m, "compaction", err)
				}
			}
			time.Sleep(wait)
		case <-time.After(wait):
		}
		now, err := mounts.AskCompaction(m.MountPoint)
		switch {
		case err != nil: // it took the word, so it is no other program's
			return nil, fmt.Errorf("the mount at %s ended before the compaction was done; completed work is kept and no data is lost (%w)", m.MountPoint, err)
		case now.Running:
			p.follow(&shown, now.Phase, now.Done, now.Total)
			continue
		case stopped && now.Error != "":
			return nil, context.Cause(ctx)
		case now.Error != "":
			return nil, fmt.Errorf("%s: %s", m.Image, now.Error)
		}
		return now.Result, nil
	}
}

// shownProgress is how far the work of a mount was when it was shown last.
type shownProgress struct {
	phase string
	done  int64 // bytes
}

// follow shows what has changed since the state that was shown before.
func (p *progress) follow(shown *shownProgress, phase string, done, total int64) {
	if phase != shown.phase || done < shown.done {
		p.phase(phase, total)
		shown.done = 0
	}
	p.add(done - shown.done)
	shown.phase, shown.done = phase, done
}
