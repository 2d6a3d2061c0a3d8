package filetree

import (
	"bytes"
	"strings"
	"time"

	"golang.org/x/text/encoding/charmap"

	"github.com/vhdxfs/vhdxfs/internal/utf16text"
)

// A clusters is the part that FAT and exFAT share: clusters, and the table that links them.
type clusters struct {
	v       volume
	table   int64 // where the table is, in bytes
	entry   int64 // of the table, bits
	bits    uint  // of those that count
	heap    int64 // where cluster 2 is, in bytes
	cluster int64 // bytes
	count   int64 // of clusters

	cached   []byte // a part of the table
	cachedAt int64
}

const firstCluster = 2

// next returns the cluster behind one, and false at the end of the chain.
func (c *clusters) next(n int64) (int64, bool, error) {
	const window = 64 << 10
	off := c.table + n*c.entry/8
	if c.cached == nil || off < c.cachedAt || off+4 > c.cachedAt+int64(len(c.cached)) {
		size := min(window, c.v.size-off)
		if size < 4 {
			return 0, false, damaged("the table of clusters is beyond the end")
		}
		b, err := c.v.at(off, int(size))
		if err != nil {
			return 0, false, err
		}
		c.cached, c.cachedAt = b, off
	}
	v := le.Uint32(c.cached[off-c.cachedAt:])
	if c.bits == 12 && n%2 != 0 {
		v >>= 4
	}
	v &= 1<<c.bits - 1
	if v >= 1<<c.bits-9 { // a bad cluster, or the end
		return 0, false, nil
	}
	return int64(v), true, c.check(int64(v))
}

func (c *clusters) check(n int64) error {
	if n < firstCluster || n >= c.count+firstCluster {
		return damaged("cluster %d of %d", n, c.count)
	}
	return nil
}

// write writes size bytes of the file that begins with a cluster.
func (c *clusters) write(n, size int64, contiguous bool, w *writer) error {
	if size == 0 {
		return nil
	}
	if err := c.check(n); err != nil {
		return err
	}
	for range c.count {
		left := w.left
		if err := w.extent(c.heap+(n-firstCluster)*c.cluster, min(c.cluster, size)); err != nil {
			return err
		}
		if size -= left - w.left; size <= 0 || w.left == 0 {
			return nil
		}
		more := true
		var err error
		if contiguous {
			n++
			err = c.check(n)
		} else if n, more, err = c.next(n); err == nil && !more {
			err = damaged("a chain of clusters ends %d bytes before its file", size)
		}
		if err != nil {
			return err
		}
	}
	return damaged("a chain of clusters has a loop")
}

// whole returns all that a chain of clusters holds, as of a directory, whose size is not known.
func (c *clusters) whole(n int64) ([]byte, error) {
	if err := c.check(n); err != nil {
		return nil, err
	}
	var b []byte
	for range c.count {
		if len(b) > maxWhole {
			return nil, cannotRead("a directory of more than %d bytes", maxWhole)
		}
		part, err := c.v.at(c.heap+(n-firstCluster)*c.cluster, int(c.cluster))
		if err != nil {
			return nil, err
		}
		b = append(b, part...)
		more := false
		if n, more, err = c.next(n); err != nil || !more {
			return b, err
		}
	}
	return nil, damaged("a chain of clusters has a loop")
}

// fatFS is FAT12, FAT16 or FAT32.
type fatFS struct {
	clusters
	rootAt, rootSize int64 // of FAT12 and FAT16, bytes
	rootCluster      int64 // of FAT32
}

