package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/content"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Damage returns the rules that the image and its parents were found to break. Without Options.Salvage there are
// none, since such an image is not opened.
func (im *Image) Damage() []Finding {
	var list []Finding
	for l := im.current(); l != nil; l = l.parent() {
		list = append(list, l.errors...)
	}
	return list
}

// Assumed are values for what an image that is salvaged does not say any more. What it still says counts. Sizes and
// offsets are in bytes, and 0 is not known.
type Assumed struct {
	BlockSize  int64
	SectorSize int64 // logical; where neither is known, 512
	DiskSize   int64 // where neither is known, up to the last block that the BAT has
	BAT        int64 // file offset
}

// tolerate takes an error that ends the loading of an image. It returns it, or, where the image is to be salvaged, writes it
// down and returns nil.
func (l *layer) tolerate(err error) error {
	if err == nil || !l.salvage {
		return err
	}
	var fe *FormatError
	if errors.As(err, &fe) {
		l.remember(&l.errors, newFinding(fe))
	} else {
		l.remember(&l.errors, Finding{Message: err.Error()})
	}
	return nil
}

// searchRegions makes a region table where both copies are damaged: of the metadata, which can be found by what it looks
// like. Where the BAT is shows later.
func (l *layer) searchRegions() *regionTables {
	t := new(regionTables)
	if off, err := content.FindMetadata(l.src, l.size); err == nil && off > 0 {
		t.regions = []ondisk.Region{{GUID: ondisk.MetadataRegionGUID, Offset: uint64(off), Length: ondisk.MiB, Flags: ondisk.RegionRequired}}
	}
	return t
}

// complete finds out what the metadata and the region table have not told: by what was assumed, or by the BAT itself.
func (l *layer) complete() error {
	l.src = view{ReaderAt: zeroTail{l.src}, file: l.file, size: l.size} // the end of the file may cut the BAT, too
	m := &l.meta
	unknown := func(r ondisk.Rule, structure, option string) error {
		return ondisk.Corrupt(r, structure, l.metadataOffset(), "the image no longer records it; give it with %s", option)
	}
	if b := m.blockSize; b < ondisk.MinBlockSize || b > ondisk.MaxBlockSize || b&(b-1) != 0 {
		switch b := l.assume.BlockSize; {
		case b == 0:
			return unknown(ondisk.RuleNoFileParameters, "block size", "--assume-block-size (Hyper-V uses 32M, others 1M to 32M)")
		case b < ondisk.MinBlockSize || b > ondisk.MaxBlockSize || b&(b-1) != 0:
			return fmt.Errorf("%w: invalid block size %s: must be a power of two from 1 MiB to 256 MiB", ErrOptions, sizes.Exact(b))
		}
		m.blockSize, m.hasParent = uint32(l.assume.BlockSize), l.orphan
	}
	if !ondisk.ValidSectorSize(m.logicalSectorSize) {
		if m.logicalSectorSize = uint32(cmp.Or(l.assume.SectorSize, 512)); !ondisk.ValidSectorSize(m.logicalSectorSize) {
			return fmt.Errorf("%w: invalid logical sector size %d: must be 512 or 4096", ErrOptions, l.assume.SectorSize)
		}
	}
	if !ondisk.ValidSectorSize(m.physicalSectorSize) {
		m.physicalSectorSize = 0
	}
	if s := m.diskSize; s == 0 || s > ondisk.MaxDiskSize {
		m.diskSize = uint64(l.assume.DiskSize)
	}
	m.diskSize -= m.diskSize % uint64(m.logicalSectorSize)
	if m.diskSize > ondisk.MaxDiskSize {
		return fmt.Errorf("%w: invalid disk size %s: must be at most 64 TiB", ErrOptions, sizes.Text(int64(min(m.diskSize, 1<<62)))) // #nosec G115 -- bounded here
	}
	geo := ondisk.NewGeometry(int64(m.diskSize), int64(m.blockSize), int64(m.logicalSectorSize), m.hasParent) // #nosec G115 -- bounded above
	if m.diskSize == 0 {
		geo.DiskSize = ondisk.MaxDiskSize
	}
	bat, ok := l.tables.find(ondisk.BATRegionGUID)
	if !ok {
		off := cmp.Or(l.assume.BAT, l.searchBAT(&geo))
		if off <= 0 || off >= l.size {
			return ondisk.Corrupt(ondisk.RuleNoBATRegion, "region table", l.tables.offset(), "the BAT was not found; give its file offset with --assume-bat")
		}
		bat = ondisk.Region{GUID: ondisk.BATRegionGUID, Offset: uint64(off), Flags: ondisk.RegionRequired,
			Length: uint32(min(ondisk.RoundUp(geo.BATEntries()*ondisk.BATEntrySize, ondisk.MiB), l.firstBlock(off)-off))}
		l.tables.regions = append(l.tables.regions, bat)
	}
	if m.diskSize == 0 {
		blocks, err := l.lastBlock(&geo, bat)
		if err != nil {
			return err
		}
		if m.diskSize = uint64(min(blocks<<geo.BlockShift, ondisk.MaxDiskSize)); m.diskSize == 0 {
			return unknown(ondisk.RuleNoDiskSize, "virtual disk size", "--assume-disk-size")
		}
	}
	return nil
}

