package vhdx

import (
	"math"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// emptyItems returns n items that are present but empty, with the given flags.
func emptyItems(n int, flags uint32) []ondisk.MetadataItem {
	var list []ondisk.MetadataItem
	for i := range n {
		g := otherGUID
		ondisk.LE.PutUint32(g[:], uint32(i))
		list = append(list, ondisk.MetadataItem{ID: g, Flags: flags})
	}
	return list
}

// withItem returns a damage that adds one unknown item to the metadata table.
func withItem(off, length, flags uint32) func(*scene) {
	return func(s *scene) {
		s.addItems(ondisk.MetadataItem{ID: otherGUID, Offset: off, Length: length, Flags: flags})
	}
}

// withLength returns a damage that changes the length of a known item.
func withLength(id uuid.UUID, length uint32) func(*scene) {
	return func(s *scene) { s.changeItem(id, func(m *ondisk.MetadataItem) { m.Length = length }) }
}

// with32 returns a damage that changes the first four bytes of a known item.
func with32(id uuid.UUID, v uint32) func(*scene) {
	return func(s *scene) { s.setItem(id, ondisk.LE.AppendUint32(nil, v)) }
}

// with64 returns a damage that changes the first eight bytes of a known item.
func with64(id uuid.UUID, v uint64) func(*scene) {
	return func(s *scene) { s.setItem(id, ondisk.LE.AppendUint64(nil, v)) }
}

// without returns a damage that takes a known item away.
func without(id uuid.UUID) func(*scene) { return func(s *scene) { s.dropItem(id) } }

var metadataRules = []ruleCase{
	{rule: ondisk.RuleMetadataSignature, name: "signature", damage: func(s *scene) { s.write([]byte("METADATA"), s.metaOff) }},
	{rule: ondisk.RuleMetadataSignature, name: "nothing there", damage: func(s *scene) { s.write(make([]byte, ondisk.MetadataTableSize), s.metaOff) }},
	{rule: ondisk.RuleMetadataCount, name: "2048 entries", damage: func(s *scene) { s.write(ondisk.LE.AppendUint16(nil, 2048), s.metaOff+10) }},
	{rule: ondisk.RuleMetadataCount, name: "as many entries as fit 16 bits", damage: func(s *scene) {
		s.write(ondisk.LE.AppendUint16(nil, math.MaxUint16), s.metaOff+10)
	}},
	{rule: ondisk.RuleMetadataCount, name: "2047 entries", good: true, damage: func(s *scene) {
		s.addItems(emptyItems(ondisk.MaxMetadataEntries-len(s.image.items), 0)...)
	}},
	{rule: ondisk.RuleMetadataUserCount, name: "1025 user entries", damage: func(s *scene) { s.addItems(emptyItems(1025, ondisk.ItemIsUser)...) }},
	{rule: ondisk.RuleMetadataUserCount, name: "1024 user entries", good: true, damage: func(s *scene) { s.addItems(emptyItems(1024, ondisk.ItemIsUser)...) }},
	{rule: ondisk.RuleItemTwice, name: "disk size twice", damage: func(s *scene) { s.addItems(*s.item(ondisk.DiskSizeGUID)) }},
	{rule: ondisk.RuleItemTwice, name: "user item twice", damage: func(s *scene) {
		s.addItems(append(emptyItems(1, ondisk.ItemIsUser), emptyItems(1, ondisk.ItemIsUser)...)...)
	}},
	{rule: ondisk.RuleItemTwice, name: "user item with the id of a system item", good: true, damage: func(s *scene) {
		s.addItems(ondisk.MetadataItem{ID: ondisk.DiskSizeGUID, Flags: ondisk.ItemIsUser})
	}},
	{rule: ondisk.RuleItemInTable, name: "item on the last byte of the table", damage: withItem(ondisk.MetadataTableSize-1, 1, 0)},
	{rule: ondisk.RuleItemInTable, name: "item at the start of the region", damage: withItem(0, 16, 0)},
	{rule: ondisk.RuleItemInTable, name: "disk size inside the table", damage: func(s *scene) {
		s.changeItem(ondisk.DiskSizeGUID, func(m *ondisk.MetadataItem) { m.Offset = 4096 })
	}},
	{rule: ondisk.RuleItemInTable, name: "empty item at the start of the region", good: true, damage: withItem(0, 0, 0)},

	{rule: ondisk.RuleItemBeyondRegion, name: "item a byte beyond the region", damage: withItem(ondisk.MiB-15, 16, 0)},
	{rule: ondisk.RuleItemBeyondRegion, name: "item up to the end of the region", good: true, damage: withItem(ondisk.MiB-16, 16, 0)},
	{rule: ondisk.RuleItemBeyondRegion, name: "item that wraps", damage: withItem(math.MaxUint32-7, 16, 0)},
	{rule: ondisk.RuleItemBeyondRegion, name: "disk size beyond the region", damage: func(s *scene) {
		s.changeItem(ondisk.DiskSizeGUID, func(m *ondisk.MetadataItem) { m.Offset = math.MaxUint32 - 7 })
	}},
	{rule: ondisk.RuleItemOverlap, name: "two items on one place", damage: func(s *scene) {
		s.changeItem(ondisk.DiskSizeGUID, func(m *ondisk.MetadataItem) { m.Offset = s.item(ondisk.DiskIDGUID).Offset })
	}},
	{rule: ondisk.RuleItemOverlap, name: "items a byte into each other", damage: func(s *scene) {
		s.addItems(ondisk.MetadataItem{ID: otherGUID, Offset: 512 * ondisk.KiB, Length: 17},
			ondisk.MetadataItem{ID: otherGUID, Offset: 512*ondisk.KiB + 16, Length: 16, Flags: ondisk.ItemIsUser})
	}},
	{rule: ondisk.RuleItemOverlap, name: "items side by side", good: true, damage: func(s *scene) {
		s.addItems(ondisk.MetadataItem{ID: otherGUID, Offset: 512 * ondisk.KiB, Length: 16},
			ondisk.MetadataItem{ID: otherGUID, Offset: 512*ondisk.KiB + 16, Length: 16, Flags: ondisk.ItemIsUser})
	}},
	{rule: ondisk.RuleItemTooLong, name: "item of 1 MiB and a byte", spec: spec{metaLen: 4 * ondisk.MiB}, damage: withItem(ondisk.MiB, ondisk.MiB+1, 0)},
	{rule: ondisk.RuleItemTooLong, name: "item of 1 MiB", spec: spec{metaLen: 4 * ondisk.MiB}, good: true, damage: withItem(ondisk.MiB, ondisk.MiB, 0)},
	{rule: ondisk.RuleItemTooLong, name: "item of the largest length", damage: withItem(ondisk.MiB/2, math.MaxUint32, 0)},

	{rule: ondisk.RuleItemUnknown, name: "unknown system item", damage: withItem(0, 0, ondisk.ItemIsRequired)},
	{rule: ondisk.RuleItemUnknown, name: "unknown user item", damage: withItem(0, 0, ondisk.ItemIsRequired|ondisk.ItemIsUser)},
	{rule: ondisk.RuleItemUnknown, name: "user item with the id of a system item", damage: func(s *scene) {
		s.addItems(ondisk.MetadataItem{ID: ondisk.DiskSizeGUID, Flags: ondisk.ItemIsUser | ondisk.ItemIsRequired})
	}},
	{rule: ondisk.RuleItemUnknown, name: "item known to Windows alone", damage: func(s *scene) { // O12: an unfinished creation
		s.addItems(ondisk.MetadataItem{ID: uuid.MustParse("71CC85F0-1B69-4E28-9558-C3BF83AE75D3"), Flags: ondisk.ItemIsRequired})
	}},

	{rule: ondisk.RuleNoFileParameters, name: "no file parameters", damage: without(ondisk.FileParametersGUID)},
	{rule: ondisk.RuleNoFileParameters, name: "file parameters as a user item", damage: func(s *scene) {
		s.changeItem(ondisk.FileParametersGUID, func(m *ondisk.MetadataItem) { m.Flags = ondisk.ItemIsUser })
	}},
	{rule: ondisk.RuleNoDiskSize, name: "no disk size", damage: without(ondisk.DiskSizeGUID)},
	{rule: ondisk.RuleNoLogicalSectorSize, name: "no logical sector size", damage: without(ondisk.LogicalSectorSizeGUID)},
	{rule: ondisk.RuleItemLength, name: "file parameters of 7 bytes", damage: withLength(ondisk.FileParametersGUID, 7)},
	{rule: ondisk.RuleItemLength, name: "disk size of 4 bytes", damage: withLength(ondisk.DiskSizeGUID, 4)},
	{rule: ondisk.RuleItemLength, name: "disk id of 15 bytes", damage: withLength(ondisk.DiskIDGUID, 15)},
	{rule: ondisk.RuleItemLength, name: "logical sector size of 2 bytes", damage: withLength(ondisk.LogicalSectorSizeGUID, 2)},
	{rule: ondisk.RuleItemLength, name: "empty physical sector size", damage: withLength(ondisk.PhysicalSectorSizeGUID, 0)},
	{rule: ondisk.RuleItemLength, name: "parent locator of 19 bytes", spec: spec{typ: Differencing}, damage: withLength(ondisk.ParentLocatorGUID, 19)},

	{rule: ondisk.RuleBlockSize, name: "block size 0", damage: with32(ondisk.FileParametersGUID, 0)},
	{rule: ondisk.RuleBlockSize, name: "block size 512 KiB", damage: with32(ondisk.FileParametersGUID, 512*ondisk.KiB)},
	{rule: ondisk.RuleBlockSize, name: "block size 3 MiB", damage: with32(ondisk.FileParametersGUID, 3*ondisk.MiB)},
	{rule: ondisk.RuleBlockSize, name: "block size 512 MiB", damage: with32(ondisk.FileParametersGUID, 512*ondisk.MiB)},
	{rule: ondisk.RuleBlockSize, name: "block size 1 MiB and a byte", damage: with32(ondisk.FileParametersGUID, ondisk.MiB+1)},
	{rule: ondisk.RuleBlockSize, name: "block size 2 GiB", damage: with32(ondisk.FileParametersGUID, 1<<31)},
	{rule: ondisk.RuleBlockSize, name: "block size 256 MiB", good: true, damage: with32(ondisk.FileParametersGUID, 256*ondisk.MiB)},
	{rule: ondisk.RuleLogicalSectorSize, name: "logical sector size 0", damage: with32(ondisk.LogicalSectorSizeGUID, 0)},
	{rule: ondisk.RuleLogicalSectorSize, name: "logical sector size 1024", damage: with32(ondisk.LogicalSectorSizeGUID, 1024)},
	{rule: ondisk.RuleLogicalSectorSize, name: "logical sector size 4096", good: true, damage: with32(ondisk.LogicalSectorSizeGUID, 4096)},
	{rule: ondisk.RulePhysicalSectorSize, name: "physical sector size 0", damage: with32(ondisk.PhysicalSectorSizeGUID, 0)},
	{rule: ondisk.RulePhysicalSectorSize, name: "physical sector size 8192", damage: with32(ondisk.PhysicalSectorSizeGUID, 8192)},
	{rule: ondisk.RulePhysicalSectorSize, name: "physical smaller than logical", spec: spec{sectorSize: 4096}, good: true, damage: with32(ondisk.PhysicalSectorSizeGUID, 512)},
	{rule: ondisk.RuleDiskEmpty, name: "disk size 0", damage: with64(ondisk.DiskSizeGUID, 0)},
	{rule: ondisk.RuleDiskSizeUnaligned, name: "disk size of a byte", damage: with64(ondisk.DiskSizeGUID, 1)},
	{rule: ondisk.RuleDiskSizeUnaligned, name: "half a sector of 4096", spec: spec{sectorSize: 4096}, damage: with64(ondisk.DiskSizeGUID, 4*ondisk.MiB-2048)},
	{rule: ondisk.RuleDiskSizeUnaligned, name: "one sector", good: true, damage: with64(ondisk.DiskSizeGUID, 512)},
	{rule: ondisk.RuleDiskTooLarge, name: "64 TiB and a sector", damage: with64(ondisk.DiskSizeGUID, 64*ondisk.TiB+512)},
	{rule: ondisk.RuleDiskTooLarge, name: "disk size of all ones", damage: with64(ondisk.DiskSizeGUID, math.MaxUint64)},
	{rule: ondisk.RuleDiskTooLarge, name: "64 TiB", spec: spec{diskSize: 64 * ondisk.TiB}, good: true, damage: func(*scene) {}},
}