func openFAT(v volume) (Tree, error) {
	b, err := v.at(0, 512)
	if err != nil {
		return nil, err
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, roots := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, tableSectors := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if tableSectors == 0 {
		tableSectors = int64(le.Uint32(b[36:]))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || tables == 0 || reserved == 0 {
		return nil, damaged("the boot sector of FAT has impossible sizes")
	}
	f := &fatFS{rootSize: roots * 32, rootAt: (reserved + tables*tableSectors) * sector, rootCluster: int64(le.Uint32(b[44:]))}
	heap := f.rootAt + (f.rootSize+sector-1)/sector*sector
	f.clusters = clusters{v: v, table: reserved * sector, heap: heap, cluster: sector * per, count: (sectors*sector - heap) / (sector * per), entry: 32, bits: 28}
	switch {
	case f.count < 1:
		return nil, damaged("FAT without clusters")
	case f.count < 4085:
		f.entry, f.bits = 12, 12
	case f.count < 65525:
		f.entry, f.bits = 16, 16
	}
	return f, nil
}

func (f *fatFS) NoCase() bool { return true }

func (f *fatFS) Note() string { return "" }

func (f *fatFS) Root() (*File, error) {
	root := &File{Mode: plainDir, data: f.rootCluster}
	if f.entry != 32 {
		root.data = int64(0)
	}
	return root, nil
}

func (f *fatFS) Link(*File) (string, error) { return "", cannotRead("FAT has no symbolic links") }

func (f *fatFS) Read(file *File, to Sink) error {
	w := f.v.writer(to, file.Size)
	return f.write(file.data.(int64), file.Size, false, w)
}

func (f *fatFS) List(dir *File, each func(*File) error) error {
	var b []byte
	var err error
	if n := dir.data.(int64); n == 0 {
		b, err = f.v.at(f.rootAt, int(f.rootSize))
	} else {
		b, err = f.whole(n)
	}
	if err != nil {
		return err
	}
	const entry, end, deleted, longName, volumeLabel, directory = 32, 0, 0xE5, 0x0F, 0x08, 0x10
	var long longFAT
	for ; len(b) >= entry && b[0] != end; b = b[entry:] {
		e := b[:entry]
		switch {
		case e[0] == deleted:
			long = longFAT{}
			continue
		case e[11]&0x3F == longName:
			long.add(e)
			continue
		case e[11]&volumeLabel != 0:
			long = longFAT{}
			continue
		}
		name := long.of(e)
		long = longFAT{}
		if name == "." || name == ".." {
			continue
		}
		n := int64(le.Uint16(e[26:]))
		if f.entry == 32 {
			n |= int64(le.Uint16(e[20:])) << 16
		}
		file := &File{Name: name, Mode: plainFile, Size: int64(le.Uint32(e[28:])), ModTime: dosTime(le.Uint16(e[24:]), le.Uint16(e[22:]), 0), id: uint64(n), data: n} // #nosec G115 -- 32 bits
		if e[11]&directory != 0 {
			file.Mode, file.Size = plainDir, 0
			if n == 0 {
				continue // of the root, which is no entry
			}
		}
		if err := each(file); err != nil {
			return err
		}
	}
	return nil
}

// A longFAT gathers the parts of a long name, the last of which comes first.
type longFAT struct {
	b   []byte // UTF-16
	sum byte
}

func (l *longFAT) add(e []byte) {
	const last, maxParts = 0x40, 20
	if e[0]&last != 0 {
		*l = longFAT{}
	}
	if part := int(e[0] & 0x3F); part > maxParts || len(l.b) > maxParts*26 {
		*l = longFAT{}
		return
	}
	l.b = append(bytes.Join([][]byte{e[1:11], e[14:26], e[28:32]}, nil), l.b...)
	l.sum = e[13]
}

// of returns the name of an entry: the long one, if it belongs to it.
func (l *longFAT) of(e []byte) string {
	sum := byte(0)
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if len(l.b) > 0 && sum == l.sum {
		return utf16text.UpToZero(l.b, le)
	}
	const lowerBase, lowerExtension, escaped = 0x08, 0x10, 0x05
	short := bytes.Clone(e[:11])
	if short[0] == escaped {
		short[0] = 0xE5
	}
	text := func(b []byte, lower bool) string {
		s, err := charmap.CodePage437.NewDecoder().String(strings.TrimRight(string(b), " "))
		if err != nil || lower {
			s = strings.ToLower(s)
		}
		return s
	}
	name := text(short[:8], e[12]&lowerBase != 0)
	if extension := text(short[8:], e[12]&lowerExtension != 0); extension != "" {
		name += "." + extension
	}
	return name
}

// dosTime returns the time of FAT and exFAT, which has no zone.
func dosTime(date, clock uint16, hundredths byte) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31), int(clock>>11), int(clock>>5&63), int(clock&31)*2, int(hundredths)*1e7, time.Local)
}

