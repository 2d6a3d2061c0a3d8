package cache

import "testing"

// A word of a page that is cached, asked for by all processors at once.
func BenchmarkPage(b *testing.B) {
	s := New(1<<20).Span(newCountingFile(64), 0, 64)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := int64(0); pb.Next(); i++ {
			if _, _, err := s.Word(i%64, 5); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// A word of a page that is read, and takes the place of another one in a cache of the default size.
func BenchmarkMiss(b *testing.B) {
	const pages = 4 * 32 << 20 / PageSize
	s := New(32<<20).Span(newCountingFile(pages), 0, pages)
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		if _, _, err := s.Word(i%pages, 5); err != nil {
			b.Fatal(err)
		}
	}
}
