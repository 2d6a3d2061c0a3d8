package vhdx

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// maxDraftPages bounds the memory of a draft: 256 MiB of pages. It is the BAT of a disk of 32 TiB, all of it changed.
const maxDraftPages = 64 << 10

// errLargeDraft says that a repair would change too much. To replay a log by opening the image needs no draft.
var errLargeDraft = errors.New("the repair would change more than 256 MiB of block tables or log, which is not supported; " +
	"to replay only the log, mount the image read/write")

// A draft is an image file with changes that are planned only. It reads as the file would with them, and leaves the
// file as it is. It is for one goroutine.
//
// The file grows or is cut, not both: once it was cut below its old size it cannot grow again.
type draft struct {
	imagefile.Plain

	base   File
	old    int64                            // size of base, bytes
	size   int64                            // of the draft, bytes
	pages  map[int64]*[ondisk.PageSize]byte // changed, by file offset
	copies []copied                         // by rising place, behind the old end and not in pages
	holes  []fileRange                      // that are to be punched, by rising offset; nothing uses them

	sorted []int64 // the offsets of pages, in order; nil where these have changed
}

// A fileRange is a range of the image file, in bytes.
type fileRange struct{ off, n int64 }

func (r fileRange) end() int64 { return r.off + r.n }

// A copied is a range of the draft, at off, that holds a copy of its n bytes at from, which lie before it.
type copied struct {
	fileRange
	from int64
}

var _ File = (*draft)(nil)

func newDraft(base File) (*draft, error) {
	size, err := base.Size()
	if err != nil {
		return nil, fmt.Errorf("size of the image: %w", err)
	}
	return &draft{base: base, old: size, size: size, pages: make(map[int64]*[ondisk.PageSize]byte)}, nil
}

// changed reports whether anything of the draft differs from the file.
func (d *draft) changed() bool { return d.size != d.old || len(d.pages)+len(d.holes) > 0 }

// offsets returns the file offsets of the changed pages, in order.
func (d *draft) offsets() []int64 {
	if d.sorted == nil {
		d.sorted = slices.Sorted(maps.Keys(d.pages))
	}
	return d.sorted
}

// firstBehind returns the index of the first of ranges, which rise and do not overlap, that ends behind off. There may be
// many, and the draft is read page by page.
func firstBehind[R any](ranges []R, off int64, end func(R) int64) int {
	i, _ := slices.BinarySearchFunc(ranges, off, func(r R, off int64) int {
		if end(r) <= off {
			return -1
		}
		return 1
	})
	return i
}

// ReadAt reads from the draft.
func (d *draft) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	if off >= d.size { // far behind it, off has no room for sums
		return 0, io.EOF
	}
	var end error
	if left := d.size - off; int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	if err := readZeroPast(d.base, p, off, min(d.old, d.size)); err != nil {
		return 0, err
	}
	for _, h := range d.holes[firstBehind(d.holes, off, fileRange.end):] {
		part := overlap(p, off, h)
		if part == nil {
			break
		}
		clear(part)
	}
	for _, c := range d.copies[firstBehind(d.copies, off, copied.end):] {
		part := overlap(p, off, c.fileRange)
		if part == nil {
			break
		}
		at := max(off, c.off)
		if err := readFull(d, part, c.from+at-c.off, "the image"); err != nil {
			return 0, err
		}
	}
	for at := off &^ (ondisk.PageSize - 1); at < off+int64(len(p)) && len(d.pages) > 0; at += ondisk.PageSize {
		if pg := d.pages[at]; pg != nil {
			copy(overlap(p, off, fileRange{at, ondisk.PageSize}), pg[max(off-at, 0):])
		}
	}
	return len(p), end
}

// overlap returns the part of p, which stands for the bytes at off of a file, that lies in r, or nil.
func overlap(p []byte, off int64, r fileRange) []byte {
	from, to := max(off, r.off), min(off+int64(len(p)), r.end())
	if from >= to {
		return nil
	}
	return p[from-off : to-off]
}

// readZeroPast fills p from byte off of f on, with zeros from byte end on.
func readZeroPast(f io.ReaderAt, p []byte, off, end int64) error {
	inside := p[:max(0, min(int64(len(p)), end-off))]
	clear(p[len(inside):])
	if len(inside) == 0 {
		return nil
	}
	return readFull(f, inside, off, "the image")
}

