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

	"vhdxfs/internal/fault"
	"vhdxfs/internal/ondisk"
	"vhdxfs/journal"
)

// The bounds on what one input may make the engine allocate, in bytes. Opening takes most for the map of space,
// of which a log that claims 256 TiB of file makes two of 32 MiB; the decoders take a small multiple of their input.
const (
	maxOpenAllocation   = 128 * mib
	maxDecodeAllocation = 16 * mib
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
	f.Add(header{SequenceNumber: 1, Version: 1, LogLength: mib, LogOffset: mib}.encode()[:80], int64(4*mib))
	f.Add(header{SequenceNumber: 1 << 63, Version: 1, LogGUID: testLogGUID, LogLength: 0xFFF00000, LogOffset: 1<<64 - mib}.encode()[:80], int64(mib))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		var b [headerSize]byte
		copy(b[:], in)
		le.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
		h, err := decodeHeader(&b, 0)
		mustBeCorrupt(t, err)
		if err != nil {
			return
		}
		if again, err := decodeHeader(h.encode(), 0); err != nil || again != h {
			t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, h)
		}
		if size < headerSectionSize {
			return
		}
		err = h.validate(0, size)
		mustBeCorrupt(t, err)
		// Sums of unsigned numbers that wrap would come out below their parts.
		if end := h.LogOffset + uint64(h.LogLength); err == nil && h.LogLength > 0 &&
			(end < h.LogOffset || end > uint64(size) || h.LogOffset < headerSectionSize) {
			t.Fatalf("a log from %#x to %#x in a file of %#x bytes passes", h.LogOffset, end, size)
		}
	})
}

