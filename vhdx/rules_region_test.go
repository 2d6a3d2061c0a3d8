package vhdx

import (
	"math"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// optionalRegions returns n unknown regions that are not required and lie outside the file, side by side.
func optionalRegions(n int) []ondisk.Region {
	var list []ondisk.Region
	for i := range n {
		g := otherGUID
		ondisk.LE.PutUint32(g[:], uint32(i))
		list = append(list, ondisk.Region{GUID: g, Offset: ondisk.TiB + uint64(i)*ondisk.MiB, Length: ondisk.MiB})
	}
	return list
}

var regionRules = []ruleCase{
	{rule: ondisk.RuleNoValidRegionTable, name: "both signatures", damage: func(s *scene) {
		s.stamp(ondisk.RegionTableOffsets, ondisk.RegionTableSize, func(b []byte) { copy(b, "iger") })
	}},
	{rule: ondisk.RuleNoValidRegionTable, name: "both checksums", damage: func(s *scene) {
		for _, off := range ondisk.RegionTableOffsets {
			s.change(off+4, 1, func(b []byte) { b[0]++ })
		}
	}},
	{rule: ondisk.RuleNoValidRegionTable, name: "a flipped bit behind the entries of both", damage: func(s *scene) {
		for _, off := range ondisk.RegionTableOffsets {
			s.change(off+ondisk.RegionTableSize-1, 1, func(b []byte) { b[0] ^= 1 })
		}
	}},
	{rule: ondisk.RuleRegionCount, name: "2048 entries", damage: func(s *scene) {
		s.stamp(ondisk.RegionTableOffsets, ondisk.RegionTableSize, func(b []byte) { ondisk.LE.PutUint32(b[8:], 2048) })
	}},
	{rule: ondisk.RuleRegionCount, name: "as many entries as fit 32 bits", damage: func(s *scene) {
		s.stamp(ondisk.RegionTableOffsets, ondisk.RegionTableSize, func(b []byte) { ondisk.LE.PutUint32(b[8:], math.MaxUint32) })
	}},
	{rule: ondisk.RuleRegionCount, name: "2048 entries in the only valid copy", damage: func(s *scene) {
		s.stamp(ondisk.RegionTableOffsets, ondisk.RegionTableSize, func(b []byte) { ondisk.LE.PutUint32(b[8:], 2048) })
		s.write([]byte("xxxx"), ondisk.RegionTableOffsets[0])
	}},
	{rule: ondisk.RuleRegionCount, name: "2047 entries", good: true, damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, optionalRegions(ondisk.MaxRegions-2)...)
	})},

	{rule: ondisk.RuleRegionTwice, name: "BAT region twice", damage: inRegions(func(r []ondisk.Region) []ondisk.Region { return append(r, r[0]) })},
	{rule: ondisk.RuleRegionTwice, name: "optional region twice", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		o := optionalRegions(2)
		o[1].GUID = o[0].GUID
		return append(r, o...)
	})},
	{rule: ondisk.RuleRegionOffset, name: "BAT not at a MiB", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Offset += 64 * ondisk.KiB
		return r
	})},
	{rule: ondisk.RuleRegionOffset, name: "metadata in the header section", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[1].Offset = 0
		return r
	})},
	{rule: ondisk.RuleRegionOffset, name: "optional region in the header section", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Length: ondisk.MiB})
	})},
	{rule: ondisk.RuleRegionLength, name: "BAT of no length", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Length = 0
		return r
	})},
	{rule: ondisk.RuleRegionLength, name: "metadata of 1 MiB and a byte", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[1].Length++
		return r
	})},
	{rule: ondisk.RuleRegionLength, name: "optional region of no length", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Offset: ondisk.TiB})
	})},

	{rule: ondisk.RuleRegionOverlap, name: "BAT on metadata", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Offset = r[1].Offset
		return r
	})},
	{rule: ondisk.RuleRegionOverlap, name: "BAT reaching into metadata", spec: spec{batOff: 2 * ondisk.MiB, metaOff: 3 * ondisk.MiB}, damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Length += ondisk.MiB
		return r
	})},
	{rule: ondisk.RuleRegionOverlap, name: "metadata on the log", damage: func(s *scene) {
		s.setHeaders(func(h *ondisk.Header) { h.LogOffset = uint64(s.metaOff) })
	}},
	{rule: ondisk.RuleRegionOverlap, name: "long log over everything", damage: inHeaders(func(h *ondisk.Header) { h.LogLength = 3 * ondisk.MiB })},
	{rule: ondisk.RuleRegionOverlap, name: "optional region in the log", damage: func(s *scene) {
		s.setRegions(func(r []ondisk.Region) []ondisk.Region {
			return append(r, ondisk.Region{GUID: otherGUID, Offset: uint64(s.logOff), Length: ondisk.MiB})
		})
	}},
	{rule: ondisk.RuleRegionOverlap, name: "optional region that wraps", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Offset: math.MaxUint64 - ondisk.MiB + 1, Length: 2 * ondisk.MiB})
	})},
	{rule: ondisk.RuleRegionOverlap, name: "regions side by side", good: true, damage: func(s *scene) {
		s.setRegions(func(r []ondisk.Region) []ondisk.Region {
			return append(r, ondisk.Region{GUID: otherGUID, Offset: uint64(s.batOff + s.batLen), Length: ondisk.MiB})
		})
	}},
	{rule: ondisk.RuleNoBATRegion, name: "no BAT region", damage: inRegions(func(r []ondisk.Region) []ondisk.Region { return r[1:] })},
	{rule: ondisk.RuleNoBATRegion, name: "no regions", damage: inRegions(func([]ondisk.Region) []ondisk.Region { return nil })},
	{rule: ondisk.RuleNoBATRegion, name: "BAT region in the byte order of UUIDs", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Flags = 0
		r[0].GUID = uuid.MustParse("6677C22D-23F6-0042-9D64-115E9BFD4A08")
		return r
	})},
	{rule: ondisk.RuleNoMetadataRegion, name: "no metadata region", damage: inRegions(func(r []ondisk.Region) []ondisk.Region { return r[:1] })},
	{rule: ondisk.RuleRegionUnknown, name: "unknown required region", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		return append(r, ondisk.Region{GUID: otherGUID, Offset: ondisk.TiB, Length: ondisk.MiB, Flags: ondisk.RegionRequired})
	})},

	{rule: ondisk.RuleRegionBeyondFile, name: "BAT behind the file", damage: func(s *scene) {
		s.setRegions(func(r []ondisk.Region) []ondisk.Region {
			r[0].Offset = uint64(s.size)
			return r
		})
	}},
	{rule: ondisk.RuleRegionBeyondFile, name: "BAT a MiB beyond the file", damage: func(s *scene) {
		s.setRegions(func(r []ondisk.Region) []ondisk.Region {
			r[0].Length += uint32(s.size - s.batOff)
			return r
		})
	}},
	{rule: ondisk.RuleRegionBeyondFile, name: "metadata at 2^63", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[1].Offset = 1 << 63
		return r
	})},
	{rule: ondisk.RuleRegionBeyondFile, name: "BAT that wraps", damage: inRegions(func(r []ondisk.Region) []ondisk.Region {
		r[0].Offset, r[0].Length = math.MaxUint64-ondisk.MiB+1, 2*ondisk.MiB
		return r
	})},
	{rule: ondisk.RuleRegionBeyondFile, name: "file cut inside the BAT", damage: func(s *scene) { s.Truncate(s.batOff + ondisk.MiB - 1) }},
	{rule: ondisk.RuleRegionBeyondFile, name: "BAT up to the end of the file", good: true, damage: func(s *scene) { s.Truncate(s.batOff + ondisk.MiB) }},
}
