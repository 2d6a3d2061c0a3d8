package vhdx

import "vhdxfs/internal/ondisk"

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
	bad := func(r ondisk.Rule, format string, args ...any) error {
		at := l.batOffset() + g.payloadEntry(b)*batEntrySize
		return ondisk.Corrupt(r, "BAT entry", at, format, args...)
	}
	switch e.state() {
	case NotPresent, Undefined, Zero, Unmapped, unmappedDraft:
		return nil
	case PartiallyPresent:
		if !g.hasParent {
			return bad(ondisk.R45, "block %d is partially present, but the disk has no parent", b)
		}
	case FullyPresent:
	default:
		return bad(ondisk.R44, "block %d in state %d", b, uint8(e.state()))
	}
	need := min(g.blockSize, g.blockEnd(b)-b<<g.blockShift)
	if off := e.offset(); off > uint64(l.size) || need > l.size-int64(off) && int64(off)+g.inBlock(diskOff) >= l.size {
		return bad(ondisk.R47, "block %d at %#x in a file of %#x bytes", b, off, l.size)
	}
	if other := l.objectAt(e.fileOff(), g.blockSize); other != "" {
		return bad(ondisk.R48, "block %d at %#x overlaps the %s", b, e.offset(), other)
	}
	return nil
}
