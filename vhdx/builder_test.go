package vhdx

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A spec says what image to build. Zero values choose the usual.
type spec struct {
	typ        DiskType
	diskSize   int64 // 4 MiB
	blockSize  int64 // 1 MiB
	sectorSize int64 // 512
	physical   int64 // 4096

	// File offsets and lengths; by default log, metadata and BAT follow the header section in this order,
	// each 1 MiB long or as long as it has to be, and blocks follow these.
	logOff, logLen, metaOff, metaLen, batOff, batLen, dataOff int64

	noLog     bool // LogLength 0
	dataWrite uuid.UUID
	locator   [][2]string     // of a differencing disk; by default parent.vhdx with parentGUID
	items     []rawItem       // metadata items besides the known ones
	regions   []ondisk.Region // besides the two that are needed
	blocks    []blockSpec
}

// A rawItem is a metadata item of any kind. One without data has no place either.
type rawItem struct {
	id    uuid.UUID
	flags uint32
	data  []byte
}

// A blockSpec is a payload block. Blocks that are present get a place and random content.
type blockSpec struct {
	index int64
	state ondisk.BlockState
}

// GUIDs that stand for themselves in tests.
var (
	parentGUID  = uuid.MustParse("11111111-2222-3333-4444-555555555555")
	otherGUID   = uuid.MustParse("AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE")
	testLogGUID = uuid.MustParse("01020304-0506-0708-090A-0B0C0D0E0F10")
)

func guidText(g uuid.UUID) string { return "{" + g.String() + "}" }

