package vhdx

import (
	"encoding/json"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// The bounds on what one input may make the engine allocate, in bytes. Opening takes most for the map of space,
// of which a log that claims 256 TiB of file makes two of 32 MiB; the decoders take a small multiple of their input.
const (
	maxOpenAllocation   = 128 * ondisk.MiB
	maxDecodeAllocation = 16 * ondisk.MiB
)

// allocated returns how many bytes do allocates.
func allocated(do func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// mustBeCorrupt fails the test if err is no error that names a rule. Nothing else can go wrong in memory.
func mustBeCorrupt(t *testing.T, err error) {
	t.Helper()
	var fe *FormatError
	if err != nil && (!errors.Is(err, ErrCorrupt) || !errors.As(err, &fe) || fe.Rule == 0) {
		t.Fatalf("refused without a rule: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(ondisk.Header{SequenceNumber: 1, Version: 1, LogLength: ondisk.MiB, LogOffset: ondisk.MiB}.Encode()[:80], int64(4*ondisk.MiB))
	f.Add(ondisk.Header{SequenceNumber: 1 << 63, Version: 1, LogGUID: testLogGUID, LogLength: 0xFFF00000, LogOffset: 1<<64 - ondisk.MiB}.Encode()[:80], int64(ondisk.MiB))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		var b [ondisk.HeaderSize]byte
		copy(b[:], in)
		ondisk.LE.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
		h, err := ondisk.DecodeHeader(&b, 0)
		mustBeCorrupt(t, err)
		if err != nil {
			return
		}
		if again, err := ondisk.DecodeHeader(h.Encode(), 0); err != nil || again != h {
			t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, h)
		}
		if size < ondisk.HeaderSectionSize {
			return
		}
		err = h.Validate(0, size)
		mustBeCorrupt(t, err)
		// Sums of unsigned numbers that wrap would come out below their parts.
		if end := h.LogOffset + uint64(h.LogLength); err == nil && h.LogLength > 0 &&
			(end < h.LogOffset || end > uint64(size) || h.LogOffset < ondisk.HeaderSectionSize) {
			t.Fatalf("a log from %#x to %#x in a file of %#x bytes passes", h.LogOffset, end, size)
		}
	})
}

func FuzzRegionTable(f *testing.F) {
	good := []ondisk.Region{
		{GUID: ondisk.BATRegionGUID, Offset: 3 * ondisk.MiB, Length: ondisk.MiB, Flags: 1},
		{GUID: ondisk.MetadataRegionGUID, Offset: 2 * ondisk.MiB, Length: ondisk.MiB, Flags: 1},
		{GUID: otherGUID, Offset: 1<<64 - ondisk.MiB, Length: ondisk.MiB},
	}
	f.Add(ondisk.EncodeRegionTable(good)[:ondisk.RegionHeaderSize+3*ondisk.RegionEntrySize])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b [ondisk.RegionTableSize]byte
		copy(b[:], in)
		ondisk.LE.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
		const size = 100 * ondisk.MiB
		n := allocated(func() {
			table, err := ondisk.DecodeRegionTable(&b, 0)
			mustBeCorrupt(t, err)
			if err != nil {
				return
			}
			if again, err := ondisk.DecodeRegionTable(ondisk.EncodeRegionTable(table), 0); err != nil || !slices.Equal(again, table) {
				t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, table)
			}
			for _, collect := range []bool{true, false} {
				l := &layer{collect: collect, size: size, tables: &regionTables{regions: table},
					headers: &headers{copies: [2]ondisk.Header{{LogOffset: ondisk.MiB, LogLength: ondisk.MiB}}}}
				err = l.validateRegions()
				mustBeCorrupt(t, err)
			}
			if err != nil {
				return
			}
			for i, r := range table {
				end := r.Offset + uint64(r.Length)
				if end < r.Offset || r.Offset < 2*ondisk.MiB && r.Offset+uint64(r.Length) > ondisk.MiB {
					t.Fatalf("region %+v passes", r)
				}
				if r.Name() != "unknown" && end > size {
					t.Fatalf("region %+v passes in a file of %#x bytes", r, size)
				}
				for _, o := range table[:i] {
					if o.GUID == r.GUID || o.Offset < end && r.Offset < o.Offset+uint64(o.Length) {
						t.Fatalf("regions %+v and %+v pass together", o, r)
					}
				}
			}
		})
		if n > maxDecodeAllocation {
			t.Fatalf("%d bytes were allocated", n)
		}
	})
}

