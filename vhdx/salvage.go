package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"vhdxfs/internal/content"
	"vhdxfs/internal/ondisk"
	sizes "vhdxfs/internal/size"
)

// Damage returns the rules that the image and its parents were found to break. Without Options.Salvage there are
// none, since such an image is not opened.
func (im *Image) Damage() []Finding {
	var list []Finding
	for l := im.top; l != nil; l = l.parent {
		list = append(list, l.errors...)
	}
	return list
}

// usable returns an error where the BAT entry of the block at diskOff cannot be followed. The scan of the BAT has
// found that too, but went on, as it does for Check and to salvage, or it has not come there yet.
func (l *layer) usable(e batEntry, diskOff int64) error {
	g := &l.geo
	b := diskOff >> g.blockShift
	bad := func(r ondisk.Rule, format string, args ...any) error { return l.badEntry(b, r, format, args...) }
	switch {
	case !e.followable(g.blockSize):
		return l.unfollowable(e, b)
	case !e.present():
		return nil
	case e.state() == PartiallyPresent && !g.hasParent:
		return bad(ondisk.R45, "block %d is partially present, but the disk has no parent", b)
	}
	need := min(g.blockSize, g.blockEnd(b)-b<<g.blockShift)
	if off := e.offset(); off > uint64(l.size) || need > l.size-int64(off) && int64(off)+g.inBlock(diskOff) >= l.size {
		return bad(ondisk.R47, "block %d (%#x) ends beyond the end of the file (%#x); was the file cut off?", b, off, l.size)
	}
	if other := l.objectAt(e.fileOff(), g.blockSize); other != "" {
		return bad(ondisk.R48, "block %d at %#x overlaps the %s", b, e.offset(), other)
	}
	return nil
}

// Assumed are values for what an image that is salvaged does not say any more. What it still says counts. Sizes and
// offsets are in bytes, and 0 is not known.
type Assumed struct {
	BlockSize  int64
	SectorSize int64 // logical; where neither is known, 512
	DiskSize   int64 // where neither is known, up to the last block that the BAT has
	BAT        int64 // file offset
}

// goOn takes an error that ends the loading of an image. It returns it, or, where the image is to be salvaged, writes it
// down and returns nil.
func (l *layer) goOn(err error) error {
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
		t.regions = []region{{GUID: metadataRegionGUID, Offset: uint64(off), Length: mib, Flags: regionRequired}}
	}
	return t
}

// complete finds out what the metadata and the region table have not told: by what was assumed, or by the BAT itself.
func (l *layer) complete() error {
	l.src = view{ReaderAt: zeroTail{l.src}, file: l.file, size: l.size} // the end of the file may cut the BAT, too
	m := &l.meta
	unknown := func(r ondisk.Rule, structure, option string) error {
		return ondisk.Corrupt(r, structure, l.metadataOffset(), "the image does not tell it any more; give it with %s", option)
	}
	if b := m.blockSize; b < minBlockSize || b > maxBlockSize || b&(b-1) != 0 {
		switch b := l.assume.BlockSize; {
		case b == 0:
			return unknown(ondisk.R33, "block size", "--assume-block-size (Hyper-V uses 32M, others 1M to 32M)")
		case b < minBlockSize || b > maxBlockSize || b&(b-1) != 0:
			return fmt.Errorf("%w: invalid block size %s: must be a power of two from 1 MiB to 256 MiB", ErrOptions, sizes.Exact(b))
		}
		m.blockSize, m.hasParent = uint32(l.assume.BlockSize), l.orphan
	}
	if !validSectorSize(m.logicalSectorSize) {
		if m.logicalSectorSize = uint32(cmp.Or(l.assume.SectorSize, 512)); !validSectorSize(m.logicalSectorSize) {
			return fmt.Errorf("%w: invalid logical sector size %d: must be 512 or 4096", ErrOptions, l.assume.SectorSize)
		}
	}
	if !validSectorSize(m.physicalSectorSize) {
		m.physicalSectorSize = 0
	}
	if s := m.diskSize; s == 0 || s > maxDiskSize {
		m.diskSize = uint64(l.assume.DiskSize)
	}
	m.diskSize -= m.diskSize % uint64(m.logicalSectorSize)
	if m.diskSize > maxDiskSize {
		return fmt.Errorf("%w: invalid disk size %s: must be at most 64 TiB", ErrOptions, sizes.Text(int64(min(m.diskSize, 1<<62))))
	}
	geo := newGeometry(int64(m.diskSize), int64(m.blockSize), int64(m.logicalSectorSize), m.hasParent)
	if m.diskSize == 0 {
		geo.diskSize = maxDiskSize
	}
	bat, ok := l.tables.find(batRegionGUID)
	if !ok {
		off := cmp.Or(l.assume.BAT, l.searchBAT(&geo))
		if off <= 0 || off >= l.size {
			return ondisk.Corrupt(ondisk.R20, "region table", l.tables.offset(), "the BAT was not found; give its file offset with --assume-bat")
		}
		bat = region{GUID: batRegionGUID, Offset: uint64(off), Flags: regionRequired,
			Length: uint32(min(roundUp(geo.batEntries()*batEntrySize, mib), l.firstBlock(off)-off))}
		l.tables.regions = append(l.tables.regions, bat)
	}
	if m.diskSize == 0 {
		blocks, err := l.lastBlock(&geo, bat)
		if err != nil {
			return err
		}
		if m.diskSize = uint64(min(blocks<<geo.blockShift, maxDiskSize)); m.diskSize == 0 {
			return unknown(ondisk.R34, "virtual disk size", "--assume-disk-size")
		}
	}
	return nil
}

