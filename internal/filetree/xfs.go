package filetree

import (
	"io/fs"
	"time"
)

// The features of XFS 5 that have to be known to read it (features_incompat).
const (
	xfsFileType = 0x1
	// ftype, sparse inodes, meta uuid, big time, needs repair, 64-bit extent counts, exchange range, parent pointers
	xfsKnown = 0xFF
)

// The formats of the data fork of an inode.
const (
	xfsLocal   = 1
	xfsExtents = 2
	xfsTree    = 3
)

// xfsFS is XFS 4 or 5. All numbers are big-endian (XFS Algorithms & Data Structures).
type xfsFS struct {
	v                   volume
	block, dirBlock     int64 // bytes
	root                uint64
	groupBlocks, groups int64
	inodeSize           int64
	perBlockLog         uint
	groupBlockLog       uint
	five, hasType       bool
}

func openXFS(v volume) (Tree, error) {
	b, err := v.at(0, 512)
	if err != nil {
		return nil, err
	}
	x := &xfsFS{
		v: v, block: int64(be.Uint32(b[4:])), root: be.Uint64(b[56:]), groupBlocks: int64(be.Uint32(b[84:])), groups: int64(be.Uint32(b[88:])),
		inodeSize: int64(be.Uint16(b[104:])), perBlockLog: uint(b[123]), groupBlockLog: uint(b[124]), five: be.Uint16(b[100:])&0xF == 5,
	}
	switch {
	case string(b[:4]) != "XFSB":
		return nil, damaged("no super block of XFS")
	case x.block < 512 || x.block > 64<<10 || x.block&(x.block-1) != 0, x.inodeSize < 256 || x.inodeSize > 2048 || x.inodeSize > x.block,
		x.inodeSize<<x.perBlockLog != x.block, x.perBlockLog > 8, x.groupBlockLog > 31, x.groupBlocks > 1<<x.groupBlockLog, x.groupBlocks == 0, b[192] > 7:
		return nil, damaged("the super block of XFS has impossible sizes")
	}
	if x.dirBlock = x.block << b[192]; x.dirBlock > 64<<10 {
		return nil, damaged("directory blocks of %d bytes", x.dirBlock)
	}
	x.hasType = be.Uint32(b[200:])&0x200 != 0
	if x.five {
		features := be.Uint32(b[216:])
		if features&^xfsKnown != 0 {
			return nil, cannotRead("XFS with unknown features %#x", features&^xfsKnown)
		}
		x.hasType = features&xfsFileType != 0
	}
	return x, nil
}

func (x *xfsFS) NoCase() bool { return false }

func (x *xfsFS) Note() string { return "" }

// An xfsInode is an inode as it is on the disk.
type xfsInode struct {
	raw    []byte
	format byte
	fork   []byte // the data fork
	count  uint64 // of extents
}

func (x *xfsFS) Root() (*File, error) { return x.file("", x.root) }

func (x *xfsFS) file(name string, number uint64) (*File, error) {
	group, rest := number>>(x.groupBlockLog+x.perBlockLog), number&(1<<(x.groupBlockLog+x.perBlockLog)-1)
	block := int64(rest >> x.perBlockLog) // #nosec G115 -- less than 2^31
	if group >= uint64(x.groups) || block >= x.groupBlocks {
		return nil, damaged("inode %d is beyond the end", number)
	}
	at := (int64(group)*x.groupBlocks+block)*x.block + int64(rest&(1<<x.perBlockLog-1))*x.inodeSize // #nosec G115 -- below the groups
	raw, err := x.v.at(at, int(x.inodeSize))
	if err != nil {
		return nil, err
	}
	const core, core5, realTime, bigTime, bigCount = 100, 176, 1, 0x8, 0x10
	i := &xfsInode{raw: raw, format: raw[5], count: uint64(be.Uint32(raw[76:]))}
	start, flags2 := core, uint64(0)
	if raw[4] >= 3 {
		start, flags2 = core5, be.Uint64(raw[120:])
	}
	end := len(raw)
	if raw[82] != 0 {
		end = start + int(raw[82])*8
	}
	size := int64(be.Uint64(raw[56:])) // #nosec G115 -- negative is refused
	if string(raw[:2]) != "IN" || end > len(raw) || size < 0 {
		return nil, damaged("inode %d", number)
	}
	i.fork = raw[start:end]
	if flags2&bigCount != 0 {
		i.count = be.Uint64(raw[24:])
	}
	mode := unixMode(be.Uint16(raw[2:]))
	if mode.IsRegular() && be.Uint16(raw[90:])&realTime != 0 {
		mode |= fs.ModeIrregular // its data is on another device
	}
	when := time.Unix(int64(int32(be.Uint32(raw[40:]))), int64(be.Uint32(raw[44:]))) // #nosec G115 -- before 1970 it is negative
	if flags2&bigTime != 0 {
		t := be.Uint64(raw[40:])
		when = time.Unix(int64(t/1e9)-1<<31, int64(t%1e9)) // #nosec G115 -- less than 2^34
	}
	return &File{Name: name, Mode: mode, Size: size, ModTime: when, id: number, data: i}, nil
}

