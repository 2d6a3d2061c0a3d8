package vhdx

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// stackExtents is how many extents ReadAt keeps without allocating. A request of 1 MiB rarely has more.
const stackExtents = 16

// ReadAt reads len(p) bytes of the virtual disk from byte off, which need not be aligned. What neither the
// image nor a parent holds reads as zero, as MS-VHDX 2.5.1.1 allows. It returns io.EOF at the end of the
// disk, an error that matches ErrCorrupt where a BAT entry on the way is wrong, and one that matches ErrTakenOver if another host
// has the image. Any number of goroutines may call it.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	if off >= im.Size() {
		return 0, io.EOF
	}
	n := min(int64(len(p)), im.Size()-off)
	defer im.EndRead(im.BeginRead())
	var space [stackExtents]Extent
	extents, err := im.Resolve(space[:0], off, n)
	if err != nil {
		return 0, err
	}
	for _, e := range extents {
		if err := e.Read(p[e.DiskOff-off:][:e.Len]); err != nil {
			return int(e.DiskOff - off), err
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Read reads the extent's bytes into p, whose length is the extent's.
func (e Extent) Read(p []byte) error {
	if e.File == nil {
		clear(p)
		return nil
	}
	n, err := e.File.ReadAt(p, e.FileOff)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file was cut short while it was open
	}
	return fmt.Errorf("read %d bytes of the image at %#x: %w", len(p), e.FileOff, err)
}

// Resolve appends to dst the extents that hold the n bytes from byte off, which must lie inside the disk.
// Neighbours that lie together in one file become one extent. Where the metadata pages are cached it takes no lock, and allocates
// nothing if dst has room. Under a lease it waits if the headers were not read for too long. The errors are those of ReadAt. The
// caller calls BeginRead before, and EndRead when it has used the extents.
func (im *Image) Resolve(dst []Extent, off, n int64) ([]Extent, error) {
	if off < 0 || n < 0 || n > im.Size()-off {
		return dst, fmt.Errorf("%d bytes at %d are not inside a disk of %d", n, off, im.Size())
	}
	if err := im.confirmed(); err != nil {
		return dst, err
	}
	first := len(dst)
	for end := off + n; off < end; {
		e, err := im.run(off, end)
		if err != nil {
			return dst, err
		}
		off = e.End()
		if last := len(dst) - 1; last >= first && dst[last].joins(e) {
			dst[last].Len += e.Len
		} else {
			dst = append(dst, e)
		}
	}
	return dst, nil
}

// joins reports whether o continues e, on the disk and in the file.
func (e Extent) joins(o Extent) bool {
	return e.File == o.File && e.Layer == o.Layer && e.State == o.State && (e.File == nil || e.FileOff+e.Len == o.FileOff)
}

// Extent returns the longest extent that begins at byte off: holes of any length in one call, data as far as
// it lies together in one file. It returns io.EOF at the end of the disk.
func (im *Image) Extent(off int64) (Extent, error) {
	if off < 0 || off >= im.Size() {
		return Extent{}, io.EOF
	}
	e, err := im.look(off, im.Size())
	if err != nil {
		return Extent{}, err
	}
	for e.End() < im.Size() {
		next, err := im.look(e.End(), im.Size())
		if err != nil {
			return Extent{}, err
		}
		if !e.joins(next) {
			break
		}
		e.Len += next.Len
	}
	return e, nil
}

// look does what run does, for a caller that has not called BeginRead: the metadata that run reads stay where they are
// until it has read them.
func (im *Image) look(off, end int64) (Extent, error) {
	if err := im.confirmed(); err != nil {
		return Extent{DiskOff: off}, err
	}
	defer im.EndRead(im.BeginRead())
	return im.run(off, end)
}

// run returns the extent that begins at byte off, inside the disk, and ends at or before end. It is as long as
// can be told at once: at most to the end of a present block, further through blocks that are not there.
// It walks down the chain until a layer decides.
//
// Where it fails because an entry of a BAT is wrong, the length of the extent tells of how much that entry decides.
func (im *Image) run(off, end int64) (Extent, error) {
	e, limit := Extent{DiskOff: off}, end
	top := im.current()
	absent := int64(math.MaxInt64) // up to where the parents so far hold nothing
	for l := top; ; l = l.parent() {
		if off >= l.geo.DiskSize { // a parent smaller than its child
			e.Len = end - off
			return e, nil
		}
		end = min(end, l.geo.DiskSize)
		wide := end
		if l != top {
			wide = l.geo.DiskSize
		}
		entry, runEnd, err := l.lookup(off, wide)
		if err == nil && l.wary.Load() {
			err = l.usable(entry, off)
		}
		if err != nil {
			if errors.Is(err, ErrCorrupt) {
				e.Len = min(end, l.geo.BlockEnd(off>>l.geo.BlockShift)) - off
			}
			return e, err
		}
		if l != top {
			absent = min(absent, runEnd)
		}
		e.State, end = entry.State(), min(end, runEnd)
		switch e.State {
		case ondisk.FullyPresent:
			return l.held(e, entry, end), nil
		case ondisk.PartiallyPresent:
			here, runEnd, err := l.sectorRun(off, end)
			if err != nil {
				return e, err
			}
			// The bits count only if they belong to the same tenure of the block. A write that unmapped it
			// and mapped it anew has changed the entry before the bits.
			if again, _, err := l.lookup(off, off+1); err != nil {
				return e, err
			} else if again != entry {
				return im.run(off, limit)
			}
			end = runEnd
			if here {
				return l.held(e, entry, end), nil
			}
			if l != top {
				absent = min(absent, end)
			}
		case ondisk.NotPresent:
		default: // hides the parent's data
			e.Len = end - off
			return e, nil
		}
		switch {
		case l.parent() == nil:
			if l != top {
				top.below.Store(newAbsence(&top.geo, off, absent, e.Layer))
			}
			e.Len = end - off
			return e, nil
		case l == top:
			if to, layer := absence(l.below.Load()).at(&l.geo, off); to > off {
				e.Len, e.Layer, e.State = min(end, to)-off, layer, ondisk.NotPresent
				return e, nil
			}
		}
		e.Layer++
	}
}

// An absence is a run of blocks of which no parent of a layer holds anything, down to the last one. Each layer keeps the one
// that was seen last, so that of a long chain below a BAT with many entries the layers need not be asked for each block
// again. It stays true while the chain is open: a merge gives a parent only what its child holds. It is zero where nothing is
// known; else it has, from the highest bit, the first block of the run, the one behind it, and the number of the last layer and
// one.
type absence uint64

const (
	absenceBlockBits = 27 // a disk has 64 Mi blocks at the most
	absenceLayerBits = 9
)

// newAbsence returns that of the blocks that lie wholly between two bytes of the disk.
func newAbsence(g *ondisk.Geometry, off, end int64, layer int) uint64 {
	first, last := (off+g.BlockSize-1)>>g.BlockShift, min(end, g.DiskSize)>>g.BlockShift
	if first >= last {
		return 0
	}
	return uint64(first)<<(absenceBlockBits+absenceLayerBits) | uint64(last)<<absenceLayerBits | uint64(layer+1)
}

// at returns up to where the run goes on in which byte off is, and the number of the last layer; 0 where off is in none.
func (a absence) at(g *ondisk.Geometry, off int64) (end int64, layer int) {
	b := uint64(off >> g.BlockShift)
	if first, last := uint64(a)>>(absenceBlockBits+absenceLayerBits), uint64(a)>>absenceLayerBits&(1<<absenceBlockBits-1); b < first || b >= last {
		return 0, 0
	} else {
		return int64(last) << g.BlockShift, int(a&(1<<absenceLayerBits-1)) - 1 // #nosec G115 -- fewer bits than 63
	}
}

// held completes an extent that lies in the layer's own file, in the block of the given entry.
func (l *layer) held(e Extent, entry ondisk.BATEntry, end int64) Extent {
	e.Len = end - e.DiskOff
	e.FileOff = entry.FileOff() + l.geo.InBlock(e.DiskOff)
	e.File = l.file
	// A log may have been replayed over payload, though it never should be, or over the end of the file.
	if l.replay != nil && (l.replay.Overlaps(e.FileOff, e.Len) || e.FileOff+e.Len > l.fileSize) {
		e.File = l.src
	}
	return e
}

// lookup returns the BAT entry of the block at diskOff, and where the run that it decides ends: at the end of
// the block, or, where a whole page of the BAT is known to be zero, at the end of the last block of that page. An entry
// that is not followable is an error.
func (l *layer) lookup(diskOff, end int64) (ondisk.BATEntry, int64, error) {
	g := &l.geo
	b := diskOff >> g.BlockShift
	i := g.PayloadEntry(b)
	word, zero, err := l.bat.Word(i/ondisk.EntriesPerPage, int(i%ondisk.EntriesPerPage))
	if err != nil {
		return 0, 0, err
	}
	if zero {
		// The entries of the page may be those of up to EntriesPerPage blocks, with bitmap entries between.
		next := (i/ondisk.EntriesPerPage + 1) * ondisk.EntriesPerPage
		n, bitmap := g.Entry(next)
		if bitmap {
			n = (n + 1) << g.ChunkShift // the first block of the next chunk
		}
		return 0, min(end, n<<g.BlockShift), nil
	}
	e := ondisk.BATEntry(word)
	if !e.Followable(g.BlockSize) {
		return 0, 0, l.unfollowable(e, b)
	}
	return e, min(end, (b+1)<<g.BlockShift), nil
}

// sectorRun reports whether the sector at diskOff, in a partially present block, is held here, and where
// the run of sectors of which the same is true ends. The run is cut at the end of the bitmap's page.
func (l *layer) sectorRun(diskOff, end int64) (here bool, runEnd int64, err error) {
	g := &l.geo
	sector := diskOff >> g.SectorShift
	chunk := sector >> ondisk.BitmapShift
	if chunk >= int64(len(l.bitmaps)) || l.bitmaps[chunk].Load() == nil {
		// The scan of the BAT has seen that there is one, so another program has changed the file since.
		return false, 0, ondisk.Corrupt(ondisk.RuleNoSectorBitmap, "BAT", l.batOffset(), "chunk %d has lost its sector bitmap block", chunk)
	}
	span := l.bitmaps[chunk].Load()
	bit := sector & (ondisk.BitmapBits - 1)
	first := bit % ondisk.BitsPerPage
	last := min(ondisk.BitsPerPage, first+(end-1)>>g.SectorShift-sector+1)
	var n int64
	err = span.Read(bit/ondisk.BitsPerPage, func(p *cache.Page) { here, n = bitRun(p, first, last) })
	if err != nil {
		return false, 0, err
	}
	return here, min(end, (sector+n)<<g.SectorShift), nil
}
