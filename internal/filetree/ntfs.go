package filetree

import (
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/utf16text"
)

// The types of NTFS attributes.
const (
	ntfsStandard  = 0x10
	ntfsList      = 0x20
	ntfsData      = 0x80
	ntfsRoot      = 0x90
	ntfsIndex     = 0xA0
	ntfsBitmap    = 0xB0
	ntfsReparse   = 0xC0
	ntfsEnd       = 0xFFFFFFFF
	ntfsRootFile  = 5
	ntfsVolume    = 3
	ntfsFirstUser = 16 // the files before are those of NTFS itself
)

// ntfsFS is NTFS.
type ntfsFS struct {
	v                volume
	sector, cluster  int64 // bytes
	record, indexLen int64 // bytes
	mft              *ntfsAttr
	dirty            bool
}

// An ntfsAttr is an attribute of a file.
type ntfsAttr struct {
	kind  uint32
	name  string
	flags uint16
	value []byte // of one that is resident
	// One that is not:
	runs        []ntfsRun
	size, valid int64 // bytes; what follows the valid ones reads as zero
	unit        int64 // of compression, in clusters
}

func (a *ntfsAttr) length() int64 {
	if a.value != nil {
		return int64(len(a.value))
	}
	return a.size
}

// An ntfsRun is some clusters of an attribute. One without a place reads as zero.
type ntfsRun struct {
	at, n  int64 // clusters
	sparse bool
}

func openNTFS(v volume) (Tree, error) {
	b, err := v.at(0, 512)
	if err != nil {
		return nil, err
	}
	n := &ntfsFS{v: v, sector: int64(le.Uint16(b[11:]))}
	n.cluster = n.sector * int64(b[13])
	if b[13] > 0x80 { // a power of two
		n.cluster = n.sector << min(-int(int8(b[13])), 20) // #nosec G115 -- the sign
	}
	if string(b[3:11]) != "NTFS    " || n.sector < 256 || n.sector > 4096 || n.cluster < n.sector || n.cluster > 2<<20 || n.cluster&(n.cluster-1) != 0 {
		return nil, damaged("the boot sector of NTFS has impossible sizes")
	}
	sized := func(c byte) int64 {
		if int8(c) < 0 { // #nosec G115 -- the sign
			return 1 << min(-int(int8(c)), 20) // #nosec G115 -- the sign
		}
		return int64(c) * n.cluster
	}
	n.record, n.indexLen = sized(b[64]), sized(b[68])
	if n.record < 512 || n.record > 64<<10 || n.indexLen < 512 || n.indexLen > 64<<10 || n.record&(n.record-1) != 0 {
		return nil, damaged("records of %d and %d bytes", n.record, n.indexLen)
	}
	start := le.Uint64(b[48:])
	if start > uint64(v.size/n.cluster) {
		return nil, damaged("the master file table is beyond the end")
	}
	raw, err := v.at(int64(start)*n.cluster, int(n.record)) // #nosec G115 -- bounded above
	if err != nil {
		return nil, err
	}
	if raw, err = n.fix(raw, "FILE"); err != nil {
		return nil, err
	}
	// What the first record itself tells of the table is enough to read the records with the rest.
	for range 2 {
		list, err := n.parse(raw, nil)
		if err == nil && n.mft != nil {
			list, err = n.attributes(0)
		}
		if err != nil {
			return nil, err
		}
		if n.mft = find(list, ntfsData, ""); n.mft == nil || n.mft.runs == nil {
			return nil, damaged("the master file table has no data")
		}
	}
	if vol, err := n.attributes(ntfsVolume); err == nil {
		if i := find(vol, 0x70, ""); i != nil && len(i.value) >= 12 {
			n.dirty = i.value[10]&1 != 0
		}
	}
	return n, nil
}

func (n *ntfsFS) NoCase() bool { return true }

func (n *ntfsFS) Note() string {
	if n.dirty {
		return "Windows has not closed it: the newest changes may be missing"
	}
	return ""
}

// fix checks the signature of a record, and puts the bytes back that its sectors end with (the update sequence).
func (n *ntfsFS) fix(b []byte, signature string) ([]byte, error) {
	const stride = 512
	at, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if string(b[:4]) != signature || count != len(b)/stride+1 || at < 8 || at+2*count > len(b) {
		return nil, damaged("a record without the signature %s", signature)
	}
	for k := 1; k < count; k++ {
		end := b[k*stride-2:]
		if le.Uint16(end) != le.Uint16(b[at:]) {
			return nil, damaged("a record of %s was written in part", signature)
		}
		copy(end[:2], b[at+2*k:])
	}
	return b, nil
}