// exFATFS is exFAT.
type exFATFS struct {
	clusters
	root int64
}

// An exFATFile is what a directory says of a file.
type exFATFile struct {
	first      int64
	valid      int64 // bytes; what follows reads as zero
	contiguous bool  // the table does not link its clusters
}

func openExFAT(v volume) (Tree, error) {
	b, err := v.at(0, 512)
	if err != nil {
		return nil, err
	}
	if string(b[3:11]) != "EXFAT   " || b[108] < 9 || b[108] > 12 || b[109] > 25-b[108] {
		return nil, damaged("the boot sector of exFAT has impossible sizes")
	}
	sector := int64(1) << b[108]
	x := &exFATFS{root: int64(le.Uint32(b[96:]))}
	x.clusters = clusters{v: v, table: int64(le.Uint32(b[80:])) * sector, heap: int64(le.Uint32(b[88:])) * sector, cluster: sector << b[109], count: int64(le.Uint32(b[92:])), entry: 32, bits: 32}
	return x, nil
}

func (x *exFATFS) NoCase() bool { return true }

func (x *exFATFS) Note() string { return "" }

func (x *exFATFS) Link(*File) (string, error) { return "", cannotRead("exFAT has no symbolic links") }

func (x *exFATFS) Root() (*File, error) {
	return &File{Mode: plainDir, id: uint64(x.root), data: exFATFile{first: x.root}}, nil // #nosec G115 -- 32 bits
}

func (x *exFATFS) Read(f *File, to Sink) error {
	d := f.data.(exFATFile)
	w := x.v.writer(to, f.Size)
	if err := x.write(d.first, min(d.valid, f.Size), d.contiguous, w); err != nil {
		return err
	}
	return w.end()
}

func (x *exFATFS) List(dir *File, each func(*File) error) error {
	d := dir.data.(exFATFile)
	var b []byte
	var err error
	if d.contiguous {
		var all whole
		err = x.write(d.first, dir.Size, true, x.v.writer(&all, dir.Size))
		b = all.b
	} else {
		b, err = x.whole(d.first)
	}
	if err != nil {
		return err
	}
	const entry, end, file, stream, name, nameBytes = 32, 0, 0x85, 0xC0, 0xC1, 30
	for len(b) >= entry && b[0] != end {
		if b[0] != file {
			b = b[entry:]
			continue
		}
		more := int(b[1])
		if (more+1)*entry > len(b) || more < 2 || b[entry] != stream {
			return damaged("an entry of a directory")
		}
		head, s := b, b[entry:]
		var text []byte
		for k := 2; k <= more; k++ {
			if part := b[k*entry:]; part[0] == name {
				text = append(text, part[2:2+nameBytes]...)
			}
		}
		f := x.file(head, s, text[:min(2*int(s[3]), len(text))])
		if f.Size < 0 || f.data.(exFATFile).valid < 0 {
			return damaged("%q has an impossible size", f.Name)
		}
		if err := each(f); err != nil {
			return err
		}
		b = b[(more+1)*entry:]
	}
	return nil
}

// file returns the file that two entries of a directory and a name describe.
func (x *exFATFS) file(head, stream, name []byte) *File {
	const directory, noChain = 0x10, 2
	d := exFATFile{int64(le.Uint32(stream[20:])), int64(le.Uint64(stream[8:])), stream[1]&noChain != 0}                                // #nosec G115 -- the caller checks it
	f := &File{Name: utf16text.UpToZero(name, le), Mode: plainFile, Size: int64(le.Uint64(stream[24:])), data: d, id: uint64(d.first)} // #nosec G115 -- the caller checks it
	stamp := le.Uint32(head[12:])
	f.ModTime = dosTime(uint16(stamp>>16), uint16(stamp), head[21]) // #nosec G115 -- the halves
	if zone := head[23]; zone&0x80 != 0 {                           // in quarters of an hour, with a sign of 7 bits
		quarters := int(int8(zone<<1)) / 2 // #nosec G115 -- the sign
		t := f.ModTime
		f.ModTime = time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute()-15*quarters, t.Second(), t.Nanosecond(), time.UTC).Local()
	}
	if le.Uint16(head[4:])&directory != 0 {
		f.Mode = plainDir
	}
	return f
}