// metadataSeed returns the table of an image's metadata and what stands behind it.
func metadataSeed(im *image) (table, items []byte) {
	return im.read(im.metaOff, int64(ondisk.MetadataHeaderSize+len(im.items)*ondisk.MetadataEntrySize)), im.read(im.metaOff+firstItemOffset, 1024)
}

func FuzzMetadata(f *testing.F) {
	for _, s := range []spec{{}, {typ: Fixed, sectorSize: 4096}, {typ: Differencing, items: []rawItem{{otherGUID, ondisk.ItemIsUser, []byte("x")}}}} {
		table, items := metadataSeed(build(s))
		f.Add(table, items)
	}
	f.Fuzz(func(t *testing.T, table, items []byte) {
		const off, length = 2 * ondisk.MiB, 2 * ondisk.MiB
		file := newMemFile(off + length)
		file.WriteAt(table[:min(len(table), ondisk.MetadataTableSize)], off)
		file.WriteAt(items[:min(len(items), ondisk.MiB)], off+firstItemOffset)
		n := allocated(func() {
			var verdicts [2]error
			for i, collect := range []bool{true, false} {
				l := &layer{collect: collect, src: file, size: off + length, tables: &regionTables{regions: []ondisk.Region{
					{GUID: ondisk.MetadataRegionGUID, Offset: off, Length: length},
				}}}
				verdicts[i] = l.readMetadata()
				if collect && len(l.errors) > 0 {
					verdicts[i] = errors.New(l.errors[0].Message)
					continue
				}
				mustBeCorrupt(t, verdicts[i])
				if verdicts[i] != nil {
					continue
				}
				if again, err := ondisk.DecodeMetadataTable(ondisk.EncodeMetadataTable(l.items), 0); err != nil || !slices.Equal(again, l.items) {
					t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, l.items)
				}
				m := l.meta
				if m.blockSize < ondisk.MiB || m.blockSize > 256*ondisk.MiB || m.diskSize == 0 || m.diskSize > 64*ondisk.TiB ||
					m.diskSize%uint64(m.logicalSectorSize) != 0 || m.hasParent != (m.locator != nil) {
					t.Fatalf("metadata %+v pass", m)
				}
			}
			if (verdicts[0] == nil) != (verdicts[1] == nil) {
				t.Fatalf("Check says %v, Open %v", verdicts[0], verdicts[1])
			}
		})
		if n > maxDecodeAllocation {
			t.Fatalf("%d bytes were allocated", n)
		}
	})
}

func FuzzParentLocator(f *testing.F) {
	f.Add(ondisk.EncodeParentLocator(parentEntries("parent.vhdx", parentGUID)))
	f.Add(ondisk.EncodeParentLocator([][2]string{linkage, {ondisk.KeyLinkage2, guidText(otherGUID)}, {ondisk.KeyAbsolutePath, `\\?\C:\𝄞.vhdx`}, {"unknown", "ü"}}))
	f.Add(sharedStrings()[:8*ondisk.KiB])
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < ondisk.LocatorHeaderSize || len(in) > ondisk.MaxItemSize {
			return // the caller has seen to that
		}
		n := allocated(func() {
			p, err := ondisk.DecodeParentLocator(in, 0)
			mustBeCorrupt(t, err)
			if err != nil {
				return
			}
			var entries [][2]string
			for k, v := range p.Values {
				entries = append(entries, [2]string{k, v})
			}
			again, err := ondisk.DecodeParentLocator(ondisk.EncodeParentLocator(entries), 0)
			if err != nil || again.Linkage != p.Linkage || again.Linkage2 != p.Linkage2 || !maps.Equal(again.Values, p.Values) {
				t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, p)
			}
		})
		if n > maxDecodeAllocation {
			t.Fatalf("%d bytes were allocated", n)
		}
	})
}

