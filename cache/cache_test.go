package cache

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// A countingFile is a file of pages, in each of which every word is the number of the page plus one. It counts
// how often each page is read, and can wait or fail while it reads.
type countingFile struct {
	pages int64
	reads []atomic.Int64
	hook  func(page int64) error // before a page is read; may be nil
}

func newCountingFile(pages int64) *countingFile {
	return &countingFile{pages: pages, reads: make([]atomic.Int64, pages)}
}

func (f *countingFile) ReadAt(p []byte, off int64) (int, error) {
	page := off / PageSize
	if page >= f.pages {
		return 0, io.EOF
	}
	f.reads[page].Add(1)
	if f.hook != nil {
		if err := f.hook(page); err != nil {
			return 0, err
		}
	}
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(page)+1)
	}
	return len(p), nil
}

// wantPage fails the test unless page i of s reads as word in its first and last word.
func wantPage(t *testing.T, s *Span, i int64, word uint64) *Page {
	t.Helper()
	p, err := s.page(i)
	if err != nil {
		t.Fatalf("Page(%d): %v", i, err)
	}
	if p.Word(0) != word || p.Word(PageWords-1) != word {
		t.Fatalf("Page(%d) holds %d and %d, want %d", i, p.Word(0), p.Word(PageWords-1), word)
	}
	return p
}

func TestPageIsReadOnce(t *testing.T) {
	f := newCountingFile(10)
	c := New(1 << 20)
	s := c.Span(f, 2*PageSize, 8)
	if f.reads[2].Load() != 0 {
		t.Error("Span reads")
	}
	for range 3 {
		wantPage(t, s, 0, 3)
		wantPage(t, s, 7, 10)
	}
	if a, b := f.reads[2].Load(), f.reads[9].Load(); a != 1 || b != 1 {
		t.Errorf("two pages were read %d and %d times, want once", a, b)
	}
	if c.Pages() != 2 {
		t.Errorf("%d pages are cached, want 2", c.Pages())
	}
	if hits, misses := c.Lookups(); hits != 4 || misses != 2 {
		t.Errorf("%d lookups found a page and %d did not, want 4 and 2", hits, misses)
	}
}

func TestPageOutsideItsSpan(t *testing.T) {
	s := New(0).Span(newCountingFile(1000), 0, 5)
	for _, i := range []int64{-1, 5, 6, leafPages - 1} {
		if _, err := s.page(i); err == nil {
			t.Errorf("Page(%d) of 5 gave no error", i)
		}
	}
}

func TestPageBehindTheFile(t *testing.T) {
	f := newCountingFile(1)
	p, err := New(0).Span(f, 0, 3).page(2)
	if err != nil || p.Word(0) != 0 || p.Word(PageWords-1) != 0 {
		t.Errorf("a page behind the end of the file: %v; want zeros", err)
	}
}

// shortFile ends inside its first page.
type shortFile struct{}

func (shortFile) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0xFF // beyond what is returned there is junk
	}
	return 16, io.EOF
}

func TestPageCutByTheEndOfTheFile(t *testing.T) {
	p, err := New(0).Span(shortFile{}, 0, 1).page(0)
	if err != nil {
		t.Fatal(err)
	}
	if p.Word(1) != ^uint64(0) || p.Word(2) != 0 {
		t.Errorf("words %#x, %#x; want ones inside the file and zeros behind it", p.Word(1), p.Word(2))
	}
}

func TestReadErrorIsNotCached(t *testing.T) {
	f := newCountingFile(3)
	errBad := errors.New("bad sector")
	f.hook = func(int64) error { return errBad }
	c := New(0)
	s := c.Span(f, 0, 3)
	for range 2 {
		if _, err := s.page(1); !errors.Is(err, errBad) {
			t.Fatalf("Page: %v, want the error of the file", err)
		}
		if _, err := s.Pin(1); !errors.Is(err, errBad) {
			t.Fatalf("Pin: %v, want the error of the file", err)
		}
	}
	if c.Pages() != 0 {
		t.Errorf("%d pages are cached after errors", c.Pages())
	}
	f.hook = nil
	wantPage(t, s, 1, 2)
}

