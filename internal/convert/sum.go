package convert

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
)

// A sum is a checksum of a disk that does not depend on the order in which its pieces are added. Pieces that are
// zero are not added at all.
type sum struct {
	seed  maphash.Seed
	total atomic.Uint64
}

func newSum() *sum { return &sum{seed: maphash.MakeSeed()} }

// again returns an empty sum that can be compared with s.
func (s *sum) again() *sum { return &sum{seed: s.seed} }

func (s *sum) add(off int64, p []byte) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(off))
	_, _ = h.Write(b[:]) // it never fails
	_, _ = h.Write(p)
	s.total.Add(h.Sum64())
}

func (s *sum) equal(o *sum) bool { return s.total.Load() == o.total.Load() }
