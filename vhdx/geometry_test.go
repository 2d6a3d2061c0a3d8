package vhdx

import (
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// The chunk ratios of the table in the standard's text, by block size from 1 to 256 MiB.
func TestChunkRatio(t *testing.T) {
	ratios := map[int64][]int64{
		512:  {4096, 2048, 1024, 512, 256, 128, 64, 32, 16},
		4096: {32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128},
	}
	for sector, list := range ratios {
		for i, want := range list {
			block := int64(ondisk.MiB) << i
			if g := ondisk.NewGeometry(ondisk.TiB, block, sector, false); g.ChunkRatio() != want {
				t.Errorf("blocks of %d MiB, sectors of %d: chunk ratio %d, want %d", block/ondisk.MiB, sector, g.ChunkRatio(), want)
			}
		}
	}
}

func TestGeometryCounts(t *testing.T) {
	for _, c := range []struct {
		name                     string
		disk, block, sector      int64
		parent                   bool
		payload, chunks, entries int64
	}{
		{"a sector", 512, ondisk.MiB, 512, false, 1, 1, 1},
		{"a sector of a child", 512, ondisk.MiB, 512, true, 1, 1, 4097},
		{"a block", ondisk.MiB, ondisk.MiB, 512, false, 1, 1, 1},
		{"a sector more than a block", ondisk.MiB + 512, ondisk.MiB, 512, false, 2, 1, 2},
		{"a chunk", 4096 * ondisk.MiB, ondisk.MiB, 512, false, 4096, 1, 4096},
		{"a chunk of a child", 4096 * ondisk.MiB, ondisk.MiB, 512, true, 4096, 1, 4097},
		{"a sector more than a chunk", 4096*ondisk.MiB + 512, ondisk.MiB, 512, false, 4097, 2, 4098},
		{"a sector more than a chunk, child", 4096*ondisk.MiB + 512, ondisk.MiB, 512, true, 4097, 2, 8194},
		{"largest blocks", 64 * ondisk.TiB, 256 * ondisk.MiB, 4096, false, 262144, 2048, 264191},
		{"largest disk", 64 * ondisk.TiB, ondisk.MiB, 512, false, 67108864, 16384, 67125247},
		{"largest disk of a child", 64 * ondisk.TiB, ondisk.MiB, 512, true, 67108864, 16384, 67125248},
	} {
		g := ondisk.NewGeometry(c.disk, c.block, c.sector, c.parent)
		if g.PayloadBlocks() != c.payload || g.Chunks() != c.chunks || g.BATEntries() != c.entries {
			t.Errorf("%s: %d payload blocks, %d chunks, %d entries; want %d, %d, %d", c.name,
				g.PayloadBlocks(), g.Chunks(), g.BATEntries(), c.payload, c.chunks, c.entries)
		}
		if pages := (c.entries*8 + 4095) / 4096; g.BATPages() != pages {
			t.Errorf("%s: %d pages, want %d", c.name, g.BATPages(), pages)
		}
	}
}

// The examples of the standard's text.
func TestEntryIndexes(t *testing.T) {
	g := ondisk.NewGeometry(8192*ondisk.MiB, ondisk.MiB, 512, false)
	for _, c := range []struct{ block, entry int64 }{{0, 0}, {4095, 4095}, {4096, 4097}, {5000, 5001}, {8191, 8192}} {
		if got := g.PayloadEntry(c.block); got != c.entry {
			t.Errorf("block %d is entry %d, want %d", c.block, got, c.entry)
		}
		if n, bitmap := g.Entry(c.entry); bitmap || n != c.block {
			t.Errorf("entry %d is %d, %v; want payload block %d", c.entry, n, bitmap, c.block)
		}
	}
	for chunk, entry := range []int64{4096, 8193} {
		if got := g.BitmapEntry(int64(chunk)); got != entry {
			t.Errorf("bitmap block %d is entry %d, want %d", chunk, got, entry)
		}
		if n, bitmap := g.Entry(entry); !bitmap || n != int64(chunk) {
			t.Errorf("entry %d is %d, %v; want bitmap block %d", entry, n, bitmap, chunk)
		}
	}
}

// Going through a BAT in order meets every payload block once, and a bitmap block behind each chunk.
func TestEntriesInOrder(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, block := range []int64{ondisk.MiB, 32 * ondisk.MiB, 256 * ondisk.MiB} {
			g := ondisk.NewGeometry(3<<23*sector+block+sector, block, sector, true)
			var nextBlock, nextChunk int64
			for i := range g.BATEntries() {
				n, bitmap := g.Entry(i)
				switch {
				case bitmap:
					if n != nextChunk || nextBlock != (n+1)*g.ChunkRatio() || g.BitmapEntry(n) != i {
						t.Fatalf("entry %d is bitmap block %d, after %d payload blocks", i, n, nextBlock)
					}
					nextChunk++
				default:
					if n != nextBlock || g.PayloadEntry(n) != i {
						t.Fatalf("entry %d is payload block %d, want %d", i, n, nextBlock)
					}
					nextBlock++
				}
			}
			if nextChunk != g.Chunks() {
				t.Errorf("%d bitmap blocks, want %d", nextChunk, g.Chunks())
			}
		}
	}
}

func TestBlockEnd(t *testing.T) {
	g := ondisk.NewGeometry(5*ondisk.MiB+512, 2*ondisk.MiB, 512, false)
	for b, want := range []int64{2 * ondisk.MiB, 4 * ondisk.MiB, 5*ondisk.MiB + 512} {
		if got := g.BlockEnd(int64(b)); got != want {
			t.Errorf("block %d ends at %d, want %d", b, got, want)
		}
	}
}
