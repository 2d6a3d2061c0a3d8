package cache

import "testing"

// A page that is cached, asked for by all processors at once.
func BenchmarkPage(b *testing.B) {
	s := New(1<<20).Span(newCountingFile(64), 0, 64)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := int64(0); pb.Next(); i++ {
			if _, err := s.Page(i % 64); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
