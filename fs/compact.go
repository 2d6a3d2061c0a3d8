package fs

import (
	"context"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A compactor runs one compaction at a time.
type compactor struct {
	disk Control
	job[vhdx.CompactResult]
}

// start begins a compaction. It returns EBUSY while one is running.
func (c *compactor) start(o vhdx.CompactOptions) fuse.Status {
	o.Phase, o.Progress = c.phase, c.progress
	return c.begin("", func(ctx context.Context) (*vhdx.CompactResult, error) { return c.disk.Compact(ctx, o) })
}

func (c *compactor) xattrs() map[string]string { return c.xattr(mounts.CompactXAttr) }

// set begins or stops a compaction, as data says.
func (c *compactor) set(data []byte) fuse.Status {
	switch word := strings.TrimRight(string(data), "\x00\n"); word {
	case mounts.CompactStart, mounts.CompactKeepZeros:
		return c.start(vhdx.CompactOptions{KeepZeros: word == mounts.CompactKeepZeros})
	case mounts.CompactStop:
		c.stop("")
		return fuse.OK
	}
	return fuse.EINVAL
}