// WriteAt changes the draft. A page that stays what it is does not count as changed.
func (d *draft) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > ondisk.MaxFileSize-int64(len(p)) {
		return 0, unix.EFBIG
	}
	if end := off + int64(len(p)); end > d.size {
		if err := d.Truncate(end); err != nil {
			return 0, err
		}
	}
	for n := 0; n < len(p); {
		at := (off + int64(n)) &^ (ondisk.PageSize - 1)
		var pg [ondisk.PageSize]byte
		if _, err := d.ReadAt(pg[:], at); err != nil && err != io.EOF {
			return n, err
		}
		before := pg
		n += copy(pg[off+int64(n)-at:], p[n:])
		switch {
		case pg == before:
		case d.pages[at] == nil && len(d.pages) == maxDraftPages:
			return n, errLargeDraft
		default:
			if d.pages[at] == nil {
				d.sorted = nil
			}
			d.pages[at] = &pg
		}
	}
	return len(p), nil
}

// Size returns the size in bytes that the file is going to have.
func (d *draft) Size() (int64, error) { return d.size, nil }

// Truncate changes the size. Added bytes read as zero.
func (d *draft) Truncate(size int64) error {
	switch {
	case size == d.size:
		return nil
	case size < 0 || size > ondisk.MaxFileSize:
		return fmt.Errorf("the repair needs a file of %#x bytes; at most 256 TiB are supported: %w", uint64(size), unix.EFBIG)
	case d.base.IsDevice():
		return fmt.Errorf("the image is a device of %s, but the repair needs %s: %w", sizes.Text(d.old), sizes.Text(size), unix.ENOSPC)
	case size > d.size && d.size < d.old:
		return errors.New("a draft that was cut cannot grow")
	}
	d.size, d.sorted = size, nil
	maps.DeleteFunc(d.pages, func(at int64, _ *[ondisk.PageSize]byte) bool { return at >= size })
	return nil
}

// append makes room for n bytes, which read as zero, at the next MiB behind the end of the file, and behind all that is
// in use: a last block that the end of the file cuts (T6) reaches beyond it.
func (d *draft) append(n int64, used *spaceMap) (off int64, err error) {
	off = ondisk.RoundUp(max(d.size, used.end()), ondisk.MiB)
	return off, d.Truncate(off + n)
}

// appendCopy makes room for n bytes in the same way, and has them hold a copy of what the draft holds at from: the
// log may have been replayed there.
func (d *draft) appendCopy(from, n int64, used *spaceMap) (off int64, err error) {
	if off, err = d.append(n, used); err == nil {
		d.copies = append(d.copies, copied{fileRange{off, n}, from})
	}
	return off, err
}

// PunchHole makes a range that nothing uses a hole. What was to be written there, as by the log, is not.
func (d *draft) PunchHole(off, n int64) error {
	d.holes, d.sorted = append(d.holes, fileRange{off, n}), nil
	maps.DeleteFunc(d.pages, func(at int64, _ *[ondisk.PageSize]byte) bool { return at >= off && at < off+n })
	return nil
}

// NextData returns the first offset at or after off that may hold other bytes than zero.
func (d *draft) NextData(off int64) (int64, error) {
	next, err := d.nextOfBase(off)
	if err != nil {
		return 0, err
	}
	if i := firstBehind(d.offsets(), off, func(at int64) int64 { return at + ondisk.PageSize }); i < len(d.sorted) {
		next = min(next, max(d.sorted[i], off))
	}
	if i := firstBehind(d.copies, off, copied.end); i < len(d.copies) {
		next = min(next, max(d.copies[i].off, off))
	}
	if next >= d.size {
		return 0, io.EOF
	}
	return next, nil
}

// nextOfBase returns the first offset at or after off where the file may hold other bytes than zero and the draft has
// no hole, and the end of the draft where there is none.
func (d *draft) nextOfBase(off int64) (int64, error) {
	for off < min(d.old, d.size) {
		next, err := d.base.NextData(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		off = next
		i := firstBehind(d.holes, off, fileRange.end)
		if i == len(d.holes) || d.holes[i].off > off {
			return off, nil
		}
		off = d.holes[i].end()
	}
	return d.size, nil
}

// Sync does nothing: a draft is not durable.
func (d *draft) Sync() error { return nil }

// Close does nothing: the file is not the draft's.
func (d *draft) Close() error { return nil }
