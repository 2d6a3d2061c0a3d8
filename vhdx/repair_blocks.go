package vhdx

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// entryAt returns the BAT entry at a file offset of the draft.
func (r *repairer) entryAt(off int64) (ondisk.BATEntry, error) {
	var b [ondisk.BATEntrySize]byte
	err := readFull(r.d, b[:], off, "BAT entry")
	return ondisk.BATEntry(ondisk.LE.Uint64(b[:])), err
}

func (r *repairer) setEntry(off int64, e ondisk.BATEntry) error {
	_, err := r.d.WriteAt(ondisk.LE.AppendUint64(nil, uint64(e)), off)
	return err
}

// describes says what the BAT entry at file offset off is about; see geometry.entry.
func (l *layer) describes(off int64) (n int64, bitmap bool) {
	return l.geo.Entry((off - l.batOffset()) / ondisk.BATEntrySize)
}

// diskRange returns what payload block b is of the disk, from byte from of the block on.
func (l *layer) diskRange(b, from int64) DiskRange {
	start := b<<l.geo.BlockShift + from
	return DiskRange{start, max(0, l.geo.BlockEnd(b)-start)}
}

// mendBlocks mends entries of payload blocks that say what cannot be.
func (r *repairer) mendBlocks(l *layer, list []Finding) error {
	size := r.d.size // before it grows for one of them
	for _, f := range list {
		e, err := r.entryAt(f.Offset)
		if err != nil {
			return err
		}
		b, _ := l.describes(f.Offset)
		if err := r.setEntry(f.Offset, r.mendBlock(l, f, b, e, size)); err != nil {
			return err
		}
	}
	return nil
}

// mendBlock returns the entry that is to take the place of e, that of block b. A block whose bytes cannot be found is
// UNDEFINED from now on. That is the truth about it, and hides the parent of a child, where NOT_PRESENT would have old
// bytes show as if they were right.
func (r *repairer) mendBlock(l *layer, f Finding, b int64, e ondisk.BATEntry, size int64) ondisk.BATEntry {
	whole := []DiskRange{l.diskRange(b, 0)}
	switch f.Rule {
	case ondisk.RulePartialWithoutParent.Name():
		r.hurt(f, Suspect, whole, "%s is now fully present", blockName(b))
		return ondisk.NewBATEntry(ondisk.FullyPresent, 0) | e&ondisk.BATEntry(ondisk.BATOffsetMask)
	case ondisk.RuleBlockState.Name():
		// A flipped bit makes a reserved state of FULLY_PRESENT. Where it points to a place that no other block has,
		// the block's bytes are there.
		present := e&ondisk.BATEntry(ondisk.BATOffsetMask) | ondisk.BATEntry(ondisk.FullyPresent)
		if l.payloadRule(present, l.onDisk(b)) == 0 && l.space.mark(present.FileOff(), l.geo.BlockSize) {
			r.hurt(f, Suspect, whole, "%s is now fully present, at %#x, which no other block uses", blockName(b), present.Offset())
			return present
		}
	case ondisk.RuleBlockBeyondFile.Name():
		if off := e.Offset(); off < uint64(size) && l.objectAt(int64(off), l.geo.BlockSize) == "" { // #nosec G115 -- not larger than the file
			if err := r.d.Truncate(max(r.d.size, int64(off)+l.geo.BlockSize)); err != nil { // #nosec G115 -- not larger than the file
				break // as on a device
			}
			lost := l.diskRange(b, size-int64(off)) // #nosec G115 -- not larger than the file
			r.hurt(f, Lost, []DiskRange{lost}, "the file ends inside %s: the data up to there is kept, the rest reads as zeros", blockName(b))
			return ondisk.NewBATEntry(e.State(), int64(off)) // #nosec G115 -- not larger than the file
		}
	}
	r.hurt(f, Lost, whole, "%s has no data that can be found: its state is now %v, which reads as zeros", blockName(b), ondisk.Undefined)
	return ondisk.NewBATEntry(ondisk.Undefined, 0)
}

// tidyEntries mends entries that break no rule, but say more than they should.
func (r *repairer) tidyEntries(l *layer, list []Finding) error {
	for _, f := range list {
		e, err := r.entryAt(f.Offset)
		if err != nil {
			return err
		}
		b, bitmap := l.describes(f.Offset)
		if !bitmap && l.overwritten(e) {
			r.hurt(f, Lost, []DiskRange{l.diskRange(b, 0)}, "the entry of %s was overwritten: its state is now %v, which reads as zeros", blockName(b), ondisk.Undefined)
			if err := r.setEntry(f.Offset, ondisk.NewBATEntry(ondisk.Undefined, 0)); err != nil {
				return err
			}
			continue
		}
		tidied, done := tidy(e, bitmap, l.geo.HasParent)
		if tidied == e {
			continue
		}
		r.fixed(f, "%s; the disk reads as before", done)
		if err := r.setEntry(f.Offset, tidied); err != nil {
			return err
		}
	}
	return nil
}

