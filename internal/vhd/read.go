package vhd

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Size returns the size of the disk in bytes.
func (im *Image) Size() int64 { return im.top.diskSize }

// ReadAt reads len(p) bytes of the disk from byte off. It returns io.EOF at the end of the disk.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	if off >= im.Size() {
		return 0, io.EOF
	}
	n := min(int64(len(p)), im.Size()-off)
	for done := int64(0); done < n; {
		e, err := im.extent(off+done, off+n)
		if err == nil {
			err = e.Read(p[done:][:e.Len])
		}
		if err != nil {
			return int(done), err
		}
		done += e.Len
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Extent returns the longest extent that begins at byte off. It returns io.EOF at the end of the disk.
func (im *Image) Extent(off int64) (vhdx.Extent, error) {
	if off < 0 || off >= im.Size() {
		return vhdx.Extent{}, io.EOF
	}
	return im.longest(off, im.Size())
}

// longest returns the extent from byte off on, as far as it goes up to byte end.
func (im *Image) longest(off, end int64) (vhdx.Extent, error) {
	e, err := im.extent(off, end)
	for err == nil && e.End() < end {
		next, nerr := im.extent(e.End(), end)
		if nerr != nil {
			return vhdx.Extent{}, nerr
		}
		if next.File != e.File || next.Layer != e.Layer || next.State != e.State || e.File != nil && e.FileOff+e.Len != next.FileOff {
			break
		}
		e.Len += next.Len
	}
	return e, err
}

// Resolve appends to dst the extents that hold the n bytes from byte off, which must lie inside the disk.
func (im *Image) Resolve(dst []vhdx.Extent, off, n int64) ([]vhdx.Extent, error) {
	if off < 0 || n < 0 || n > im.Size()-off {
		return dst, fmt.Errorf("%d bytes at %d are not inside a disk of %d", n, off, im.Size())
	}
	for end := off + n; off < end; {
		e, err := im.longest(off, end)
		if err != nil {
			return dst, err
		}
		dst = append(dst, e)
		off = e.End()
	}
	return dst, nil
}

// extent returns some of the bytes from off on, before end, that lie together.
func (im *Image) extent(off, end int64) (vhdx.Extent, error) {
	e := vhdx.Extent{DiskOff: off, State: ondisk.NotPresent}
	for l := im.top; l != nil; l = l.parent {
		if off >= l.diskSize { // a parent that is smaller than its child
			break
		}
		p, err := l.find(off, min(end, l.diskSize))
		if err != nil {
			return e, fmt.Errorf("%s: %w", l.path, err)
		}
		end = p.end
		if p.state != ondisk.NotPresent {
			e.State = p.state
		}
		if p.held {
			e.File, e.FileOff, e.Len = l.file, p.fileOff, end-off
			return e, nil
		}
		e.Layer++
	}
	e.Layer, e.Len = 0, end-off
	return e, nil
}

// A place is what a layer says of a run of bytes of the disk.
type place struct {
	end     int64 // behind the last of them
	held    bool  // they are in the file
	fileOff int64
	state   ondisk.BlockState // of their block, in the words of VHDX
}

// find looks up the bytes from off on, up to end.
func (l *layer) find(off, end int64) (place, error) {
	if l.footer.diskType == typeFixed {
		return place{end, true, off, ondisk.FullyPresent}, nil
	}
	n := off / l.blockSize
	start, in := n*l.blockSize, off%l.blockSize
	end = min(end, start+l.blockSize)
	entry := l.bat[n]
	if entry == unusedEntry {
		return place{end: end, state: ondisk.NotPresent}, nil
	}
	at := int64(entry)*sectorSize + l.bitmap
	if l.footer.diskType == typeDynamic {
		return place{end, true, at + in, ondisk.FullyPresent}, nil
	}
	bits, err := l.readBitmap(n)
	if err != nil {
		return place{}, err
	}
	first := in / sectorSize
	held := bits[first/8]&(0x80>>(first%8)) != 0
	last := (end - start + sectorSize - 1) / sectorSize
	s := first + 1
	for s < last {
		if s%8 == 0 && last-s >= 8 { // eight sectors that are alike
			if b := bits[s/8]; held && b == math.MaxUint8 || !held && b == 0 {
				s += 8
				continue
			}
		}
		if bits[s/8]&(0x80>>(s%8)) != 0 != held {
			break
		}
		s++
	}
	return place{min(end, start+s*sectorSize), held, at + in, ondisk.PartiallyPresent}, nil
}

// readBitmap returns the sector bitmap of a block that is in the file.
func (l *layer) readBitmap(n int64) ([]byte, error) {
	if b := l.bitmaps.get(n); b != nil {
		return b, nil
	}
	b := make([]byte, l.bitmap)
	if err := l.read(b, int64(l.bat[n])*sectorSize, "sector bitmap"); err != nil {
		return nil, err
	}
	l.bitmaps.put(n, b)
	return b, nil
}

// SeekData returns the first byte at or after off that is held in a file, and io.EOF where none follows.
func (im *Image) SeekData(off int64) (int64, error) { return im.seek(off, true) }

// SeekHole returns the first byte at or after off that no file holds; the end of the disk counts as one.
func (im *Image) SeekHole(off int64) (int64, error) {
	to, err := im.seek(off, false)
	if err == io.EOF && off >= 0 && off < im.Size() {
		return im.Size(), nil
	}
	return to, err
}

// seek looks also at what the files have as holes: a fixed image may have many.
func (im *Image) seek(off int64, data bool) (int64, error) {
	for {
		e, err := im.Extent(off)
		if err != nil {
			return 0, err
		}
		if e.File == nil {
			if !data {
				return off, nil
			}
			off = e.End()
			continue
		}
		next := e.File.NextHole
		if data {
			next = e.File.NextData
		}
		to, err := next(e.FileOff)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if err == nil && to < e.FileOff+e.Len {
			return off + to - e.FileOff, nil
		}
		off = e.End()
	}
}
