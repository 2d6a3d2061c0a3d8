package vhdx

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func newDirtyPages() (*dirtyPages, *cache.Span) {
	d := new(dirtyPages)
	d.init()
	return d, cache.New(64*ondisk.PageSize).Span(newMemFile(ondisk.MiB), 0, 256)
}

func pinned(t *testing.T, s *cache.Span, i int64) dirtyPage {
	t.Helper()
	p, err := s.Pin(i)
	if err != nil {
		t.Fatal(err)
	}
	return dirtyPage{s, i, p}
}

func noError() error { return nil }

func TestABatchIsOneInstant(t *testing.T) {
	d, s := newDirtyPages()
	p := pinned(t, s, 3)
	pages := []dirtyPage{p}
	d.apply(&pages, func() {
		p.p.SetWord(0, 1)
		d.barrier = true
		d.unmapped = []place{{off: 5 * ondisk.MiB, size: ondisk.MiB}}
	})
	if len(pages) > 0 || d.count() != 1 || !d.anyUnmapped() {
		t.Fatalf("after apply, %d pages are the caller's, %d are dirty", len(pages), d.count())
	}
	raw := new([ondisk.PageSize]byte)
	d.addRaw(map[int64]*[ondisk.PageSize]byte{ondisk.MiB: raw}, false)
	b := d.take()
	again := []dirtyPage{pinned(t, s, 3)}
	d.apply(&again, func() { p.p.SetWord(0, 2) })
	if len(b.pages) != 2 || b.pages[0].FileOffset != 3*ondisk.PageSize || b.pages[0].Data[0] != 1 || b.pages[1].Data != raw || !b.barrier || len(b.unmapped) != 1 {
		t.Errorf("the batch is %+v; want what was dirty when it was taken", b)
	}
	if b.pins[0] != p || b.pins[1].span != nil {
		t.Error("the batch does not have the pins of its pages")
	}
	if c := d.take(); len(c.pages) != 1 || c.pages[0].Data[0] != 2 || c.barrier || len(c.unmapped) > 0 {
		t.Errorf("the next batch is %+v; want what became dirty since", c)
	}
	if d.count() != 0 || d.anyUnmapped() {
		t.Error("something is dirty in the end")
	}
}

// A page that is changed twice is dirty once, with one pin. A change that panics leaves its pins to the caller.
func TestPinsOfDirtyPages(t *testing.T) {
	d, s := newDirtyPages()
	for range 2 {
		pages := []dirtyPage{pinned(t, s, 1), pinned(t, s, 2)}
		d.apply(&pages, func() {})
	}
	pages := []dirtyPage{pinned(t, s, 4)}
	func() {
		defer func() { _ = recover() }()
		d.apply(&pages, func() { panic("in a change") })
	}()
	if len(pages) != 1 {
		t.Fatalf("after a panic, %d pages are the caller's; want 1", len(pages))
	}
	d.unclaim(0, pages)
	b := d.take()
	if len(b.pages) != 2 {
		t.Fatalf("%d pages are in the batch; want 2", len(b.pages))
	}
	if kept := keptPages(t, s, 5); !slices.Equal(kept, []int64{1, 2}) {
		t.Errorf("the cache cannot give up the pages %v; want those that are dirty", kept)
	}
	for _, p := range b.pins {
		p.span.Unpin(p.page)
	}
	if kept := keptPages(t, s, 5); len(kept) > 0 {
		t.Errorf("the cache cannot give up the pages %v, which have no pins any more", kept)
	}
}

// keptPages returns which of the first n pages of s stay in the cache when all others were read.
func keptPages(t *testing.T, s *cache.Span, n int64) (kept []int64) {
	t.Helper()
	for range 3 {
		for i := n; i < 256; i++ {
			if _, _, err := s.Word(i, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range n {
		if s.Cached(i) {
			kept = append(kept, i)
		}
	}
	return kept
}

// However many edits there are at once, what is dirty fits into one log entry.
func TestClaimsKeepABatchInOneEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newDirtyPages()
		var mu sync.Mutex
		var rounds, done int
		var sizes []int
		round := func() error {
			mu.Lock()
			defer mu.Unlock()
			b := d.take()
			rounds, sizes = rounds+1, append(sizes, len(b.pages))
			for _, p := range b.pins {
				p.span.Unpin(p.page)
			}
			return nil
		}
		for i := range int64(200) {
			go func() {
				if err := d.claim(2, noError, round); err != nil {
					t.Error(err)
				}
				pages := []dirtyPage{pinned(t, s, i)} // fewer than it has claimed
				d.apply(&pages, func() {})
				d.unclaim(2, nil)
				mu.Lock()
				defer mu.Unlock()
				done++
			}()
		}
		synctest.Wait()
		if done != 200 || d.claimed != 0 {
			t.Errorf("%d edits ended, %d pages are claimed; want 200 and 0", done, d.claimed)
		}
		if rounds == 0 || slices.Max(sizes) > maxDirtyPages || d.count() > maxDirtyPages {
			t.Errorf("%d rounds with %v pages; want no more than %d in one", rounds, sizes, maxDirtyPages)
		}
	})
}

func TestAClaimThatFails(t *testing.T) {
	d, s := newDirtyPages()
	bad := errors.New("no space")
	if err := d.claim(1, func() error { return bad }, noError); !errors.Is(err, bad) || d.claimed != 0 {
		t.Errorf("claim: %v; %d pages are claimed", err, d.claimed)
	}
	if err := d.claim(maxDirtyPages-1, noError, noError); err != nil {
		t.Fatal(err)
	}
	pages := []dirtyPage{pinned(t, s, 0)}
	d.apply(&pages, func() {})
	if err := d.claim(1, noError, func() error { return bad }); !errors.Is(err, bad) || d.claimed != maxDirtyPages-1 {
		t.Errorf("claim that needs a sync: %v; %d pages are claimed", err, d.claimed)
	}
}
