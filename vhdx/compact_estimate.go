package vhdx

import (
	"context"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Reclaimable is what Compact could win, in bytes.
type Reclaimable struct {
	Total    int64 `json:"total_bytes"`    // by how much the file becomes smaller; without what has to stay of the rest
	Free     int64 `json:"free_bytes"`     // of the file, that nothing uses
	Unmapped int64 `json:"unmapped_bytes"` // places that blocks keep without being present
	BAT      int64 `json:"bat_bytes"`      // of the region of the block table, that a larger disk would need
	Zero     int64 `json:"zero_bytes"`     // blocks that read as zero; 0 unless they were looked for
}

// Reclaimable tells what Compact could win. With zeros it reads every block until something in it is not zero.
func (im *Image) Reclaimable(ctx context.Context, zeros bool, o CompactOptions) (Reclaimable, error) {
	if err := im.Validated(); err != nil {
		return Reclaimable{}, err
	}
	l := im.current()
	r, pack, size := im.estimate()
	keep := l.keepsBlocks()
	withoutNil(&o.Phase, &o.Progress)
	if zeros = zeros && !keep; zeros {
		o.Phase("looking for zeros", l.allocated())
	}
	err := l.eachEntry(func(n int64, bitmap bool, e ondisk.BATEntry) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case isMovable(bitmap, e):
			zero := false
			if zeros && !bitmap {
				var err error
				if zero, err = im.readsZero(n, e); err != nil {
					return err
				}
				o.Progress(l.geo.BlockSize)
			}
			if !zero {
				pack.add(movable{e.FileOff(), n, bitmap})
				return nil
			}
			if pack.give(e.FileOff()) {
				r.Zero += l.geo.BlockSize
			}
		case !bitmap && keepsPlace(e) && !l.keptShared && !keep:
			if pack.give(e.FileOff()) { // it may lie outside the file
				r.Unmapped += l.geo.BlockSize
			}
		}
		return nil
	})
	if !l.file.IsDevice() { // a device stays as large as it is
		pack.run()
		r.Total = max(size-pack.space.end(), 0)
	}
	return r, err
}

// estimate returns what is free already, what a compaction would be made of, and the size of the file in bytes.
func (im *Image) estimate() (r Reclaimable, pack *packing, size int64) {
	l := im.current()
	space, size := l.space, l.fileSize
	if w := im.writer; w != nil {
		w.space.mu.Lock()
		defer w.space.mu.Unlock()
		space, size = w.space.used, w.space.size
	}
	pack = newPacking(l, space)
	return Reclaimable{Free: space.free(), BAT: pack.batExcess()}, pack, size
}