// overwritten reports whether an entry that breaks no rule is one that no program has written: with reserved bits, and the
// offset of a place outside the file. Its state means nothing then. In a page of garbage it is one of two.
func (l *layer) overwritten(e ondisk.BATEntry) bool {
	// What is wrong with the entry of a present block breaks a rule.
	return !e.Present() && e.Reserved() != 0 && e.Offset() >= uint64(l.size)
}

// tidy returns what an entry that gives cause for a warning should be, and how that is done.
func tidy(e ondisk.BATEntry, bitmap, hasParent bool) (tidied ondisk.BATEntry, done string) {
	switch {
	case bitmap && !hasParent:
		return 0, "cleared"
	case e.Reserved() != 0:
		return e &^ ondisk.BATReservedMask, "the reserved bits are cleared"
	case bitmap:
		return e, ""
	case e.State() == ondisk.UnmappedDraft:
		return e&^ondisk.BATStateMask | ondisk.BATEntry(ondisk.Unmapped), "the state is now the one of the final format"
	case !e.Present():
		return ondisk.NewBATEntry(e.State(), 0), "the file offset is cleared"
	}
	return e, ""
}

// dropKeptPlaces has blocks that are not present keep no places any more, since some of these are used otherwise.
func (r *repairer) dropKeptPlaces(l *layer, list []Finding) error {
	var blocks []int64
	err := l.eachEntry(func(n int64, bitmap bool, e ondisk.BATEntry) error {
		if !bitmap && keepsPlace(e) {
			blocks = append(blocks, n)
			return r.setEntry(l.batOffset()+l.geo.PayloadEntry(n)*ondisk.BATEntrySize, ondisk.NewBATEntry(e.State(), 0))
		}
		return nil
	})
	if len(blocks) > 0 {
		r.fixed(list[0], "the file offsets of %d blocks that are not present are cleared; the disk reads as before", len(blocks))
	}
	return err
}

// separate gives blocks that share a place with others one of their own, with a copy of what is there. It is
// unknown whose bytes these are, so both are suspect. It leaves them where the copies would be larger than the image and a block
// of the largest kind: entries that all name one place are no accident, and cost terabytes.
func (r *repairer) separate(l *layer, list []Finding) error {
	if need := int64(len(list)) * l.geo.BlockSize; need > r.d.old+ondisk.MaxBlockSize {
		r.advice = []string{fmt.Sprintf("%d blocks lie in the place of others; copies of their own would need %d MiB, more than the image has", len(list), need/ondisk.MiB)}
		return nil
	}
	others, err := r.partners(l, list)
	if err != nil {
		return err
	}
	for i, f := range list {
		e, err := r.entryAt(f.Offset)
		if err != nil {
			return err
		}
		b, _ := l.describes(f.Offset)
		off, err := r.d.appendCopy(e.FileOff(), l.geo.BlockSize, l.space)
		if err != nil {
			return err
		}
		if err := r.setEntry(f.Offset, ondisk.NewBATEntry(e.State(), off)); err != nil {
			return err
		}
		ranges := []DiskRange{l.diskRange(b, 0)}
		var names []string
		for _, o := range others[i] {
			names = append(names, o.name)
			ranges = append(ranges, o.ranges...)
		}
		r.hurt(f, Suspect, ranges, "%s now has its own copy, at %#x; the other is %s", blockName(b), off, strings.Join(names, ", "))
	}
	return nil
}

// A partner is a block whose place another one lies in too.
type partner struct {
	name   string
	ranges []DiskRange
}

// partners returns, for each of the findings, the other blocks in its place. They are looked for once for all.
func (r *repairer) partners(l *layer, list []Finding) ([][]partner, error) {
	type place struct {
		off, entry int64
		i          int
	}
	var places []place
	for i, f := range list {
		e, err := r.entryAt(f.Offset)
		if err != nil {
			return nil, err
		}
		places = append(places, place{e.FileOff(), f.Offset, i})
	}
	slices.SortFunc(places, func(a, b place) int { return int((a.off - b.off) / ondisk.MiB) })
	found := make([][]partner, len(list))
	err := l.eachEntry(func(n int64, bitmap bool, e ondisk.BATEntry) error {
		p, entry, size := partner{name: fmt.Sprintf("the sector bitmap block of chunk %d", n)}, l.geo.BitmapEntry(n), int64(ondisk.BitmapBlockSize)
		switch {
		case bitmap && e.State() == ondisk.BitmapPresent:
		case !bitmap && e.Present():
			p, entry, size = partner{blockName(n), []DiskRange{l.diskRange(n, 0)}}, l.geo.PayloadEntry(n), l.geo.BlockSize
		default:
			return nil
		}
		entry = l.batOffset() + entry*ondisk.BATEntrySize
		first, _ := slices.BinarySearchFunc(places, e.FileOff()-l.geo.BlockSize+1, func(p place, off int64) int {
			if p.off < off {
				return -1
			}
			return 1
		})
		for _, q := range places[first:] {
			if q.off >= e.FileOff()+size {
				break
			}
			if q.entry != entry && len(found[q.i]) < maxPartners {
				found[q.i] = append(found[q.i], p)
			}
		}
		return nil
	})
	return found, err
}

// maxPartners bounds how many blocks are listed that share one place.
const maxPartners = 16
