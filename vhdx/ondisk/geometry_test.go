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
