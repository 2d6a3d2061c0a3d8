package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// randomChain builds an image of one of all kinds, with up to three parents: sector and block sizes, states,
// sizes that are no multiple of anything, dirty logs.
func randomChain(rng *rand.Rand) chain {
	depth := 1 + rng.IntN(4)
	sector := []int64{512, 4096}[rng.IntN(2)]
	size := randomDiskSize(rng, sector)
	var c chain
	for level := range depth {
		s := spec{
			diskSize:   size,
			sectorSize: sector,
			physical:   []int64{512, 4096}[rng.IntN(2)],
			blockSize:  ondisk.MiB << min(rng.IntN(9), rng.IntN(9), rng.IntN(9)),
			dataWrite:  layerGUID(level),
			typ:        Differencing,
			locator:    parentEntries(fmt.Sprintf("layer%d.vhdx", level+1), layerGUID(level+1)),
		}
		if level > 0 {
			switch rng.IntN(4) {
			case 0:
				s.diskSize = randomDiskSize(rng, sector)
			case 1: // ends inside the last block of the child
				s.diskSize = max(sector, size-sector*rng.Int64N(2000))
			}
		}
		if level == depth-1 {
			s.typ = []DiskType{Fixed, Dynamic}[rng.IntN(2)]
		}
		if rng.IntN(2) == 0 { // another order, and gaps
			s.metaOff, s.logOff, s.batOff, s.dataOff = 3*ondisk.MiB, 6*ondisk.MiB, 10*ondisk.MiB, 10*ondisk.MiB+600*ondisk.MiB
		}
		im := build(s)
		im.rng = rand.New(rand.NewPCG(rng.Uint64(), 0))
		im.addRandomBlocks(rng)
		if rng.IntN(2) == 0 {
			im.logRandomPages(rng)
		}
		c = append(c, im)
	}
	return c
}

func layerGUID(level int) uuid.UUID { return uuid.UUID{0: 0x1A, 15: byte(level)} }

func randomDiskSize(rng *rand.Rand, sector int64) int64 {
	switch rng.IntN(4) {
	case 0:
		return sector * (1 + rng.Int64N(4*ondisk.MiB/sector)) // down to one sector
	case 1:
		return sector * (1 + rng.Int64N(600*ondisk.MiB/sector)) // up to the second page of the BAT
	}
	return sector * (1 + rng.Int64N(3<<23)) // up to three chunks
}

// addRandomBlocks gives some blocks states: at the begin and end of the disk, of chunks and of BAT pages, and
// anywhere.
func (im *image) addRandomBlocks(rng *rand.Rand) {
	n, ratio := im.geo.PayloadBlocks(), im.geo.ChunkRatio()
	candidates := []int64{0, 1, n - 1, n - 2, 510, 511, 512, 513, ratio - 1, ratio, ratio + 1, 2*ratio - 1, 2 * ratio, rng.Int64N(n), rng.Int64N(n)}
	if n < 8 {
		candidates = []int64{0, 1, 2, 3, 4, 5, 6, 7}
	}
	for _, b := range candidates {
		if _, twice := im.entries[b]; b < 0 || b >= n || twice || rng.IntN(4) == 0 {
			continue
		}
		switch s := []ondisk.BlockState{ondisk.Undefined, ondisk.Zero, ondisk.Unmapped, ondisk.FullyPresent, ondisk.FullyPresent, ondisk.PartiallyPresent, ondisk.PartiallyPresent}[rng.IntN(7)]; {
		case s == ondisk.PartiallyPresent && im.typ != Differencing:
			im.setBlock(b, ondisk.NotPresent)
		case s == ondisk.FullyPresent || s == ondisk.PartiallyPresent:
			im.setBlock(b, s)
			im.fill(b)
		case s != ondisk.Zero && rng.IntN(2) == 0: // a place that is kept, with what was there
			im.setBlock(b, ondisk.FullyPresent)
			im.fill(b)
			im.setBlockEntry(b, ondisk.NewBATEntry(s, im.entries[b].FileOff()))
		default:
			im.setBlock(b, s)
		}
	}
	// The bits of blocks that are not partially present mean nothing.
	for c, off := range im.bitmaps {
		bytesOfBlock := im.blockSize / im.sectorSize / 8
		for i := range min(ratio, 8) {
			if b := c*ratio + i; im.sectors[b] == nil && rng.IntN(2) == 0 {
				im.write(im.random(min(bytesOfBlock, 4096)), off+i*bytesOfBlock)
			}
		}
	}
}

