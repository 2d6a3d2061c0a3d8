package journal

import (
	"errors"
	"fmt"
	"testing"
)

// An entry with its descriptors and checksum, into a log in memory.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n, " pages"), func(b *testing.B) {
			im := newImage(256)
			w, err := Start(im, im.reg, im.seq, 0, 0)
			if err != nil {
				b.Fatal(err)
			}
			pages := batch(0, n, 1)
			b.SetBytes(int64(n) * SectorSize)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Append(pages, 0, 0); errors.Is(err, ErrFull) {
					w.head = SectorSize
				} else if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
