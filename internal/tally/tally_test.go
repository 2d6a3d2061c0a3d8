package tally

import (
	"sync"
	"testing"
	"unsafe"
)

func TestCounter(t *testing.T) {
	var c Counter
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.Inc()
				c.Add(2)
				c.Add(-1)
			}
		})
	}
	wg.Wait()
	if n := c.Value(); n != 16000 {
		t.Errorf("counted %d, want 16000", n)
	}
	if n := testing.AllocsPerRun(100, c.Inc); n != 0 {
		t.Errorf("counting allocates %v times", n)
	}
	if size := unsafe.Sizeof(c.stripe[0]); size != 64 {
		t.Errorf("a stripe has %d bytes, a cache line has 64", size)
	}
}

func BenchmarkInc(b *testing.B) {
	var c Counter
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Inc()
		}
	})
}
