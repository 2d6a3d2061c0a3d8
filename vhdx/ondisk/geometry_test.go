package ondisk

import "testing"

// What each BAT entry describes, how many of the first ones are payload blocks', and how long the region is, against a walk along
// the entries: each chunk's payload blocks, and then its sector bitmap block.
func TestEntriesOneByOne(t *testing.T) {
	for _, c := range []struct{ diskSize, blockSize, sectorSize int64 }{
		{512, MinBlockSize, 512},
		{MaxBlockSize * 16, MaxBlockSize, 512},
		{MaxBlockSize*16 + 512, MaxBlockSize, 512},
		{MaxBlockSize*33 - 512, MaxBlockSize, 512},
		{MaxBlockSize * 128, MaxBlockSize, 4096},
		{MaxBlockSize*129 + 4096, MaxBlockSize, 4096},
		{MinBlockSize * 4096, MinBlockSize, 512},
		{MinBlockSize*3*4096 + 512, MinBlockSize, 512},
		{MinBlockSize * 131072, MinBlockSize, 4096}, // a BAT of 1 MiB and 3 entries
		{MinBlockSize * 131070, MinBlockSize, 4096},
	} {
		for _, hasParent := range []bool{false, true} {
			g := NewGeometry(c.diskSize, c.blockSize, c.sectorSize, hasParent)
			blocks, chunks := g.PayloadBlocks(), g.Chunks()
			if ratio := (1 << 23) * c.sectorSize / c.blockSize; g.ChunkRatio() != ratio || g.SectorsPerBlock() != c.blockSize/c.sectorSize {
				t.Fatalf("%+v: %d blocks in a chunk, want %d; %d sectors in a block", g, g.ChunkRatio(), ratio, g.SectorsPerBlock())
			}
			var i, block, last int64
			for chunk := int64(0); chunk <= chunks; chunk++ {
				for range g.ChunkRatio() {
					if got := g.BlocksOf(i); got != block {
						t.Fatalf("%+v: %d of the first %d entries are blocks'; want %d", g, got, i, block)
					}
					if got := g.Describes(i); got != (block < blocks) {
						t.Fatalf("%+v: entry %d, of block %d of %d, describes something: %t", g, i, block, blocks, got)
					}
					if block < blocks {
						last = i
					}
					block++
					i++
				}
				if got := g.BlocksOf(i); got != block {
					t.Fatalf("%+v: %d of the first %d entries are blocks'; want %d", g, got, i, block)
				}
				if got := g.Describes(i); got != (hasParent && chunk < chunks) {
					t.Fatalf("%+v: entry %d, of chunk %d of %d, describes something: %t", g, i, chunk, chunks, got)
				}
				if hasParent && chunk < chunks {
					last = i
				}
				i++
			}
			if got := g.BATEntries(); got != last+1 {
				t.Errorf("%+v: %d entries; want %d", g, got, last+1)
			}
			bytes := (last + 1) * BATEntrySize
			if got := g.BATLength(); got < bytes || got >= bytes+MiB || got%MiB != 0 {
				t.Errorf("%+v: a region of %#x bytes for %#x", g, got, bytes)
			}
		}
	}
}

func TestRoundUp(t *testing.T) {
	for _, c := range []struct{ n, unit, want int64 }{{0, 8, 0}, {1, 8, 8}, {7, 8, 8}, {8, 8, 8}, {9, 8, 16}, {9, 5, 10}} {
		if got := RoundUp(c.n, c.unit); got != c.want {
			t.Errorf("%d in units of %d: %d, want %d", c.n, c.unit, got, c.want)
		}
	}
}

// An entry that a program has changed while the image was in use is followed only to a place that a file can have.
func TestFollowable(t *testing.T) {
	for _, blockSize := range []int64{MinBlockSize, MaxBlockSize} {
		for state := range BlockState(8) {
			present := state == FullyPresent || state == PartiallyPresent
			for off, inside := range map[int64]bool{
				0: false, HeaderSectionSize: true, 5 * MiB: true, MaxFileSize - blockSize: true,
				MaxFileSize - blockSize + MiB: false, MaxFileSize: false, -1 << 63: false, -MiB: false,
			} {
				e := NewBATEntry(state, off)
				want := inside
				if !present {
					want = state != ReservedState
				}
				if got := e.Followable(blockSize); got != want || e.Present() != present || e.FileOff() != off {
					t.Errorf("%v at %#x, with blocks of %#x: followable %t, present %t, at %#x", state, off, blockSize, got, e.Present(), e.FileOff())
				}
			}
		}
	}
	e := BATEntry(0xffff8 | 3<<20 | 7)
	if e.State() != PartiallyPresent || e.Offset() != 3<<20 || e.Reserved() != 0xffff8 {
		t.Errorf("%#x is %v at %#x with %#x", uint64(e), e.State(), e.Offset(), e.Reserved())
	}
}

// The chunk ratios of the table in the standard's text, by block size from 1 to 256 MiB.
func TestChunkRatio(t *testing.T) {
	ratios := map[int64][]int64{
		512:  {4096, 2048, 1024, 512, 256, 128, 64, 32, 16},
		4096: {32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128},
	}
	for sector, list := range ratios {
		for i, want := range list {
			block := int64(MiB) << i
			if g := NewGeometry(TiB, block, sector, false); g.ChunkRatio() != want {
				t.Errorf("blocks of %d MiB, sectors of %d: chunk ratio %d, want %d", block/MiB, sector, g.ChunkRatio(), want)
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
		{"a sector", 512, MiB, 512, false, 1, 1, 1},
		{"a sector of a child", 512, MiB, 512, true, 1, 1, 4097},
		{"a block", MiB, MiB, 512, false, 1, 1, 1},
		{"a sector more than a block", MiB + 512, MiB, 512, false, 2, 1, 2},
		{"a chunk", 4096 * MiB, MiB, 512, false, 4096, 1, 4096},
		{"a chunk of a child", 4096 * MiB, MiB, 512, true, 4096, 1, 4097},
		{"a sector more than a chunk", 4096*MiB + 512, MiB, 512, false, 4097, 2, 4098},
		{"a sector more than a chunk, child", 4096*MiB + 512, MiB, 512, true, 4097, 2, 8194},
		{"largest blocks", 64 * TiB, 256 * MiB, 4096, false, 262144, 2048, 264191},
		{"largest disk", 64 * TiB, MiB, 512, false, 67108864, 16384, 67125247},
		{"largest disk of a child", 64 * TiB, MiB, 512, true, 67108864, 16384, 67125248},
	} {
		g := NewGeometry(c.disk, c.block, c.sector, c.parent)
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
	g := NewGeometry(8192*MiB, MiB, 512, false)
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
		for _, block := range []int64{MiB, 32 * MiB, 256 * MiB} {
			g := NewGeometry(3<<23*sector+block+sector, block, sector, true)
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
	g := NewGeometry(5*MiB+512, 2*MiB, 512, false)
	for b, want := range []int64{2 * MiB, 4 * MiB, 5*MiB + 512} {
		if got := g.BlockEnd(int64(b)); got != want {
			t.Errorf("block %d ends at %d, want %d", b, got, want)
		}
		if off := int64(b)*2*MiB + 513; g.InBlock(off) != 513 {
			t.Errorf("byte %d is byte %d of block %d", off, g.InBlock(off), b)
		}
	}
}