// logRandomPages moves some pages of metadata into a log of several entries, the first of which is in place
// already, and lets zeros be written where the file holds junk.
func (im *image) logRandomPages(rng *rand.Rand) {
	pages := []int64{ondisk.RegionTableOffsets[0], im.metaOff, im.metaOff + firstItemOffset, im.batOff}
	for b := range im.entries {
		pages = append(pages, (im.batOff+im.geo.PayloadEntry(b)*ondisk.BATEntrySize)/ondisk.PageSize*ondisk.PageSize)
	}
	for _, off := range im.bitmaps {
		pages = append(pages, off+rng.Int64N(ondisk.BitmapBlockSize/ondisk.PageSize)*ondisk.PageSize)
	}
	slices.Sort(pages)
	pages = slices.Compact(pages)
	// In place already, and undone since: if it were replayed, it would wipe what follows.
	done := im.logEntry(journal.Update{FileOffset: uint64(im.metaOff), ZeroLength: uint64(im.metaLen)})
	entries := []journal.Entry{done}
	tail := done.Length()
	for len(pages) > 0 {
		n := min(1+rng.IntN(5), len(pages))
		e := im.logEntry()
		for _, off := range pages[:n] {
			u := journal.Update{FileOffset: uint64(off)}
			if page := [ondisk.PageSize]byte(im.read(off, ondisk.PageSize)); allZero(page[:]) {
				u.ZeroLength = ondisk.PageSize
			} else {
				u.Data = &page
			}
			e.Updates = append(e.Updates, u)
			im.write(im.random(ondisk.PageSize), off)
		}
		e.Tail = uint32(tail)
		e.SequenceNumber += uint64(len(entries))
		entries = append(entries, e)
		pages = pages[n:]
	}
	im.logEntries(entries...)
}

