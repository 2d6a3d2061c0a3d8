package vhdx

import (
	"context"
	"fmt"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// giveBack gives space that nothing uses back: at the end by a shorter file, elsewhere by holes. Space that holds data is
// left, unless FreeLeaks is set: a page of the BAT that was overwritten with zeros looks like one of blocks that never were,
// and then their bytes are there. Where anything was lost all of it stays; and so it does in a fixed image, whose space is
// meant to stay.
func (r *repairer) giveBack(l *layer, list []Finding) error {
	if r.top.file.IsDevice() {
		return nil
	}
	if r.keepSpace || r.lossy || l.unwritable != "" || l.diskType() == Fixed {
		return nil
	}
	ranges, err := r.givable(l)
	if err != nil || len(ranges) == 0 {
		return err
	}
	if last := ranges[len(ranges)-1]; last.off == l.space.end() {
		r.fixed(list[0], "%s removed from the end of the file", bytesOf(last.n))
		if err := r.d.Truncate(last.off); err != nil {
			return err
		}
		ranges = ranges[:len(ranges)-1]
	}
	if !r.top.file.Sparse() {
		return nil
	}
	var leaked int64
	var holes []fileRange
	for _, g := range ranges {
		zero, err := l.hole(g.off, g.n)
		if err != nil {
			return err
		}
		if zero < g.n {
			holes, leaked = append(holes, g), leaked+g.n
		}
	}
	if leaked == 0 {
		return nil
	}
	r.fixed(list[0], "%s of the file are now holes", bytesOf(leaked))
	for _, h := range holes {
		if err := r.d.PunchHole(h.off, h.n); err != nil {
			return err
		}
	}
	return nil
}

// givable returns the ranges of the file that nothing uses and that may be given back, and counts in kept what may not.
func (r *repairer) givable(l *layer) (ranges []fileRange, err error) {
	r.kept = 0
	newImage(l).FreeRanges(func(off, n int64) {
		if err != nil {
			return
		}
		g, zero := fileRange{off, min(n, r.d.size-off)}, true
		if !r.o.FreeLeaks {
			zero, err = r.readsZero(l, g)
		}
		if zero {
			ranges = append(ranges, g)
		} else {
			r.kept += g.n
		}
	})
	return ranges, err
}

// readsZero reports whether a range of the draft holds nothing but zeros.
func (r *repairer) readsZero(l *layer, g fileRange) (bool, error) {
	buf := make([]byte, ondisk.MiB)
	for g.n > 0 {
		if err := context.Cause(r.ctx); err != nil {
			return false, err
		}
		n, err := l.hole(g.off, g.n)
		if err != nil {
			return false, err
		}
		if n == 0 {
			n = min(ondisk.MiB, g.n)
			if err := readFull(r.d, buf[:n], g.off, "unused space"); err != nil {
				return false, err
			}
			if !allZero(buf[:n]) {
				return false, nil
			}
		}
		g = fileRange{g.off + n, g.n - n}
	}
	return true, nil
}

// adviseSpace says what can be done about space that was kept.
func (r *repairer) adviseSpace() []string {
	if r.kept == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s of unused space holds data and is kept: missing parts of the disk may be there; "+
		"otherwise compact or --free-leaks reclaims the space", bytesOf(r.kept))}
}

// bytesOf writes a number of bytes for people.
func bytesOf(n int64) string {
	if n >= ondisk.MiB {
		return fmt.Sprintf("%d MiB", n/ondisk.MiB)
	}
	return fmt.Sprintf("%d bytes", n)
}
