package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	mount "vhdxfs/fs"
	"vhdxfs/vhdx"
)

// online has the program that serves a mount compact the image, shows how far it is, and waits for the end. Where ctx
// ends before, the compaction is stopped.
func (c *compactCommand) online(ctx context.Context, m *activeMount, p *progress) (*vhdx.CompactResult, error) {
	word := mount.CompactStart
	if c.keepZeros {
		word = mount.CompactKeepZeros
	}
	if err := mount.TellCompaction(m.MountPoint, word); err != nil {
		return nil, compactError(m, err)
	}
	var shown mount.Compaction
	stopped := false
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-ctx.Done():
			if !stopped {
				stopped = true
				if err := mount.TellCompaction(m.MountPoint, mount.CompactStop); err != nil {
					return nil, compactError(m, err)
				}
			}
			time.Sleep(wait)
		case <-time.After(wait):
		}
		now, err := mount.AskCompaction(m.MountPoint)
		switch {
		case err != nil: // it took the word, so it is no other program's
			return nil, fmt.Errorf("the mount at %s has ended before the compaction was done; what was done stays, and no data is lost (%w)", m.MountPoint, err)
		case now.Running:
			p.follow(&shown, now)
			continue
		case stopped && now.Error != "":
			return nil, context.Cause(ctx)
		case now.Error != "":
			return nil, fmt.Errorf("compact %s: %s", m.Image, now.Error)
		}
		return now.Result, nil
	}
}

// follow shows what has changed since the state that was shown before.
func (p *progress) follow(shown, now *mount.Compaction) {
	if now.Phase != shown.Phase {
		p.phase(now.Phase, now.Total)
		shown.Done = 0
	}
	p.add(now.Done - shown.Done)
	*shown = *now
}

// compactError says what an error of a mount means for who wants to compact.
func compactError(m *activeMount, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is being compacted already, or unmounted", m.MountPoint)
	case errors.Is(err, unix.EROFS):
		return &statusError{statusUsage, fmt.Errorf("%s is mounted read-only; unmount it, or mount it for writing", m.MountPoint)}
	case errors.Is(err, unix.EPERM):
		return &statusError{statusUsage, fmt.Errorf("only root and who mounted %s may compact it", m.MountPoint)}
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODATA):
		return fmt.Errorf("%s is served by an older vhdxfs, which cannot compact; unmount it first", m.MountPoint)
	}
	return fmt.Errorf("compact %s: %w", m.MountPoint, err)
}
