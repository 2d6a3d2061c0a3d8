package cache

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// A cache that is full, and whose pages come and go, takes little more memory than its bound: the collector of Go does not
// double it.
func TestMemoryIsTheBound(t *testing.T) {
	const limit, pages = 32 << 20, 4 * 32 << 20 / PageSize
	s := New(limit).Span(newCountingFile(pages), 0, pages)
	collect()
	before := resident(t)
	for range 2 {
		for i := range int64(pages) {
			if v, _, err := s.Word(i, 0); err != nil || v != uint64(i)+1 {
				t.Fatal(v, err)
			}
		}
	}
	took := resident(t) - before
	runtime.KeepAlive(s)
	t.Logf("%d MiB of memory for %d MiB of pages", took>>20, limit>>20)
	if took < limit/2 {
		t.Errorf("the cache takes %d bytes; the test tests nothing", took)
	}
	if took > limit+limit/4 {
		t.Errorf("%d bytes of pages take %d bytes of memory", limit, took)
	}
}

// The memory of a cache that nothing refers to any more goes back to the operating system, and that of one page that is still
// referred to does not.
func TestMemoryEndsWithTheCache(t *testing.T) {
	const pages = 32 << 20 / PageSize
	collect()
	before := resident(t)
	s := New(pages*PageSize).Span(newCountingFile(pages), 0, pages)
	for i := range int64(pages) {
		wantPage(t, s, i, uint64(i)+1)
	}
	last := wantPage(t, s, pages-1, pages)
	s = nil
	collect()
	if v := last.Word(5); v != pages {
		t.Errorf("the last page holds %d, want %d", v, pages)
	}
	if took := resident(t) - before; took < 16<<20 {
		t.Errorf("the memory of a page that is in use has gone")
	}
	last = nil
	collect()
	if took := resident(t) - before; took > 8<<20 {
		t.Errorf("%d MiB are left of the cache", took>>20)
	}
}

// collect runs the collector, and what it finds to clean up.
func collect() {
	for range 3 {
		runtime.GC()
		cleaned := make(chan struct{})
		runtime.AddCleanup(new([64]byte), func(struct{}) { close(cleaned) }, struct{}{})
		runtime.GC()
		<-cleaned
	}
	debug.FreeOSMemory()
}

// raceDetector is set where the tests run with it, which needs memory of its own.
var raceDetector bool

// resident returns the memory of this process, in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	if raceDetector {
		t.Skip("the race detector needs memory of its own")
	}
	status, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "Rss:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("smaps_rollup has no Rss")
	return 0
}