// FuzzBATEntry scans a BAT of few entries in a geometry of large chunks or small, and compares with the
// rules stated once more, by the definition rather than by a map of space.
func FuzzBATEntry(f *testing.F) {
	seed := func(entries ...ondisk.BATEntry) (b []byte) {
		for _, e := range entries {
			b = ondisk.LE.AppendUint64(b, uint64(e))
		}
		return b
	}
	f.Add(seed(ondisk.NewBATEntry(ondisk.FullyPresent, 4*ondisk.MiB), ondisk.NewBATEntry(ondisk.Zero, 0), ondisk.NewBATEntry(ondisk.FullyPresent, 20*ondisk.MiB)), uint8(0), false)
	f.Add(seed(ondisk.NewBATEntry(ondisk.PartiallyPresent, 4*ondisk.MiB), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ondisk.NewBATEntry(ondisk.BitmapPresent, 260*ondisk.MiB)), uint8(8), true)
	f.Add(seed(ondisk.NewBATEntry(ondisk.Unmapped, 4*ondisk.MiB), ondisk.NewBATEntry(ondisk.UnmappedDraft, 4*ondisk.MiB), ondisk.NewBATEntry(4, 0)), uint8(3), true)
	f.Fuzz(func(t *testing.T, bat []byte, block uint8, child bool) {
		const fileSize, batOff = 2000 * ondisk.MiB, 2 * ondisk.MiB
		blockSize := int64(ondisk.MiB) << (block % 9)
		entries := int64(min(len(bat)/8, 600))
		if entries == 0 {
			return
		}
		g := ondisk.NewGeometry(max(1, entries-entries/17)*blockSize-512, blockSize, 512, child)
		file := newMemFile(fileSize)
		file.WriteAt(bat[:entries*8], batOff)
		newLayer := func(collect bool) *layer {
			return &layer{collect: collect, cache: newOpener(Options{}).cache, src: file, file: file, size: fileSize, geo: g,
				headers: &headers{copies: [2]ondisk.Header{{LogOffset: ondisk.MiB, LogLength: ondisk.MiB}}},
				tables:  &regionTables{regions: []ondisk.Region{{GUID: ondisk.BATRegionGUID, Offset: batOff, Length: 2 * ondisk.MiB}}}}
		}
		l := newLayer(false)
		err := l.loadBAT()
		mustBeCorrupt(t, err)
		checking := newLayer(true)
		if cerr := checking.loadBAT(); cerr != nil || (len(checking.errors) == 0) != (err == nil) {
			t.Fatalf("Open says %v, Check %v and %+v", err, cerr, checking.errors)
		}
		if want := batIsGood(&g, bat[:entries*8], fileSize, 4*ondisk.MiB); want != (err == nil) {
			t.Fatalf("the scan says %v, the definition %v", err, want)
		}
	})
}

