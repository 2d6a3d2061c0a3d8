package vhdx

import (
	"math/bits"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A spaceMap knows which MiB of an image file are in use, with a bit for each: everything in a VHDX file
// begins at a multiple of 1 MiB.
type spaceMap struct {
	words []uint64
	n     int64 // MiB, the last of which may be cut short by the end of the file
	low   int64 // words below this one have no free MiB
}

func newSpaceMap(fileSize int64) *spaceMap {
	n := (fileSize + ondisk.MiB - 1) / ondisk.MiB
	return &spaceMap{words: make([]uint64, (n+63)/64), n: n}
}

// holds reports whether the n bytes at file offset off can be those of a file at all. Numbers from an image may be any.
func (m *spaceMap) holds(off, n int64) bool {
	return off >= 0 && n >= 0 && n <= ondisk.MaxFileSize && off <= ondisk.MaxFileSize-n
}

// mark takes the n bytes at file offset off and reports whether all of them were free. Both are rounded
// outwards to MiB, and what lies beyond the end of the file is left out. What no file can hold is not free.
func (m *spaceMap) mark(off, n int64) bool {
	if !m.holds(off, n) {
		return false
	}
	free := true
	for i, end := off/ondisk.MiB, min((off+n+ondisk.MiB-1)/ondisk.MiB, m.n); i < end; i++ {
		bit := uint64(1) << (i % 64)
		if m.words[i/64]&bit != 0 {
			free = false
		}
		m.words[i/64] |= bit
	}
	return free
}

// merge takes what o, a map of the same file, has taken, and reports whether both had taken some of it.
func (m *spaceMap) merge(o *spaceMap) (overlap bool) {
	for i, w := range o.words {
		overlap = overlap || m.words[i]&w != 0
		m.words[i] |= w
	}
	return overlap
}

// free returns the number of bytes that are not in use.
func (m *spaceMap) free() int64 {
	used := 0
	for _, w := range m.words {
		used += bits.OnesCount64(w)
	}
	return (m.n - int64(used)) * ondisk.MiB
}

// usedFrom returns the number of bytes in use from file offset off on, a multiple of 1 MiB.
func (m *spaceMap) usedFrom(off int64) int64 {
	used := 0
	for i := off / ondisk.MiB; i < m.n; {
		w, next := m.words[i/64]>>(i%64), i/64*64+64
		used += bits.OnesCount64(w)
		i = next
	}
	return int64(used) * ondisk.MiB
}

// cut forgets what lies behind the end of a file that has become shorter, where nothing is in use.
func (m *spaceMap) cut(fileSize int64) {
	m.n = (fileSize + ondisk.MiB - 1) / ondisk.MiB
	m.words = m.words[:(m.n+63)/64]
	m.low = min(m.low, int64(len(m.words)))
}

// find returns the first free run of n bytes below the limit.
func (m *spaceMap) find(n, limit int64) (off int64, ok bool) { return m.findFrom(n, 0, limit) }

// findFrom returns the first free run of n bytes from the file offset from on, and below the limit.
func (m *spaceMap) findFrom(n, from, limit int64) (off int64, ok bool) {
	need, run := n/ondisk.MiB, int64(0)
	for i := max(m.firstFree(), from/ondisk.MiB); i < min(m.n, limit/ondisk.MiB); i++ {
		if i%64 == 0 && m.words[i/64] == ^uint64(0) {
			run, i = 0, i+63
			continue
		}
		if m.words[i/64]&(1<<(i%64)) != 0 {
			run = 0
			continue
		}
		if run++; run == need {
			return (i - need + 1) * ondisk.MiB, true
		}
	}
	return 0, false
}

// firstFree returns the first MiB that may be free, and moves the mark below which none is.
func (m *spaceMap) firstFree() int64 {
	for m.low < int64(len(m.words)) && m.words[m.low] == ^uint64(0) {
		m.low++
	}
	return m.low * 64
}

// clear gives the n bytes at file offset off back, and reports whether all of them were taken. If not, it gives nothing
// back: a caller that is wrong about this does not know what is in use.
func (m *spaceMap) clear(off, n int64) bool {
	if !m.taken(off, n) {
		return false
	}
	for i, end := off/ondisk.MiB, min((off+n+ondisk.MiB-1)/ondisk.MiB, m.n); i < end; i++ {
		m.words[i/64] &^= 1 << (i % 64)
		m.low = min(m.low, i/64)
	}
	return true
}

// taken reports whether all of the n bytes at file offset off are in use, of those that lie inside the file.
func (m *spaceMap) taken(off, n int64) bool {
	if !m.holds(off, n) {
		return false
	}
	for i, end := off/ondisk.MiB, min((off+n+ondisk.MiB-1)/ondisk.MiB, m.n); i < end; i++ {
		if m.words[i/64]&(1<<(i%64)) == 0 {
			return false
		}
	}
	return true
}

// grow extends the map to a file of the given size.
func (m *spaceMap) grow(fileSize int64) {
	m.n = max(m.n, (fileSize+ondisk.MiB-1)/ondisk.MiB)
	for int64(len(m.words)) < (m.n+63)/64 {
		m.words = append(m.words, 0)
	}
}

// end returns the file offset behind the last MiB in use.
func (m *spaceMap) end() int64 {
	for i := len(m.words) - 1; i >= 0; i-- {
		if w := m.words[i]; w != 0 {
			return int64(i*64+64-bits.LeadingZeros64(w)) * ondisk.MiB
		}
	}
	return 0
}
