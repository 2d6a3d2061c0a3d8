package vhdx

import (
	"io"
	"math"
)

// SeekData returns the first byte at or after off that is held in a file, and io.EOF when none follows. What lies in a
// hole of that file, as most of a block does of which little was written, is not held.
func (im *Image) SeekData(off int64) (int64, error) { return im.seek(off, im.Size(), true) }

// IsHole reports whether nothing holds any of the n bytes from off on, which all lie inside the disk: they read as zero,
// and need not be read to know that.
func (im *Image) IsHole(off, n int64) (bool, error) {
	_, err := im.seek(off, off+n, true)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// SeekHole returns the first byte at or after off that reads as zero because nothing holds it. The end of
// the disk counts as one; beyond it there is io.EOF.
func (im *Image) SeekHole(off int64) (int64, error) {
	if off < 0 || off >= im.Size() {
		return 0, io.EOF
	}
	hole, err := im.seek(off, im.Size(), false)
	if err == io.EOF {
		return im.Size(), nil
	}
	return hole, err
}

// seek returns the first byte from off on, and before end, that is data or is not, and io.EOF where there is none.
func (im *Image) seek(off, end int64, data bool) (int64, error) {
	if off < 0 {
		return 0, io.EOF
	}
	_ = im.Validated() // it takes less time than to look at all entries one by one
	var run fileRun
	for off < end {
		next, found, err := im.seekRun(&run, off, data)
		if err != nil || found {
			return next, err
		}
		off = next
	}
	return 0, io.EOF
}

// seekRun looks at the extent at byte off. It returns that byte if it is what is looked for, and else one behind it at
// which to go on.
func (im *Image) seekRun(run *fileRun, off int64, data bool) (next int64, found bool, err error) {
	defer im.EndRead(im.BeginRead()) // not around all of a seek, which may take long
	e, err := im.run(off, im.Size())
	switch {
	case err != nil:
		return 0, false, err
	case e.File == nil && !data:
		return off, true, nil
	case e.File == nil:
		return e.End(), false, nil
	}
	if im.writer != nil && !run.data {
		*run = fileRun{} // where there was a hole a block may be by now that was moved
	}
	if err := run.find(e); err != nil {
		return 0, false, err
	}
	if run.data == data {
		return off, true, nil
	}
	return off + min(e.Len, run.end-e.FileOff), false, nil
}

// A fileRun is a run of bytes of a file all of which are data, or all of which are in a hole.
type fileRun struct {
	file       File
	begin, end int64 // file offsets
	data       bool
}

// find makes r the run that has the first byte of e, unless it is that already. A run may be much longer than an extent,
// so that of a file without holes it is asked once.
func (r *fileRun) find(e Extent) error {
	if r.file == e.File && r.begin <= e.FileOff && e.FileOff < r.end {
		return nil
	}
	f := e.File
	*r = fileRun{file: f, begin: e.FileOff, end: math.MaxInt64, data: true}
	next, err := f.NextData(e.FileOff)
	switch {
	case err == io.EOF:
		// Or the file was cut short while it was open: then a read has to say so.
		size, err := f.Size()
		if r.data, r.end = e.FileOff+e.Len > size, size; r.data {
			r.end = e.FileOff + e.Len
		}
		return err
	case err != nil:
		return err
	case next > e.FileOff:
		r.data, r.end = false, next
		return nil
	}
	if r.end, err = f.NextHole(e.FileOff); err != nil {
		return err
	}
	r.end = max(r.end, e.FileOff+1) // another program may have punched a hole in between; it is data then as before
	return nil
}
