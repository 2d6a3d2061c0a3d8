package vhdx

import "fmt"

// giveBack gives space that nothing uses back: at the end by a shorter file, elsewhere by holes. Where anything was
// lost it stays, since what is lost may be there; and so it does in a fixed image, whose space is meant to stay.
func (r *repairer) giveBack(l *layer, list []Finding) error {
	if f, ok := r.top.file.(interface{ Device() bool }); ok && f.Device() {
		return nil
	}
	if r.o.KeepLeaks || r.lossy || l.unwritable != "" || l.diskType() == Fixed {
		return nil
	}
	end := l.space.end()
	if end < r.d.size {
		r.fixed(list[0], "%s cut off the end of the file", bytesOf(r.d.size-end))
		if err := r.d.Truncate(end); err != nil {
			return err
		}
	}
	s, ok := r.top.file.(interface{ Sparse() bool })
	if !ok || !s.Sparse() {
		return nil
	}
	var leaked int64
	var holes []fileRange
	var failed error
	(&Image{top: l}).FreeRanges(func(off, n int64) {
		if off >= end || failed != nil {
			return
		}
		data, err := l.hole(off, n)
		if failed = err; err == nil && data < n {
			holes, leaked = append(holes, fileRange{off, n}), leaked+n
		}
	})
	if failed != nil || leaked == 0 {
		return failed
	}
	r.fixed(list[0], "%s inside it are holes now", bytesOf(leaked))
	for _, h := range holes {
		if err := r.d.PunchHole(h.off, h.n); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf writes a number of bytes for people.
func bytesOf(n int64) string {
	if n >= mib {
		return fmt.Sprintf("%d MiB", n/mib)
	}
	return fmt.Sprintf("%d bytes", n)
}
