package vhdx

import (
	"math"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
)

// optionalRegions returns n unknown regions that are not required and lie outside the file, side by side.
func optionalRegions(n int) []region {
	var list []region
	for i := range n {
		g := otherGUID
		le.PutUint32(g[:], uint32(i))
		list = append(list, region{GUID: g, Offset: tib + uint64(i)*mib, Length: mib})
	}
	return list
}

var regionRules = []ruleCase{
	{rule: ondisk.R14, name: "both signatures", damage: func(s *scene) {
		s.stamp(regionTableOffsets, regionTableSize, func(b []byte) { copy(b, "iger") })
	}},
	{rule: ondisk.R14, name: "both checksums", damage: func(s *scene) {
		for _, off := range regionTableOffsets {
			s.change(off+4, 1, func(b []byte) { b[0]++ })
		}
	}},
	{rule: ondisk.R14, name: "a flipped bit behind the entries of both", damage: func(s *scene) {
		for _, off := range regionTableOffsets {
			s.change(off+regionTableSize-1, 1, func(b []byte) { b[0] ^= 1 })
		}
	}},
	{rule: ondisk.R15, name: "2048 entries", damage: func(s *scene) {
		s.stamp(regionTableOffsets, regionTableSize, func(b []byte) { le.PutUint32(b[8:], 2048) })
	}},
	{rule: ondisk.R15, name: "as many entries as fit 32 bits", damage: func(s *scene) {
		s.stamp(regionTableOffsets, regionTableSize, func(b []byte) { le.PutUint32(b[8:], math.MaxUint32) })
	}},
	{rule: ondisk.R15, name: "2048 entries in the only valid copy", damage: func(s *scene) {
		s.stamp(regionTableOffsets, regionTableSize, func(b []byte) { le.PutUint32(b[8:], 2048) })
		s.write([]byte("xxxx"), regionTableOffsets[0])
	}},
	{rule: ondisk.R15, name: "2047 entries", good: true, damage: inRegions(func(r []region) []region {
		return append(r, optionalRegions(maxRegions-2)...)
	})},

	{rule: ondisk.R16, name: "BAT region twice", damage: inRegions(func(r []region) []region { return append(r, r[0]) })},
	{rule: ondisk.R16, name: "optional region twice", damage: inRegions(func(r []region) []region {
		o := optionalRegions(2)
		o[1].GUID = o[0].GUID
		return append(r, o...)
	})},
	{rule: ondisk.R17, name: "BAT not at a MiB", damage: inRegions(func(r []region) []region {
		r[0].Offset += 64 * kib
		return r
	})},
	{rule: ondisk.R17, name: "metadata in the header section", damage: inRegions(func(r []region) []region {
		r[1].Offset = 0
		return r
	})},
	{rule: ondisk.R17, name: "optional region in the header section", damage: inRegions(func(r []region) []region {
		return append(r, region{GUID: otherGUID, Length: mib})
	})},
	{rule: ondisk.R18, name: "BAT of no length", damage: inRegions(func(r []region) []region {
		r[0].Length = 0
		return r
	})},
	{rule: ondisk.R18, name: "metadata of 1 MiB and a byte", damage: inRegions(func(r []region) []region {
		r[1].Length++
		return r
	})},
	{rule: ondisk.R18, name: "optional region of no length", damage: inRegions(func(r []region) []region {
		return append(r, region{GUID: otherGUID, Offset: tib})
	})},

	{rule: ondisk.R19, name: "BAT on metadata", damage: inRegions(func(r []region) []region {
		r[0].Offset = r[1].Offset
		return r
	})},
	{rule: ondisk.R19, name: "BAT reaching into metadata", spec: spec{batOff: 2 * mib, metaOff: 3 * mib}, damage: inRegions(func(r []region) []region {
		r[0].Length += mib
		return r
	})},
	{rule: ondisk.R19, name: "metadata on the log", damage: func(s *scene) {
		s.setHeaders(func(h *header) { h.LogOffset = uint64(s.metaOff) })
	}},
	{rule: ondisk.R19, name: "long log over everything", damage: inHeaders(func(h *header) { h.LogLength = 3 * mib })},
	{rule: ondisk.R19, name: "optional region in the log", damage: func(s *scene) {
		s.setRegions(func(r []region) []region {
			return append(r, region{GUID: otherGUID, Offset: uint64(s.logOff), Length: mib})
		})
	}},
	{rule: ondisk.R19, name: "optional region that wraps", damage: inRegions(func(r []region) []region {
		return append(r, region{GUID: otherGUID, Offset: math.MaxUint64 - mib + 1, Length: 2 * mib})
	})},
	{rule: ondisk.R19, name: "regions side by side", good: true, damage: func(s *scene) {
		s.setRegions(func(r []region) []region {
			return append(r, region{GUID: otherGUID, Offset: uint64(s.batOff + s.batLen), Length: mib})
		})
	}},
	{rule: ondisk.R20, name: "no BAT region", damage: inRegions(func(r []region) []region { return r[1:] })},
	{rule: ondisk.R20, name: "no regions", damage: inRegions(func([]region) []region { return nil })},
	{rule: ondisk.R20, name: "BAT region in the byte order of UUIDs", damage: inRegions(func(r []region) []region {
		r[0].Flags = 0
		r[0].GUID = uuid.MustParse("6677C22D-23F6-0042-9D64-115E9BFD4A08")
		return r
	})},
	{rule: ondisk.R21, name: "no metadata region", damage: inRegions(func(r []region) []region { return r[:1] })},
	{rule: ondisk.R22, name: "unknown required region", damage: inRegions(func(r []region) []region {
		return append(r, region{GUID: otherGUID, Offset: tib, Length: mib, Flags: regionRequired})
	})},

	{rule: ondisk.R23, name: "BAT behind the file", damage: func(s *scene) {
		s.setRegions(func(r []region) []region {
			r[0].Offset = uint64(s.size)
			return r
		})
	}},
	{rule: ondisk.R23, name: "BAT a MiB beyond the file", damage: func(s *scene) {
		s.setRegions(func(r []region) []region {
			r[0].Length += uint32(s.size - s.batOff)
			return r
		})
	}},
	{rule: ondisk.R23, name: "metadata at 2^63", damage: inRegions(func(r []region) []region {
		r[1].Offset = 1 << 63
		return r
	})},
	{rule: ondisk.R23, name: "BAT that wraps", damage: inRegions(func(r []region) []region {
		r[0].Offset, r[0].Length = math.MaxUint64-mib+1, 2*mib
		return r
	})},
	{rule: ondisk.R23, name: "file cut inside the BAT", damage: func(s *scene) { s.Truncate(s.batOff + mib - 1) }},
	{rule: ondisk.R23, name: "BAT up to the end of the file", good: true, damage: func(s *scene) { s.Truncate(s.batOff + mib) }},
}
