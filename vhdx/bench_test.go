package vhdx

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// What holds a small read, with all metadata cached: in a disk without a parent, and at the end of a chain.
func BenchmarkResolve(b *testing.B) {
	flat := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	child := build(spec{typ: Differencing, blocks: []blockSpec{{0, ondisk.PartiallyPresent}}})
	for _, bc := range []struct {
		name string
		c    chain
	}{{"flat", chain{flat}}, {"chain", chain{child, parent}}} {
		b.Run(bc.name, func(b *testing.B) {
			im := bc.c.open(b, Options{})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(1, 1))
				var dst []Extent
				for pb.Next() {
					var err error
					if dst, err = im.Resolve(dst[:0], rng.Int64N(2*ondisk.MiB-4096), 4096); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// A write of one page, and its sync, with other writers beside it: each round of syncs serves all that wait.
func BenchmarkSync(b *testing.B) {
	for _, writers := range []int{1, 4, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "disk.vhdx")
			if err := Create(path, CreateOptions{Size: 1 << 30, BlockSize: ondisk.MiB}); err != nil {
				b.Fatal(err)
			}
			im, err := Open(path, Options{Writable: true})
			if err != nil {
				b.Fatal(err)
			}
			defer im.Close()
			page := make([]byte, 4096)
			page[0] = 1
			before := im.Stats().FileSyncs
			var left atomic.Int64
			left.Store(int64(b.N))
			var all sync.WaitGroup
			for i := range writers {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(writers), uint64(i)))
					for left.Add(-1) >= 0 {
						if _, err := im.WriteAt(page, rng.Int64N(1<<18)*4096); err != nil {
							b.Error(err)
							return
						}
						if err := im.Sync(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(im.Stats().FileSyncs-before)/float64(b.N), "syncs/op")
		})
	}
}
