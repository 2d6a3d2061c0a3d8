package delta

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/compare"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Options says how to make a delta. The functions may be nil.
type Options struct {
	Path     string // where it is going to be; "" for a stream
	Workers  int    // that compare at once
	Phase    func(name string, total int64)
	Progress func(n int64)
}

// A Result says what a delta is. Sizes are in bytes.
type Result struct {
	Size    int64     `json:"disk_size"`
	Data    int64     `json:"data_bytes"` // that the delta holds
	Zero    int64     `json:"zero_bytes"` // that it makes zero
	Ranges  int64     `json:"ranges"`
	Linkage uuid.UUID `json:"parent_linkage"`  // DataWriteGuid of the first disk
	ID      uuid.UUID `json:"data_write_guid"` // of the second disk, and so of the delta
	Digest  string    `json:"sha256"`          // of the content of the delta
}

// ErrChanged is matched by the error for a disk that was written while it was read.
var ErrChanged = errors.New("the disk was changed while it was read")

// Write writes to w the delta that makes b of a, from its first byte to its last. The first disk has to be an image. The disks
// are compared, then what differs is read for the digest, and then again to be written: that it is the same is checked. Memory
// is used for the list of ranges, and 256 bytes for each MiB in which some sectors differ.
func Write(ctx context.Context, w io.Writer, a, b *disk.Disk, o Options) (*Result, error) {
	if a.Image == nil {
		return nil, fmt.Errorf("%s is not a VHDX image; a delta needs the identity that only an image has", a.Path)
	}
	if b.Size() == 0 {
		return nil, fmt.Errorf("%s is empty; a disk has at least one sector", b.Path)
	}
	sector := a.Image.SectorSize()
	r := &Result{Size: (b.Size() + sector - 1) / sector * sector, Linkage: a.Image.DataWriteGUID()}
	if b.Image != nil {
		r.ID = b.Image.DataWriteGUID()
	}
	r.ID = cmp.Or(r.ID, uuid.New())
	s, err := vhdx.NewDeltaWriter(w, a.Image, vhdx.DeltaOptions{Path: o.Path, Size: r.Size, DataWriteGUID: r.ID})
	if err != nil {
		return nil, err
	}
	d := &writer{ctx: ctx, s: s, b: b, r: r}
	if err := d.compare(a, sector, o); err != nil {
		return nil, err
	}
	return r, d.write(o)
}

// A writer makes one delta.
type writer struct {
	ctx    context.Context
	s      *vhdx.StreamWriter
	b      *disk.Disk
	r      *Result
	ranges []compare.Range // in whole sectors
}

// compare finds what differs.
func (d *writer) compare(a *disk.Disk, sector int64, o Options) error {
	add := func(r compare.Range) error {
		end := min((r.Offset+r.Length+sector-1)/sector*sector, d.r.Size) // the first disk may be larger
		r.Offset = r.Offset / sector * sector
		if n := len(d.ranges); n > 0 {
			last := &d.ranges[n-1]
			r.Offset = max(r.Offset, last.Offset+last.Length)
			if r.Offset < end && r.Offset == last.Offset+last.Length && r.Zero == last.Zero {
				last.Length = end - last.Offset
				return nil
			}
		}
		if r.Offset < end {
			r.Length = end - r.Offset
			d.ranges = append(d.ranges, r)
		}
		return nil
	}
	split := func(r compare.Range) error { // zeros in part of a larger sector do not make it zero
		if from, to := (r.Offset+sector-1)/sector*sector, (r.Offset+r.Length)/sector*sector; r.Zero && (from != r.Offset || to != r.Offset+r.Length) {
			r.Zero = false
		}
		return add(r)
	}
	err := compare.Disks(d.ctx, a, d.b, compare.Options{Workers: o.Workers, Phase: o.Phase, Progress: o.Progress}, split)
	for _, r := range d.ranges {
		d.s.HoldSectors(r.Offset, r.Length, r.Zero)
		if r.Zero {
			d.r.Zero += r.Length
		} else {
			d.r.Data += r.Length
		}
	}
	d.r.Ranges = int64(len(d.ranges))
	return err
}

// write reads what differs twice: for the digest, which is near the begin of the image, and to write it.
func (d *writer) write(o Options) error {
	if o.Phase != nil {
		o.Phase("write", 2*d.r.Data)
	}
	progress := func(n int64) {
		if o.Progress != nil {
			o.Progress(n)
		}
	}
	before, after := newDigest(d.r.Size, d.r.ID), newDigest(d.r.Size, d.r.ID)
	err := d.each(before, func(_ int64, p []byte) error { progress(int64(len(p))); return nil })
	if err != nil {
		return err
	}
	sum := before.sum()
	d.r.Digest = hex.EncodeToString(sum[:])
	d.s.SetDigest(sum)
	err = d.each(after, func(off int64, p []byte) error {
		_, err := d.s.WriteAt(p, off)
		progress(int64(len(p)))
		return err
	})
	if err == nil && after.sum() != sum {
		err = fmt.Errorf("%s: %w; the delta is not complete", d.b.Path, ErrChanged)
	}
	if err != nil {
		return err
	}
	return d.s.Finish()
}

// each calls do for the data of all ranges, and adds all to the digest.
func (d *writer) each(sum *digest, do func(off int64, p []byte) error) error {
	buf := make([]byte, pieceSize)
	for _, r := range d.ranges {
		if r.Zero {
			sum.zero(r.Offset, r.Length)
			continue
		}
		for off, end := r.Offset, r.Offset+r.Length; off < end; {
			if err := context.Cause(d.ctx); err != nil {
				return err
			}
			p := buf[:min(end-off, pieceSize-off%pieceSize)]
			if err := read(d.b, p, off); err != nil {
				return err
			}
			sum.data(off, p)
			if err := do(off, p); err != nil {
				return err
			}
			off += int64(len(p))
		}
	}
	return nil
}

// read fills p. Behind the end of the disk are zeros.
func read(d *disk.Disk, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), d.Size()-off))
	clear(p[n:])
	if got, err := d.ReadAt(p[:n], off); int64(got) < n {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at %d: %w", d.Path, off, err)
	}
	return nil
}