func FuzzRegionTable(f *testing.F) {
	good := []region{
		{GUID: batRegionGUID, Offset: 3 * mib, Length: mib, Flags: 1},
		{GUID: metadataRegionGUID, Offset: 2 * mib, Length: mib, Flags: 1},
		{GUID: otherGUID, Offset: 1<<64 - mib, Length: mib},
	}
	f.Add(encodeRegionTable(good)[:regionHeaderSize+3*regionEntrySize])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b [regionTableSize]byte
		copy(b[:], in)
		le.PutUint32(b[4:], ondisk.Checksum(b[:], 4))
		const size = 100 * mib
		n := allocated(func() {
			table, err := decodeRegionTable(&b, 0)
			mustBeCorrupt(t, err)
			if err != nil {
				return
			}
			if again, err := decodeRegionTable(encodeRegionTable(table), 0); err != nil || !slices.Equal(again, table) {
				t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, table)
			}
			for _, collect := range []bool{true, false} {
				l := &layer{collect: collect, size: size, tables: &regionTables{regions: table},
					headers: &headers{copies: [2]header{{LogOffset: mib, LogLength: mib}}}}
				err = l.validateRegions()
				mustBeCorrupt(t, err)
			}
			if err != nil {
				return
			}
			for i, r := range table {
				end := r.Offset + uint64(r.Length)
				if end < r.Offset || r.Offset < 2*mib && r.Offset+uint64(r.Length) > mib {
					t.Fatalf("region %+v passes", r)
				}
				if r.name() != "unknown" && end > size {
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
	return im.read(im.metaOff, int64(metadataHeaderSize+len(im.items)*metadataEntrySize)), im.read(im.metaOff+firstItemOffset, 1024)
}

func FuzzMetadata(f *testing.F) {
	for _, s := range []spec{{}, {typ: Fixed, sectorSize: 4096}, {typ: Differencing, items: []rawItem{{otherGUID, itemIsUser, []byte("x")}}}} {
		table, items := metadataSeed(build(s))
		f.Add(table, items)
	}
	f.Fuzz(func(t *testing.T, table, items []byte) {
		const off, length = 2 * mib, 2 * mib
		file := newMemFile(off + length)
		file.WriteAt(table[:min(len(table), metadataTableSize)], off)
		file.WriteAt(items[:min(len(items), mib)], off+firstItemOffset)
		n := allocated(func() {
			var verdicts [2]error
			for i, collect := range []bool{true, false} {
				l := &layer{collect: collect, src: file, size: off + length, tables: &regionTables{regions: []region{
					{GUID: metadataRegionGUID, Offset: off, Length: length},
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
				if again, err := decodeMetadataTable(encodeMetadataTable(l.items), 0); err != nil || !slices.Equal(again, l.items) {
					t.Fatalf("encode then decode = %+v, %v; want %+v", again, err, l.items)
				}
				m := l.meta
				if m.blockSize < mib || m.blockSize > 256*mib || m.diskSize == 0 || m.diskSize > 64*tib ||
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
	f.Add(encodeParentLocator(parentEntries("parent.vhdx", parentGUID)))
	f.Add(encodeParentLocator([][2]string{linkage, {keyLinkage2, guidText(otherGUID)}, {keyAbsolutePath, `\\?\C:\𝄞.vhdx`}, {"unknown", "ü"}}))
	f.Add(sharedStrings()[:8*kib])
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < locatorHeaderSize || len(in) > maxItemSize {
			return // the caller has seen to that
		}
		n := allocated(func() {
			p, err := decodeParentLocator(in, 0)
			mustBeCorrupt(t, err)
			if err != nil {
				return
			}
			var entries [][2]string
			for k, v := range p.values {
				entries = append(entries, [2]string{k, v})
			}
			again, err := decodeParentLocator(encodeParentLocator(entries), 0)
			if err != nil || again.linkage != p.linkage || again.linkage2 != p.linkage2 || !maps.Equal(again.values, p.values) {
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
	seed := func(entries ...batEntry) (b []byte) {
		for _, e := range entries {
			b = le.AppendUint64(b, uint64(e))
		}
		return b
	}
	f.Add(seed(newBATEntry(FullyPresent, 4*mib), newBATEntry(Zero, 0), newBATEntry(FullyPresent, 20*mib)), uint8(0), false)
	f.Add(seed(newBATEntry(PartiallyPresent, 4*mib), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, newBATEntry(bitmapPresent, 260*mib)), uint8(8), true)
	f.Add(seed(newBATEntry(Unmapped, 4*mib), newBATEntry(unmappedDraft, 4*mib), newBATEntry(4, 0)), uint8(3), true)
	f.Fuzz(func(t *testing.T, bat []byte, block uint8, child bool) {
		const fileSize, batOff = 2000 * mib, 2 * mib
		blockSize := int64(mib) << (block % 9)
		entries := int64(min(len(bat)/8, 600))
		if entries == 0 {
			return
		}
		g := newGeometry(max(1, entries-entries/17)*blockSize-512, blockSize, 512, child)
		file := newMemFile(fileSize)
		file.WriteAt(bat[:entries*8], batOff)
		newLayer := func(collect bool) *layer {
			return &layer{collect: collect, cache: newOpener(Options{}).cache, src: file, file: file, size: fileSize, geo: g,
				headers: &headers{copies: [2]header{{LogOffset: mib, LogLength: mib}}},
				tables:  &regionTables{regions: []region{{GUID: batRegionGUID, Offset: batOff, Length: 2 * mib}}}}
		}
		l := newLayer(false)
		err := l.loadBAT()
		mustBeCorrupt(t, err)
		checking := newLayer(true)
		if cerr := checking.loadBAT(); cerr != nil || (len(checking.errors) == 0) != (err == nil) {
			t.Fatalf("Open says %v, Check %v and %+v", err, cerr, checking.errors)
		}
		if want := batIsGood(&g, bat[:entries*8], fileSize, 4*mib); want != (err == nil) {
			t.Fatalf("the scan says %v, the definition %v", err, want)
		}
	})
}

// batIsGood says whether the entries of a BAT keep the rules, in a file with everything else below free.
func batIsGood(g *geometry, bat []byte, fileSize, free int64) bool {
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
	at := func(i int64) batEntry {
		if i >= int64(len(bat))/8 {
			return 0
		}
		return batEntry(le.Uint64(bat[i*8:]))
	}
	for b := range g.payloadBlocks() {
		switch e := at(g.payloadEntry(b)); e.state() {
		case NotPresent, Undefined, Zero, Unmapped, unmappedDraft:
		case PartiallyPresent:
			if !g.hasParent || at(g.bitmapEntry(b/g.chunkRatio())).state() != bitmapPresent {
				return false
			}
			fallthrough
		case FullyPresent:
			if !present(e.offset(), g.blockSize, min(g.blockSize, g.diskSize-b*g.blockSize)) {
				return false
			}
		default:
			return false
		}
	}
	for c := range g.chunks() {
		if !g.hasParent {
			break
		}
		switch e := at(g.bitmapEntry(c)); e.state() {
		case bitmapNotPresent:
		case bitmapPresent:
			if !present(e.offset(), bitmapBlockSize, bitmapBlockSize) {
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
	blocks := []blockSpec{{0, FullyPresent}, {1, Zero}, {3, FullyPresent}}
	part := []blockSpec{{0, PartiallyPresent}, {1, Zero}, {2, Unmapped}, {3, FullyPresent}}
	dirty := build(spec{blocks: blocks})
	dirty.logPages(dirty.batOff, dirty.metaOff, regionTableOffsets[0])
	dirtyChild := build(spec{typ: Differencing, blocks: part})
	a := dirtyChild.logEntry(journal.Update{FileOffset: uint64(dirtyChild.batOff) + 4096, ZeroLength: 8192})
	b := dirtyChild.logEntry()
	b.SequenceNumber++
	b.LastFileOffset += 3 * mib
	dirtyChild.logEntries(a, b)
	return []*image{
		build(spec{blocks: blocks}),
		build(spec{typ: Fixed, sectorSize: 4096, blocks: blocks}),
		build(spec{typ: Differencing, blocks: part}),
		build(spec{metaOff: 6 * mib, logOff: 3 * mib, batOff: 2 * mib, dataOff: 8 * mib, blocks: blocks,
			regions: []region{{GUID: otherGUID, Offset: 7 * mib, Length: mib}}, items: []rawItem{{otherGUID, itemIsUser, []byte("item")}}}),
		dirty,
		dirtyChild,
	}
})

// damage applies the instructions in b to the image, and makes every checksum good again. An instruction is a
// place (1 byte), an offset in it (2), a count (1), and so many bytes.
func (im *image) damage(b []byte) {
	for len(b) >= 4 {
		place, off, n := b[0], int64(le.Uint16(b[1:])), min(int(b[3]), len(b)-4)
		p := b[4 : 4+n]
		b = b[4+n:]
		switch place % 10 {
		case 0, 1:
			im.WriteAt(p, headerOffsets[place%10]+off%headerSize)
		case 2, 3:
			im.WriteAt(p, regionTableOffsets[place%10-2]+off)
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
			im.Truncate(off * 4 * kib)
		}
	}
	if im.size < headerSectionSize {
		return
	}
	im.stamp(headerOffsets, headerSize, func([]byte) {})
	im.stamp(regionTableOffsets, regionTableSize, func([]byte) {})
	for pos := int64(0); pos < min(im.logLen, 64*kib) && im.logOff+pos+pageSize <= im.size; pos += pageSize {
		head := im.read(im.logOff+pos, 16)
		n := int64(le.Uint32(head[8:]))
		if string(head[:4]) == "loge" && n >= 64 && pos+n <= im.logLen && im.logOff+pos+n <= im.size {
			im.change(im.logOff+pos, n, func(b []byte) { le.PutUint32(b[4:], ondisk.Checksum(b, 4)) })
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
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, FullyPresent}, {2, FullyPresent}}})
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
	if l.geo.hasParent && l.geo.sectorSize == parent.sectorSize {
		l.parent = o.newLayer(parent.memFile, "parent")
		if err := l.parent.load(); err != nil {
			t.Fatal(err)
		}
	}
	disk := &Image{top: l, close: l.close}
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
	h := header{Version: 1, LogLength: mib, LogOffset: mib}
	if got, err := decodeHeader(h.encode(), 0); err != nil || got != h || got.dirty() {
		t.Errorf("decoded %+v, %v", got, err)
	}
	if p := (parentLocator{linkage: parentGUID}); p.accepts(uuid.Nil) {
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

// FuzzChangedBeneath changes an image beneath those who have it open. What they do may fail, but never by a fault of the
// program, and it ends.
func FuzzChangedBeneath(f *testing.F) {
	for i := range fuzzBases() {
		f.Add(uint8(i), instruction(6, 0, 3, 0, 0, 0, 0, 0, 0, 0x80), []byte{0, 1, 2, 3, 4, 5})
		f.Add(uint8(i), instruction(6, 8, 7, 0, 0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F), []byte{4, 1, 0, 5})
		f.Add(uint8(i), instruction(9, 700), []byte{3, 5, 0, 2})
	}
	parent := build(spec{dataWrite: parentGUID, blocks: []blockSpec{{0, FullyPresent}, {2, FullyPresent}}})
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
				err = disk.Grow(t.Context(), disk.Size()+mib)
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
