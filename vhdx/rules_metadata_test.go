package vhdx

import (
	"math"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
)

// emptyItems returns n items that are present but empty, with the given flags.
func emptyItems(n int, flags uint32) []metadataItem {
	var list []metadataItem
	for i := range n {
		g := otherGUID
		le.PutUint32(g[:], uint32(i))
		list = append(list, metadataItem{ID: g, Flags: flags})
	}
	return list
}

// withItem returns a damage that adds one unknown item to the metadata table.
func withItem(off, length, flags uint32) func(*scene) {
	return func(s *scene) {
		s.addItems(metadataItem{ID: otherGUID, Offset: off, Length: length, Flags: flags})
	}
}

// withLength returns a damage that changes the length of a known item.
func withLength(id uuid.UUID, length uint32) func(*scene) {
	return func(s *scene) { s.changeItem(id, func(m *metadataItem) { m.Length = length }) }
}

// with32 returns a damage that changes the first four bytes of a known item.
func with32(id uuid.UUID, v uint32) func(*scene) {
	return func(s *scene) { s.setItem(id, le.AppendUint32(nil, v)) }
}

// with64 returns a damage that changes the first eight bytes of a known item.
func with64(id uuid.UUID, v uint64) func(*scene) {
	return func(s *scene) { s.setItem(id, le.AppendUint64(nil, v)) }
}

// without returns a damage that takes a known item away.
func without(id uuid.UUID) func(*scene) { return func(s *scene) { s.dropItem(id) } }