// A log should not hold payload, but one that does counts; and a block may lie where the file grows by replay.
func TestLogOverPayload(t *testing.T) {
	img := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	page := [ondisk.PageSize]byte(img.random(ondisk.PageSize))
	at := img.entries[0].FileOff()
	grown := img.size
	img.setBlockEntry(3, ondisk.NewBATEntry(ondisk.FullyPresent, grown))
	far := [ondisk.PageSize]byte(img.random(ondisk.PageSize))
	e := img.logEntry(
		journal.Update{FileOffset: uint64(at) + 8192, Data: &page},
		journal.Update{FileOffset: uint64(img.entries[1].FileOff()), ZeroLength: ondisk.MiB / 2},
		journal.Update{FileOffset: uint64(grown) + ondisk.MiB - 4096, Data: &far},
	)
	e.LastFileOffset = uint64(grown) + ondisk.MiB
	img.logEntries(e)
	img.disk.WriteAt(page[:], 8192)
	img.disk.WriteAt(make([]byte, ondisk.MiB/2), ondisk.MiB)
	img.disk.WriteAt(far[:], 4*ondisk.MiB-4096)
	c := chain{img}
	im, err := Open(c.writeTo(t, t.TempDir()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	c.verify(t, im)
	for _, c := range []struct {
		off     int64
		spliced bool
	}{{0, false}, {ondisk.MiB, false}, {3 * ondisk.MiB, false}} {
		e, err := im.Extent(c.off)
		if _, ok := e.Fd(); err != nil || ok != c.spliced {
			t.Errorf("the extent at %d can be spliced: %v, %v; want %v", c.off, ok, err, c.spliced)
		}
	}
	clean, err := Open(chain{build(someBlocks)}.writeTo(t, t.TempDir()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer clean.Close()
	if e, err := clean.Extent(0); err != nil {
		t.Error(err)
	} else if _, ok := e.Fd(); !ok {
		t.Error("an extent of a clean image cannot be spliced")
	}
}

// What the log says of the BAT counts, also where the file has a hole that the scan would skip.
func TestLogOverAHoleInTheBAT(t *testing.T) {
	img := build(spec{diskSize: 2000 * ondisk.MiB})
	img.setBlock(1500, ondisk.FullyPresent)
	img.fill(1500)
	off := (img.batOff + 1500*ondisk.BATEntrySize) / ondisk.PageSize * ondisk.PageSize
	page := [ondisk.PageSize]byte(img.read(off, ondisk.PageSize))
	img.write(make([]byte, ondisk.PageSize), off)
	img.logEntries(img.logEntry(journal.Update{FileOffset: uint64(off), Data: &page}))
	c := chain{img}
	c.verify(t, c.open(t, Options{}))
}

// places returns bytes of the disk where something may go wrong.
func (c chain) places(rng *rand.Rand) []int64 {
	size := c[0].diskSize
	list := []int64{0, 1, size - 1, size - c[0].sectorSize, size / 2}
	for _, im := range c {
		list = append(list, im.diskSize)
		for b := range im.entries {
			list = append(list, b*im.blockSize, (b+1)*im.blockSize, b*im.blockSize+rng.Int64N(im.blockSize))
		}
	}
	return slices.DeleteFunc(list, func(off int64) bool { return off < 0 || off >= size })
}

func TestReadModel(t *testing.T) {
	for seed := range uint64(max(fewer(40), 8)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			c := randomChain(rng)
			var im *Image
			if o := (Options{CacheSize: []int64{0, 1}[rng.IntN(2)]}); rng.IntN(4) > 0 {
				im = c.open(t, o)
			} else {
				var err error
				if im, err = Open(c.writeTo(t, t.TempDir()), o); err != nil {
					t.Fatal(err)
				}
			}
			defer im.Close()
			places := c.places(rng)
			for range 60 {
				off := places[rng.IntN(len(places))] + rng.Int64N(2*8192) - 8192
				n := rng.IntN(1 << rng.IntN(19))
				c.testRead(t, im, off, n)
			}
			extents := c.testExtents(t, im, rng)
			for range 60 {
				testSeek(t, im, extents, places[rng.IntN(len(places))]+rng.Int64N(8192)-4096)
			}
			for i, f := range c {
				if l := layerOf(im, i); l.counts.FullyPresent != f.count(ondisk.FullyPresent) || l.counts.Zero != f.count(ondisk.Zero) ||
					l.counts.Unmapped != f.count(ondisk.Unmapped) || l.counts.PartiallyPresent != f.count(ondisk.PartiallyPresent) {
					t.Errorf("layer %d: counted %+v", i, l.counts)
				}
			}
		})
	}
}

func layerOf(im *Image, level int) *layer {
	l := im.current()
	for range level {
		l = l.parent()
	}
	return l
}

// count returns how many blocks are in state s.
func (im *image) count(s ondisk.BlockState) (n int64) {
	for _, e := range im.entries {
		if e.State() == s {
			n++
		}
	}
	return n
}

// testRead compares n bytes from off on, which may lie outside the disk.
func (c chain) testRead(t *testing.T, im *Image, off int64, n int) {
	t.Helper()
	got := bytes.Repeat([]byte{0xEE}, n)
	m, err := im.ReadAt(got, off)
	inside := int(max(0, min(int64(n), im.Size()-off)))
	switch {
	case off < 0:
		if err == nil || m != 0 {
			t.Fatalf("ReadAt(%d bytes at %d) = %d, %v; want an error", n, off, m, err)
		}
		return
	case n > inside && (m != inside || err != io.EOF), n <= inside && inside > 0 && (m != n || err != nil):
		t.Fatalf("ReadAt(%d bytes at %d) of %d = %d, %v", n, off, im.Size(), m, err)
	}
	want := make([]byte, inside)
	c.want(want, off)
	if i := firstDifference(got[:inside], want); i >= 0 {
		t.Fatalf("ReadAt(%d bytes at %d): byte %d is %#x, want %#x", n, off, i, got[i], want[i])
	}
	if inside == 0 {
		return
	}
	inMemory, before := im.InMemory(off, int64(inside)), im.Stats().CacheMisses
	extents, err := im.Resolve(nil, off, int64(inside))
	if err != nil {
		t.Fatal(err)
	}
	if missed := im.Stats().CacheMisses - before; inMemory && missed > 0 {
		t.Fatalf("%d bytes at %d: all in memory, but %d pages were read", inside, off, missed)
	}
	clear(got)
	at := off
	for i, e := range extents {
		if e.DiskOff != at || e.Len <= 0 || i > 0 && extents[i-1].joins(e) {
			t.Fatalf("Resolve(%d bytes at %d): extent %d is %+v", n, off, i, e)
		}
		if err := e.Read(got[e.DiskOff-off:][:e.Len]); err != nil {
			t.Fatal(err)
		}
		at = e.End()
	}
	if at != off+int64(inside) || firstDifference(got[:inside], want) >= 0 {
		t.Fatalf("Resolve(%d bytes at %d) ends at %d, or holds other bytes", n, off, at)
	}
}

func TestInMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 10 {
		c := randomChain(rng)
		im := c.open(t, Options{CacheSize: 1 << 30})
		var known int
		for range 200 {
			off := rng.Int64N(im.Size())
			n := 1 + rng.Int64N(min(im.Size()-off, 16<<10))
			if _, err := im.Resolve(nil, off, n); err != nil {
				t.Fatal(err)
			}
			// Resolve goes down the chain sector by sector, and may need fewer pages of it.
			if im.InMemory(off, n) {
				known++
			} else if len(c) == 1 {
				t.Errorf("%d bytes at %d are not in memory after they were resolved", n, off)
			}
		}
		if known < 20 {
			t.Errorf("a chain of %d: %d of 200 places are in memory", len(c), known)
		}
	}
}

// testExtents walks through the whole disk by Extent, compares which layer holds each, and returns the extents.
func (c chain) testExtents(t *testing.T, im *Image, rng *rand.Rand) []Extent {
	t.Helper()
	var list []Extent
	for off := int64(0); off < im.Size(); {
		e, err := im.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if e.DiskOff != off || e.Len <= 0 || e.End() > im.Size() {
			t.Fatalf("Extent(%d) = %+v in a disk of %d bytes", off, e, im.Size())
		}
		if n := len(list); n > 0 && list[n-1].joins(e) {
			t.Fatalf("Extent(%d) = %+v, which continues %+v", off, e, list[n-1])
		}
		for _, at := range []int64{off, off + rng.Int64N(e.Len), e.End() - 1} {
			holder := c.holder(at)
			if (holder != nil) != (e.File != nil) || holder != nil && holder != c[e.Layer] {
				t.Fatalf("byte %d lies in %+v, but the model has it elsewhere", at, e)
			}
		}
		list = append(list, e)
		off = e.End()
	}
	if _, err := im.Extent(im.Size()); err != io.EOF {
		t.Errorf("Extent at the end of the disk: %v, want io.EOF", err)
	}
	return list
}

// testSeek compares SeekData and SeekHole with the extents of the whole disk.
func testSeek(t *testing.T, im *Image, extents []Extent, off int64) {
	t.Helper()
	held := func(at int64) bool {
		i := slices.IndexFunc(extents, func(e Extent) bool { return at < e.End() })
		return i >= 0 && at >= 0 && extents[i].File != nil
	}
	if off < 0 || off >= im.Size() {
		if got, err := im.SeekData(off); err != io.EOF {
			t.Errorf("SeekData(%d) = %d, %v; want io.EOF", off, got, err)
		}
		if got, err := im.SeekHole(off); err != io.EOF {
			t.Errorf("SeekHole(%d) = %d, %v; want io.EOF", off, got, err)
		}
		return
	}
	data, err := im.SeekData(off)
	switch {
	case err == io.EOF:
		data = im.Size()
	case err != nil || data < off || !held(data):
		t.Errorf("SeekData(%d) = %d, %v, which no file holds", off, data, err)
		return
	}
	// Nothing that is held is passed over, but in holes of the file itself.
	for at := off; at < data; {
		buf := make([]byte, min(data-at, 64*ondisk.KiB))
		if _, err := im.ReadAt(buf, at); err != nil || !allZero(buf) {
			t.Errorf("SeekData(%d) = %d passes over other bytes than zero behind %d (%v)", off, data, at, err)
			return
		}
		if e, err := im.Extent(at); err == nil && e.File == nil {
			at = e.End()
		} else {
			at += int64(len(buf))
		}
	}
	hole, err := im.SeekHole(off)
	if err != nil || hole < off || hole > im.Size() {
		t.Errorf("SeekHole(%d) = %d, %v", off, hole, err)
		return
	}
	for at := off; at < hole; {
		i := slices.IndexFunc(extents, func(e Extent) bool { return at < e.End() })
		if extents[i].File == nil {
			t.Errorf("SeekHole(%d) = %d passes over the hole at %d", off, hole, at)
			return
		}
		at = extents[i].End()
	}
	if hole < im.Size() && held(hole) {
		b := make([]byte, min(512, im.Size()-hole, ondisk.PageSize-hole%ondisk.PageSize)) // the file may have data in the next page
		if _, err := im.ReadAt(b, hole); err != nil || !allZero(b) {
			t.Errorf("SeekHole(%d) = %d, where other bytes are than zero (%v)", off, hole, err)
		}
	}
}

// A block may be unmapped and mapped anew between the look at its entry and that at its bits. A read must
// not apply the new bits to the old place.
func TestBitsOfAnotherTenure(t *testing.T) {
	parent := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	child := build(spec{typ: Differencing, blocks: []blockSpec{{0, ondisk.PartiallyPresent}}})
	child.setSectors(0, 0, 8, true)
	f := &hookFile{memFile: child.memFile}
	im, err := loadWritable(Options{Writable: true}, f, parent.memFile)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	const sector = 20
	want, w := bytes.Repeat([]byte("new."), 128), im.writer
	hooked := false
	f.hook = func(off int64) {
		bitmap := im.current().bitmaps[0].Load()
		if hooked || off < bitmap.Offset(0) || off >= bitmap.Offset(0)+ondisk.BitmapBlockSize {
			return
		}
		hooked = true
		if err := im.Zero(0, ondisk.MiB); err != nil {
			t.Error(err)
		}
		e, err := w.edit(dataWrite, 1)
		if err != nil {
			t.Error(err)
			return
		}
		bat, word, err := e.batPage(0)
		if err != nil {
			t.Error(err)
		}
		e.apply(func() { w.setEntry(bat, word, 0) })
		e.end()
		if _, err := im.WriteAt(want, sector*512); err != nil {
			t.Error(err)
		}
	}
	got := make([]byte, 512)
	if _, err := im.ReadAt(got, sector*512); err != nil {
		t.Fatal(err)
	}
	if !hooked {
		t.Fatal("the bits were read before")
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read %x…, want %x…", got[:8], want[:8])
	}
}

// A hookFile calls hook before each read.
type hookFile struct {
	*memFile
	hook func(off int64)
}

func (f *hookFile) ReadAt(p []byte, off int64) (int, error) {
	if f.hook != nil {
		f.hook(off)
	}
	return f.memFile.ReadAt(p, off)
}

// In a block of which a little was written, only that is data, on a file system that knows its holes.
func TestSeekInsideABlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: 32 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for _, at := range []int64{3 * ondisk.MiB, 35 * ondisk.MiB} {
		if _, err := im.WriteAt(bytes.Repeat([]byte{7}, ondisk.MiB), at); err != nil {
			t.Fatal(err)
		}
	}
	if f := im.current().file; func() bool { n, _ := f.NextHole(0); return n >= im.current().size }() {
		t.Skip("the file system of the test's directory does not know holes")
	}
	var got []int64
	for off := int64(0); ; {
		data, err := im.SeekData(off)
		if err == io.EOF {
			break
		}
		hole, herr := im.SeekHole(data)
		if err != nil || herr != nil {
			t.Fatal(err, herr)
		}
		got, off = append(got, data, hole), hole
	}
	if want := []int64{3 * ondisk.MiB, 4 * ondisk.MiB, 35 * ondisk.MiB, 36 * ondisk.MiB}; !slices.Equal(got, want) {
		t.Errorf("data and holes at %d, want %d", got, want)
	}
}

