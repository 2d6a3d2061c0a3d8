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
	now, err := awaitJob(ctx, p, 20*time.Millisecond, func() (*mounts.Compaction, error) {
		now, err := mounts.AskCompaction(m.MountPoint)
		if err != nil { // it took the word, so it is no other program's
			return nil, fmt.Errorf("the mount at %s ended before the compaction was done; completed work is kept and no data is lost (%w)", m.MountPoint, err)
		}
		return now, nil
	}, func() error {
		if err := mounts.TellCompaction(m.MountPoint, mounts.CompactStop); err != nil {
			return refusal(m, "compaction", err)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case now.Error != "":
		return nil, fmt.Errorf("%s: %s", m.Image, now.Error)
	}
	return now.Result, nil
}