// parentEntries are the entries of a parent locator for the file name beside the child.
func parentEntries(name string, linkage uuid.UUID) [][2]string {
	return [][2]string{{ondisk.KeyLinkage, guidText(linkage)}, {ondisk.KeyRelativePath, `.\` + name}}
}

// An image is a VHDX file under construction, and the model of what it should read as.
type image struct {
	*memFile
	spec
	geo   ondisk.Geometry
	next  int64 // file offset of free space
	items []ondisk.MetadataItem

	entries map[int64]ondisk.BATEntry // of payload blocks, by block
	disk    *memFile                  // what the present blocks hold, by byte of the virtual disk
	bitmaps map[int64]int64           // file offset of the sector bitmap block, by chunk
	sectors map[int64][]bool          // which sectors are here, by partially present block
	rng     *rand.Rand
}

// build builds the image that s describes. The file is valid, clean and needs no tolerance.
func build(s spec) *image {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	if s.typ == "" {
		s.typ = Dynamic
	}
	def(&s.diskSize, 4*ondisk.MiB)
	def(&s.blockSize, 1*ondisk.MiB)
	def(&s.sectorSize, 512)
	def(&s.physical, 4096)
	def(&s.logLen, ondisk.MiB)
	def(&s.metaLen, ondisk.MiB)
	if s.noLog {
		s.logLen = 0
	}
	im := &image{
		memFile: newMemFile(0),
		geo:     ondisk.NewGeometry(s.diskSize, s.blockSize, s.sectorSize, s.typ == Differencing),
		disk:    newMemFile(s.diskSize),
		entries: make(map[int64]ondisk.BATEntry),
		bitmaps: make(map[int64]int64),
		sectors: make(map[int64][]bool),
		rng:     rand.New(rand.NewPCG(uint64(s.diskSize), uint64(s.blockSize))),
	}
	def(&s.batLen, ondisk.RoundUp(im.geo.BATEntries()*ondisk.BATEntrySize, ondisk.MiB))
	at := int64(ondisk.HeaderSectionSize)
	for _, part := range []struct{ off, n *int64 }{{&s.logOff, &s.logLen}, {&s.metaOff, &s.metaLen}, {&s.batOff, &s.batLen}} {
		def(part.off, at)
		at = max(at, *part.off+*part.n)
	}
	def(&s.dataOff, at)
	if s.typ == Differencing && s.locator == nil {
		s.locator = parentEntries("parent.vhdx", parentGUID)
	}
	if s.dataWrite == uuid.Nil {
		s.dataWrite = parentGUID
	}
	im.spec, im.next = s, s.dataOff
	im.write(append([]byte(ondisk.IdentifierSignature), ondisk.EncodeUTF16("builder")...), 0)
	im.setHeaders(func(*ondisk.Header) {})
	im.setRegions(func(r []ondisk.Region) []ondisk.Region { return r })
	im.writeItems()
	im.grow(at)
	for _, b := range s.blocks {
		im.setBlock(b.index, b.state)
		if b.state == ondisk.FullyPresent || b.state == ondisk.PartiallyPresent {
			im.fill(b.index)
		}
	}
	return im
}

// write stores p at file offset off.
func (im *image) write(p []byte, off int64) {
	if _, err := im.WriteAt(p, off); err != nil {
		panic(err)
	}
}

func (im *image) read(off, n int64) []byte {
	b := make([]byte, n)
	if _, err := im.ReadAt(b, off); err != nil {
		panic(err)
	}
	return b
}

// change lets do change the n bytes at file offset off.
func (im *image) change(off, n int64, do func(b []byte)) {
	b := im.read(off, n)
	do(b)
	im.write(b, off)
}

// grow makes the file hold the bytes below end.
func (im *image) grow(end int64) {
	if end > im.size {
		im.Truncate(end)
	}
}

// allocate returns the file offset of n bytes of free space.
func (im *image) allocate(n int64) int64 {
	off := im.next
	im.next += n
	im.grow(im.next)
	return off
}

// setHeaders writes both headers, the second one newer, as do changes them.
func (im *image) setHeaders(do func(h *ondisk.Header)) {
	for i, off := range ondisk.HeaderOffsets {
		h := ondisk.Header{
			SequenceNumber: uint64(i) + 1,
			FileWriteGUID:  otherGUID,
			DataWriteGUID:  im.dataWrite,
			Version:        ondisk.HeaderVersion,
			LogLength:      uint32(im.logLen),
			LogOffset:      uint64(im.logOff),
		}
		do(&h)
		im.write(h.Encode()[:], off)
	}
}

// setRegions writes both copies of the region table with the entries that do returns.
func (im *image) setRegions(do func([]ondisk.Region) []ondisk.Region) {
	table := ondisk.EncodeRegionTable(do(append([]ondisk.Region{
		{GUID: ondisk.BATRegionGUID, Offset: uint64(im.batOff), Length: uint32(im.batLen), Flags: ondisk.RegionRequired},
		{GUID: ondisk.MetadataRegionGUID, Offset: uint64(im.metaOff), Length: uint32(im.metaLen), Flags: ondisk.RegionRequired},
	}, im.regions...)))
	for _, off := range ondisk.RegionTableOffsets {
		im.write(table[:], off)
	}
}

// stamp makes the checksum of the n bytes at each of the offsets good again, after do has changed them.
func (im *image) stamp(offs [2]int64, n int64, do func(b []byte)) {
	for _, off := range offs {
		im.change(off, n, func(b []byte) {
			do(b)
			ondisk.LE.PutUint32(b[4:], ondisk.Checksum(b, 4))
		})
	}
}

// writeItems writes the metadata table and the items, the known ones first.
func (im *image) writeItems() {
	flags := uint32(0)
	switch im.typ {
	case Fixed:
		flags = paramLeaveBlockAllocated
	case Differencing:
		flags = paramHasParent
	}
	id := make([]byte, ondisk.GUIDSize)
	ondisk.PutGUID(id, otherGUID)
	items := []rawItem{
		{ondisk.FileParametersGUID, ondisk.ItemIsRequired, ondisk.LE.AppendUint32(ondisk.LE.AppendUint32(nil, uint32(im.blockSize)), flags)},
		{ondisk.DiskSizeGUID, ondisk.ItemIsRequired | ondisk.ItemIsVirtualDisk, ondisk.LE.AppendUint64(nil, uint64(im.diskSize))},
		{ondisk.DiskIDGUID, ondisk.ItemIsRequired | ondisk.ItemIsVirtualDisk, id},
		{ondisk.LogicalSectorSizeGUID, ondisk.ItemIsRequired | ondisk.ItemIsVirtualDisk, ondisk.LE.AppendUint32(nil, uint32(im.sectorSize))},
		{ondisk.PhysicalSectorSizeGUID, ondisk.ItemIsRequired | ondisk.ItemIsVirtualDisk, ondisk.LE.AppendUint32(nil, uint32(im.physical))},
	}
	if im.typ == Differencing {
		items = append(items, rawItem{ondisk.ParentLocatorGUID, ondisk.ItemIsRequired, ondisk.EncodeParentLocator(im.locator)})
	}
	at := int64(firstItemOffset)
	for _, it := range append(items, im.spec.items...) {
		m := ondisk.MetadataItem{ID: it.id, Length: uint32(len(it.data)), Flags: it.flags}
		if len(it.data) > 0 {
			m.Offset = uint32(at)
			im.write(it.data, im.metaOff+at)
			at += int64(len(it.data))
		}
		im.items = append(im.items, m)
	}
	im.writeTable()
}

func (im *image) writeTable() { im.write(ondisk.EncodeMetadataTable(im.items)[:], im.metaOff) }

// item returns the metadata table's entry of a known item.
func (im *image) item(id uuid.UUID) *ondisk.MetadataItem {
	for i := range im.items {
		if im.items[i].ID == id && !im.items[i].User() {
			return &im.items[i]
		}
	}
	panic("no such item")
}

// changeItem lets do change the table's entry of a known item.
func (im *image) changeItem(id uuid.UUID, do func(m *ondisk.MetadataItem)) {
	do(im.item(id))
	im.writeTable()
}

// dropItem takes a known item out of the metadata table.
func (im *image) dropItem(id uuid.UUID) {
	m := im.item(id)
	*m = im.items[len(im.items)-1]
	im.items = im.items[:len(im.items)-1]
	im.writeTable()
}

// addItems adds entries to the metadata table as they are.
func (im *image) addItems(items ...ondisk.MetadataItem) {
	im.items = append(im.items, items...)
	im.writeTable()
}

// setItem overwrites what a known item holds. The bytes must not be more than it has.
func (im *image) setItem(id uuid.UUID, b []byte) {
	im.write(b, im.metaOff+int64(im.item(id).Offset))
}

// setLocator replaces the parent locator, which is the last item.
func (im *image) setLocator(b []byte) {
	im.write(b, im.metaOff+int64(im.item(ondisk.ParentLocatorGUID).Offset))
	im.changeItem(ondisk.ParentLocatorGUID, func(m *ondisk.MetadataItem) { m.Length = uint32(len(b)) })
}

// setEntry stores BAT entry i as it is.
func (im *image) setEntry(i int64, e ondisk.BATEntry) {
	im.write(ondisk.LE.AppendUint64(nil, uint64(e)), im.batOff+i*ondisk.BATEntrySize)
}

// setBlockEntry stores the BAT entry of payload block b as it is.
func (im *image) setBlockEntry(b int64, e ondisk.BATEntry) {
	im.setEntry(im.geo.PayloadEntry(b), e)
	im.entries[b] = e
}

// setBlock gives payload block b a state, and a place and a sector bitmap where the state asks for them.
// Its sectors are not here yet.
func (im *image) setBlock(b int64, s ondisk.BlockState) {
	off := int64(0)
	if s == ondisk.FullyPresent || s == ondisk.PartiallyPresent {
		off = im.allocate(im.blockSize)
	}
	im.setBlockEntry(b, ondisk.NewBATEntry(s, off))
	if s != ondisk.PartiallyPresent {
		return
	}
	im.sectors[b] = make([]bool, im.blockSize/im.sectorSize)
	c := b >> im.geo.ChunkShift
	if _, ok := im.bitmaps[c]; !ok {
		im.bitmaps[c] = im.allocate(ondisk.BitmapBlockSize)
		im.setEntry(im.geo.BitmapEntry(c), ondisk.NewBATEntry(ondisk.BitmapPresent, im.bitmaps[c]))
	}
}

// cutLastBlock cuts the file behind the last sector of the disk, whose block is the last of the file.
func (im *image) cutLastBlock() {
	last := (im.diskSize - 1) / im.blockSize
	im.Truncate(im.entries[last].FileOff() + im.diskSize - last*im.blockSize)
}

// setSectors says of n sectors of the partially present block b, from the first on, whether they are here.
func (im *image) setSectors(b, first, n int64, here bool) {
	bits := im.sectors[b]
	chunk, inChunk := b>>im.geo.ChunkShift, b&(im.geo.ChunkRatio()-1)
	base := im.bitmaps[chunk] + inChunk*int64(len(bits))/8
	from, end := first/8, (first+n+7)/8 // bytes
	im.change(base+from, end-from, func(p []byte) {
		for i := first; i < first+n; i++ {
			bits[i] = here
			p[i/8-from] &^= 1 << (i % 8)
			if here {
				p[i/8-from] |= 1 << (i % 8)
			}
		}
	})
}

// put stores p at byte diskOff of the disk, inside one block that has a place in the file.
func (im *image) put(p []byte, diskOff int64) {
	b := diskOff / im.blockSize
	im.write(p, im.entries[b].FileOff()+diskOff%im.blockSize)
	if _, err := im.disk.WriteAt(p[:max(0, min(int64(len(p)), im.diskSize-diskOff))], diskOff); err != nil {
		panic(err)
	}
}

// random returns n random bytes, none of which is zero.
func (im *image) random(n int64) []byte {
	p := make([]byte, n)
	var v uint64
	for i := range p {
		if i%8 == 0 {
			v = im.rng.Uint64() | 0x0101010101010101
		}
		p[i] = byte(v)
		v >>= 8
	}
	return p
}

// fill gives block b, which has a place, random content here and there, at its begin and its end, and, if it is
// partially present, random sectors.
func (im *image) fill(b int64) {
	start, n := b*im.blockSize, im.blockSize
	im.put(im.random(8192), start)
	im.put(im.random(4096), start+n-4096)
	for range 4 {
		at := im.rng.Int64N(n - 20000)
		im.put(im.random(20000), start+at)
	}
	total := int64(len(im.sectors[b]))
	for at := int64(0); at < total; {
		run := 1 + im.rng.Int64N(40)
		if im.rng.IntN(20) == 0 {
			run = 1 + im.rng.Int64N(total)
		}
		run = min(run, total-at)
		im.setSectors(b, at, run, im.rng.IntN(2) == 0)
		at += run
	}
}

// logEntries puts entries one behind the other into the log and makes the headers name it.
func (im *image) logEntries(entries ...journal.Entry) {
	var b []byte
	for i := range entries {
		b = journal.AppendEntry(b, &entries[i])
	}
	im.write(b, im.logOff)
	im.nameLog()
}

func (im *image) nameLog() { im.setHeaders(func(h *ondisk.Header) { h.LogGUID = testLogGUID }) }

// logEntry returns a valid first entry with the given updates, which a caller may spoil.
func (im *image) logEntry(updates ...journal.Update) journal.Entry {
	return journal.Entry{
		LogGUID: testLogGUID, SequenceNumber: 7, FlushedFileOffset: uint64(im.size), LastFileOffset: uint64(im.size),
		Updates: updates,
	}
}

// logPages makes the image dirty: the pages at the given file offsets move into the log, and junk takes
// their place, which no reader may use.
func (im *image) logPages(offs ...int64) {
	var updates []journal.Update
	for _, off := range offs {
		page := [ondisk.PageSize]byte(im.read(off, ondisk.PageSize))
		updates = append(updates, journal.Update{FileOffset: uint64(off), Data: &page})
		im.write(im.random(ondisk.PageSize), off)
	}
	im.logEntries(im.logEntry(updates...))
}

// A chain is an image and its parents.
type chain []*image

// want fills p with what the disk holds from byte off on: a sector at a time, by the tables of MS-VHDX 2.5.1.
func (c chain) want(p []byte, off int64) {
	for len(p) > 0 {
		sector := c[0].sectorSize
		b := p[:min(int64(len(p)), sector-off%sector)]
		clear(b)
		if holder := c.holder(off); holder != nil {
			if _, err := holder.disk.ReadAt(b, off); err != nil {
				panic(err)
			}
		}
		p, off = p[len(b):], off+int64(len(b))
	}
}

// holder returns the image that holds the sector at off, or nil if it reads as zeros.
func (c chain) holder(off int64) *image {
	for _, im := range c {
		if off >= im.diskSize {
			return nil
		}
		b := off / im.blockSize
		switch im.entries[b].State() {
		case ondisk.NotPresent:
			continue
		case ondisk.FullyPresent:
			return im
		case ondisk.PartiallyPresent:
			if im.sectors[b][off%im.blockSize/im.sectorSize] {
				return im
			}
			continue
		}
		return nil
	}
	return nil
}

// open opens the chain from memory. It does not look for parents: it takes those it has.
func (c chain) open(t testing.TB, o Options) *Image {
	t.Helper()
	op := newOpener(o)
	var top, child *layer
	for _, im := range c {
		l := op.newLayer(im.memFile, "memory")
		if err := l.load(); err != nil {
			t.Fatalf("load layer: %v", err)
		}
		if child == nil {
			top = l
		} else {
			child.setParent(l)
		}
		child = l
	}
	return newImage(top)
}

// writeTo writes the images into the directory, the first as image.vhdx and its parents as their children name
// them, and returns the path of the first.
func (c chain) writeTo(t testing.TB, dir string) string {
	t.Helper()
	name := "image.vhdx"
	for _, im := range c {
		im.memFile.writeTo(t, filepath.Join(dir, name))
		if im.typ == Differencing {
			name = strings.TrimPrefix(im.locator[1][1], `.\`)
		}
	}
	return filepath.Join(dir, "image.vhdx")
}

// verify reads the disk and compares it with what the chain says: all of a small disk, of a large one what is at
// the begin and at the end of the blocks that have a BAT entry.
func (c chain) verify(t testing.TB, im *Image) {
	t.Helper()
	if im.Size() != c[0].diskSize {
		t.Fatalf("the disk has %d bytes, want %d", im.Size(), c[0].diskSize)
	}
	if im.Size() <= 32*ondisk.MiB {
		c.verifyRange(t, im, 0, im.Size())
		return
	}
	const some = 50001
	c.verifyRange(t, im, im.Size()-some, im.Size())
	for _, layer := range c {
		for b := range layer.entries {
			start, end := b*layer.blockSize, (b+1)*layer.blockSize
			c.verifyRange(t, im, max(start-some, 0), min(start+some, im.Size()))
			c.verifyRange(t, im, end-some, min(end+some, im.Size()))
		}
	}
}

// verifyRange compares the bytes of the disk from off to end, in pieces of an odd length.
func (c chain) verifyRange(t testing.TB, im *Image, off, end int64) {
	t.Helper()
	for off < end {
		got := make([]byte, min(123457, end-off))
		want := make([]byte, len(got))
		if n, err := im.ReadAt(got, off); n != len(got) || err != nil {
			t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", len(got), off, n, err)
		}
		c.want(want, off)
		if i := firstDifference(got, want); i >= 0 {
			t.Fatalf("byte %d of the disk is %#x, want %#x", off+int64(i), got[i], want[i])
		}
		off += int64(len(got))
	}
}

// firstDifference returns the index of the first byte in which a and b differ, or -1.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
