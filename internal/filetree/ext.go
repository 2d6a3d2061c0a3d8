package filetree

import (
	"io/fs"
	"time"
)

// The features of ext4 that have to be known to read it (feature_incompat).
const (
	extRecover    = 0x4
	extMetaGroups = 0x10
	ext64Bit      = 0x80
	// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold
	extKnown = 0x2 | extRecover | extMetaGroups | 0x40 | ext64Bit | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
)

// The flags of an inode.
const (
	extEncrypted = 0x800
	extExtents   = 0x80000
	extInline    = 0x10000000
)

const (
	extSuper     = 1024 // where the super block is, and how large it is
	extRoot      = 2
	extBlockData = 60 // bytes of block pointers in an inode
)

// extFS is ext2, ext3 or ext4.
type extFS struct {
	v              volume
	block          int64 // bytes
	first          int64 // block of the first group
	blocksPerGroup int64
	inodesPerGroup int64
	inodes         int64
	inodeSize      int64
	descriptor     int64 // bytes
	features       uint32
	firstMetaGroup int64
	sparseSuper    bool
	backups        [2]uint32 // groups with a super block, with sparse_super2
	hasTwoBackups  bool
}

func openExt(v volume) (Tree, error) {
	b, err := v.at(extSuper, extSuper)
	if err != nil {
		return nil, err
	}
	e := &extFS{
		v: v, first: int64(le.Uint32(b[20:])), blocksPerGroup: int64(le.Uint32(b[32:])), inodesPerGroup: int64(le.Uint32(b[40:])),
		inodes: int64(le.Uint32(b[0:])), inodeSize: 128, descriptor: 32, features: le.Uint32(b[96:]), firstMetaGroup: int64(le.Uint32(b[260:])),
		sparseSuper: le.Uint32(b[100:])&1 != 0, hasTwoBackups: le.Uint32(b[92:])&0x200 != 0,
	}
	e.backups = [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])}
	if le.Uint32(b[76:]) > 0 {
		e.inodeSize = int64(le.Uint16(b[88:]))
	} else {
		e.features = 0
	}
	shift := le.Uint32(b[24:])
	switch {
	case le.Uint16(b[56:]) != 0xEF53:
		return nil, damaged("no super block of ext4")
	case e.features&^extKnown != 0:
		return nil, cannotRead("ext4 with unknown features %#x", e.features&^extKnown)
	case shift > 6, e.blocksPerGroup == 0, e.inodesPerGroup == 0, e.inodeSize < 128, e.inodeSize > 1024<<shift, e.inodeSize&(e.inodeSize-1) != 0:
		return nil, damaged("the super block of ext4 has impossible sizes")
	}
	e.block = 1024 << shift
	if e.features&ext64Bit != 0 {
		if e.descriptor = int64(le.Uint16(b[254:])); e.descriptor < 32 || e.descriptor > e.block || e.descriptor&(e.descriptor-1) != 0 {
			return nil, damaged("group descriptors of %d bytes", e.descriptor)
		}
	}
	return e, nil
}

func (e *extFS) NoCase() bool { return false }

func (e *extFS) Note() string {
	if e.features&extRecover != 0 {
		return "it was not unmounted: changes that are only in its journal are missing"
	}
	return ""
}

// An extInode is an inode as it is on the disk.
type extInode struct {
	raw   []byte
	flags uint32
	size  int64
}

func (i *extInode) blocks() []byte { return i.raw[40 : 40+extBlockData] }

func (e *extFS) Root() (*File, error) { return e.file("", extRoot) }

