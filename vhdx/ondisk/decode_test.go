package ondisk

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// distinct returns a GUID whose bytes all differ.
func distinct(first byte) (g uuid.UUID) {
	for i := range g {
		g[i] = first + byte(i)
	}
	return g
}

// A log counts only where it has to be replayed, and lies inside the file.
func TestValidateHeader(t *testing.T) {
	const size = 10 * MiB
	for name, c := range map[string]struct {
		change func(*Header)
		want   Rule
	}{
		"good":                         {func(*Header) {}, 0},
		"log version, not in use":      {func(h *Header) { h.LogVersion = 1 }, 0},
		"log version, in use":          {func(h *Header) { h.LogVersion, h.LogGUID = 1, distinct(1) }, RuleLogVersion},
		"in use":                       {func(h *Header) { h.LogGUID = distinct(1) }, 0},
		"version":                      {func(h *Header) { h.Version = 2 }, RuleHeaderVersion},
		"length":                       {func(h *Header) { h.LogLength++ }, RuleLogLength},
		"no length, in use":            {func(h *Header) { h.LogLength, h.LogGUID = 0, distinct(1) }, RuleLogEmpty},
		"no length":                    {func(h *Header) { h.LogLength, h.LogOffset = 0, 7 }, 0},
		"offset":                       {func(h *Header) { h.LogOffset++ }, RuleLogOffset},
		"offset in the header section": {func(h *Header) { h.LogOffset = 0 }, RuleLogOffset},
		"offset behind it":             {func(h *Header) { h.LogOffset = MiB }, 0},
		"up to the end":                {func(h *Header) { h.LogOffset = size - 2*MiB }, 0},
		"over the end":                 {func(h *Header) { h.LogOffset = size - MiB }, RuleLogBeyondFile},
		"at the end":                   {func(h *Header) { h.LogOffset = size }, RuleLogBeyondFile},
		"behind the end":               {func(h *Header) { h.LogOffset = size + MiB }, RuleLogBeyondFile},
		"that wraps":                   {func(h *Header) { h.LogOffset = 1<<64 - MiB }, RuleLogBeyondFile},
	} {
		h := Header{Version: HeaderVersion, LogLength: 2 * MiB, LogOffset: MiB}
		c.change(&h)
		if got := RuleOf(h.Validate(HeaderOffsets[0], size)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Each field is read from where it was written, and no other byte is.
func TestHeaderRoundTrip(t *testing.T) {
	h := Header{
		SequenceNumber: 0x0102030405060708, FileWriteGUID: distinct(0x10), DataWriteGUID: distinct(0x20), LogGUID: distinct(0x30),
		LogVersion: 0x4142, Version: 0x4344, LogLength: 0x51525354, LogOffset: 0x6162636465666768,
	}
	b := h.Encode()
	if got, err := DecodeHeader(b, 0); err != nil || got != h {
		t.Errorf("%+v, %v; want %+v", got, err, h)
	}
	other := *b
	other[0] = 'H'
	LE.PutUint32(other[4:], Checksum(other[:], 4))
	if _, err := DecodeHeader(&other, 0); RuleOf(err) != RuleNoValidHeader {
		t.Errorf("with another signature: %v", err)
	}
	for i := range b {
		broken := *b
		broken[i] ^= 1
		if _, err := DecodeHeader(&broken, 0); RuleOf(err) != RuleNoValidHeader || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
	}
}

// The tables hold as many entries as they may, and no more.
func TestFullTables(t *testing.T) {
	var regions []Region
	var items []MetadataItem
	for i := range MaxRegions {
		n := uint32(i + 1)
		regions = append(regions, Region{GUID: distinct(byte(i)), Offset: uint64(n) << 33, Length: n << 3, Flags: n << 5})
		items = append(items, MetadataItem{ID: distinct(byte(i)), Offset: n << 2, Length: n << 4, Flags: n << 6})
	}
	for _, n := range []int{0, 1, MaxRegions} {
		if got, err := DecodeRegionTable(EncodeRegionTable(regions[:n]), 0); err != nil || !slices.Equal(got, regions[:n]) {
			t.Errorf("%d regions: %d, %v", n, len(got), err)
		}
		if got, err := DecodeMetadataTable(EncodeMetadataTable(items[:n]), 0); err != nil || !slices.Equal(got, items[:n]) {
			t.Errorf("%d items: %d, %v", n, len(got), err)
		}
	}
	r := EncodeRegionTable(regions)
	LE.PutUint32(r[8:], MaxRegions+1)
	LE.PutUint32(r[4:], Checksum(r[:], 4))
	if _, err := DecodeRegionTable(r, 0); RuleOf(err) != RuleRegionCount {
		t.Errorf("a region too many: %v", err)
	}
	r = EncodeRegionTable(regions)
	r[0] = 'R'
	LE.PutUint32(r[4:], Checksum(r[:], 4))
	if _, err := DecodeRegionTable(r, 0); RuleOf(err) != RuleNoValidRegionTable {
		t.Errorf("a region table with another signature: %v", err)
	}
	r = EncodeRegionTable(regions)
	r[8]--
	if _, err := DecodeRegionTable(r, 0); RuleOf(err) != RuleNoValidRegionTable {
		t.Errorf("a region table with another checksum: %v", err)
	}
	m := EncodeMetadataTable(items)
	LE.PutUint16(m[10:], MaxMetadataEntries+1)
	if _, err := DecodeMetadataTable(m, 0); RuleOf(err) != RuleMetadataCount {
		t.Errorf("an item too many: %v", err)
	}
	m[0]++
	if _, err := DecodeMetadataTable(m, 0); RuleOf(err) != RuleMetadataSignature {
		t.Errorf("another signature: %v", err)
	}
}

func TestRegionInside(t *testing.T) {
	const size = 10 * MiB
	for _, c := range []struct {
		off    uint64
		length uint32
		want   bool
	}{
		{0, size, true}, {0, size + 1, false}, {size - MiB, MiB, true}, {size - MiB, MiB + 1, false}, {size, 0, true}, {size, 1, false},
		{size + 1, 0, false}, {1<<64 - 1, 1, false}, {1<<64 - MiB, 2 * MiB, false},
	} {
		r := Region{Offset: c.off, Length: c.length}
		if got := r.Inside(size); got != c.want || r.End() != c.off+uint64(c.length) {
			t.Errorf("%#x bytes at %#x: inside %t, end %#x", c.length, c.off, got, r.End())
		}
	}
	for want, g := range map[string]uuid.UUID{"BAT": BATRegionGUID, "metadata": MetadataRegionGUID, "unknown": distinct(1)} {
		if got := (Region{GUID: g}).Name(); got != want {
			t.Errorf("%v is %q, want %q", g, got, want)
		}
	}
}

// A user item is never one of the standard's, whatever its id.
func TestUserItemIsUnknown(t *testing.T) {
	for _, c := range []struct {
		id    uuid.UUID
		flags uint32
		want  string
	}{
		{DiskSizeGUID, 0, "virtual disk size"}, {DiskSizeGUID, ItemIsRequired | ItemIsVirtualDisk, "virtual disk size"},
		{DiskSizeGUID, ItemIsUser, "unknown"}, {distinct(1), 0, "unknown"}, {distinct(1), ItemIsUser, "unknown"},
	} {
		m := MetadataItem{ID: c.id, Flags: c.flags}
		if _, known := m.Known(); m.Name() != c.want || known != (c.want != "unknown") || m.User() != (c.flags&ItemIsUser != 0) {
			t.Errorf("%+v is %q, known %t", m, m.Name(), known)
		}
	}
	for n, want := range map[uint32]bool{0: false, 511: false, 512: true, 513: false, 2048: false, 4096: true, 4097: false} {
		if got := ValidSectorSize(n); got != want {
			t.Errorf("sectors of %d bytes: %t", n, got)
		}
	}
}

// A parent is the one that either linkage names. No linkage accepts a parent without a GUID by being absent.
func TestAcceptsParent(t *testing.T) {
	a, b, c := distinct(1), distinct(2), distinct(3)
	for _, l := range []ParentLocator{{Linkage: a}, {Linkage: a, Linkage2: b}, {Linkage2: b}} {
		for _, g := range []uuid.UUID{a, b, c, uuid.Nil} {
			want := g == l.Linkage || g == l.Linkage2 && g != uuid.Nil
			if got := l.Accepts(g); got != want {
				t.Errorf("%+v accepts %v: %t", l, g, got)
			}
		}
	}
}

func TestParseLinkage(t *testing.T) {
	g := distinct(0xa0)
	s := g.String()
	for text, good := range map[string]bool{
		s: true, LinkageText(g): true, strings.ToUpper(s): true, "{" + strings.ToUpper(s) + "}": true,
		"": false, "{}": false, "{" + s: false, s + "}": false, "x" + s + "}": false, "{" + s + "x": false, "x" + s + "x": false, "}" + s + "{": false,
		"{{" + s + "}}": false, g.URN(): false, s[1:]: false, s + "0": false, strings.ReplaceAll(s, "-", ""): false, "g" + s[1:]: false,
	} {
		if got, err := ParseLinkage(text); (err == nil) != good || good && got != g {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// locatorOf returns the parent locator of entries, in which every text has its own place.
func locatorOf(entries ...[2]string) []byte { return EncodeParentLocator(entries) }

func TestLocatorRoundTrip(t *testing.T) {
	linkage, linkage2 := distinct(1), distinct(0x40)
	entries := [][2]string{
		{KeyLinkage, LinkageText(linkage)}, {KeyLinkage2, LinkageText(linkage2)}, {"x", "ä😀"}, {KeyVolumePath, `\\?\Volume{1}\a.vhdx`},
	}
	p, err := DecodeParentLocator(locatorOf(entries...), 0)
	if err != nil || p.Linkage != linkage || p.Linkage2 != linkage2 || len(p.Values) != len(entries) {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, e := range entries {
		if p.Values[e[0]] != e[1] {
			t.Errorf("%q is %q, want %q", e[0], p.Values[e[0]], e[1])
		}
	}
	for _, key := range PathKeys {
		if _, err := DecodeParentLocator(locatorOf([2]string{KeyLinkage, LinkageText(linkage)}, [2]string{key, "a"}), 0); err != nil {
			t.Errorf("with %s alone: %v", key, err)
		}
	}
}

// Entries and texts reach up to the end of the item, and all texts together up to its largest length.
func TestLocatorBounds(t *testing.T) {
	if _, err := DecodeParentLocator(locatorOf([2]string{}), 0); RuleOf(err) != RuleLocatorString { // which has nothing behind the entries
		t.Errorf("entries up to the end: %v", err)
	}
	if _, err := DecodeParentLocator(locatorOf([2]string{})[:LocatorHeaderSize+LocatorEntrySize-1], 0); RuleOf(err) != RuleLocatorEntries {
		t.Errorf("entries over the end: %v", err)
	}

	// Texts of 65534 bytes that overlap: 16 of them, and 32 bytes, are 1 MiB.
	const n, length = 9, 65534
	b := make([]byte, LocatorHeaderSize+n*LocatorEntrySize, 2*MaxItemSize)
	PutGUID(b, locatorTypeVHDX)
	LE.PutUint16(b[18:], n)
	text := uint32(len(b))
	for i := range length/2 + 2*n {
		b = LE.AppendUint16(b, uint16(i+1))
	}
	for i := range n {
		e := b[LocatorHeaderSize+i*LocatorEntrySize:]
		LE.PutUint32(e, text+uint32(2*i))
		LE.PutUint32(e[4:], text)
		LE.PutUint16(e[8:], length)
		LE.PutUint16(e[10:], length)
	}
	last := b[LocatorHeaderSize+(n-1)*LocatorEntrySize:]
	for extra, want := range map[uint16]Rule{0: RuleNoLinkage, 2: RuleLocatorEntries} {
		LE.PutUint16(last[8:], 16)
		LE.PutUint16(last[10:], 16+extra)
		if _, err := DecodeParentLocator(b, 0); RuleOf(err) != want {
			t.Errorf("with %d bytes more than all texts may have: %v", extra, err)
		}
	}
}

// Each entry of a locator has to be right, and there is one.
func TestLocatorEntries(t *testing.T) {
	linkage, path := [2]string{KeyLinkage, LinkageText(distinct(1))}, [2]string{KeyRelativePath, "a"}
	for name, c := range map[string]struct {
		b    []byte
		want Rule
	}{
		"good":          {locatorOf(linkage, path), 0},
		"another type":  {append(make([]byte, GUIDSize), locatorOf(linkage, path)[GUIDSize:]...), RuleLocatorType},
		"no entry":      {locatorOf(), RuleLocatorEntries},
		"no key":        {locatorOf([2]string{"", "x"}, linkage, path), RuleLocatorString},
		"no value":      {locatorOf(linkage, path, [2]string{"x", ""}), RuleLocatorString},
		"NUL in a key":  {locatorOf([2]string{"x\x00", "x"}, linkage, path), RuleLocatorText},
		"NUL in a text": {locatorOf([2]string{"x", "x\x00"}, linkage, path), RuleLocatorText},
		"a key twice":   {locatorOf(linkage, path, path), RuleLocatorKeyTwice},
		"no linkage":    {locatorOf([2]string{KeyLinkage2, LinkageText(distinct(1))}, path), RuleNoLinkage},
		"no path":       {locatorOf(linkage), RuleNoParentPath},
	} {
		if p, err := DecodeParentLocator(c.b, 0); RuleOf(err) != c.want || (p == nil) != (c.want != 0) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestLocatorText(t *testing.T) {
	b := EncodeUTF16("0ab") // the first is never at offset 0
	for _, c := range []struct {
		off  uint32
		n    uint16
		want string
		rule Rule
	}{
		{2, 4, "ab", 0}, {2, 2, "a", 0}, {4, 2, "b", 0},
		{0, 2, "", RuleLocatorString}, {2, 0, "", RuleLocatorString}, {2, 3, "", RuleLocatorString}, {2, 6, "", RuleLocatorString},
		{4, 4, "", RuleLocatorString}, {6, 2, "", RuleLocatorString}, {1<<32 - 2, 4, "", RuleLocatorString},
		{6, 2, "", RuleLocatorText}, {2, 6, "", RuleLocatorText}, // half a surrogate
	} {
		if c.rule == RuleLocatorText {
			b = LE.AppendUint16(b[:6], 0xd800)
		}
		got, err := locatorString(b, c.off, c.n)
		if got != c.want || RuleOf(err) != c.rule {
			t.Errorf("%d bytes at %#x: %q, %v", c.n, c.off, got, err)
		}
	}
}

func TestFindingAndRule(t *testing.T) {
	found := errors.New("found")
	err := Corrupt(RuleDiskEmpty, "item", 0x70, "%w", found)
	if Finding(err).Error() != "found" || RuleOf(err) != RuleDiskEmpty || !errors.Is(err, found) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v: %v, %v", err, Finding(err), RuleOf(err))
	}
	if Finding(found) != found || RuleOf(found) != 0 || RuleOf(nil) != 0 {
		t.Errorf("%v: %v, %v", found, Finding(found), RuleOf(found))
	}
	if want := "found (item, offset 0x70, rule R40, MS-VHDX 2.6.2.2)"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