// firstBlock returns the offset of the first block behind the BAT at off, as far as its first MiB tells.
func (l *layer) firstBlock(off int64) int64 {
	first := roundUp(l.size, mib)
	b := make([]byte, mib)
	if readFull(l.src, b, off, "BAT") != nil {
		return first
	}
	for i := int64(0); i < first-off && i < mib; i += batEntrySize {
		e := batEntry(le.Uint64(b[i:]))
		if s := e.state(); (s == FullyPresent || s == PartiallyPresent) && e.offset() > uint64(off) && e.offset() < uint64(first) {
			first = int64(e.offset())
		}
	}
	return first
}

// lastBlock returns how many payload blocks there are up to the last one that the BAT says something of.
func (l *layer) lastBlock(g *geometry, bat region) (blocks int64, err error) {
	b := make([]byte, mib)
	for at := int64(0); at < min(int64(bat.Length), l.size-int64(bat.Offset)); at += int64(len(b)) {
		b = b[:min(int64(len(b)), int64(bat.Length)-at)]
		if err := readFull(l.src, b, int64(bat.Offset)+at, "BAT"); err != nil {
			return 0, err
		}
		for i := 0; i+batEntrySize <= len(b); i += batEntrySize {
			if n, bitmap := g.entry((at + int64(i)) / batEntrySize); !bitmap && le.Uint64(b[i:]) != 0 {
				blocks = n + 1
			}
		}
	}
	return blocks, nil
}

// batSearch is how far from the begin of the file the BAT is looked for, in bytes.
const batSearch = 256 * mib

// searchBAT returns the offset of what looks like a BAT, and 0 where nothing does: whose entries are all valid, at least
// one of them that of a present block, and no two of the same place.
func (l *layer) searchBAT(g *geometry) int64 {
	b := make([]byte, min(mib, roundUp(g.batEntries()*batEntrySize, pageSize)))
	for off := int64(mib); off < min(l.size, batSearch); off += mib {
		if readFull(l.src, b, off, "BAT") == nil && l.likeBAT(g, b) {
			return off
		}
	}
	return 0
}

func (l *layer) likeBAT(g *geometry, b []byte) bool {
	places := make(map[uint64]bool)
	for i := 0; i < len(b); i += batEntrySize {
		e := batEntry(le.Uint64(b[i:]))
		if e == 0 {
			continue
		}
		n, bitmap := g.entry(int64(i / batEntrySize))
		present := e.state() == FullyPresent || e.state() == PartiallyPresent && !bitmap
		switch {
		case e.reserved() != 0, !bitmap && n >= g.payloadBlocks():
			return false
		case present && (e.offset() < headerSectionSize || e.offset() >= uint64(l.size) || places[e.offset()]):
			return false
		case !present && (bitmap || e.state() > Unmapped):
			return false
		case present:
			places[e.offset()] = true
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
	if im.top.parent != nil || !im.top.geo.hasParent {
		return 0, nil
	}
	for off := int64(0); ; {
		e, err := im.Extent(off)
		switch {
		case err == io.EOF:
			return n, nil
		case err != nil: // a block of which nobody can tell, in an image that is salvaged
			off = im.top.geo.blockEnd(off >> im.top.geo.blockShift)
			continue
		case e.File == nil && (e.State == NotPresent || e.State == PartiallyPresent):
			n += e.Len
		}
		off = e.End()
	}
}

// unfollowable is the error for the BAT entry of block b, which is not followable.
func (l *layer) unfollowable(e batEntry, b int64) error {
	switch {
	case e.state() == reservedState:
		return l.badEntry(b, ondisk.R44, "block %d in state %d", b, uint8(e.state()))
	case e.offset() < headerSectionSize:
		return l.badEntry(b, ondisk.R46, "block %d at file offset 0, inside the header section", b)
	}
	return l.badEntry(b, ondisk.R47, "block %d (%#x) ends beyond the end of the file (%#x); was the file cut off?", b, e.offset(), l.size)
}

func (l *layer) badEntry(b int64, r ondisk.Rule, format string, args ...any) error {
	return ondisk.Corrupt(r, "BAT entry", l.batOffset()+l.geo.payloadEntry(b)*batEntrySize, format, args...)
}

// Damaged returns how many bytes from byte off on nobody can tell, since one entry of a BAT is wrong, and 0 where off is not
// among such bytes.
func (im *Image) Damaged(off int64) int64 {
	if off < 0 || off >= im.Size() {
		return 0
	}
	if e, err := im.look(off, im.Size()); errors.Is(err, ErrCorrupt) {
		return e.Len
	}
	return 0
}
