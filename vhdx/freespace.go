package vhdx

import "github.com/vhdxfs/vhdxfs/vhdx/ondisk"

// FreeRanges calls do for the ranges of the image's own file that nothing uses, in order. Offsets and lengths are in
// bytes and multiples of 1 MiB. In a damaged image these are unknown, so there are none.
func (im *Image) FreeRanges(do func(off, n int64)) {
	if im.Validated() != nil {
		return
	}
	if w := im.writer; w != nil {
		w.space.mu.Lock()
		defer w.space.mu.Unlock()
	}
	m := im.current().space
	start := int64(-1)
	for i := int64(0); i <= m.n; i++ {
		free := i < m.n && m.words[i/64]&(1<<(i%64)) == 0
		switch {
		case free && start < 0:
			start = i
		case !free && start >= 0:
			do(start*ondisk.MiB, (i-start)*ondisk.MiB)
			start = -1
		}
	}
}