// What the file has lost is no hole: a copy of the disk must get an error.
func TestSeekInAFileCutShortWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(path, CreateOptions{Size: 2 * ondisk.MiB, BlockSize: ondisk.MiB, Type: Fixed}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := os.Truncate(path, im.current().size-ondisk.MiB-ondisk.MiB/2); err != nil {
		t.Fatal(err)
	}
	data, err := im.SeekData(0)
	if err != nil {
		t.Fatalf("SeekData = %d, %v", data, err)
	}
	if _, err := im.ReadAt(make([]byte, ondisk.MiB), data); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read the data at %d: %v", data, err)
	}
}

func TestResolveRefusesWhatIsOutside(t *testing.T) {
	im := chain{build(spec{})}.open(t, Options{})
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {0, im.Size() + 1}, {im.Size(), 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1}} {
		if _, err := im.Resolve(nil, c.off, c.n); err == nil {
			t.Errorf("Resolve(%d bytes at %d) of %d gave no error", c.n, c.off, im.Size())
		}
	}
	if list, err := im.Resolve(nil, im.Size(), 0); err != nil || len(list) != 0 {
		t.Errorf("Resolve of nothing = %v, %v", list, err)
	}
}

// A hole of a mostly empty disk is found in one step, at any length, and no page of it is read.
func TestHugeHoles(t *testing.T) {
	c := chain{build(spec{diskSize: 64 * ondisk.TiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {64*ondisk.TiB/ondisk.MiB - 1, ondisk.FullyPresent}}})}
	im := c.open(t, Options{})
	for off, want := range map[int64]int64{ondisk.MiB: 64*ondisk.TiB - ondisk.MiB, 0: 0, 64*ondisk.TiB - 1: 64*ondisk.TiB - 1} {
		if got, err := im.SeekData(off); got != want || err != nil {
			t.Errorf("SeekData(%d) = %d, %v; want %d", off, got, err, want)
		}
	}
	if e, err := im.Extent(ondisk.MiB); err != nil || e.Len != 64*ondisk.TiB-2*ondisk.MiB || e.File != nil {
		t.Errorf("Extent(1 MiB) = %+v, %v; want a hole up to the last block", e, err)
	}
	if n := im.current().cache.Pages(); n > 2 {
		t.Errorf("%d pages are cached, two hold something", n)
	}
	c.verify(t, im)
}

