package vhdx

import (
	"maps"
	"sync"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// maxDirtyPages bounds what one log entry carries: with the pages of two region tables to repair, the descriptors
// still fit into one sector, and two such entries into the smallest log.
const maxDirtyPages = 126 - 2*ondisk.RegionTableSize/ondisk.PageSize

// dirtyPages owns the pages of metadata that were changed and are in no log entry yet. What always holds, where mu is not held:
//
//   - Each page in cached is pinned once for being there, so the cache keeps it. A page that is in the log, too, has another pin
//     for that, until it is in its place.
//   - There are no more pages in cached, with those that operations under way have claimed, than one log entry carries.
//   - What the pages say of blocks is true of the file: the bytes of each block that they map are in it. Whether these are
//     durable they do not say; barrier does.
//   - unmapped has the places that blocks had and these pages do not name any more. They are still in use: older pages, in the
//     log or in their places, may name them.
//
// All changes of pages are made with mu held, each edit as a whole. So what take copies is one instant of all of them.
type dirtyPages struct {
	mu       sync.Mutex                       // guards what follows; held for work in memory only
	roomFree sync.Cond                        // claimed has become smaller, or cached empty; its L is mu
	cached   map[int64]dirtyPage              // by file offset
	raw      map[int64]*[ondisk.PageSize]byte // likewise, pages that no cache holds, such as region tables to repair
	claimed  int                              // pages that operations under way may still make dirty
	barrier  bool                             // the payload of what is dirty must be durable before it is logged
	unmapped []place
}

// A dirtyPage is a pinned page of metadata that was changed.
type dirtyPage struct {
	span *cache.Span
	page int64
	p    *cache.Page
}

func (d *dirtyPages) init() {
	d.cached, d.raw = make(map[int64]dirtyPage), make(map[int64]*[ondisk.PageSize]byte)
	d.roomFree.L = &d.mu
}

// claim waits until n more pages may become dirty. For that it may need a sync round, which sync makes. It fails with the
// error of that, or of failed, which tells whether anything is written any more.
func (d *dirtyPages) claim(n int, failed, sync func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if err := failed(); err != nil {
			return err
		}
		dirty := len(d.cached)
		if dirty+d.claimed+n <= maxDirtyPages {
			d.claimed += n
			return nil
		}
		if dirty == 0 {
			d.roomFree.Wait() // until an edit under way gives up its claim
			continue
		}
		d.mu.Unlock()
		err := sync()
		d.mu.Lock()
		if err != nil {
			return err
		}
	}
}

// apply makes a change with do, which sets words of the pages, all of them pinned, and must not wait for anything. It may
// change barrier and unmapped. Then the pages are dirty: their pins belong to d, and pages is empty.
func (d *dirtyPages) apply(pages *[]dirtyPage, do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	for len(*pages) > 0 {
		p := (*pages)[0]
		*pages = (*pages)[1:]
		off := p.span.Offset(p.page)
		if _, already := d.cached[off]; already {
			p.span.Unpin(p.page) // one pin is enough
			continue
		}
		d.cached[off] = p
	}
}

// unclaim gives up a claim of n pages, and the pins of pages that were not changed.
func (d *dirtyPages) unclaim(n int, pages []dirtyPage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range pages {
		p.span.Unpin(p.page)
	}
	d.claimed -= n
	d.roomFree.Broadcast()
}

// addRaw makes pages dirty that no cache holds, by file offset. With barrier, all payload has to be durable before they are
// logged. They are not claimed: maxDirtyPages leaves room for the region tables, and others come while nothing else is dirty.
func (d *dirtyPages) addRaw(pages map[int64]*[ondisk.PageSize]byte, barrier bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(d.raw, pages)
	d.barrier = d.barrier || barrier
}

// count returns how many pages are dirty.
func (d *dirtyPages) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.cached) + len(d.raw)
}

// anyUnmapped reports whether space waits to be given up.
func (d *dirtyPages) anyUnmapped() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.unmapped) > 0
}

// forgetUnmapped drops the places to be given up, when another layer has come that does not have them.
func (d *dirtyPages) forgetUnmapped() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unmapped = nil
}

// A batch is the dirty metadata as it stood at one instant.
type batch struct {
	pages    []journal.Page
	pins     []dirtyPage // those of the pages that the cache holds, in the same order; zero for others
	barrier  bool
	unmapped []place
}

// take takes everything that is dirty. Changes are made with mu held, so the copies of the pages show one instant:
// an entry of the log never has a part of an edit. The bytes that they map are in the file already, since an edit applies
// after its payload is written; a sync from here on covers them.
func (d *dirtyPages) take() *batch {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := &batch{barrier: d.barrier, unmapped: d.unmapped}
	for off, p := range d.cached {
		data := new([ondisk.PageSize]byte)
		p.p.Encode(data)
		b.pages = append(b.pages, journal.Page{FileOffset: off, Data: data})
		b.pins = append(b.pins, p)
	}
	for off, data := range d.raw {
		b.pages = append(b.pages, journal.Page{FileOffset: off, Data: data})
		b.pins = append(b.pins, dirtyPage{})
	}
	clear(d.cached)
	clear(d.raw)
	d.barrier, d.unmapped = false, nil
	d.roomFree.Broadcast()
	return b
}
