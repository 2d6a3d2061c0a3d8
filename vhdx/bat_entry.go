package vhdx

import (
	"cmp"
	"slices"
	"sort"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Here it is decided whether a BAT entry keeps the rules: once for the scan when an image is opened, the late scan, each
// read until that has ended, an image that is salvaged, and the checks and repairs. What takes more than one entry to see is
// left to the scan: that blocks overlap each other (R49), and that a chunk has no sector bitmap block (R52).

// payloadRule returns the first rule that e breaks, the BAT entry of a payload block, and 0 if it breaks none. need is how
// many bytes of the block have to lie inside the file, from its first. It allocates nothing and takes no lock.
func (l *layer) payloadRule(e ondisk.BATEntry, need int64) ondisk.Rule {
	off := e.Offset()
	switch {
	case e.State() == ondisk.ReservedState:
		return ondisk.RuleBlockState
	case !e.Present():
		return 0
	case e.State() == ondisk.PartiallyPresent && !l.geo.HasParent:
		return ondisk.RulePartialWithoutParent
	case off < ondisk.HeaderSectionSize:
		return ondisk.RuleBlockInHeaderSection
	case !e.Followable(l.geo.BlockSize) || off > uint64(l.size) || need > l.size-e.FileOff():
		return ondisk.RuleBlockBeyondFile
	case l.taken(e.FileOff(), l.geo.BlockSize):
		return ondisk.RuleBlockOverlapsRegion
	}
	return 0
}

// payloadError says how the entry e of payload block b breaks rule r, one that payloadRule returns.
func (l *layer) payloadError(b int64, e ondisk.BATEntry, r ondisk.Rule) *FormatError {
	bad := func(format string, args ...any) *FormatError {
		return ondisk.Corrupt(r, "BAT entry", l.batOffset()+l.geo.PayloadEntry(b)*ondisk.BATEntrySize, format, args...)
	}
	switch r {
	case ondisk.RuleBlockState:
		return bad("block %d has the reserved state %d", b, uint8(e.State()))
	case ondisk.RulePartialWithoutParent:
		return bad("block %d is partially present, but the disk has no parent", b)
	case ondisk.RuleBlockInHeaderSection:
		return bad("block %d at file offset 0, inside the header section", b)
	case ondisk.RuleBlockOverlapsRegion:
		return bad("block %d at %#x overlaps the %s", b, e.Offset(), l.objectAt(e.FileOff(), l.geo.BlockSize))
	}
	return bad("block %d (%d MiB at %#x) ends beyond the end of the file (%#x); was the file cut off?", b, l.geo.BlockSize>>20, e.Offset(), l.size)
}

// bitmapRule returns the rule that e breaks, the BAT entry of a sector bitmap block in a differencing disk, and 0 if it
// breaks none. Like payloadRule it is for one entry by itself.
func (l *layer) bitmapRule(e ondisk.BATEntry) ondisk.Rule {
	off := e.Offset()
	switch {
	case e.State() == ondisk.BitmapNotPresent:
		return 0
	case e.State() != ondisk.BitmapPresent:
		return ondisk.RuleBitmapState
	case off < ondisk.HeaderSectionSize, off > uint64(l.size), ondisk.BitmapBlockSize > l.size-e.FileOff(), l.taken(e.FileOff(), ondisk.BitmapBlockSize):
		return ondisk.RuleBitmapPlace
	}
	return 0
}

// bitmapError says how the entry e of the sector bitmap block of chunk c breaks rule r, one that bitmapRule returns.
func (l *layer) bitmapError(c int64, e ondisk.BATEntry, r ondisk.Rule) *FormatError {
	bad := func(format string, args ...any) *FormatError {
		return ondisk.Corrupt(r, "BAT entry", l.batOffset()+l.geo.BitmapEntry(c)*ondisk.BATEntrySize, format, args...)
	}
	switch off := e.Offset(); {
	case r == ondisk.RuleBitmapState:
		return bad("the sector bitmap block of chunk %d has the reserved state %d", c, uint8(e.State()))
	case off >= ondisk.HeaderSectionSize && off <= uint64(l.size) && ondisk.BitmapBlockSize <= l.size-e.FileOff():
		return bad("sector bitmap block of chunk %d at %#x overlaps the %s", c, off, l.objectAt(e.FileOff(), ondisk.BitmapBlockSize))
	}
	return bad("the sector bitmap block of chunk %d (1 MiB at %#x) ends beyond the end of the file (%#x); was the file cut off?", c, e.Offset(), l.size)
}

// usable returns an error where the BAT entry of the block at diskOff cannot be followed to that byte. The scan of the BAT
// has found that too, but went on, as it does for Check and to salvage, or it has not come there yet. Of a block that the
// end of the file cuts, the bytes up to there can be read.
func (l *layer) usable(e ondisk.BATEntry, diskOff int64) error {
	if r := l.payloadRule(e, l.geo.InBlock(diskOff)+1); r != 0 {
		return l.payloadError(diskOff>>l.geo.BlockShift, e, r)
	}
	return nil
}

// unfollowable is the error for the BAT entry of block b, which is not followable.
func (l *layer) unfollowable(e ondisk.BATEntry, b int64) error {
	return l.payloadError(b, e, l.payloadRule(e, 1)) // an entry that is not followable breaks one of its rules
}

// onDisk returns how many bytes of payload block b the disk has. QEMU cuts the file behind the last of them.
func (l *layer) onDisk(b int64) int64 { return l.geo.BlockEnd(b) - b<<l.geo.BlockShift }

// keepsPlace reports whether e, the entry of a payload block, names a place in the file without being present.
func keepsPlace(e ondisk.BATEntry) bool { return mayKeepPlace(e.State()) && e.Offset() != 0 }

// mayKeepPlace reports whether a block in the given state may have a place in the file without being present.
func mayKeepPlace(s ondisk.BlockState) bool {
	return s == ondisk.Undefined || s == ondisk.Unmapped || s == ondisk.UnmappedDraft
}

// findObjects notes which MiB of the file the header section, the log and the regions take: sorted, and apart from each
// other, so that to look one up takes no longer where a hostile file has thousands. What lies beyond the end of the file is
// left out.
func (l *layer) findObjects() {
	var list []fileRange
	add := func(off, end int64) {
		off, end = off/ondisk.MiB*ondisk.MiB, min(ondisk.RoundUp(end, ondisk.MiB), ondisk.RoundUp(l.size, ondisk.MiB))
		if off < end {
			list = append(list, fileRange{off, end - off})
		}
	}
	add(0, ondisk.HeaderSectionSize)
	if log := l.log(); log.Length > 0 && log.Offset >= 0 && log.Offset < l.size {
		add(log.Offset, log.Offset+log.Length)
	}
	for _, r := range l.tables.regions {
		if r.Offset < uint64(l.size) {
			add(int64(r.Offset), int64(r.Offset)+int64(r.Length)) // #nosec G115 -- smaller than the file
		}
	}
	slices.SortFunc(list, func(a, b fileRange) int { return cmp.Compare(a.off, b.off) })
	l.objects = list[:1]
	for _, r := range list[1:] {
		if last := &l.objects[len(l.objects)-1]; r.off <= last.off+last.n {
			last.n = max(last.n, r.off+r.n-last.off)
		} else {
			l.objects = append(l.objects, r)
		}
	}
}

// taken reports whether the header section, the log or a region takes some of the n bytes at file offset off.
func (l *layer) taken(off, n int64) bool {
	i := sort.Search(len(l.objects), func(i int) bool { return off < l.objects[i].off+l.objects[i].n })
	return i < len(l.objects) && l.objects[i].off < off+n
}

// objectAt returns the name of the region, log or header section that shares a byte with the n bytes at off.
func (l *layer) objectAt(off, n int64) string {
	if off < ondisk.HeaderSectionSize {
		return "header section"
	}
	if log := l.log(); log.Length > 0 && off < log.Offset+log.Length && log.Offset < off+n {
		return "log"
	}
	for _, r := range l.tables.regions {
		if uint64(off) < r.End() && r.Offset < uint64(off+n) {
			return r.Name() + " region"
		}
	}
	return ""
}
