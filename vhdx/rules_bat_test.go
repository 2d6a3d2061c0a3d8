package vhdx

import (
	"math"

	"vhdxfs/internal/ondisk"
)

// withBlock returns a damage that stores a BAT entry of a payload block.
func withBlock(b int64, e batEntry) func(*scene) {
	return func(s *scene) { s.setBlockEntry(b, e) }
}

// withNewBlock returns a damage that puts block 1 at a place that depends on the image.
func withNewBlock(off func(s *scene) int64) func(*scene) {
	return func(s *scene) { s.setBlockEntry(1, newBATEntry(FullyPresent, off(s))) }
}

// withBitmap returns a damage that stores the BAT entry of the first chunk's sector bitmap block.
func withBitmap(e func(s *scene) batEntry) func(*scene) {
	return func(s *scene) { s.setEntry(s.geo.bitmapEntry(0), e(s)) }
}

var (
	oneBlock   = []blockSpec{{0, FullyPresent}}
	partBlock  = []blockSpec{{0, PartiallyPresent}}
	childSpec  = spec{typ: Differencing, blocks: partBlock}
	largeBlock = spec{diskSize: 8 * mib, blockSize: 2 * mib, blocks: oneBlock}
)

var batRules = []ruleCase{
	// 1 MiB of BAT has room for 131072 entries. A chunk of 4096 blocks takes 4097.
	{rule: ondisk.R43, name: "a block too many", spec: spec{diskSize: 131042 * mib, batLen: mib}, damage: func(*scene) {}},
	{rule: ondisk.R43, name: "a full region", spec: spec{diskSize: 131041 * mib, batLen: mib}, good: true, damage: func(*scene) {}},
	{rule: ondisk.R43, name: "padding of the last chunk of a child", spec: spec{typ: Differencing, diskSize: 31*4096*mib + mib, batLen: mib},
		damage: func(*scene) {}},
	{rule: ondisk.R43, name: "whole chunks of a child", spec: spec{typ: Differencing, diskSize: 31 * 4096 * mib, batLen: mib},
		good: true, damage: func(*scene) {}},
	{rule: ondisk.R43, name: "64 TiB in a region of 1 MiB", damage: with64(diskSizeGUID, 64*tib)},

	{rule: ondisk.R44, name: "state 4", damage: withBlock(0, 4)},
	{rule: ondisk.R44, name: "state 4 in the last block", damage: withBlock(3, 4)},
	{rule: ondisk.R44, name: "state 4 in a child", spec: childSpec, damage: withBlock(1, 4)},
	{rule: ondisk.R45, name: "dynamic", spec: spec{blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(0, newBATEntry(PartiallyPresent, s.entries[0].fileOff()))
	}},
	{rule: ondisk.R45, name: "fixed", spec: spec{typ: Fixed, blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(0, newBATEntry(PartiallyPresent, s.entries[0].fileOff()))
	}},
	{rule: ondisk.R46, name: "offset 0", damage: withBlock(0, newBATEntry(FullyPresent, 0))},
	{rule: ondisk.R46, name: "offset 0 in a child", spec: childSpec, damage: withBlock(1, newBATEntry(PartiallyPresent, 0))},

	{rule: ondisk.R47, name: "at the end of the file", damage: withNewBlock(func(s *scene) int64 { return s.size })},
	{rule: ondisk.R47, name: "half beyond the file", spec: largeBlock, damage: withNewBlock(func(s *scene) int64 { return s.size - mib })},
	{rule: ondisk.R47, name: "a byte cut off", spec: spec{blocks: oneBlock}, damage: func(s *scene) { s.Truncate(s.size - 1) }},
	{rule: ondisk.R47, name: "the largest offset", damage: withBlock(0, batEntry(batOffsetMask|uint64(FullyPresent)))},
	{rule: ondisk.R47, name: "at 2^63", damage: withBlock(0, batEntry(1<<63|uint64(FullyPresent)))},
	{rule: ondisk.R47, name: "last block cut before the last sector", spec: spec{diskSize: mib + 4096, blocks: []blockSpec{{1, FullyPresent}}},
		damage: func(s *scene) { s.Truncate(s.entries[1].fileOff() + 4095) }},
	{rule: ondisk.R47, name: "up to the end of the file", good: true, damage: withNewBlock(func(s *scene) int64 { return s.allocate(mib) })},

	{rule: ondisk.R48, name: "BAT", damage: withNewBlock(func(s *scene) int64 { return s.batOff })},
	{rule: ondisk.R48, name: "metadata", damage: withNewBlock(func(s *scene) int64 { return s.metaOff })},
	{rule: ondisk.R48, name: "log", damage: withNewBlock(func(s *scene) int64 { return s.logOff })},
	{rule: ondisk.R48, name: "end of a block on the log", spec: spec{diskSize: 8 * mib, blockSize: 2 * mib, metaOff: mib, batOff: 2 * mib, logOff: 4 * mib, dataOff: 6 * mib},
		damage: withNewBlock(func(s *scene) int64 { return 3 * mib })},
	{rule: ondisk.R48, name: "optional region", spec: spec{regions: []region{{GUID: otherGUID, Offset: 4 * mib, Length: mib}}},
		damage: func(s *scene) {
			s.grow(5 * mib)
			s.setBlockEntry(0, newBATEntry(FullyPresent, 4*mib))
		}},

	{rule: ondisk.R49, name: "one place twice", spec: spec{blocks: oneBlock}, damage: withNewBlock(func(s *scene) int64 { return s.entries[0].fileOff() })},
	{rule: ondisk.R49, name: "half of the other", spec: largeBlock, damage: withNewBlock(func(s *scene) int64 {
		s.grow(s.size + mib)
		return s.entries[0].fileOff() + mib
	})},
	{rule: ondisk.R49, name: "blocks far apart in the BAT", spec: spec{diskSize: 64 * tib, blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(64*tib/mib-1, s.entries[0])
	}},
	{rule: ondisk.R49, name: "place of an unmapped block", spec: spec{blocks: oneBlock}, good: true, damage: func(s *scene) {
		s.setBlockEntry(1, newBATEntry(Unmapped, s.entries[0].fileOff()))
	}},

	{rule: ondisk.R50, name: "state 1", spec: childSpec, damage: withBitmap(func(s *scene) batEntry { return newBATEntry(1, s.bitmaps[0]) })},
	{rule: ondisk.R50, name: "state 7", spec: childSpec, damage: withBitmap(func(s *scene) batEntry { return newBATEntry(7, s.bitmaps[0]) })},
	{rule: ondisk.R50, name: "in the middle of equal entries", spec: spec{typ: Differencing, diskSize: 5 * 1024 * mib, blockSize: 32 * mib},
		damage: func(s *scene) {
			for i := range s.geo.bitmapEntry(0) + 10 {
				s.setEntry(i, newBATEntry(Zero, 0))
			}
		}},
	{rule: ondisk.R51, name: "header section", spec: childSpec, damage: withBitmap(func(*scene) batEntry { return newBATEntry(bitmapPresent, 0) })},
	{rule: ondisk.R51, name: "end of the file", spec: childSpec, damage: withBitmap(func(s *scene) batEntry { return newBATEntry(bitmapPresent, s.size) })},
	{rule: ondisk.R51, name: "a byte cut off", spec: childSpec, damage: func(s *scene) { s.Truncate(s.size - 1) }},
	{rule: ondisk.R51, name: "the largest offset", spec: childSpec, damage: withBitmap(func(*scene) batEntry {
		return batEntry(math.MaxUint64&batOffsetMask | uint64(bitmapPresent))
	})},
	{rule: ondisk.R51, name: "a payload block", spec: childSpec, damage: withBitmap(func(s *scene) batEntry {
		return newBATEntry(bitmapPresent, s.entries[0].fileOff())
	})},
	{rule: ondisk.R51, name: "the log", spec: childSpec, damage: withBitmap(func(s *scene) batEntry { return newBATEntry(bitmapPresent, s.logOff) })},
	{rule: ondisk.R51, name: "the BAT", spec: childSpec, damage: withBitmap(func(s *scene) batEntry { return newBATEntry(bitmapPresent, s.batOff) })},
	{rule: ondisk.R52, name: "not present", spec: childSpec, damage: withBitmap(func(*scene) batEntry { return 0 })},
	{rule: ondisk.R52, name: "offset, but not present", spec: childSpec, damage: withBitmap(func(s *scene) batEntry {
		return newBATEntry(bitmapNotPresent, s.bitmaps[0])
	})},
	{rule: ondisk.R52, name: "second chunk has none", spec: spec{typ: Differencing, diskSize: 3 * 4096 * mib, blocks: []blockSpec{{0, PartiallyPresent}, {4096, PartiallyPresent}, {8192, PartiallyPresent}}},
		damage: func(s *scene) { s.setEntry(s.geo.bitmapEntry(1), 0) }},
	{rule: ondisk.R52, name: "fully present needs none", spec: spec{typ: Differencing, blocks: oneBlock}, good: true, damage: func(*scene) {}},
}
