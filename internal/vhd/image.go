package vhd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// An Image is an open image and the chain of its parents. It is for reading; any number of goroutines may use it at once.
type Image struct{ top *layer }

// A layer is one file of the chain.
type layer struct {
	path   string
	os     *os.File
	file   imagefile.File // the same
	size   int64          // of the file, bytes
	footer footer
	head   header // of dynamic and differencing images

	diskSize  int64 // bytes
	blockSize int64 // bytes; a fixed image is one block
	bitmap    int64 // size of a sector bitmap, bytes
	bat       []uint32
	bitmaps   bitmapCache
	used      int64 // blocks in the file

	parent  *layer
	missing string // what is wrong with the parent, where it may be missing

	homes    []*safefile.Dir // of the file, until the parent was looked for
	warnings []vhdx.Finding
	errors   []vhdx.Finding // of a check
	dropped  int
	collect  bool // broken rules go to errors where the examination can go on
}

// maxFindings bounds what is remembered of an image.
const maxFindings = 1000

// ErrReadOnly is matched by the error for an image that is asked for what only VHDX images can.
var ErrReadOnly = errors.New("a VHD image can only be read")

// Open opens the image at path and its parents, and changes no byte of them. Of the options those count that say where parents
// are, and how to lock. An error that matches vhdx.ErrCorrupt says what is wrong with the image.
func Open(path string, o vhdx.Options) (*Image, error) {
	switch {
	case o.Writable:
		return nil, fmt.Errorf("%s: %w; convert it with vhdxfs convert to write to it", path, ErrReadOnly)
	case o.Salvage, o.WithoutParent:
		return nil, fmt.Errorf("%s: --skip-errors and --without-parent apply to VHDX images only", path)
	}
	op := &opener{o: o}
	l, err := op.open(path)
	if err != nil {
		return nil, err
	}
	return &Image{l}, nil
}

// An opener opens the layers of one chain.
type opener struct {
	o       vhdx.Options
	collect bool
	chain   []*layer
	tries   int
}

// open opens the file at path and its parents. It leaves nothing open when it fails.
func (op *opener) open(path string) (*layer, error) {
	d, name, err := safefile.Split(path)
	if err != nil {
		return nil, err
	}
	f, err := d.Follow(name, path, os.O_RDONLY)
	if err != nil {
		_ = d.Close() // nothing was written
		return nil, err
	}
	l, err := op.layer(f, path, d, name)
	if err != nil {
		return nil, err
	}
	if err := op.openParent(l); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
	}
	return l, nil
}