func TestResolveDoesNotAllocate(t *testing.T) {
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.Zero}}})
	child := build(spec{typ: Differencing, blocks: []blockSpec{{0, ondisk.PartiallyPresent}}})
	im := chain{child, parent}.open(t, Options{})
	dst := make([]Extent, 0, 1<<13)
	if n := testing.AllocsPerRun(20, func() {
		if _, err := im.Resolve(dst, 0, im.Size()); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Resolve allocates %v times", n)
	}
	buf := make([]byte, 64*ondisk.KiB)
	if n := testing.AllocsPerRun(20, func() {
		if _, err := im.ReadAt(buf, ondisk.MiB+777); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("ReadAt allocates %v times", n)
	}
}

// Readers that share a cache with room for the least number of pages get the same bytes, and keep to the bound.
func TestConcurrentReadsWithTheSmallestCache(t *testing.T) {
	const minCachedPages = 16
	parent := build(spec{diskSize: 40 << 30, dataWrite: parentGUID})
	child := build(spec{diskSize: 40 << 30, typ: Differencing})
	for i := range int64(40) { // a page of each BAT for every block, and a bitmap for some
		parent.setBlock(i*1000+3, ondisk.FullyPresent)
		parent.put(parent.random(8192), (i*1000+3)*ondisk.MiB)
		if i%4 > 0 {
			continue
		}
		b := i*1000 + 3
		child.setBlock(b, ondisk.PartiallyPresent)
		child.put(child.random(8192), b*ondisk.MiB)
		child.setSectors(b, 0, 5, true)
		child.setSectors(b, 9, 3, true)
	}
	c := chain{child, parent}
	im := c.open(t, Options{CacheSize: 1})
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 2))
			got, want := make([]byte, 9000), make([]byte, 9000)
			for range 150 {
				off := (rng.Int64N(40)*1000+3)*ondisk.MiB - 500 + rng.Int64N(1000)
				if _, err := im.ReadAt(got, off); err != nil {
					t.Error(err)
					return
				}
				c.want(want, off)
				if i := firstDifference(got, want); i >= 0 {
					t.Errorf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
					return
				}
			}
		})
	}
	wg.Wait()
	if n := im.current().cache.Pages(); n > minCachedPages {
		t.Errorf("%d pages of %d bytes are cached; want at most %d", n, cache.PageSize, minCachedPages)
	}
}