// batIsGood says whether the entries of a BAT keep the rules, in a file with everything else below free.
func batIsGood(g *ondisk.Geometry, bat []byte, fileSize, free int64) bool {
	type object struct{ off, n uint64 }
	var objects []object
	present := func(off uint64, n, need int64) bool {
		if off < uint64(free) || off > uint64(fileSize) || uint64(need) > uint64(fileSize)-off {
			return false
		}
		for _, o := range objects {
			if off < o.off+o.n && o.off < off+uint64(n) {
				return false
			}
		}
		objects = append(objects, object{off, uint64(n)})
		return true
	}
	at := func(i int64) ondisk.BATEntry {
		if i >= int64(len(bat))/8 {
			return 0
		}
		return ondisk.BATEntry(ondisk.LE.Uint64(bat[i*8:]))
	}
	for b := range g.PayloadBlocks() {
		switch e := at(g.PayloadEntry(b)); e.State() {
		case ondisk.NotPresent, ondisk.Undefined, ondisk.Zero, ondisk.Unmapped, ondisk.UnmappedDraft:
		case ondisk.PartiallyPresent:
			if !g.HasParent || at(g.BitmapEntry(b/g.ChunkRatio())).State() != ondisk.BitmapPresent {
				return false
			}
			fallthrough
		case ondisk.FullyPresent:
			if !present(e.Offset(), g.BlockSize, min(g.BlockSize, g.DiskSize-b*g.BlockSize)) {
				return false
			}
		default:
			return false
		}
	}
	for c := range g.Chunks() {
		if !g.HasParent {
			break
		}
		switch e := at(g.BitmapEntry(c)); e.State() {
		case ondisk.BitmapNotPresent:
		case ondisk.BitmapPresent:
			if !present(e.Offset(), ondisk.BitmapBlockSize, ondisk.BitmapBlockSize) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// fuzzBases are the images that FuzzOpen damages, small enough to be read whole.
var fuzzBases = sync.OnceValue(func() []*image {
	blocks := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.Zero}, {3, ondisk.FullyPresent}}
	part := []blockSpec{{0, ondisk.PartiallyPresent}, {1, ondisk.Zero}, {2, ondisk.Unmapped}, {3, ondisk.FullyPresent}}
	dirty := build(spec{blocks: blocks})
	dirty.logPages(dirty.batOff, dirty.metaOff, ondisk.RegionTableOffsets[0])
	dirtyChild := build(spec{typ: Differencing, blocks: part})
	a := dirtyChild.logEntry(journal.Update{FileOffset: uint64(dirtyChild.batOff) + 4096, ZeroLength: 8192})
	b := dirtyChild.logEntry()
	b.SequenceNumber++
	b.LastFileOffset += 3 * ondisk.MiB
	dirtyChild.logEntries(a, b)
	return []*image{
		build(spec{blocks: blocks}),
		build(spec{typ: Fixed, sectorSize: 4096, blocks: blocks}),
		build(spec{typ: Differencing, blocks: part}),
		build(spec{metaOff: 6 * ondisk.MiB, logOff: 3 * ondisk.MiB, batOff: 2 * ondisk.MiB, dataOff: 8 * ondisk.MiB, blocks: blocks,
			regions: []ondisk.Region{{GUID: otherGUID, Offset: 7 * ondisk.MiB, Length: ondisk.MiB}}, items: []rawItem{{otherGUID, ondisk.ItemIsUser, []byte("item")}}}),
		dirty,
		dirtyChild,
	}
})

// damage applies the instructions in b to the image, and makes every checksum good again. An instruction is a
// place (1 byte), an offset in it (2), a count (1), and so many bytes.
func (im *image) damage(b []byte) {
	for len(b) >= 4 {
		place, off, n := b[0], int64(ondisk.LE.Uint16(b[1:])), min(int(b[3]), len(b)-4)
		p := b[4 : 4+n]
		b = b[4+n:]
		switch place % 10 {
		case 0, 1:
			im.WriteAt(p, ondisk.HeaderOffsets[place%10]+off%ondisk.HeaderSize)
		case 2, 3:
			im.WriteAt(p, ondisk.RegionTableOffsets[place%10-2]+off)
		case 4:
			im.WriteAt(p, im.metaOff+off)
		case 5:
			im.WriteAt(p, im.metaOff+firstItemOffset+off)
		case 6:
			im.WriteAt(p, im.batOff+off)
		case 7:
			im.WriteAt(p, im.logOff+off)
		case 8:
			im.WriteAt(p, im.batOff+4096*8+off) // the bitmap entry of the first chunk and what follows
		case 9:
			im.Truncate(off * 4 * ondisk.KiB)
		}
	}
	if im.size < ondisk.HeaderSectionSize {
		return
	}
	im.stamp(ondisk.HeaderOffsets, ondisk.HeaderSize, func([]byte) {})
	im.stamp(ondisk.RegionTableOffsets, ondisk.RegionTableSize, func([]byte) {})
	for pos := int64(0); pos < min(im.logLen, 64*ondisk.KiB) && im.logOff+pos+ondisk.PageSize <= im.size; pos += ondisk.PageSize {
		head := im.read(im.logOff+pos, 16)
		n := int64(ondisk.LE.Uint32(head[8:]))
		if string(head[:4]) == "loge" && n >= 64 && pos+n <= im.logLen && im.logOff+pos+n <= im.size {
			im.change(im.logOff+pos, n, func(b []byte) { ondisk.LE.PutUint32(b[4:], ondisk.Checksum(b, 4)) })
		}
	}
}

// instruction returns an instruction for damage.
func instruction(place byte, off int, p ...byte) []byte {
	return append([]byte{place, byte(off), byte(off >> 8), byte(len(p))}, p...)
}

func FuzzOpen(f *testing.F) {
	for i := range fuzzBases() {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), instruction(6, 8, 7))                                          // block 1 partially present
		f.Add(uint8(i), instruction(5, 8, 0, 0, 0, 0, 0, 0x40, 0, 0))                  // 64 TiB
		f.Add(uint8(i), instruction(7, 56, 0, 0, 0, 0, 0, 0, 1))                       // LastFileOffset 256 TiB
		f.Add(uint8(i), append(instruction(9, 2000), instruction(3, 40, 0xFF)...))     // a longer file
		f.Add(uint8(i), append(instruction(0, 66, 2), instruction(1, 48, 1, 2, 3)...)) // another LogGuid
	}
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})
	f.Fuzz(func(t *testing.T, base uint8, in []byte) {
		bases := fuzzBases()
		good := bases[int(base)%len(bases)]
		im := &image{memFile: good.clone(), spec: good.spec}
		im.damage(in)
		im.changes.Store(0)
		n := allocated(func() { openAndRead(t, im, parent) })
		if n > maxOpenAllocation {
			t.Fatalf("%d bytes were allocated", n)
		}
		if im.changes.Load() != 0 {
			t.Fatal("the file was changed")
		}
	})
}