// layer locks and reads the open file, which is called name in d.
func (op *opener) layer(f *os.File, path string, d *safefile.Dir, name string) (*layer, error) {
	l := &layer{path: path, os: f, file: imagefile.Of(f), homes: []*safefile.Dir{d}, collect: op.collect}
	if !d.Has(name, f) { // it is a symbolic link
		if real, _, err := safefile.DirOf(f); err == nil {
			l.homes = append(l.homes, real)
		}
	}
	err := op.notInChain(l)
	if err == nil {
		err = l.file.Lock(op.o.Lock, imagefile.Shared)
	}
	if err == nil {
		if err = l.load(); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// notInChain returns an error if the file is one of those that are open already.
func (op *opener) notInChain(l *layer) error {
	for _, o := range op.chain {
		if imagefile.Same(o.file, l.file) {
			return fmt.Errorf("%s is its own parent", l.path)
		}
	}
	return nil
}

func (l *layer) close() error {
	var errs []error
	for ; l != nil; l = l.parent {
		l.leaveHomes()
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}

func (l *layer) leaveHomes() {
	for _, d := range l.homes {
		_ = d.Close() // nothing was written
	}
	l.homes = nil
}

// remember takes a finding.
func (l *layer) remember(list *[]vhdx.Finding, f vhdx.Finding) {
	if len(*list) >= maxFindings {
		l.dropped++
		return
	}
	*list = append(*list, f)
}

func (l *layer) warn(structure string, off int64, format string, args ...any) {
	l.remember(&l.warnings, vhdx.Finding{Structure: structure, Offset: off, Message: fmt.Sprintf(format, args...)})
}

// report takes what is wrong, but does not keep the rest from being looked at. It returns it as the error with which to
// refuse the image, or, for a check, writes it down and returns nil.
func (l *layer) report(e *FormatError) error {
	if !l.collect {
		return e
	}
	l.remember(&l.errors, vhdx.Finding{Structure: e.Structure, Offset: e.Offset, Message: e.Err.Error()})
	return nil
}

// load reads and checks everything of the layer but its parent.
func (l *layer) load() (err error) {
	if l.size, err = l.file.Size(); err != nil {
		return err
	}
	end, err := l.readFooter()
	if err != nil {
		return err
	}
	f := &l.footer
	l.diskSize = int64(f.currentSize) // #nosec G115 -- at most 2 TiB, validate has seen to it
	if f.savedState != 0 {
		l.warn("footer", end, "a virtual machine was saved that uses the disk; changes of it would be lost")
	}
	if f.diskType == typeFixed {
		if l.diskSize > end {
			return l.report(corrupt("footer", end, "the disk has %d bytes, but the file has only %d before its footer; was it cut off?", l.diskSize, end))
		}
		if l.diskSize < end {
			l.warn("footer", end, "the file has %d bytes between the end of the disk and the footer", end-l.diskSize)
		}
		l.blockSize, l.used = l.diskSize, 1
		return nil
	}
	if err := l.readHeader(end); err != nil {
		return err
	}
	return l.readBAT(end)
}

// readFooter finds the footer, and returns where the file ends without it. The copy at the begin of the file counts where the
// footer itself is damaged.
func (l *layer) readFooter() (end int64, err error) {
	if l.size < footerSize {
		return 0, corrupt("file", 0, "not a VHD file: it has only %d bytes", l.size)
	}
	end = l.size - footerSize
	main, merr := l.footerAt(end)
	if errors.Is(merr, errNoFooter) && l.size%sectorSize == oldFooterSize {
		if old, err := l.footerAt(l.size - oldFooterSize); !errors.Is(err, errNoFooter) {
			end, main, merr = l.size-oldFooterSize, old, err
		}
	}
	if merr == nil && main.diskType == typeFixed {
		l.footer = main
		return end, nil
	}
	front, ferr := l.footerAt(0)
	switch {
	case merr != nil && ferr != nil:
		return 0, corrupt("footer", end, "it looks like an old VHD image, but its footer is damaged: %w", causeOf(merr))
	case merr != nil:
		if front.diskType == typeFixed {
			return 0, merr // the first sector of the disk in a fixed image that is cut off
		}
		l.warn("footer", end, "the footer is damaged: %v; its copy is used", causeOf(merr))
		l.footer, end = front, l.size
	case ferr != nil:
		l.warn("footer", 0, "the copy of the footer is damaged: %v", causeOf(ferr))
		l.footer = main
	default:
		if l.footer = main; front != main {
			l.warn("footer", 0, "the copy of the footer differs from the footer, which is used")
		}
	}
	return end, nil
}

// causeOf returns an error without the place that it names.
func causeOf(err error) error {
	if e, ok := errors.AsType[*FormatError](err); ok {
		return e.Err
	}
	return err
}

// footerAt reads and validates the footer at a file offset.
func (l *layer) footerAt(off int64) (footer, error) {
	var b [footerSize]byte
	n := min(footerSize, l.size-off)
	if err := l.read(b[:n], off, "footer"); err != nil {
		return footer{}, err
	}
	f, err := decodeFooter(&b, off)
	if err == nil {
		err = f.validate(off)
	}
	return f, err
}

// read fills b from the file.
func (l *layer) read(b []byte, off int64, what string) error {
	if n, err := l.file.ReadAt(b, off); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at %#x: %w", what, off, err)
	}
	return nil
}

// readHeader reads the dynamic disk header of a file that ends at end.
func (l *layer) readHeader(end int64) error {
	if l.footer.dataOffset%sectorSize != 0 || l.footer.dataOffset < footerSize || l.footer.dataOffset > uint64(end) || end-int64(l.footer.dataOffset) < headerSize { // #nosec G115 -- not larger than the file
		return corrupt("footer", end, "the dynamic disk header is said to be at %#x, outside the file", l.footer.dataOffset)
	}
	off := int64(l.footer.dataOffset) // #nosec G115 -- not larger than the file
	var b [headerSize]byte
	if err := l.read(b[:], off, "dynamic disk header"); err != nil {
		return err
	}
	var err error
	if l.head, err = decodeHeader(&b, off); err != nil {
		return err
	}
	if err := l.head.validate(off, l.diskSize); err != nil {
		return err
	}
	l.blockSize = int64(l.head.blockSize)
	l.bitmap = bitmapSize(l.blockSize)
	l.bitmaps.size = l.bitmap
	n := blocksOf(l.diskSize, l.blockSize) * 4
	if t := l.head.tableOffset; t%sectorSize != 0 || t < footerSize || t > uint64(end) || n > end-int64(t) { // #nosec G115 -- not larger than the file
		return corrupt("dynamic disk header", off, "the BAT is said to be at %#x, outside the file; was it cut off?", t)
	}
	return nil
}

// readBAT reads the BAT and validates each entry of it: blocks are inside the file, and share no byte with anything else.
func (l *layer) readBAT(end int64) error {
	table := int64(l.head.tableOffset) // #nosec G115 -- inside the file, readHeader has seen to it
	raw := make([]byte, 4*blocksOf(l.diskSize, l.blockSize))
	if err := l.read(raw, table, "BAT"); err != nil {
		return err
	}
	l.bat = make([]uint32, len(raw)/4)
	parts := []part{
		{0, footerSize, footerCopy},
		{int64(l.footer.dataOffset), headerSize, dynamicHeader}, // #nosec G115 -- inside the file, readHeader has seen to it
		{table, int64(len(raw)), blockTable},
	}
	for i := range l.bat {
		e := be.Uint32(raw[4*i:])
		l.bat[i] = e
		if e == unusedEntry {
			continue
		}
		off := int64(e) * sectorSize
		need := l.bitmap + min(l.blockSize, l.diskSize-int64(i)*l.blockSize)
		if need > end-off {
			if err := l.report(corrupt("BAT entry", table+int64(4*i), "block %d (%d bytes at %#x) ends beyond the end of the file (%#x); was it cut off?", i, need, off, end)); err != nil {
				return err
			}
			continue
		}
		l.used++
		parts = append(parts, part{off, need, int64(i)})
	}
	return l.checkOverlaps(parts)
}

// A part is a range of the file that something takes: a block, or what the names below zero stand for.
type part struct{ off, n, block int64 }

const (
	footerCopy = -1 - iota
	dynamicHeader
	blockTable
)

func (p part) String() string {
	switch p.block {
	case footerCopy:
		return "the copy of the footer"
	case dynamicHeader:
		return "the dynamic disk header"
	case blockTable:
		return "the BAT"
	}
	return fmt.Sprintf("block %d", p.block)
}

// checkOverlaps returns an error if two parts share a byte.
func (l *layer) checkOverlaps(parts []part) error {
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(parts); i++ {
		a, b := parts[i-1], parts[i]
		if a.off+a.n > b.off {
			if err := l.report(corrupt("BAT entry", b.off, "%v overlaps %v", b, a)); err != nil {
				return err
			}
		}
	}
	return nil
}

// A bitmapCache keeps sector bitmaps that were read.
type bitmapCache struct {
	mu   sync.Mutex // guards maps
	size int64      // of one, bytes
	maps map[int64][]byte
}

// maxBitmaps bounds the bytes of the cache.
const maxBitmaps = 8 << 20

func (c *bitmapCache) get(block int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.maps[block]
}

// put keeps a bitmap. A full cache begins anew, which costs less than to know which of them were used last.
func (c *bitmapCache) put(block int64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.maps == nil || int64(len(c.maps)+1)*c.size > maxBitmaps {
		c.maps = make(map[int64][]byte)
	}
	c.maps[block] = b
}
