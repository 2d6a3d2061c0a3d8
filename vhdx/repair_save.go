package vhdx

import (
	"bufio"
	"context"
	"io"
	"path/filepath"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
	"github.com/vhdxfs/vhdxfs/vhdx/undofile"
)

// writeUndo writes the undo file of the plan to w, and returns its size.
func (r *repairer) writeUndo(w io.Writer) (int64, error) {
	path, err := filepath.Abs(r.top.path)
	if err != nil || len(path) > undofile.MaxPath {
		path = filepath.Base(r.top.path) // as if it lay beside the undo file
	}
	out := bufio.NewWriterSize(w, ondisk.MiB)
	tail := min(r.d.size, r.d.old)
	total := int64(len(r.d.pages))*ondisk.PageSize + r.d.old - tail
	for _, h := range r.d.holes {
		total += h.n
	}
	r.o.Phase("save", total)
	u, err := undofile.NewWriter(out, undofile.Header{OldSize: r.d.old, NewSize: r.d.size, FileWriteGUID: r.header.FileWriteGUID, Made: time.Now(), Path: path})
	if err != nil {
		return 0, err
	}
	if err := r.recordPages(u); err != nil {
		return 0, err
	}
	// What is to be zeros, or gone, reads as zeros until it is restored.
	for _, h := range r.d.holes {
		if err := r.recordZeroed(u, h.off, min(h.end(), r.d.old)); err != nil {
			return 0, err
		}
	}
	if err := r.recordZeroed(u, tail, r.d.old); err != nil {
		return 0, err
	}
	if err := u.End(); err != nil {
		return 0, err
	}
	return u.Size(), out.Flush()
}

// recordPages saves the old bytes of the pages that change.
func (r *repairer) recordPages(u *undofile.Writer) error {
	announced := undofile.SectorSums(r.announcement()[:])
	for _, at := range r.d.offsets() {
		n := min(ondisk.PageSize, r.d.old-at)
		if n <= 0 {
			break
		}
		old := make([]byte, n)
		if err := r.readOld(old, at); err != nil {
			return err
		}
		news := [][]byte{undofile.SectorSums(r.d.pages[at][:n])}
		if at == ondisk.HeaderOffsets[1-r.slot] {
			news = append(news, announced)
		}
		if err := u.Record(at, old, news...); err != nil {
			return err
		}
		r.o.Progress(ondisk.PageSize)
	}
	return nil
}

// readOld reads a page of the image as it was before the repair, and before the mark of a lease.
func (r *repairer) readOld(p []byte, at int64) error {
	if f := leaseOf(r.top.file); f != nil {
		if b, slot := f.Replaced(); at == ondisk.HeaderOffsets[slot] {
			copy(p, b)
			return nil
		}
	}
	return readFull(r.d.base, p, at, "the image")
}

// recordZeroed saves what is not zero of the bytes from off to end, which are to be.
func (r *repairer) recordZeroed(u *undofile.Writer, off, end int64) error {
	const piece = 64 * ondisk.KiB
	buf := make([]byte, piece)
	sums := undofile.SectorSums(buf)
	for off < end {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		next, err := r.d.base.NextData(off)
		if err == io.EOF || err == nil && next >= end {
			r.o.Progress(end - off)
			return nil
		}
		if err != nil {
			return err
		}
		next = max(off, next/ondisk.PageSize*ondisk.PageSize)
		r.o.Progress(next - off)
		off = next
		b := buf[:min(piece, end-off)]
		if err := readFull(r.d.base, b, off, "the image"); err != nil {
			return err
		}
		if !allZero(b) {
			zeroed := sums
			if len(b) < piece {
				zeroed = undofile.SectorSums(make([]byte, len(b)))
			}
			if err := u.Record(off, b, zeroed); err != nil {
				return err
			}
		}
		r.o.Progress(int64(len(b)))
		off += int64(len(b))
	}
	return nil
}
