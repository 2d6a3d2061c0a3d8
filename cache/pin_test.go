package cache

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
)

// readAll makes every page of s pass through its cache.
func readAll(t *testing.T, s *Span) {
	t.Helper()
	for i := range s.pages {
		if _, err := s.page(i); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPinnedPageStays(t *testing.T) {
	f := newCountingFile(500)
	c := New(0)
	s := c.Span(f, 0, 500)
	for range 2 {
		p, err := s.Pin(3)
		if err != nil {
			t.Fatal(err)
		}
		p.SetWord(7, 1234)
	}
	readAll(t, s)
	s.Unpin(3)
	readAll(t, s)
	if p, err := s.page(3); err != nil || p.Word(7) != 1234 || f.reads[3].Load() != 1 {
		t.Errorf("a page that is pinned once of twice reads %d, %v, after %d reads", p.Word(7), err, f.reads[3].Load())
	}
	s.Unpin(3)
	readAll(t, s)
	readAll(t, s)
	if p, err := s.page(3); err != nil || p.Word(7) != 4 {
		t.Errorf("a page without pins was never given up: %d, %v", p.Word(7), err)
	}
}

// A page that was given up is not pinned: the caller would change it, and other readers would see another one.
func TestGivenUpPageIsNotPinned(t *testing.T) {
	c := New(0)
	s := c.Span(newCountingFile(100), 0, 100)
	p, err := s.page(3)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, s)
	if c.pin(s, 3, p) != nil {
		t.Error("a page that is not in its span any more was pinned")
	}
	if again, err := s.Pin(3); err != nil || again == p || again.Word(0) != 4 {
		t.Errorf("Pin returns the page that was given up, or %v", err)
	}
}

// When all pages are pinned, others still find room: to refuse them would stop the disk.
func TestPinsBeyondTheBound(t *testing.T) {
	c := New(0)
	s := c.Span(newCountingFile(100), 0, 100)
	for i := range int64(2 * minPages) {
		if _, err := s.Pin(i); err != nil {
			t.Fatal(err)
		}
	}
	readAll(t, s)
	for i := range int64(2 * minPages) {
		if p := wantPage(t, s, i, uint64(i)+1); p == nil {
			t.Error("no page")
		}
		s.Unpin(i)
	}
}

// A page known to be zero becomes a page of its own when it is pinned, and its neighbours stay as they are.
func TestPinOfAZeroPage(t *testing.T) {
	const pages = 2 * leafPages
	f := newCountingFile(pages)
	c := New(1 << 20)
	s := c.Span(f, 0, pages)
	s.MarkZero(0, pages)
	p, err := s.Pin(10)
	if err != nil {
		t.Fatal(err)
	}
	p.SetWord(0, 77)
	if again, err := s.page(10); err != nil || again != p || again.Zero() || again.Word(0) != 77 {
		t.Errorf("the pinned page reads %d, %v", again.Word(0), err)
	}
	for _, i := range []int64{0, 9, 11, leafPages - 1, leafPages, pages - 1} {
		if p := wantPage(t, s, i, 0); !p.Zero() || f.reads[i].Load() != 0 {
			t.Errorf("page %d is not known to be zero any more", i)
		}
	}
	if c.Pages() != 1 {
		t.Errorf("%d pages are cached, want 1", c.Pages())
	}
	s.Unpin(10)
	if wantPage(t, New(0).Span(f, 0, pages), 10, 11).Zero() {
		t.Error("a page of a span that was not marked is known to be zero")
	}
	other := c.Span(f, 0, pages)
	other.MarkZero(0, pages)
	if !wantPage(t, other, 10, 0).Zero() {
		t.Error("a pinned page of one span shows in another one")
	}
}

func TestEncodeIsTheReverseOfDecode(t *testing.T) {
	var b, out [PageSize]byte
	for i := range b {
		b[i] = byte(i * 7)
	}
	p := &Page{words: new(frame)}
	p.words.decode(&b)
	if p.Encode(&out); out != b {
		t.Error("the page encodes to other bytes than it was decoded from")
	}
}

func TestOffset(t *testing.T) {
	s := New(0).Span(newCountingFile(10), 3*PageSize, 5)
	if got := s.Offset(2); got != 5*PageSize {
		t.Errorf("Offset(2) = %d, want %d", got, 5*PageSize)
	}
}

// A slowFile holds one word for each page. The first read of page 0 is held up after it took the bytes.
type slowFile struct {
	words   [100]atomic.Uint64
	held    atomic.Bool
	reading chan struct{} // closed when the first read of page 0 has its bytes
	release chan struct{}
}

func (f *slowFile) ReadAt(p []byte, off int64) (int, error) {
	page := off / PageSize
	clear(p)
	binary.LittleEndian.PutUint64(p, f.words[page].Load())
	if page == 0 && f.held.CompareAndSwap(false, true) {
		close(f.reading)
		<-f.release
	}
	return len(p), nil
}

// A page that was changed, written and given up while a reader was still on its way with the old bytes must not
// come back as it was.
func TestSlowReaderBringsNoOldPage(t *testing.T) {
	f := &slowFile{reading: make(chan struct{}), release: make(chan struct{})}
	c := New(0)
	s := c.Span(f, 0, 100)
	got := make(chan uint64)
	go func() {
		p, err := s.page(0)
		if err != nil {
			t.Error(err)
		}
		got <- p.Word(0)
	}()
	<-f.reading
	p, err := s.Pin(0)
	if err != nil {
		t.Fatal(err)
	}
	p.SetWord(0, 42)
	f.words[0].Store(42)
	s.Unpin(0)
	for i := int64(1); i < 100; i++ {
		if _, err := s.page(i); err != nil {
			t.Fatal(err)
		}
	}
	if at := s.leaves[0].Load()[0].Load(); at != nil {
		t.Fatal("the page was not given up; the test tests nothing")
	}
	close(f.release)
	if w := <-got; w != 42 {
		t.Errorf("the slow reader got %d, want 42", w)
	}
	if p, err := s.page(0); err != nil || p.Word(0) != 42 {
		t.Errorf("the cached page reads %d, %v; want 42", p.Word(0), err)
	}
}

// Readers of a full cache that miss at once each read their page once: that others came first, and
// made pages go, is no reason to read again while nothing was changed.
func TestReadersOfAFullCacheReadOnce(t *testing.T) {
	const readers = 8
	f := newCountingFile(100)
	c := New(0)
	s := c.Span(f, 0, 100)
	for i := range int64(minPages) {
		wantPage(t, s, i, uint64(i)+1)
	}
	var left atomic.Int64
	left.Store(readers)
	all := make(chan struct{})
	f.hook = func(int64) error {
		if left.Add(-1) == 0 {
			close(all)
		}
		<-all
		return nil
	}
	var wg sync.WaitGroup
	for i := range int64(readers) {
		wg.Go(func() {
			if _, err := s.page(50 + i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range readers {
		if n := f.reads[50+i].Load(); n != 1 {
			t.Errorf("page %d was read %d times", 50+i, n)
		}
	}
}

// Writers and readers of a small cache: what was set is never lost, while pages come and go.
func TestPinAndEvictRace(t *testing.T) {
	const pages = 64
	f := &storedFile{}
	c := New(0)
	s := c.Span(f, 0, pages)
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			for n := range uint64(200) {
				i := int64(n*7)%(pages/4)*4 + g // pages of this goroutine alone
				p, err := s.Pin(i)
				if err != nil {
					t.Error(err)
					return
				}
				before := p.Word(0)
				if want := f.words[i].Load(); before != want {
					t.Errorf("page %d holds %d, %d was stored", i, before, want)
				}
				p.SetWord(0, before+1)
				f.words[i].Store(before + 1)
				s.Unpin(i)
				if _, err := s.page(int64(n) % pages); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A storedFile holds one word for each page.
type storedFile struct{ words [64]atomic.Uint64 }

func (f *storedFile) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	binary.LittleEndian.PutUint64(p, f.words[off/PageSize].Load())
	return len(p), nil
}