var metadataRules = []ruleCase{
	{rule: ondisk.R24, name: "signature", damage: func(s *scene) { s.write([]byte("METADATA"), s.metaOff) }},
	{rule: ondisk.R24, name: "nothing there", damage: func(s *scene) { s.write(make([]byte, metadataTableSize), s.metaOff) }},
	{rule: ondisk.R25, name: "2048 entries", damage: func(s *scene) { s.write(le.AppendUint16(nil, 2048), s.metaOff+10) }},
	{rule: ondisk.R25, name: "as many entries as fit 16 bits", damage: func(s *scene) {
		s.write(le.AppendUint16(nil, math.MaxUint16), s.metaOff+10)
	}},
	{rule: ondisk.R25, name: "2047 entries", good: true, damage: func(s *scene) {
		s.addItems(emptyItems(maxMetadataEntries-len(s.image.items), 0)...)
	}},
	{rule: ondisk.R26, name: "1025 user entries", damage: func(s *scene) { s.addItems(emptyItems(1025, itemIsUser)...) }},
	{rule: ondisk.R26, name: "1024 user entries", good: true, damage: func(s *scene) { s.addItems(emptyItems(1024, itemIsUser)...) }},
	{rule: ondisk.R27, name: "disk size twice", damage: func(s *scene) { s.addItems(*s.item(diskSizeGUID)) }},
	{rule: ondisk.R27, name: "user item twice", damage: func(s *scene) {
		s.addItems(append(emptyItems(1, itemIsUser), emptyItems(1, itemIsUser)...)...)
	}},
	{rule: ondisk.R27, name: "user item with the id of a system item", good: true, damage: func(s *scene) {
		s.addItems(metadataItem{ID: diskSizeGUID, Flags: itemIsUser})
	}},
	{rule: ondisk.R28, name: "item on the last byte of the table", damage: withItem(metadataTableSize-1, 1, 0)},
	{rule: ondisk.R28, name: "item at the start of the region", damage: withItem(0, 16, 0)},
	{rule: ondisk.R28, name: "disk size inside the table", damage: func(s *scene) {
		s.changeItem(diskSizeGUID, func(m *metadataItem) { m.Offset = 4096 })
	}},
	{rule: ondisk.R28, name: "empty item at the start of the region", good: true, damage: withItem(0, 0, 0)},

	{rule: ondisk.R29, name: "item a byte beyond the region", damage: withItem(mib-15, 16, 0)},
	{rule: ondisk.R29, name: "item up to the end of the region", good: true, damage: withItem(mib-16, 16, 0)},
	{rule: ondisk.R29, name: "item that wraps", damage: withItem(math.MaxUint32-7, 16, 0)},
	{rule: ondisk.R29, name: "disk size beyond the region", damage: func(s *scene) {
		s.changeItem(diskSizeGUID, func(m *metadataItem) { m.Offset = math.MaxUint32 - 7 })
	}},
	{rule: ondisk.R30, name: "two items on one place", damage: func(s *scene) {
		s.changeItem(diskSizeGUID, func(m *metadataItem) { m.Offset = s.item(diskIDGUID).Offset })
	}},
	{rule: ondisk.R30, name: "items a byte into each other", damage: func(s *scene) {
		s.addItems(metadataItem{ID: otherGUID, Offset: 512 * kib, Length: 17},
			metadataItem{ID: otherGUID, Offset: 512*kib + 16, Length: 16, Flags: itemIsUser})
	}},
	{rule: ondisk.R30, name: "items side by side", good: true, damage: func(s *scene) {
		s.addItems(metadataItem{ID: otherGUID, Offset: 512 * kib, Length: 16},
			metadataItem{ID: otherGUID, Offset: 512*kib + 16, Length: 16, Flags: itemIsUser})
	}},
	{rule: ondisk.R31, name: "item of 1 MiB and a byte", spec: spec{metaLen: 4 * mib}, damage: withItem(mib, mib+1, 0)},
	{rule: ondisk.R31, name: "item of 1 MiB", spec: spec{metaLen: 4 * mib}, good: true, damage: withItem(mib, mib, 0)},
	{rule: ondisk.R31, name: "item of the largest length", damage: withItem(mib/2, math.MaxUint32, 0)},

	{rule: ondisk.R32, name: "unknown system item", damage: withItem(0, 0, itemIsRequired)},
	{rule: ondisk.R32, name: "unknown user item", damage: withItem(0, 0, itemIsRequired|itemIsUser)},
	{rule: ondisk.R32, name: "user item with the id of a system item", damage: func(s *scene) {
		s.addItems(metadataItem{ID: diskSizeGUID, Flags: itemIsUser | itemIsRequired})
	}},
	{rule: ondisk.R32, name: "item known to Windows alone", damage: func(s *scene) { // O12: an unfinished creation
		s.addItems(metadataItem{ID: uuid.MustParse("71CC85F0-1B69-4E28-9558-C3BF83AE75D3"), Flags: itemIsRequired})
	}},

	{rule: ondisk.R33, name: "no file parameters", damage: without(fileParametersGUID)},
	{rule: ondisk.R33, name: "file parameters as a user item", damage: func(s *scene) {
		s.changeItem(fileParametersGUID, func(m *metadataItem) { m.Flags = itemIsUser })
	}},
	{rule: ondisk.R34, name: "no disk size", damage: without(diskSizeGUID)},
	{rule: ondisk.R35, name: "no logical sector size", damage: without(logicalSectorSizeGUID)},
	{rule: ondisk.R36, name: "file parameters of 7 bytes", damage: withLength(fileParametersGUID, 7)},
	{rule: ondisk.R36, name: "disk size of 4 bytes", damage: withLength(diskSizeGUID, 4)},
	{rule: ondisk.R36, name: "disk id of 15 bytes", damage: withLength(diskIDGUID, 15)},
	{rule: ondisk.R36, name: "logical sector size of 2 bytes", damage: withLength(logicalSectorSizeGUID, 2)},
	{rule: ondisk.R36, name: "empty physical sector size", damage: withLength(physicalSectorSizeGUID, 0)},
	{rule: ondisk.R36, name: "parent locator of 19 bytes", spec: spec{typ: Differencing}, damage: withLength(parentLocatorGUID, 19)},

	{rule: ondisk.R37, name: "block size 0", damage: with32(fileParametersGUID, 0)},
	{rule: ondisk.R37, name: "block size 512 KiB", damage: with32(fileParametersGUID, 512*kib)},
	{rule: ondisk.R37, name: "block size 3 MiB", damage: with32(fileParametersGUID, 3*mib)},
	{rule: ondisk.R37, name: "block size 512 MiB", damage: with32(fileParametersGUID, 512*mib)},
	{rule: ondisk.R37, name: "block size 1 MiB and a byte", damage: with32(fileParametersGUID, mib+1)},
	{rule: ondisk.R37, name: "block size 2 GiB", damage: with32(fileParametersGUID, 1<<31)},
	{rule: ondisk.R37, name: "block size 256 MiB", good: true, damage: with32(fileParametersGUID, 256*mib)},
	{rule: ondisk.R38, name: "logical sector size 0", damage: with32(logicalSectorSizeGUID, 0)},
	{rule: ondisk.R38, name: "logical sector size 1024", damage: with32(logicalSectorSizeGUID, 1024)},
	{rule: ondisk.R38, name: "logical sector size 4096", good: true, damage: with32(logicalSectorSizeGUID, 4096)},
	{rule: ondisk.R39, name: "physical sector size 0", damage: with32(physicalSectorSizeGUID, 0)},
	{rule: ondisk.R39, name: "physical sector size 8192", damage: with32(physicalSectorSizeGUID, 8192)},
	{rule: ondisk.R39, name: "physical smaller than logical", spec: spec{sectorSize: 4096}, good: true, damage: with32(physicalSectorSizeGUID, 512)},
	{rule: ondisk.R40, name: "disk size 0", damage: with64(diskSizeGUID, 0)},
	{rule: ondisk.R41, name: "disk size of a byte", damage: with64(diskSizeGUID, 1)},
	{rule: ondisk.R41, name: "half a sector of 4096", spec: spec{sectorSize: 4096}, damage: with64(diskSizeGUID, 4*mib-2048)},
	{rule: ondisk.R41, name: "one sector", good: true, damage: with64(diskSizeGUID, 512)},
	{rule: ondisk.R42, name: "64 TiB and a sector", damage: with64(diskSizeGUID, 64*tib+512)},
	{rule: ondisk.R42, name: "disk size of all ones", damage: with64(diskSizeGUID, math.MaxUint64)},
	{rule: ondisk.R42, name: "64 TiB", spec: spec{diskSize: 64 * tib}, good: true, damage: func(*scene) {}},
}