// openAndRead opens the image, if it can be opened on the given parent, and reads where it says that data is.
func openAndRead(t *testing.T, im, parent *image) {
	o := newOpener(Options{CacheSize: 1})
	l := o.newLayer(im.memFile, "fuzz")
	err := l.load()
	mustBeCorrupt(t, err)

	co := newOpener(Options{CacheSize: 1})
	co.collect = true
	c := co.newLayer(im.memFile, "fuzz")
	cerr := c.load()
	if len(c.errors) == 0 {
		mustBeCorrupt(t, cerr)
	}
	if (cerr == nil && len(c.errors) == 0) != (err == nil) {
		t.Fatalf("Open says %v, Check %v and %+v", err, cerr, c.errors)
	}
	c.newReport()
	if err != nil {
		return
	}
	if l.geo.HasParent && l.geo.SectorSize == parent.sectorSize {
		l.setParent(o.newLayer(parent.memFile, "parent"))
		if err := l.parent().load(); err != nil {
			t.Fatal(err)
		}
	}
	disk := newImage(l)
	if _, err := json.Marshal(disk.Info()); err != nil {
		t.Fatal(err)
	}
	if disk.AllocatedBytes() > disk.Size() {
		t.Fatalf("%d bytes of %d are allocated", disk.AllocatedBytes(), disk.Size())
	}
	var buf [3000]byte
	off := int64(0)
	for range 100 { // extents
		e, err := disk.Extent(off)
		if err != nil {
			t.Fatalf("Extent(%d): %v", off, err)
		}
		if e.DiskOff != off || e.Len <= 0 || e.End() > disk.Size() {
			t.Fatalf("Extent(%d) = %+v in a disk of %d bytes", off, e, disk.Size())
		}
		for _, at := range []int64{off, max(off, e.End()-int64(len(buf)))} {
			n := min(int64(len(buf)), e.End()-at)
			if m, err := disk.ReadAt(buf[:n], at); int64(m) != n || err != nil {
				t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", n, at, m, err)
			}
			if e.File == nil && !slices.Equal(buf[:n], make([]byte, n)) {
				t.Fatalf("bytes in the hole %+v", e)
			}
		}
		if off = e.End(); off == disk.Size() {
			break
		}
	}
	if data, err := disk.SeekData(0); err == nil {
		if e, err := disk.Extent(data); err != nil || e.File == nil {
			t.Fatalf("SeekData found %d, where %+v is, %v", data, e, err)
		}
	}
}