// byteOf returns where a block is that is named by its group and its number there.
func (x *xfsFS) byteOf(block uint64) (int64, error) {
	group, in := block>>x.groupBlockLog, block&(1<<x.groupBlockLog-1)
	if group >= uint64(x.groups) || in >= uint64(x.groupBlocks) {
		return 0, damaged("block %#x is beyond the end", block)
	}
	return (int64(group)*x.groupBlocks + int64(in)) * x.block, nil // #nosec G115 -- bounded above
}

// An xfsExtent is a run of blocks of a file.
type xfsExtent struct {
	off   int64 // logical block
	at    int64 // byte of the disk
	n     int64 // blocks
	zeros bool  // allocated, but not written
}

// each calls f for the extents of a file in order.
func (x *xfsFS) each(i *xfsInode, f func(xfsExtent) error) error {
	next := int64(0)
	record := func(b []byte) error {
		l0, l1 := be.Uint64(b), be.Uint64(b[8:])
		e := xfsExtent{off: int64(l0 >> 9 & (1<<54 - 1)), n: int64(l1 & (1<<21 - 1)), zeros: l0>>63 != 0} // #nosec G115 -- 54 and 21 bits
		if e.off < next || e.n == 0 || e.off > 1<<50 {
			return damaged("the extents of a file are not in order")
		}
		next = e.off + e.n
		var err error
		if e.at, err = x.byteOf(l0&0x1FF<<43 | l1>>21); err != nil {
			return err
		}
		return f(e)
	}
	switch i.format {
	case xfsExtents:
		if i.count > uint64(len(i.fork)/16) {
			return damaged("%d extents in an inode", i.count)
		}
		for k := range int(i.count) { // #nosec G115 -- bounded above
			if err := record(i.fork[16*k:]); err != nil {
				return err
			}
		}
		return nil
	case xfsTree:
		const header = 4
		level, count, most := int(be.Uint16(i.fork)), int(be.Uint16(i.fork[2:])), (len(i.fork)-header)/16
		if level == 0 || level > 9 || count == 0 || count > most {
			return damaged("the root of a tree of extents")
		}
		for k := range count {
			if err := x.node(be.Uint64(i.fork[header+8*most+8*k:]), level-1, record); err != nil {
				return err
			}
		}
		return nil
	}
	return damaged("an inode of format %d", i.format)
}