// find returns the first attribute of a kind and a name, nil where there is none.
func find(list []*ntfsAttr, kind uint32, name string) *ntfsAttr {
	i := slices.IndexFunc(list, func(a *ntfsAttr) bool { return a.kind == kind && a.name == name })
	if i < 0 {
		return nil
	}
	return list[i]
}

// recordOf returns a record of the master file table.
func (n *ntfsFS) recordOf(number uint64) ([]byte, error) {
	if number >= uint64(n.mft.size/n.record) {
		return nil, damaged("record %d is beyond the end of the master file table", number)
	}
	b, err := n.part(n.mft, int64(number)*n.record, n.record) // #nosec G115 -- bounded above
	if err != nil {
		return nil, err
	}
	return n.fix(b, "FILE")
}

// attributes returns those of a file, of all its records.
func (n *ntfsFS) attributes(number uint64) ([]*ntfsAttr, error) {
	b, err := n.recordOf(number)
	if err != nil {
		return nil, err
	}
	list, err := n.parse(b, nil)
	if err != nil {
		return nil, err
	}
	more := find(list, ntfsList, "")
	if more == nil {
		return list, nil
	}
	var all whole
	if err := n.copy(more, n.v.writer(&all, more.length())); err != nil {
		return nil, err
	}
	const header, maxRecords = 26, 10000
	seen := map[uint64]bool{number: true}
	for e := all.b; len(e) >= header; {
		size := int(le.Uint16(e[4:]))
		if size < header || size > len(e) {
			return nil, damaged("a list of attributes")
		}
		record := le.Uint64(e[16:]) & (1<<48 - 1)
		if e = e[size:]; seen[record] {
			continue
		}
		if seen[record] = true; len(seen) > maxRecords {
			return nil, damaged("a file of more than %d records", maxRecords)
		}
		b, err := n.recordOf(record)
		if err != nil {
			return nil, err
		}
		if le.Uint64(b[32:])&(1<<48-1) != number {
			return nil, damaged("record %d does not belong to file %d", record, number)
		}
		if list, err = n.parse(b, list); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// parse adds the attributes in a record to a list. The parts of one that is not resident come in order.
func (n *ntfsFS) parse(b []byte, list []*ntfsAttr) ([]*ntfsAttr, error) {
	const header, residentHeader, otherHeader = 16, 24, 64
	for at := int(le.Uint16(b[20:])); at+8 <= len(b) && le.Uint32(b[at:]) != ntfsEnd; {
		size := int(le.Uint32(b[at+4:]))
		if size < residentHeader || size > len(b)-at {
			return nil, damaged("an attribute of %d bytes", size)
		}
		r := b[at : at+size]
		at += size
		a := &ntfsAttr{kind: le.Uint32(r), flags: le.Uint16(r[12:])}
		if l, off := 2*int(r[9]), int(le.Uint16(r[10:])); l > 0 {
			if off+l > size {
				return nil, damaged("the name of an attribute")
			}
			a.name = utf16text.UpToZero(r[off:off+l], le)
		}
		if r[8] == 0 {
			off, l := int(le.Uint16(r[20:])), int(le.Uint32(r[16:]))
			if off > size || l > size-off {
				return nil, damaged("the value of an attribute")
			}
			a.value = append([]byte{}, r[off:off+l]...)
			list = append(list, a)
			continue
		}
		if size < otherHeader {
			return nil, damaged("an attribute that is not resident, of %d bytes", size)
		}
		off := int(le.Uint16(r[32:]))
		if off < header || off > size {
			return nil, damaged("an attribute whose runs begin at %d", off)
		}
		first, next := le.Uint64(r[16:]), int64(0)
		if first == 0 {
			a.size, a.valid = int64(le.Uint64(r[48:])), int64(le.Uint64(r[56:])) // #nosec G115 -- checked below
			if u := le.Uint16(r[34:]); u > 0 && u <= 8 {
				a.unit = 1 << u
			}
			if a.size < 0 || a.valid < 0 || a.size > 1<<60 {
				return nil, damaged("an attribute has an impossible size")
			}
			a.runs = []ntfsRun{}
			list = append(list, a)
		} else if a = find(list, a.kind, a.name); a == nil || a.runs == nil {
			return nil, damaged("a part of an attribute without its start")
		}
		for _, run := range a.runs {
			next += run.n
		}
		if first != uint64(next) {
			return nil, damaged("the parts of an attribute are not in order")
		}
		if err := a.addRuns(r[off:], n.v.size/n.cluster); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// addRuns decodes a list of runs, on a disk of so many clusters.
func (a *ntfsAttr) addRuns(b []byte, clusters int64) error {
	at := int64(0)
	for len(b) > 0 && b[0] != 0 {
		l, o := int(b[0]&15), int(b[0]>>4)
		if l == 0 || l > 8 || o > 8 || 1+l+o > len(b) {
			return damaged("a list of runs")
		}
		length, delta := signed(b[1:1+l]), signed(b[1+l:1+l+o])
		b = b[1+l+o:]
		at += delta
		if length <= 0 || length > 1<<48 || o > 0 && (at < 0 || length > clusters || at > clusters-length) {
			return damaged("a run of %d clusters at %d", length, at)
		}
		a.runs = append(a.runs, ntfsRun{at, length, o == 0})
	}
	return nil
}

// signed decodes a little-endian number with a sign.
func signed(b []byte) (v int64) {
	for k, c := range b {
		v |= int64(c) << (8 * k)
	}
	if n := len(b); n > 0 && n < 8 && b[n-1]&0x80 != 0 {
		v -= 1 << (8 * n)
	}
	return v
}

// part reads a part of an attribute that is neither compressed nor has holes there.
func (n *ntfsFS) part(a *ntfsAttr, off, size int64) ([]byte, error) {
	b := make([]byte, 0, size)
	start := int64(0)
	for _, r := range a.runs {
		end := start + r.n*n.cluster
		for off < end && int64(len(b)) < size {
			if r.sparse {
				return nil, damaged("a hole in metadata")
			}
			k := min(end-off, size-int64(len(b)))
			p, err := n.v.at(r.at*n.cluster+off-start, int(k))
			if err != nil {
				return nil, err
			}
			b, off = append(b, p...), off+k
		}
		start = end
	}
	if int64(len(b)) < size {
		return nil, damaged("metadata ends early")
	}
	return b, nil
}

// copy writes the content of an attribute.
func (n *ntfsFS) copy(a *ntfsAttr, w *writer) error {
	const compressed, encrypted = 0x00FF, 0x4000
	if a.value != nil {
		return w.bytes(a.value)
	}
	switch {
	case a.flags&encrypted != 0:
		return cannotRead("it is encrypted (EFS)")
	case a.flags&compressed != 0:
		if err := n.decompress(a, w); err != nil {
			return err
		}
		return w.end()
	}
	left := min(a.valid, a.size)
	for _, r := range a.runs {
		k := min(r.n*n.cluster, left)
		left -= k
		var err error
		if r.sparse {
			err = w.zeros(k)
		} else {
			err = w.extent(r.at*n.cluster, k)
		}
		if err != nil || left == 0 {
			break
		}
	}
	if left > 0 && w.left > 0 && a.flags&0x8000 == 0 {
		return damaged("the runs of a file end %d bytes before it", left)
	}
	return w.end()
}

// An ntfsFile is what is known of a file.
type ntfsFile struct {
	data    *ntfsAttr // nil where there is none
	attrs   []*ntfsAttr
	reparse uint32
	link    string
}

const (
	reparseJunction = 0xA0000003
	reparseSymlink  = 0xA000000C
)

func (n *ntfsFS) Root() (*File, error) { return n.file("", ntfsRootFile) }

// file returns the file with a number.
func (n *ntfsFS) file(name string, number uint64) (*File, error) {
	b, err := n.recordOf(number)
	if err != nil {
		return nil, err
	}
	const used, directory = 1, 2
	flags := le.Uint16(b[22:])
	if flags&used == 0 {
		return nil, damaged("%q is a file that was removed", name)
	}
	attrs, err := n.attributes(number)
	if err != nil {
		return nil, err
	}
	d := &ntfsFile{attrs: attrs, data: find(attrs, ntfsData, "")}
	f := &File{Name: name, Mode: plainFile, id: number, data: d}
	if d.data != nil {
		f.Size = d.data.length()
	}
	if s := find(attrs, ntfsStandard, ""); s != nil && len(s.value) >= 16 {
		f.ModTime = ntfsTime(le.Uint64(s.value[8:]))
	}
	if flags&directory != 0 {
		f.Mode = plainDir
	}
	if r := find(attrs, ntfsReparse, ""); r != nil {
		if err := n.reparsePoint(f, d, r); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// reparsePoint notes what a file stands for: another one, or something that only Windows can get.
func (n *ntfsFS) reparsePoint(f *File, d *ntfsFile, r *ntfsAttr) error {
	var all whole
	if err := n.copy(r, n.v.writer(&all, min(r.length(), 16<<10))); err != nil {
		return err
	}
	b := all.b
	if len(b) < 8 {
		return damaged("a reparse point of %d bytes", len(b))
	}
	d.reparse = le.Uint32(b)
	names, relative := 16, false
	switch d.reparse {
	case reparseJunction:
	case reparseSymlink:
		if names = 20; len(b) >= names {
			relative = le.Uint32(b[16:])&1 != 0
		}
	default:
		if !f.Mode.IsDir() {
			f.Mode = fs.ModeIrregular
		}
		return nil
	}
	f.Mode = fs.ModeSymlink
	if len(b) < names {
		return damaged("a reparse point of %d bytes", len(b))
	}
	off, l := names+int(le.Uint16(b[8:])), int(le.Uint16(b[10:]))
	if off+l > len(b) {
		return damaged("the name in a reparse point")
	}
	d.link = strings.ReplaceAll(utf16text.UpToZero(b[off:off+l], le), `\`, "/")
	if !relative { // \??\C:\Users, of which the drive is most likely this one
		d.link = strings.TrimPrefix(d.link, "/??/")
		if len(d.link) > 2 && d.link[1] == ':' {
			d.link = d.link[2:]
		}
	}
	return nil
}

// ntfsTime returns the time of a number of 100 ns since 1601.
func ntfsTime(t uint64) time.Time {
	const to1970 = 11644473600
	return time.Unix(int64(t/1e7)-to1970, int64(t%1e7)*100) // #nosec G115 -- less than 2^41
}

func (n *ntfsFS) Link(f *File) (string, error) { return f.data.(*ntfsFile).link, nil }

func (n *ntfsFS) Read(f *File, to Sink) error {
	d := f.data.(*ntfsFile)
	if d.data == nil {
		return nil
	}
	return n.copy(d.data, n.v.writer(to, f.Size))
}

func (n *ntfsFS) List(dir *File, each func(*File) error) error {
	const name = "$I30"
	attrs := dir.data.(*ntfsFile).attrs
	root := find(attrs, ntfsRoot, name)
	if root == nil || len(root.value) < 32 {
		return damaged("%q has no index", dir.Name)
	}
	if err := n.entries(root.value[16:], each); err != nil {
		return err
	}
	index, bitmap := find(attrs, ntfsIndex, name), find(attrs, ntfsBitmap, name)
	if index == nil {
		return nil
	}
	if bitmap == nil {
		return damaged("%q has no bitmap of its index", dir.Name)
	}
	var used whole
	if err := n.copy(bitmap, n.v.writer(&used, bitmap.length())); err != nil {
		return err
	}
	for k := int64(0); k < index.size/n.indexLen && k/8 < int64(len(used.b)); k++ {
		if used.b[k/8]>>(k%8)&1 == 0 {
			continue
		}
		b, err := n.part(index, k*n.indexLen, n.indexLen)
		if err == nil {
			b, err = n.fix(b, "INDX")
		}
		if err == nil {
			err = n.entries(b[24:], each)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entries lists those of a node of an index, which begins with its header.
func (n *ntfsFS) entries(b []byte, each func(*File) error) error {
	const last, header, nameAt, dosName = 2, 16, 82, 2
	at, end := int64(le.Uint32(b)), int64(le.Uint32(b[4:]))
	if end > int64(len(b)) {
		return damaged("a node of an index")
	}
	for at+header <= end {
		e := b[at:end]
		size, flags := int(le.Uint16(e[8:])), le.Uint16(e[12:])
		if flags&last != 0 {
			return nil
		}
		if size < nameAt || size > len(e) || nameAt+2*int(e[80]) > size {
			return damaged("an entry of an index")
		}
		at += int64(size)
		number := le.Uint64(e) & (1<<48 - 1)
		text := utf16text.UpToZero(e[nameAt:nameAt+2*int(e[80])], le)
		if e[81] == dosName || number < ntfsFirstUser {
			continue
		}
		f, err := n.file(text, number)
		if err != nil {
			return err
		}
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}
