package draw

import (
	"errors"
	"io"
	"math/bits"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A Kind is what a byte of the disk can be.
type Kind int

// The kinds. Data in layers beyond the last counts as in the last.
const (
	Hole  Kind = iota // nothing holds it, it reads as zero
	Zero              // an image of the chain says that it is zero
	Data              // in the image itself; Data+1 in its parent, and so on
	kinds Kind = Data + 6
)

// A Cell is a run of the disk: how many of its bytes are of which kind.
type Cell [kinds]int64

// A FileCell is a run of the image's file.
type FileCell struct {
	Use  Use
	Disk int64 // with InBlock and InPart: the byte of the disk that the largest part of the cell holds
}

// A Use is what the file is used for.
type Use int

// The uses. A cell that several share shows the one that has most of it.
const (
	Free    Use = iota
	Other       // sector bitmaps, regions that are not known, places kept for blocks
	Tables      // header, log, metadata, BAT
	InPart      // the rest of a block that is partially present
	InBlock     // bytes of the disk
)

// A Survey is what a picture of an image shows. Sizes are in bytes.
type Survey struct {
	Info   *vhdx.Info
	Names  []string // of the files of the chain, without their directories; what cannot be shown of them is in quotes
	Totals Cell

	Cells    []Cell // of the disk
	CellSize int64

	File         []FileCell
	FileCellSize int64
	Pieces       int64 // runs of the disk in the file
}

// NewSurvey looks at an image. The disk is cut into cells that are at most diskCells, its file into at most fileCells.
func NewSurvey(im *vhdx.Image, diskCells, fileCells int) (*Survey, error) {
	in := im.Info()
	s := &Survey{Info: in}
	for p := in; p != nil; {
		s.Names = append(s.Names, shown(filepath.Base(p.Path)))
		if p.Parent == nil {
			break
		}
		p = p.Parent.Image
	}
	const sector = 512
	s.CellSize = cellSize(in.DiskSize, diskCells, sector)
	s.Cells = make([]Cell, (in.DiskSize+s.CellSize-1)/s.CellSize)
	const mib = 1 << 20 // all things in the file begin at multiples of it
	s.FileCellSize = cellSize(in.FileSize, fileCells, mib/16)
	f := fileSurvey{cells: make([]FileCell, (in.FileSize+s.FileCellSize-1)/s.FileCellSize), size: s.FileCellSize}
	f.largest = make([]int64, len(f.cells))
	f.fixed(im, in)
	last := int64(-1) // where the piece before ends in the file
	for off := int64(0); ; {
		e, err := im.Extent(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		s.count(e)
		if e.File != nil && e.Layer == 0 {
			if e.FileOff != last {
				s.Pieces++
			}
			last = e.FileOff + e.Len
			f.mark(e.FileOff, e.Len, InBlock, e.DiskOff)
			if e.State == ondisk.PartiallyPresent {
				// The extent may lie in several blocks, one behind the other.
				before := e.DiskOff % in.BlockSize
				n := (before + e.Len + in.BlockSize - 1) / in.BlockSize * in.BlockSize
				f.rest(e.FileOff-before, n, e.DiskOff-before)
			}
		}
		off = e.End()
	}
	s.File = f.cells
	return s, nil
}

// cellSize returns a size with which n cells hold total: a multiple of unit, of which three bits are not zero.
func cellSize(total int64, n int, unit int64) int64 {
	size := max(unit, (total+int64(n)-1)/int64(n))
	if spare := bits.Len64(uint64(size)) - 3; spare > 0 {
		size = (size + 1<<spare - 1) >> spare << spare
	}
	return (size + unit - 1) / unit * unit
}

func kindOf(e vhdx.Extent) Kind {
	switch {
	case e.File != nil:
		return min(Data+Kind(e.Layer), kinds-1)
	case e.State == ondisk.NotPresent:
		return Hole
	}
	return Zero
}

func (s *Survey) count(e vhdx.Extent) {
	k := kindOf(e)
	s.Totals[k] += e.Len
	for off := e.DiskOff; off < e.End(); {
		i := off / s.CellSize
		next := min(e.End(), (i+1)*s.CellSize)
		s.Cells[i][k] += next - off
		off = next
	}
}

// A fileSurvey fills the cells of a file.
type fileSurvey struct {
	cells   []FileCell
	largest []int64 // the most bytes that one thing has in a cell
	size    int64   // of a cell
}

// fixed marks all but the blocks.
func (f *fileSurvey) fixed(im *vhdx.Image, in *vhdx.Info) {
	f.mark(0, in.FileSize, Other, 0)
	clear(f.largest)
	im.FreeRanges(func(off, n int64) { f.mark(off, n, Free, 0) })
	f.mark(0, 1<<20, Tables, 0)
	f.mark(in.Log.Offset, in.Log.Length, Tables, 0)
	for _, r := range in.Regions {
		if r.Name != "unknown" {
			f.mark(int64(r.Offset), r.Length, Tables, 0) // inside the file
		}
	}
}

// rest marks what nothing has marked of the n bytes of blocks from file offset off on.
func (f *fileSurvey) rest(off, n, disk int64) {
	for i := off / f.size; i < min((off+n+f.size-1)/f.size, int64(len(f.cells))); i++ {
		if f.largest[i] == 0 {
			f.cells[i] = FileCell{InPart, disk}
		}
	}
}

// mark gives n bytes from file offset off a use, in the cells in which nothing has more bytes yet.
func (f *fileSurvey) mark(off, n int64, u Use, disk int64) {
	for end := min(off+n, int64(len(f.cells))*f.size); off < end; {
		i := off / f.size
		next := min(end, (i+1)*f.size)
		if next-off > f.largest[i] {
			f.largest[i] = next - off
			f.cells[i] = FileCell{u, disk}
		}
		disk, off = disk+next-off, next
	}
}