// node calls record for each extent in a node of a tree. Since no node is empty and extents are in order, no tree takes longer
// than the disk has blocks.
func (x *xfsFS) node(block uint64, level int, record func([]byte) error) error {
	at, err := x.byteOf(block)
	if err != nil {
		return err
	}
	b, err := x.v.at(at, int(x.block))
	if err != nil {
		return err
	}
	magic, header := "BMAP", 24
	if x.five {
		magic, header = "BMA3", 72
	}
	count, most := int(be.Uint16(b[6:])), (len(b)-header)/16
	if string(b[:4]) != magic || int(be.Uint16(b[4:])) != level || count == 0 || count > most {
		return damaged("a node of a tree of extents, at %#x", at)
	}
	for k := range count {
		if level == 0 {
			err = record(b[header+16*k:])
		} else {
			err = x.node(be.Uint64(b[header+8*most+8*k:]), level-1, record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *xfsFS) Read(f *File, to Sink) error {
	i := f.data.(*xfsInode)
	w := x.v.writer(to, f.Size)
	next := int64(0)
	err := x.each(i, func(e xfsExtent) error {
		err := w.zeros((e.off - next) * x.block)
		if next = e.off + e.n; err != nil || w.left == 0 {
			return err
		}
		if e.zeros {
			return w.zeros(e.n * x.block)
		}
		return w.extent(e.at, e.n*x.block)
	})
	if err != nil {
		return err
	}
	return w.end()
}

// leafOffset is where the index of a directory begins, behind its entries, in bytes.
const leafOffset = 32 << 30

func (x *xfsFS) List(dir *File, each func(*File) error) error {
	i := dir.data.(*xfsInode)
	if i.format == xfsLocal {
		return x.short(i.fork, dir.Size, each)
	}
	b := make([]byte, x.dirBlock)
	have := int64(0) // of a directory block, whose parts may be in several extents
	return x.each(i, func(e xfsExtent) error {
		if e.off*x.block >= leafOffset {
			return nil
		}
		for k := range e.n {
			if err := x.v.read(b[have:have+x.block], e.at+k*x.block); err != nil {
				return err
			}
			if have += x.block; have < x.dirBlock {
				continue
			}
			have = 0
			if err := x.entries(b, each); err != nil {
				return err
			}
		}
		return nil
	})
}

// short lists the entries of a directory that fits into its inode.
func (x *xfsFS) short(b []byte, size int64, each func(*File) error) error {
	if size > int64(len(b)) || size < 6 {
		return damaged("a directory of %d bytes in an inode", size)
	}
	b = b[:size]
	count, wide := int(b[0]), 4
	if b[1] > 0 {
		count, wide = max(count, int(b[1])), 8
	}
	p := 2 + wide
	for range count {
		if p+3 > len(b) {
			return damaged("a directory in an inode")
		}
		n := int(b[p])
		start := p + 3
		p = start + n
		if x.hasType {
			p++
		}
		if p+wide > len(b) {
			return damaged("a directory in an inode")
		}
		number := uint64(0)
		for _, c := range b[p : p+wide] {
			number = number<<8 | uint64(c)
		}
		p += wide
		if err := x.entry(string(b[start:start+n]), number, each); err != nil {
			return err
		}
	}
	return nil
}

func (x *xfsFS) entry(name string, number uint64, each func(*File) error) error {
	if name == "." || name == ".." {
		return nil
	}
	f, err := x.file(name, number)
	if err != nil {
		return err
	}
	return each(f)
}

// entries lists those of a directory block.
func (x *xfsFS) entries(b []byte, each func(*File) error) error {
	start, end := 16, len(b)
	if x.five {
		start = 64
	}
	switch string(b[:4]) {
	case "XD2D", "XDD3":
	case "XD2B", "XDB3": // with its index at the end
		count := int64(be.Uint32(b[end-8:]))
		if count > int64(end)/8 {
			return damaged("an index of a directory")
		}
		end -= 8 + int(count)*8
	default:
		return damaged("a block of a directory")
	}
	for p := start; p < end; {
		if p+8 > end {
			return damaged("an entry of a directory")
		}
		if be.Uint16(b[p:]) == 0xFFFF { // unused
			n := int(be.Uint16(b[p+2:]))
			if n < 8 || n%8 != 0 {
				return damaged("free space in a directory")
			}
			p += n
			continue
		}
		if p+9 > end {
			return damaged("an entry of a directory")
		}
		n := int(b[p+8])
		size := 8 + 1 + n + 2
		if x.hasType {
			size++
		}
		size = (size + 7) &^ 7
		if p+size > end {
			return damaged("an entry of a directory")
		}
		if err := x.entry(string(b[p+9:p+9+n]), be.Uint64(b[p:]), each); err != nil {
			return err
		}
		p += size
	}
	return nil
}

func (x *xfsFS) Link(f *File) (string, error) {
	i := f.data.(*xfsInode)
	const longest, header = 1024, 56
	if f.Mode.Type() != fs.ModeSymlink || f.Size > longest {
		return "", damaged("a symbolic link of %d bytes", f.Size)
	}
	if i.format == xfsLocal {
		if f.Size > int64(len(i.fork)) {
			return "", damaged("a symbolic link of %d bytes", f.Size)
		}
		return string(i.fork[:f.Size]), nil
	}
	var to []byte
	err := x.each(i, func(e xfsExtent) error {
		b, err := x.v.at(e.at, int(min(e.n*x.block, 64<<10)))
		if err == nil && x.five {
			b = b[header:]
		}
		to = append(to, b[:min(len(b), int(f.Size)-len(to))]...)
		return err
	})
	return string(to), err
}