// A failingFile fails to read where it is told to.
type failingFile struct {
	File
	off, n int64
	err    error
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if off < f.off+f.n && f.off < off+int64(len(p)) {
		return 0, f.err
	}
	return f.File.ReadAt(p, off)
}

func TestReadErrorsReachTheCaller(t *testing.T) {
	img := build(spec{blocks: []blockSpec{{1, ondisk.FullyPresent}, {0, ondisk.FullyPresent}}})
	errBad := errors.New("bad sector")
	f := &failingFile{File: img.memFile, off: img.entries[1].FileOff(), n: ondisk.MiB, err: errBad}
	l := newOpener(Options{}).newLayer(f, "memory")
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	im := newImage(l)
	buf := make([]byte, 8192)
	if n, err := im.ReadAt(buf, ondisk.MiB-4096); n != 4096 || !errors.Is(err, errBad) {
		t.Errorf("ReadAt = %d, %v; want the 4096 bytes before the bad sector, and its error", n, err)
	}
	f.off, f.err = img.batOff, errBad
	for _, off := range []int64{0, ondisk.RegionTableOffsets[0], ondisk.HeaderOffsets[0], img.metaOff, img.metaOff + firstItemOffset, img.batOff} {
		f.off = off
		if err := newOpener(Options{}).newLayer(f, "memory").load(); !errors.Is(err, errBad) || errors.Is(err, ErrCorrupt) {
			t.Errorf("with a bad sector at %#x the image opens with %v; want the error of the file alone", off, err)
		}
	}
}

// A file that another program cuts short while it is open gives errors, not zeros.
func TestFileCutShortWhileOpen(t *testing.T) {
	img := build(spec{blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	im := chain{img}.open(t, Options{})
	img.Truncate(img.size - 4096)
	if n, err := im.ReadAt(make([]byte, 8192), ondisk.MiB-8192); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt = %d, %v; want io.ErrUnexpectedEOF", n, err)
	}
}