// firstBlock returns the offset of the first block behind the BAT at off, as far as its first MiB tells.
func (l *layer) firstBlock(off int64) int64 {
	first := ondisk.RoundUp(l.size, ondisk.MiB)
	b := make([]byte, ondisk.MiB)
	if readFull(l.src, b, off, "BAT") != nil {
		return first
	}
	for i := int64(0); i < first-off && i < ondisk.MiB; i += ondisk.BATEntrySize {
		e := ondisk.BATEntry(ondisk.LE.Uint64(b[i:]))
		if e.Present() && e.Offset() > uint64(off) && e.Offset() < uint64(first) {
			first = int64(e.Offset()) // #nosec G115 -- smaller than the end of the file
		}
	}
	return first
}

// lastBlock returns how many payload blocks there are up to the last one that the BAT says something of.
func (l *layer) lastBlock(g *ondisk.Geometry, bat ondisk.Region) (blocks int64, err error) {
	b := make([]byte, ondisk.MiB)
	for at := int64(0); at < min(int64(bat.Length), l.size-int64(bat.Offset)); at += int64(len(b)) { // #nosec G115 -- of a region that validateRegions or searchBAT has seen; else the read fails
		b = b[:min(int64(len(b)), int64(bat.Length)-at)]
		if err := readFull(l.src, b, int64(bat.Offset)+at, "BAT"); err != nil { // #nosec G115 -- of a region that validateRegions or searchBAT has seen; else the read fails
			return 0, err
		}
		for i := 0; i+ondisk.BATEntrySize <= len(b); i += ondisk.BATEntrySize {
			if n, bitmap := g.Entry((at + int64(i)) / ondisk.BATEntrySize); !bitmap && ondisk.LE.Uint64(b[i:]) != 0 {
				blocks = n + 1
			}
		}
	}
	return blocks, nil
}

// batSearch is how far from the start of the file the BAT is looked for, in bytes.
const batSearch = 256 * ondisk.MiB

// searchBAT returns the offset of what looks like a BAT, and 0 where nothing does: whose entries are all valid, at least
// one of them that of a present block, and no two of the same place.
func (l *layer) searchBAT(g *ondisk.Geometry) int64 {
	b := make([]byte, min(ondisk.MiB, ondisk.RoundUp(g.BATEntries()*ondisk.BATEntrySize, ondisk.PageSize)))
	for off := int64(ondisk.MiB); off < min(l.size, batSearch); off += ondisk.MiB {
		if readFull(l.src, b, off, "BAT") == nil && l.likeBAT(g, b) {
			return off
		}
	}
	return 0
}

func (l *layer) likeBAT(g *ondisk.Geometry, b []byte) bool {
	places := make(map[uint64]bool)
	for i := 0; i < len(b); i += ondisk.BATEntrySize {
		e := ondisk.BATEntry(ondisk.LE.Uint64(b[i:]))
		if e == 0 {
			continue
		}
		n, bitmap := g.Entry(int64(i / ondisk.BATEntrySize))
		present := e.State() == ondisk.FullyPresent || e.State() == ondisk.PartiallyPresent && !bitmap
		switch {
		case e.Reserved() != 0, !bitmap && n >= g.PayloadBlocks():
			return false
		case present && (e.Offset() < ondisk.HeaderSectionSize || e.Offset() >= uint64(l.size) || places[e.Offset()]):
			return false
		case !present && (bitmap || e.State() > ondisk.Unmapped):
			return false
		case present:
			places[e.Offset()] = true
		}
	}
	return len(places) > 0
}

// A zeroTail reads as zero behind the end.
type zeroTail struct{ io.ReaderAt }

func (z zeroTail) ReadAt(p []byte, off int64) (int, error) {
	n, err := z.ReaderAt.ReadAt(p, off)
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// LeftToParent returns how many bytes of the disk an image that was opened with Options.WithoutParent leaves to its
// parent. They read as zero.
func (im *Image) LeftToParent() (n int64, err error) {
	if im.current().parent() != nil || !im.current().geo.HasParent {
		return 0, nil
	}
	for off := int64(0); ; {
		e, err := im.Extent(off)
		switch {
		case err == io.EOF:
			return n, nil
		case err != nil: // a block whose content is unknown, in an image that is salvaged
			off = im.current().geo.BlockEnd(off >> im.current().geo.BlockShift)
			continue
		case e.File == nil && (e.State == ondisk.NotPresent || e.State == ondisk.PartiallyPresent):
			n += e.Len
		}
		off = e.End()
	}
}

// Damaged returns how many bytes from byte off on are unknown because one entry of a BAT is wrong, and 0 where off is
// not among such bytes.
func (im *Image) Damaged(off int64) int64 {
	if off < 0 || off >= im.Size() {
		return 0
	}
	if e, err := im.look(off, im.Size()); errors.Is(err, ErrCorrupt) {
		return e.Len
	}
	return 0
}