// file returns the file with an inode.
func (e *extFS) file(name string, number uint32) (*File, error) {
	n := int64(number) - 1
	if n < 0 || n >= e.inodes {
		return nil, damaged("inode %d of %d", number, e.inodes)
	}
	group := n / e.inodesPerGroup
	d, err := e.v.at(e.descriptorAt(group), int(e.descriptor))
	if err != nil {
		return nil, err
	}
	table := int64(le.Uint32(d[8:]))
	if e.descriptor >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
	}
	if table < 0 || table > e.v.size/e.block {
		return nil, damaged("the inode table of group %d is in block %d", group, table)
	}
	raw, err := e.v.at(table*e.block+n%e.inodesPerGroup*e.inodeSize, int(e.inodeSize))
	if err != nil {
		return nil, err
	}
	i := &extInode{raw: raw, flags: le.Uint32(raw[32:]), size: int64(le.Uint32(raw[4:]))}
	i.size |= int64(le.Uint32(raw[108:])) << 32
	if i.size < 0 {
		return nil, damaged("inode %d has an impossible size", number)
	}
	sec, nsec := int64(int32(le.Uint32(raw[16:]))), int64(0) // #nosec G115 -- times before 1970 are negative
	if e.inodeSize >= 140 && le.Uint16(raw[128:]) >= 12 {
		extra := le.Uint32(raw[136:])
		sec, nsec = sec+int64(extra&3)<<32, int64(extra>>2)
	}
	return &File{Name: name, Mode: unixMode(le.Uint16(raw)), Size: i.size, ModTime: time.Unix(sec, nsec), id: uint64(number), data: i}, nil
}

// descriptorAt returns where the descriptor of a group is.
func (e *extFS) descriptorAt(group int64) int64 {
	perBlock := e.block / e.descriptor
	index := group / perBlock
	if e.features&extMetaGroups == 0 || index < e.firstMetaGroup {
		return (e.first+1+index)*e.block + group%perBlock*e.descriptor
	}
	lead := index * perBlock
	block := e.first + lead*e.blocksPerGroup
	if e.hasSuper(lead) {
		block++
	}
	return block*e.block + group%perBlock*e.descriptor
}