// What was taken for a page that is not kept in the end, after an error or since another goroutine was faster, is used again.
func TestPlacesAreUsedAgain(t *testing.T) {
	f := newCountingFile(100)
	c := New(0)
	s := c.Span(f, 0, 100)
	f.hook = func(page int64) error {
		if page%2 == 0 {
			return io.ErrNoProgress
		}
		f.hook = nil // the page is read by another one meanwhile
		_, err := s.page(page)
		return err
	}
	for i := range int64(100) {
		hook := f.hook
		if _, err := s.page(i); (err != nil) != (i%2 == 0) {
			t.Fatalf("page %d: %v", i, err)
		}
		if hook != nil && f.hook == nil {
			f.hook = hook
		}
	}
	if n := len(c.clock); n > minPages {
		t.Errorf("there are places for %d pages, want at most %d", n, minPages)
	}
}

func TestMarkZero(t *testing.T) {
	const pages = 3*leafPages + 10
	f := newCountingFile(pages)
	c := New(1 << 20)
	s := c.Span(f, 0, pages)
	s.MarkZero(5, 3)                 // inside a leaf
	s.MarkZero(leafPages, leafPages) // a whole leaf
	s.MarkZero(3*leafPages-2, 12)    // over the edge of a leaf to the end
	zero := func(i int64) bool {
		return i >= 5 && i < 8 || i >= leafPages && i < 2*leafPages || i >= 3*leafPages-2
	}
	for i := range int64(pages) {
		word := uint64(i) + 1
		if zero(i) {
			word = 0
		}
		if p := wantPage(t, s, i, word); p.Zero() != zero(i) {
			t.Errorf("page %d: Zero is %v", i, p.Zero())
		}
		if n := f.reads[i].Load(); zero(i) && n != 0 {
			t.Errorf("page %d was read though it is known to be zero", i)
		}
	}
	if want := min(256, pages-3-leafPages-12); c.Pages() != want {
		t.Errorf("%d pages are cached, want %d: zero pages take no room", c.Pages(), want)
	}
}

// Only the pages that are named become zero, wherever they begin and end in the leaves of the span. One more would hide
// blocks.
func TestMarkZeroMarksNoOther(t *testing.T) {
	const pages = 3*leafPages + 10
	edges := []int64{0, 1, leafPages - 1, leafPages, leafPages + 1, 2*leafPages - 1, 2 * leafPages, 3 * leafPages, pages - 1, pages}
	f := newCountingFile(pages)
	for a, from := range edges {
		for _, to := range edges[a:] {
			s := New(0).Span(f, 0, pages)
			s.MarkZero(from, to-from)
			for i := range int64(pages) {
				if marked := s.Cached(i); marked != (from <= i && i < to) {
					t.Fatalf("pages %d to %d were marked; marked is %v for page %d", from, to, marked, i)
				}
			}
		}
	}
}

func TestMarkZeroOfAllInPieces(t *testing.T) {
	const pages = 2*leafPages + 7
	f := newCountingFile(pages)
	s := New(0).Span(f, 0, pages)
	for i := int64(0); i < pages; {
		n := min(1+i%5, pages-i)
		s.MarkZero(i, n)
		i += n
	}
	for i := range int64(pages) {
		if p := wantPage(t, s, i, 0); !p.Zero() || f.reads[i].Load() != 0 {
			t.Fatalf("page %d is not known to be zero", i)
		}
	}
}

// A cached page stays, even if the scan that marks pages finds it zero: a pinned page may have been changed.
func TestMarkZeroOfCachedPages(t *testing.T) {
	const pages = 2 * leafPages
	s := New(0).Span(newCountingFile(pages), 0, pages)
	wantPage(t, s, 3, 4)
	pinned, err := s.Pin(leafPages + 1)
	if err != nil {
		t.Fatal(err)
	}
	s.MarkZero(0, pages)
	wantPage(t, s, 3, 4)
	if p := wantPage(t, s, leafPages+1, leafPages+2); p != pinned {
		t.Error("the pinned page is another one now")
	}
	wantPage(t, s, 4, 0)
	wantPage(t, s, leafPages, 0)
	s.Unpin(leafPages + 1)
}

