package vhdx

import (
	"io"
	"unsafe"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// The methods in this file write to places that are the caller's, and take no lock: the caller has the gate, so the file stays
// the same.

// reserve gives the place of b at file offset off, which holds b, space that it cannot be refused later.
func (a *allocator) reserve(off int64, b []byte) error {
	if err := a.file.Allocate(off, int64(len(b))); !imagefile.IsUnsupported(err) {
		return err
	}
	_, err := a.file.WriteAt(b, off)
	return err
}

// fill gives the n bytes from off on, which read as zero or lie behind the end of the file, space that they
// cannot be refused later.
func (a *allocator) fill(off, n int64) error { return fill(a.file, off, n) }

func fill(f File, off, n int64) error {
	if err := f.Allocate(off, n); !imagefile.IsUnsupported(err) {
		return err
	}
	return writeZeros(f, off, n)
}

// lengthen makes a file of the given size longer, by bytes that read as zero. Where a hole would make Windows refuse the image,
// the space is allocated.
func lengthen(f File, from, to int64) error {
	if f.Sparse() {
		return f.Truncate(to)
	}
	return fill(f, from, to-from)
}

// zeroPlace makes n bytes of the file read as zero; with keep, their space stays reserved.
func (a *allocator) zeroPlace(off, n int64, keep bool) error {
	if keep || !a.punch {
		return a.zeroWith(off, n, a.file.ZeroRange)
	}
	return a.zero(off, n)
}

// zero makes the n bytes from off on, inside a block's place, read as zero.
func (a *allocator) zero(off, n int64) error {
	if !a.holes {
		return a.writeZeros(off, n)
	}
	return a.zeroWith(off, n, a.file.PunchHole)
}

// zeroWith makes the n bytes from off on read as zero: with do as far as file systems and devices can do it, in
// units of 4 KiB, and with writes at the edges, or wherever do cannot.
func (a *allocator) zeroWith(off, n int64, do func(off, n int64) error) error {
	const worthwhile = 64 * ondisk.KiB // writing less is quicker
	from, to := ondisk.RoundUp(off, ondisk.PageSize), (off+n)/ondisk.PageSize*ondisk.PageSize
	if to-from < worthwhile {
		return a.writeZeros(off, n)
	}
	if err := do(from, to-from); imagefile.IsUnsupported(err) {
		return a.writeZeros(off, n)
	} else if err != nil {
		return err
	}
	if err := a.writeZeros(off, from-off); err != nil {
		return err
	}
	return a.writeZeros(to, off+n-to)
}

func (a *allocator) writeZeros(off, n int64) error { return writeZeros(a.file, off, n) }

// zeroBytes begins at a page; see zerosAt.
var zeroBytes = zeroRoom[-uintptr(unsafe.Pointer(&zeroRoom))%ondisk.PageSize:][:1*ondisk.MiB]

var zeroRoom [1*ondisk.MiB + ondisk.PageSize]byte

func writeZeros(f io.WriterAt, off, n int64) error {
	for n > 0 {
		p := zerosAt(off, n)
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// zerosAt returns up to n zeros to be written at byte off, from memory in which pages begin where they do in the file:
// where a program that is killed has not yet touched a page of the memory that it writes, the kernel ends the write at that
// page, and the zeros over what the disk holds must not end inside a sector.
func zerosAt(off, n int64) []byte {
	p := zeroBytes[off%ondisk.PageSize:]
	return p[:min(n, int64(len(p)))]
}
