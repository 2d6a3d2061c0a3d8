package vhdx

import (
	"math"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// withBlock returns a damage that stores a BAT entry of a payload block.
func withBlock(b int64, e ondisk.BATEntry) func(*scene) {
	return func(s *scene) { s.setBlockEntry(b, e) }
}

// withNewBlock returns a damage that puts block 1 at a place that depends on the image.
func withNewBlock(off func(s *scene) int64) func(*scene) {
	return func(s *scene) { s.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, off(s))) }
}

// withBitmap returns a damage that stores the BAT entry of the first chunk's sector bitmap block.
func withBitmap(e func(s *scene) ondisk.BATEntry) func(*scene) {
	return func(s *scene) { s.setEntry(s.geo.BitmapEntry(0), e(s)) }
}

var (
	oneBlock   = []blockSpec{{0, ondisk.FullyPresent}}
	partBlock  = []blockSpec{{0, ondisk.PartiallyPresent}}
	childSpec  = spec{typ: Differencing, blocks: partBlock}
	largeBlock = spec{diskSize: 8 * ondisk.MiB, blockSize: 2 * ondisk.MiB, blocks: oneBlock}
)

var batRules = []ruleCase{
	// 1 MiB of BAT has room for 131072 entries. A chunk of 4096 blocks takes 4097.
	{rule: ondisk.RuleBATTooSmall, name: "a block too many", spec: spec{diskSize: 131042 * ondisk.MiB, batLen: ondisk.MiB}, damage: func(*scene) {}},
	{rule: ondisk.RuleBATTooSmall, name: "a full region", spec: spec{diskSize: 131041 * ondisk.MiB, batLen: ondisk.MiB}, good: true, damage: func(*scene) {}},
	{rule: ondisk.RuleBATTooSmall, name: "padding of the last chunk of a child", spec: spec{typ: Differencing, diskSize: 31*4096*ondisk.MiB + ondisk.MiB, batLen: ondisk.MiB},
		damage: func(*scene) {}},
	{rule: ondisk.RuleBATTooSmall, name: "whole chunks of a child", spec: spec{typ: Differencing, diskSize: 31 * 4096 * ondisk.MiB, batLen: ondisk.MiB},
		good: true, damage: func(*scene) {}},
	{rule: ondisk.RuleBATTooSmall, name: "64 TiB in a region of 1 MiB", damage: with64(ondisk.DiskSizeGUID, 64*ondisk.TiB)},

	{rule: ondisk.RuleBlockState, name: "state 4", damage: withBlock(0, 4)},
	{rule: ondisk.RuleBlockState, name: "state 4 in the last block", damage: withBlock(3, 4)},
	{rule: ondisk.RuleBlockState, name: "state 4 in a child", spec: childSpec, damage: withBlock(1, 4)},
	{rule: ondisk.RulePartialWithoutParent, name: "dynamic", spec: spec{blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(0, ondisk.NewBATEntry(ondisk.PartiallyPresent, s.entries[0].FileOff()))
	}},
	{rule: ondisk.RulePartialWithoutParent, name: "fixed", spec: spec{typ: Fixed, blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(0, ondisk.NewBATEntry(ondisk.PartiallyPresent, s.entries[0].FileOff()))
	}},
	{rule: ondisk.RuleBlockInHeaderSection, name: "offset 0", damage: withBlock(0, ondisk.NewBATEntry(ondisk.FullyPresent, 0))},
	{rule: ondisk.RuleBlockInHeaderSection, name: "offset 0 in a child", spec: childSpec, damage: withBlock(1, ondisk.NewBATEntry(ondisk.PartiallyPresent, 0))},

	{rule: ondisk.RuleBlockBeyondFile, name: "at the end of the file", damage: withNewBlock(func(s *scene) int64 { return s.size })},
	{rule: ondisk.RuleBlockBeyondFile, name: "half beyond the file", spec: largeBlock, damage: withNewBlock(func(s *scene) int64 { return s.size - ondisk.MiB })},
	{rule: ondisk.RuleBlockBeyondFile, name: "a byte cut off", spec: spec{blocks: oneBlock}, damage: func(s *scene) { s.Truncate(s.size - 1) }},
	{rule: ondisk.RuleBlockBeyondFile, name: "the largest offset", damage: withBlock(0, ondisk.BATEntry(ondisk.BATOffsetMask|uint64(ondisk.FullyPresent)))},
	{rule: ondisk.RuleBlockBeyondFile, name: "at 2^63", damage: withBlock(0, ondisk.BATEntry(1<<63|uint64(ondisk.FullyPresent)))},
	{rule: ondisk.RuleBlockBeyondFile, name: "last block cut before the last sector", spec: spec{diskSize: ondisk.MiB + 4096, blocks: []blockSpec{{1, ondisk.FullyPresent}}},
		damage: func(s *scene) { s.Truncate(s.entries[1].FileOff() + 4095) }},
	{rule: ondisk.RuleBlockBeyondFile, name: "up to the end of the file", good: true, damage: withNewBlock(func(s *scene) int64 { return s.allocate(ondisk.MiB) })},

	{rule: ondisk.RuleBlockOverlapsRegion, name: "BAT", damage: withNewBlock(func(s *scene) int64 { return s.batOff })},
	{rule: ondisk.RuleBlockOverlapsRegion, name: "metadata", damage: withNewBlock(func(s *scene) int64 { return s.metaOff })},
	{rule: ondisk.RuleBlockOverlapsRegion, name: "log", damage: withNewBlock(func(s *scene) int64 { return s.logOff })},
	{rule: ondisk.RuleBlockOverlapsRegion, name: "end of a block on the log", spec: spec{diskSize: 8 * ondisk.MiB, blockSize: 2 * ondisk.MiB, metaOff: ondisk.MiB, batOff: 2 * ondisk.MiB, logOff: 4 * ondisk.MiB, dataOff: 6 * ondisk.MiB},
		damage: withNewBlock(func(s *scene) int64 { return 3 * ondisk.MiB })},
	{rule: ondisk.RuleBlockOverlapsRegion, name: "optional region", spec: spec{regions: []ondisk.Region{{GUID: otherGUID, Offset: 4 * ondisk.MiB, Length: ondisk.MiB}}},
		damage: func(s *scene) {
			s.grow(5 * ondisk.MiB)
			s.setBlockEntry(0, ondisk.NewBATEntry(ondisk.FullyPresent, 4*ondisk.MiB))
		}},

	{rule: ondisk.RuleBlockOverlap, name: "one place twice", spec: spec{blocks: oneBlock}, damage: withNewBlock(func(s *scene) int64 { return s.entries[0].FileOff() })},
	{rule: ondisk.RuleBlockOverlap, name: "half of the other", spec: largeBlock, damage: withNewBlock(func(s *scene) int64 {
		s.grow(s.size + ondisk.MiB)
		return s.entries[0].FileOff() + ondisk.MiB
	})},
	{rule: ondisk.RuleBlockOverlap, name: "blocks far apart in the BAT", spec: spec{diskSize: 64 * ondisk.TiB, blocks: oneBlock}, damage: func(s *scene) {
		s.setBlockEntry(64*ondisk.TiB/ondisk.MiB-1, s.entries[0])
	}},
	{rule: ondisk.RuleBlockOverlap, name: "place of an unmapped block", spec: spec{blocks: oneBlock}, good: true, damage: func(s *scene) {
		s.setBlockEntry(1, ondisk.NewBATEntry(ondisk.Unmapped, s.entries[0].FileOff()))
	}},

	{rule: ondisk.RuleBitmapState, name: "state 1", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry { return ondisk.NewBATEntry(1, s.bitmaps[0]) })},
	{rule: ondisk.RuleBitmapState, name: "state 7", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry { return ondisk.NewBATEntry(7, s.bitmaps[0]) })},
	{rule: ondisk.RuleBitmapState, name: "in the middle of equal entries", spec: spec{typ: Differencing, diskSize: 5 * 1024 * ondisk.MiB, blockSize: 32 * ondisk.MiB},
		damage: func(s *scene) {
			for i := range s.geo.BitmapEntry(0) + 10 {
				s.setEntry(i, ondisk.NewBATEntry(ondisk.Zero, 0))
			}
		}},
	{rule: ondisk.RuleBitmapPlace, name: "header section", spec: childSpec, damage: withBitmap(func(*scene) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.BitmapPresent, 0) })},
	{rule: ondisk.RuleBitmapPlace, name: "end of the file", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.BitmapPresent, s.size) })},
	{rule: ondisk.RuleBitmapPlace, name: "a byte cut off", spec: childSpec, damage: func(s *scene) { s.Truncate(s.size - 1) }},
	{rule: ondisk.RuleBitmapPlace, name: "the largest offset", spec: childSpec, damage: withBitmap(func(*scene) ondisk.BATEntry {
		return ondisk.BATEntry(math.MaxUint64&ondisk.BATOffsetMask | uint64(ondisk.BitmapPresent))
	})},
	{rule: ondisk.RuleBitmapPlace, name: "a payload block", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry {
		return ondisk.NewBATEntry(ondisk.BitmapPresent, s.entries[0].FileOff())
	})},
	{rule: ondisk.RuleBitmapPlace, name: "the log", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.BitmapPresent, s.logOff) })},
	{rule: ondisk.RuleBitmapPlace, name: "the BAT", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry { return ondisk.NewBATEntry(ondisk.BitmapPresent, s.batOff) })},
	{rule: ondisk.RuleNoSectorBitmap, name: "not present", spec: childSpec, damage: withBitmap(func(*scene) ondisk.BATEntry { return 0 })},
	{rule: ondisk.RuleNoSectorBitmap, name: "offset, but not present", spec: childSpec, damage: withBitmap(func(s *scene) ondisk.BATEntry {
		return ondisk.NewBATEntry(ondisk.BitmapNotPresent, s.bitmaps[0])
	})},
	{rule: ondisk.RuleNoSectorBitmap, name: "second chunk has none", spec: spec{typ: Differencing, diskSize: 3 * 4096 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {4096, ondisk.PartiallyPresent}, {8192, ondisk.PartiallyPresent}}},
		damage: func(s *scene) { s.setEntry(s.geo.BitmapEntry(1), 0) }},
	{rule: ondisk.RuleNoSectorBitmap, name: "fully present needs none", spec: spec{typ: Differencing, blocks: oneBlock}, good: true, damage: func(*scene) {}},
}
