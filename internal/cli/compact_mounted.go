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
	var shown mounts.Compaction
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
			p.follow(&shown, now)
			continue
		case stopped && now.Error != "":
			return nil, context.Cause(ctx)
		case now.Error != "":
			return nil, fmt.Errorf("%s: %s", m.Image, now.Error)
		}
		return now.Result, nil
	}
}

// follow shows what has changed since the state that was shown before.
func (p *progress) follow(shown, now *mounts.Compaction) {
	if now.Phase != shown.Phase {
		p.phase(now.Phase, now.Total)
		shown.Done = 0
	}
	p.add(now.Done - shown.Done)
	*shown = *now
}