// Pages are marked while others are read, pinned and given up. A zero page stands for one that holds zeros, so a
// reader sees either of both.
func TestMarkZeroWhilePagesComeAndGo(t *testing.T) {
	const pages = 3*leafPages + 7
	c := New(0)
	spans := [2]*Span{c.Span(newCountingFile(pages), 0, pages), c.Span(newCountingFile(pages), 0, pages)}
	var all sync.WaitGroup
	for k := range int64(4) {
		all.Go(func() {
			for i := range int64(pages) {
				s, page := spans[k%2], i*(2*k+1)%pages
				p, err := s.Pin(page)
				if err != nil {
					t.Error(err)
					return
				}
				if w := p.Word(0); w != 0 && w != uint64(page)+1 {
					t.Errorf("page %d holds %d", page, w)
				}
				s.Unpin(page)
			}
		})
	}
	for i := int64(0); i < pages; i += leafPages / 2 {
		spans[0].MarkZero(i, min(leafPages/2, pages-i))
	}
	all.Wait()
	spans[0].MarkZero(0, pages)
	for i := range int64(pages) {
		wantPage(t, spans[1], i, uint64(i)+1)
	}
	if n := c.Pages(); n > minPages+4 {
		t.Errorf("%d pages are cached", n)
	}
}

// The bound holds for all spans together, and what was given up is read again.
func TestBound(t *testing.T) {
	const limit = 20
	c := New(limit * PageSize)
	f := newCountingFile(1000)
	a, b := c.Span(f, 0, 500), c.Span(f, 500*PageSize, 500)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1500 {
		i := rng.Int64N(500)
		wantPage(t, a, i, uint64(i)+1)
		wantPage(t, b, i, uint64(i)+501)
		if c.Pages() > limit {
			t.Fatalf("%d pages are cached, the bound is %d", c.Pages(), limit)
		}
	}
	if c.Pages() != limit {
		t.Errorf("%d pages are cached, want %d", c.Pages(), limit)
	}
}

func TestLeastBound(t *testing.T) {
	c := New(1)
	s := c.Span(newCountingFile(100), 0, 100)
	for i := range int64(100) {
		wantPage(t, s, i, uint64(i)+1)
	}
	if c.Pages() != minPages {
		t.Errorf("%d pages are cached, want %d", c.Pages(), minPages)
	}
}

// A page that is used all the time stays while others pass through.
func TestClockKeepsWhatIsUsed(t *testing.T) {
	c := New(minPages * PageSize)
	f := newCountingFile(1000)
	s := c.Span(f, 0, 1000)
	for i := range int64(999) {
		wantPage(t, s, 999, 1000)
		wantPage(t, s, i, uint64(i)+1)
	}
	if n := f.reads[999].Load(); n > 2 { // once may fall to the first round of the hand
		t.Errorf("the page that is always used was read %d times", n)
	}
}

// A page that is given up while it is read is read again: its memory is another page's by then.
func TestReadOfAPageThatIsGivenUp(t *testing.T) {
	const pages = 200
	f := newCountingFile(pages)
	c := New(0)
	s := c.Span(f, 0, pages)
	var seen []uint64
	err := s.Read(3, func(p *Page) {
		if len(seen) == 0 {
			for i := range int64(pages) {
				if i != 3 {
					wantPage(t, s, i, uint64(i)+1)
				}
			}
		}
		seen = append(seen, p.Word(100))
	})
	if err != nil {
		t.Fatal(err)
	}
	if f.reads[3].Load() != 2 {
		t.Fatal("the page was not given up; the test tests nothing")
	}
	if len(seen) != 2 || seen[0] == 4 || seen[1] != 4 {
		t.Errorf("the page was read as %d, want that of another page, and then 4", seen)
	}
}

