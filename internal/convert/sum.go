package convert

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
)

// A sum is a checksum of a disk that does not depend on the order in which its pieces are added, nor on how it is cut into
// them, at multiples of sumUnit. What is zero is not added at all.
type sum struct {
	seed  maphash.Seed
	total atomic.Uint64
}

func newSum() *sum { return &sum{seed: maphash.MakeSeed()} }

// again returns an empty sum that can be compared with s.
func (s *sum) again() *sum { return &sum{seed: s.seed} }

const sumUnit = 4 << 10 // bytes

// add adds the bytes of the disk from off on.
func (s *sum) add(off int64, p []byte) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	total := uint64(0)
	for ; len(p) > 0; p, off = p[min(sumUnit, len(p)):], off+sumUnit {
		unit := bytes.TrimRight(p[:min(sumUnit, len(p))], "\x00") // the output may have padding behind the last byte
		if len(unit) == 0 {
			continue
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(off))
		h.Reset()
		_, _ = h.Write(b[:]) // it never fails
		_, _ = h.Write(unit)
		total += h.Sum64()
	}
	s.total.Add(total)
}

func (s *sum) equal(o *sum) bool { return s.total.Load() == o.total.Load() }
