package vhdx

import (
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// lostSearch bounds how much of the unused space is read to find data in it, in bytes.
const lostSearch = 1 << 30

// lostBlocks looks for data in space that nothing uses, where the BAT looks as if it had been overwritten with zeros: it says
// nothing of any block, or, of a fixed disk, whose blocks all have a place, it has a page of zeros. It returns the file offset
// of the first such data, and 0 where there is none.
func (l *layer) lostBlocks() (off int64, err error) {
	if l.space == nil || l.space.free() == 0 {
		return 0, nil
	}
	if l.blockCounts().NotPresent < l.geo.PayloadBlocks() && !(l.keepsBlocks() && l.anyZeroPage()) {
		return 0, nil
	}
	return l.unusedData(l.size, 1)
}

// lostPageBlocks is how many blocks full of data have to be unused before a page of zeros is thought to be lost. A crash
// leaves some, and a page of zeros is usual.
const lostPageBlocks = 16

// warnLostPage warns where a page of the BAT of a dynamic disk is zero, and many blocks between those in use are not in use
// and hold data. Where the file can have holes, what was trimmed holds none, or seldom.
func (l *layer) warnLostPage() error {
	if l.space == nil || !l.file.Sparse() || l.geo.HasParent || l.replay != nil || !l.anyZeroPage() {
		return nil
	}
	// No more than half of what is read, or with large blocks there could never be as much.
	off, err := l.unusedData(l.space.end(), min(lostPageBlocks*l.geo.BlockSize, lostSearch/2)/ondisk.MiB)
	if err != nil || off == 0 {
		return err
	}
	l.lost = true
	l.warn("BAT", l.batOffset(), "a part of the BAT is zero, and space that nothing uses holds data, from %#x on: if a part of the disk is missing, "+
		"the BAT may have been overwritten. Do not compact the image before you have looked at the disk; if nothing is missing, compact reclaims the space", off)
	return nil
}

// unusedData returns the file offset of the first MiB before end that nothing uses and that is not zero, where there are so
// many, and 0 where there are not. What a log adds behind the end of the file is no data that a block has lost.
func (l *layer) unusedData(end, need int64) (first int64, err error) {
	found, left := int64(0), int64(lostSearch)
	buf := make([]byte, ondisk.MiB)
	end = min(end, l.fileSize)
	for at := int64(0); at < end && left > 0; at += ondisk.MiB {
		if i := at / ondisk.MiB; l.space.words[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		n := min(ondisk.MiB, l.fileSize-at)
		if hole, err := l.hole(at, end-at); err != nil {
			return 0, err
		} else if hole >= n {
			at += max(0, hole/ondisk.MiB-1) * ondisk.MiB // a file may be one large hole
			continue
		}
		left -= n
		if err := readFull(l.src, buf[:n], at, "unused space"); err != nil {
			return 0, err
		}
		if allZero(buf[:n]) {
			continue
		}
		if found++; found == 1 {
			first = at
		}
		if found == need {
			return first, nil
		}
	}
	return 0, nil
}

// anyZeroPage reports whether a page of the BAT is zero.
func (l *layer) anyZeroPage() bool {
	for i := range l.geo.BATPages() {
		if _, zero, err := l.bat.Word(i, 0); err == nil && zero {
			return true
		}
	}
	return false
}

// LostBlocks returns the file offset of data that nothing uses, where the BAT seems to have been overwritten with zeros, and
// 0 where it does not. To compact or to write such an image would destroy that data.
func (im *Image) LostBlocks() (int64, error) {
	if err := im.Validated(); err != nil {
		return 0, err
	}
	return im.current().lostBlocks()
}

// warnLost warns of data that blocks may have lost.
func (l *layer) warnLost() error {
	off, err := l.lostBlocks()
	if err != nil {
		return err
	}
	if off == 0 {
		return l.warnLostPage()
	}
	l.lost = true
	what := "no block is present"
	if c := l.blockCounts(); c.FullyPresent+c.PartiallyPresent > 0 {
		what = "a part of the BAT is zero"
	}
	l.warn("BAT", l.batOffset(), "%s, but space that nothing uses holds data, from %#x on: the BAT may have been overwritten. "+
		"Do not write to the image and do not compact it. Restore a backup; without one, a tool that finds files in raw data can read the image file", what, off)
	return nil
}

// beyondEnd reports whether a finding of a broken rule says that something ends beyond the end of the file.
func (l *layer) beyondEnd(f Finding) bool {
	switch f.Rule {
	case ondisk.RuleFileTooSmall.Name(), ondisk.RuleLogBeyondFile.Name(), ondisk.RuleFileShorterThanLog.Name(), ondisk.RuleRegionBeyondFile.Name(), ondisk.RuleBlockBeyondFile.Name():
		return true
	case ondisk.RuleBitmapPlace.Name():
		var b [ondisk.BATEntrySize]byte
		if _, err := l.src.ReadAt(b[:], f.Offset); err != nil && err != io.EOF {
			return false
		}
		return ondisk.BATEntry(ondisk.LE.Uint64(b[:])).Offset() > uint64(max(l.size-ondisk.BitmapBlockSize, 0))
	}
	return f.Rule == "" // what follows from another
}

// cutOff returns what to say where all that is wrong lies beyond the end of the file, and "" where something else is.
func (l *layer) cutOff(errors []Finding) string {
	ruled := false
	for _, f := range errors {
		if !l.beyondEnd(f) {
			return ""
		}
		ruled = ruled || f.Rule != ""
	}
	if !ruled || l.size < ondisk.HeaderSectionSize && !l.begins() {
		return ""
	}
	return fmt.Sprintf("all errors are about data beyond the end of the file (%#x); was the file cut off? Copy it again if you can; "+
		"otherwise vhdxfs convert --skip-errors saves what is there", l.size)
}

// begins reports whether the file begins as an image.
func (l *layer) begins() bool {
	var b [len(ondisk.IdentifierSignature)]byte
	_, err := l.file.ReadAt(b[:], 0)
	return err == nil && string(b[:]) == ondisk.IdentifierSignature
}