// A word that is looked up is that of its page, also if the memory becomes that of another page meanwhile.
func TestWordsWhilePagesComeAndGo(t *testing.T) {
	const pages = 64
	c := New(0)
	s := c.Span(newCountingFile(pages), 0, pages)
	s.MarkZero(0, 1)
	var all sync.WaitGroup
	for g := range uint64(4) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(g, 5))
			for range 5000 {
				i := rng.Int64N(pages)
				want := uint64(i) + 1
				if i == 0 {
					want = 0
				}
				v, zero, err := s.Word(i, rng.IntN(PageWords))
				if err != nil || v != want || zero != (i == 0) {
					t.Errorf("Word of page %d is %d, %v, %v", i, v, zero, err)
					return
				}
				if v, cached := s.CachedWord(i, 0); cached && v != want {
					t.Errorf("CachedWord of page %d is %d", i, v)
					return
				}
			}
		})
	}
	all.Wait()
	if c.Pages() > minPages {
		t.Errorf("%d pages are cached, want at most %d", c.Pages(), minPages)
	}
}

// All goroutines that miss a page at once get the same one: a change made to it must not get lost.
func TestRacingLoadsGetOnePage(t *testing.T) {
	const racers = 8
	f := newCountingFile(1)
	var inside sync.WaitGroup
	inside.Add(racers)
	f.hook = func(int64) error { // all of them read before any of them is done
		inside.Done()
		inside.Wait()
		return nil
	}
	c := New(0)
	s := c.Span(f, 0, 1)
	got := make([]*Page, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { got[i], _ = s.page(0) })
	}
	wg.Wait()
	for i, p := range got {
		if p == nil || p != got[0] {
			t.Errorf("goroutine %d got page %p, goroutine 0 %p", i, p, got[0])
		}
	}
	if c.Pages() != 1 {
		t.Errorf("%d pages are cached, want 1", c.Pages())
	}
}

// A reader that waits for its page keeps no other from theirs.
func TestReadersDoNotWaitForEachOther(t *testing.T) {
	f := newCountingFile(10)
	stuck, release := make(chan struct{}), make(chan struct{})
	f.hook = func(page int64) error {
		if page == 0 {
			close(stuck)
			<-release
		}
		return nil
	}
	s := New(0).Span(f, 0, 10)
	done := make(chan error)
	go func() {
		_, err := s.page(0)
		done <- err
	}()
	<-stuck
	for i := int64(1); i < 10; i++ {
		wantPage(t, s, i, uint64(i)+1) // would never return
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConcurrentReaders(t *testing.T) {
	const pages = 600
	f := newCountingFile(pages)
	c := New(0)
	s := c.Span(f, 0, pages)
	s.MarkZero(100, 20)
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 3))
			for range 500 {
				i := rng.Int64N(pages)
				want := uint64(i) + 1
				if i >= 100 && i < 120 {
					want = 0
				}
				if v, _, err := s.Word(i, int(i)%PageWords); err != nil || v != want {
					t.Errorf("Word of page %d is %d, %v; want %d", i, v, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
	if c.Pages() > minPages {
		t.Errorf("%d pages are cached, want at most %d", c.Pages(), minPages)
	}
}

func TestPageDecodesLittleEndian(t *testing.T) {
	var b [PageSize]byte
	copy(b[8:], []byte{1, 2, 3, 4, 5, 6, 7, 8})
	p := &Page{words: new(frame)}
	p.words.decode(&b)
	if p.Word(0) != 0 || p.Word(1) != 0x0807060504030201 {
		t.Errorf("words %#x, %#x", p.Word(0), p.Word(1))
	}
}

func TestCachedPageDoesNotAllocate(t *testing.T) {
	s := New(0).Span(newCountingFile(2), 0, 2)
	wantPage(t, s, 1, 2)
	if n := testing.AllocsPerRun(100, func() {
		if v, _, err := s.Word(1, 7); err != nil || v != 2 {
			t.Fatal(v, err)
		}
		var v uint64
		if err := s.Read(1, func(p *Page) { v = p.Word(8) }); err != nil || v != 2 {
			t.Fatal(v, err)
		}
	}); n != 0 {
		t.Errorf("a cached page costs %v allocations", n)
	}
}