// hasSuper reports whether a group begins with a copy of the super block.
func (e *extFS) hasSuper(group int64) bool {
	switch {
	case group == 0:
		return true
	case e.hasTwoBackups:
		return group == int64(e.backups[0]) || group == int64(e.backups[1])
	case group == 1 || !e.sparseSuper:
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

func (e *extFS) Read(f *File, to Sink) error {
	i := f.data.(*extInode)
	w := e.v.writer(to, f.Size)
	switch {
	case i.flags&extEncrypted != 0:
		return cannotRead("%q is encrypted", f.Name)
	case i.flags&extInline != 0:
		if err := w.bytes(i.inline()); err != nil {
			return err
		}
	case i.flags&extExtents != 0:
		next := int64(0)
		if err := e.extents(i.blocks(), -1, w, &next); err != nil {
			return err
		}
	default:
		if err := e.pointers(i.blocks(), w); err != nil {
			return err
		}
	}
	return w.end()
}

// extents writes what an extent tree maps, from the node on (fs/ext4/ext4_extents.h). next is the logical block that comes
// next. Those of the extents ascend, and no node is empty, so that no tree takes longer than the disk has blocks.
func (e *extFS) extents(node []byte, depth int, w *writer, next *int64) error {
	const header, entry, maxDepth, magic = 12, 12, 5, 0xF30A
	count, level := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != magic || header+count*entry > len(node) || level > maxDepth || depth >= 0 && level != depth || depth >= 0 && count == 0 {
		return damaged("a node of an extent tree")
	}
	for k := range count {
		if w.left == 0 {
			return nil
		}
		b := node[header+k*entry:]
		logical := int64(le.Uint32(b))
		if logical < *next {
			return damaged("the extents of a file are not in order")
		}
		if level > 0 {
			child := int64(le.Uint32(b[4:])) | int64(le.Uint16(b[8:]))<<32
			sub, err := e.blockAt(child)
			if err != nil {
				return err
			}
			if err := e.extents(sub, level-1, w, next); err != nil {
				return err
			}
			continue
		}
		if err := w.zeros((logical - *next) * e.block); err != nil {
			return err
		}
		n, at := int64(le.Uint16(b[4:])), int64(le.Uint32(b[8:]))|int64(le.Uint16(b[6:]))<<32
		const unwritten = 32768
		var err error
		switch {
		case n == 0:
			return damaged("an extent without blocks")
		case n > unwritten:
			n -= unwritten
			err = w.zeros(n * e.block)
		default:
			err = w.extent(at*e.block, n*e.block)
		}
		if err != nil {
			return err
		}
		*next = logical + n
	}
	return nil
}

func (e *extFS) blockAt(n int64) ([]byte, error) {
	if n < 0 || n > e.v.size/e.block {
		return nil, damaged("block %d is beyond the end", n)
	}
	return e.v.at(n*e.block, int(e.block))
}

// pointers writes what the twelve direct and three indirect pointers of ext2 and ext3 map.
func (e *extFS) pointers(b []byte, w *writer) error {
	for k := range 15 {
		if err := e.pointer(int64(le.Uint32(b[4*k:])), max(k-11, 0), w); err != nil {
			return err
		}
	}
	return nil
}

// pointer writes what a block pointer maps through levels of blocks of pointers.
func (e *extFS) pointer(at int64, levels int, w *writer) error {
	if w.left == 0 {
		return nil
	}
	perBlock := e.block / 4
	if at == 0 {
		n := e.block
		for range levels {
			n *= perBlock
		}
		return w.zeros(n)
	}
	if levels == 0 {
		return w.extent(at*e.block, e.block)
	}
	b, err := e.blockAt(at)
	for k := int64(0); k < perBlock && err == nil && w.left > 0; k++ {
		err = e.pointer(int64(le.Uint32(b[4*k:])), levels-1, w)
	}
	return err
}

// inline returns the data that is in the inode itself: in the place of the block pointers, and in the attribute system.data.
func (i *extInode) inline() []byte {
	const start, magic, systemIndex, header = 128, 0xEA020000, 7, 16
	b := append([]byte{}, i.blocks()...)
	if len(i.raw) < start+4 {
		return b
	}
	at := start + int(le.Uint16(i.raw[start:]))
	if at+4 > len(i.raw) || le.Uint32(i.raw[at:]) != magic {
		return b
	}
	list := i.raw[at+4:]
	for p := 0; p+header <= len(list) && le.Uint32(list[p:]) != 0; {
		n, index, off, size := int(list[p]), list[p+1], int(le.Uint16(list[p+2:])), int(le.Uint32(list[p+8:]))
		if p+header+n <= len(list) && index == systemIndex && string(list[p+header:p+header+n]) == "data" && size <= len(list) && off+size <= len(list) {
			return append(b, list[off:off+size]...)
		}
		p += (header + n + 3) &^ 3
	}
	return b
}

func (e *extFS) List(dir *File, each func(*File) error) error {
	i := dir.data.(*extInode)
	if i.flags&extInline != 0 {
		b := i.inline()
		b = b[:min(int64(len(b)), i.size)]
		for _, part := range [][]byte{b[min(4, len(b)):min(extBlockData, len(b))], b[min(extBlockData, len(b)):]} {
			if err := e.entries(part, each); err != nil {
				return err
			}
		}
		return nil
	}
	var all whole
	if err := e.Read(dir, &all); err != nil {
		return err
	}
	for b := all.b; len(b) > 0; b = b[min(int64(len(b)), e.block):] {
		if err := e.entries(b[:min(int64(len(b)), e.block)], each); err != nil {
			return err
		}
	}
	return nil
}

// entries lists those of a block. The nodes of a hash tree look like entries that are not used.
func (e *extFS) entries(b []byte, each func(*File) error) error {
	const header = 8
	for len(b) >= header {
		n, name := int(le.Uint16(b[4:])), int(b[6])
		if n == 0 || n == 0xFFFF { // of a block of 64 KiB
			n = len(b)
		}
		if n < header || n > len(b) || n%4 != 0 || name > n-header {
			return damaged("an entry of a directory")
		}
		if number, text := le.Uint32(b), string(b[header:header+name]); number != 0 && text != "." && text != ".." {
			f, err := e.file(text, number)
			if err != nil {
				return err
			}
			if err := each(f); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

func (e *extFS) Link(f *File) (string, error) {
	i := f.data.(*extInode)
	if f.Mode.Type() != fs.ModeSymlink || f.Size > e.block {
		return "", damaged("a symbolic link of %d bytes", f.Size)
	}
	if i.flags&(extExtents|extInline) == 0 && f.Size < extBlockData {
		return string(i.blocks()[:f.Size]), nil
	}
	var all whole
	err := e.Read(f, &all)
	return string(all.b), err
}
