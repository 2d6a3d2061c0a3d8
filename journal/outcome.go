package journal

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// maxZeroUpdates bounds the memory of a replay: 24 bytes for each zero descriptor with a length. As many
// take a log of more than 32 MiB; writers in the field use logs of 1 MiB.
const maxZeroUpdates = 1 << 20

// An outcome is what a file reads as once a sequence has been replayed: where both lists name a byte,
// the page counts. Working it out before anything is written or read keeps the work of a replay linear, even
// if every one of a million descriptors wipes the whole file.
type outcome struct {
	pages []page   // by rising offset, none twice
	zeros []extent // by rising offset, disjoint and not adjacent
	size  int64    // bytes
}

// A page is an updated page of the file. Its bytes stay in the log, but for those in its descriptor.
type page struct {
	off      int64  // file offset, bytes
	data     uint32 // position of the data sector, bytes
	order    uint32 // of the update within the sequence
	leading  [leadingSize]byte
	trailing [SectorSize - trailingStart]byte
}

// An extent is the range off to end of the file, in bytes.
type extent struct{ off, end int64 }

// replayed returns the outcome for a file of size bytes, and an error where Check would.
func (s *Sequence) replayed(size int64) (*outcome, error) {
	if err := s.checkSizes(size); err != nil {
		return nil, err
	}
	o := &outcome{size: max(size, int64(s.LastFileOffset))} // #nosec G115 -- checkSizes bounds it
	var zeros []zeroUpdate
	var order uint32
	err := s.updates(func(u update) error {
		order++
		o.size = max(o.size, u.end)
		switch {
		case !u.zero:
			o.pages = append(o.pages, page{
				off: u.off, data: uint32(u.data), order: order, leading: u.leading, trailing: u.trailing,
			})
		case u.off < u.end:
			if len(zeros) == maxZeroUpdates {
				return fmt.Errorf("journal: log at %#x: more than %d zero descriptors", s.Region.Offset, maxZeroUpdates)
			}
			zeros = append(zeros, zeroUpdate{extent{u.off, u.end}, order})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	o.pages = dropWiped(lastOfEach(o.pages), zeros)
	o.zeros = union(zeros)
	return o, nil
}

// A zeroUpdate is a zero descriptor.
type zeroUpdate struct {
	extent
	order uint32 // of the update within the sequence
}

// lastOfEach sorts pages by offset and keeps the last update of each.
func lastOfEach(pages []page) []page {
	slices.SortFunc(pages, func(a, b page) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(b.order, a.order)) // latest first
	})
	return slices.CompactFunc(pages, func(a, b page) bool { return a.off == b.off })
}

// dropWiped removes the pages that a later zero descriptor covers. pages is sorted by offset, zeros by order.
func dropWiped(pages []page, zeros []zeroUpdate) []page {
	if len(pages) == 0 || len(zeros) == 0 {
		return pages
	}
	// The latest zero descriptor that covers a page decides about it. Going through them latest first, each
	// page is looked at once: next[i] leads to the first page from i on that none has covered so far.
	next := make([]int, len(pages)+1)
	for i := range next {
		next[i] = i
	}
	find := func(i int) int {
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	for _, z := range slices.Backward(zeros) {
		i, _ := slices.BinarySearchFunc(pages, z.off, func(p page, off int64) int { return cmp.Compare(p.off, off) })
		for i = find(i); i < len(pages) && pages[i].off < z.end; i = find(i) {
			if pages[i].order < z.order {
				pages[i].order = 0 // wiped
			}
			next[i] = i + 1
		}
	}
	return slices.DeleteFunc(pages, func(p page) bool { return p.order == 0 })
}

// union returns the ranges of zeros by rising offset, joined where they touch. It reorders zeros.
func union(zeros []zeroUpdate) []extent {
	slices.SortFunc(zeros, func(a, b zeroUpdate) int { return cmp.Compare(a.off, b.off) })
	var u []extent
	for _, z := range zeros {
		if n := len(u); n > 0 && z.off <= u[n-1].end {
			u[n-1].end = max(u[n-1].end, z.end)
			continue
		}
		u = append(u, z.extent)
	}
	return u
}

// pageAt returns the first page that ends behind off, or nil.
func (o *outcome) pageAt(off int64) *page {
	i := sort.Search(len(o.pages), func(i int) bool { return o.pages[i].off > off-SectorSize })
	if i == len(o.pages) {
		return nil
	}
	return &o.pages[i]
}

// zerosAt returns the first range of zeros that ends behind off, or nil.
func (o *outcome) zerosAt(off int64) *extent {
	i := sort.Search(len(o.zeros), func(i int) bool { return o.zeros[i].end > off })
	if i == len(o.zeros) {
		return nil
	}
	return &o.zeros[i]
}

// read reads len(p) bytes from byte from of the page, which must hold them.
func (pg *page) read(s *Sequence, p []byte, from int) error {
	// The data sector has the bytes of the middle where the page has them.
	if err := readFull(s.r, p, s.Region.at(int64(pg.data))+int64(from)); err != nil {
		return fmt.Errorf("journal: read the log at %#x: %w", s.Region.at(int64(pg.data)), err)
	}
	if from < leadingSize {
		copy(p, pg.leading[from:])
	}
	if end := from + len(p); end > trailingStart {
		at := max(from, trailingStart)
		copy(p[at-from:], pg.trailing[at-trailingStart:])
	}
	return nil
}