// The decoders take GUIDs from anywhere; the zero one is like any other.
func TestZeroGUIDs(t *testing.T) {
	h := ondisk.Header{Version: 1, LogLength: ondisk.MiB, LogOffset: ondisk.MiB}
	if got, err := ondisk.DecodeHeader(h.Encode(), 0); err != nil || got != h || got.Dirty() {
		t.Errorf("decoded %+v, %v", got, err)
	}
	if p := (ondisk.ParentLocator{Linkage: parentGUID}); p.Accepts(uuid.Nil) {
		t.Error("a missing parent_linkage2 accepts a parent without DataWriteGuid")
	}
}

// FuzzRepair repairs damaged images, on a draft and in the file, and undoes it.
func FuzzRepair(f *testing.F) {
	for i := range fuzzBases() {
		f.Add(uint8(i), instruction(6, 0, 6, 0, 0, 0, 0, 0, 0, 0x80))                // a block at 2^63
		f.Add(uint8(i), instruction(6, 8, 7, 0, 0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F)) // at 2^63 - 1 MiB
		f.Add(uint8(i), append(instruction(9, 900), instruction(0, 8, 9)...))
	}
	f.Fuzz(func(t *testing.T, base uint8, in []byte) {
		bases := fuzzBases()
		good := bases[int(base)%len(bases)]
		im := &image{memFile: good.clone(), spec: good.spec}
		im.damage(in)
		if _, err := repairAndUndo(t, im.memFile); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzChangedBeneath changes an image beneath readers and writers that have it open. Their requests may fail, but never by
// a fault of the program, and each request ends.
func FuzzChangedBeneath(f *testing.F) {
	for i := range fuzzBases() {
		f.Add(uint8(i), instruction(6, 0, 3, 0, 0, 0, 0, 0, 0, 0x80), []byte{0, 1, 2, 3, 4, 5})
		f.Add(uint8(i), instruction(6, 8, 7, 0, 0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F), []byte{4, 1, 0, 5})
		f.Add(uint8(i), instruction(9, 700), []byte{3, 5, 0, 2})
	}
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})
	f.Fuzz(func(t *testing.T, base uint8, in, ops []byte) {
		bases := fuzzBases()
		good := bases[int(base)%len(bases)]
		im := &image{memFile: good.clone(), spec: good.spec}
		files := []File{im.memFile}
		if im.typ == Differencing {
			files = append(files, parent.memFile)
		}
		disk, err := loadWritable(Options{CacheSize: 1, Discard: DiscardPunch}, files...)
		if err != nil {
			t.Fatal(err)
		}
		im.damage(in)
		for i, op := range ops[:min(len(ops), 12)] {
			off := int64(i) * 700_001 % (disk.Size() - 5000)
			var err error
			switch op % 8 {
			case 0:
				err = readErr(disk.ReadAt(make([]byte, 5000), off))
			case 1:
				err = writeErr(disk.WriteAt(make([]byte, 5000), off))
			case 2:
				err = disk.Zero(off, disk.Size()-off)
			case 3:
				err = disk.Allocate(off, 5000)
			case 4:
				_, err = disk.Compact(t.Context(), CompactOptions{})
			case 5:
				err = disk.Sync()
			case 6:
				err = disk.Grow(t.Context(), disk.Size()+ondisk.MiB)
			case 7:
				disk.Info()
				_, err = disk.Reclaimable(t.Context(), true, CompactOptions{})
			}
			if f, ok := errors.AsType[*fault.Error](err); ok {
				t.Fatalf("operation %d: %v\n%s", op%8, f, f.Stack)
			}
		}
		if f, ok := errors.AsType[*fault.Error](disk.Close()); ok {
			t.Fatalf("close: %v\n%s", f, f.Stack)
		}
	})
}
