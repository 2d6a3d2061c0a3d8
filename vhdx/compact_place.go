package vhdx

import (
	"errors"
	"io"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// errNoHole says that there is no free space below a block into which it could move.
var errNoHole = errors.New("no free space before the block")

// moveBlock moves payload block b, whose lock the caller holds alone, from file offset from to a lower one. It
// returns false if the block is not there any more, and errNoHole if there is no lower place.
func (w *writer) moveBlock(b, from int64) (bool, error) {
	g := &w.current().geo
	start := b << g.BlockShift
	entry, _, err := w.current().lookup(start, start+1)
	if err != nil || entry.FileOff() != from || !entry.Present() {
		return false, err
	}
	err = w.copyBelow(g.BlockSize, from, g.PayloadEntry(b), w.copyPlace, func(bat *cache.Page, word int, to place) {
		w.releaseEntry(entry)
		w.setEntry(bat, word, ondisk.NewBATEntry(entry.State(), to.off))
	})
	return err == nil, err
}

// moveBitmap moves the sector bitmap block of a chunk, as moveBlock does a payload block. Its pages may be in the log
// or on their way there, so no change is made meanwhile, and they are put into their places first.
func (w *writer) moveBitmap(chunk, from int64) (ok bool, err error) {
	defer w.catch(&err)
	w.gate.Lock()
	defer w.gate.Unlock()
	if err := w.committer.unlog(from, ondisk.BitmapBlockSize); err != nil {
		return false, err
	}
	i := w.current().geo.BitmapEntry(chunk)
	word, _, err := w.current().bat.Word(i/ondisk.EntriesPerPage, int(i%ondisk.EntriesPerPage))
	if err != nil {
		return false, err
	}
	if e := ondisk.BATEntry(word); e.State() != ondisk.BitmapPresent || e.FileOff() != from {
		return false, nil
	}
	err = w.copyBelow(ondisk.BitmapBlockSize, from, i, w.copyBitmap, func(bat *cache.Page, word int, to place) {
		bat.SetWord(word, uint64(ondisk.NewBATEntry(ondisk.BitmapPresent, to.off)))
		w.current().bitmaps[chunk].Store(w.current().cache.Span(w.file, to.off, ondisk.BitmapBlockSize/ondisk.PageSize))
		w.dirty.unmapped = append(w.dirty.unmapped, place{off: from, size: ondisk.BitmapBlockSize})
	})
	return err == nil, err
}

// copyBelow copies the size bytes at file offset from to a place below, and has change make the change that names the place,
// in the page and word of BAT entry i. Where it fails nothing is changed, and no space taken.
func (w *writer) copyBelow(size, from, i int64, copyTo func(from int64, to place) error, change func(bat *cache.Page, word int, to place)) error {
	to, err := w.space.allocateBelow(size, from)
	if err != nil {
		return err
	}
	named := false
	defer func() {
		if !named {
			w.space.release(to)
		}
	}()
	if err := w.announce(fileWrite); err != nil { // no reader of the disk can see the change
		return err
	}
	if err := copyTo(from, to); err != nil {
		return err
	}
	e, err := w.edit(fileWrite, 1)
	if err != nil {
		return err
	}
	defer e.end()
	bat, word, err := e.batPage(i)
	if err != nil {
		return err
	}
	e.apply(func() {
		change(bat, word, to)
		w.dirty.barrier = true // the copy has to be durable before anything says that it counts
	})
	named = true
	return nil
}

// copyPlace copies a block's bytes from file offset from to the place to. What holds nothing in the old place takes no
// space in the new one either, where the file may have holes.
func (w *writer) copyPlace(from int64, to place) error {
	keep := w.current().keepsBlocks()
	// Where the space of what stays behind is free at once, no byte has to move. Whatever keeps the host from it, a copy shows.
	if !keep && w.file.Host().FreesParts == imagefile.Yes && w.file.Clone(to.off, w.file, from, to.size) == nil {
		return nil
	}
	sparse := w.space.punch && !keep
	if sparse {
		if err := w.space.zero(to.off, to.size); err != nil {
			return err
		}
	}
	buf := make([]byte, min(ondisk.MiB, to.size))
	for i := int64(0); i < to.size; i += int64(len(buf)) {
		n, err := w.file.ReadAt(buf, from+i)
		if n < len(buf) && !errors.Is(err, io.EOF) {
			return err
		}
		clear(buf[n:]) // the end of the file may cut the last block
		switch {
		case sparse:
			err = w.writeData(buf, to.off+i)
		case allZero(buf):
			err = w.space.zeroPlace(to.off+i, int64(len(buf)), keep)
		default:
			_, err = w.file.WriteAt(buf, to.off+i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeData writes the pages of p that are not zero, to file offset off on, where the file reads as zero.
func (w *writer) writeData(p []byte, off int64) error {
	for i := 0; i < len(p); {
		n := i
		for n < len(p) && !allZero(p[n:n+ondisk.PageSize]) {
			n += ondisk.PageSize
		}
		if n > i {
			if _, err := w.file.WriteAt(p[i:n], off+int64(i)); err != nil {
				return err
			}
		}
		i = n + ondisk.PageSize
	}
	return nil
}

// copyBitmap copies a sector bitmap block. All of it is written, so that none of its pages lacks space later.
func (w *writer) copyBitmap(from int64, to place) error {
	buf := make([]byte, ondisk.BitmapBlockSize)
	if err := readFull(w.file, buf, from, "sector bitmap block"); err != nil {
		return err
	}
	_, err := w.file.WriteAt(buf, to.off)
	return err
}
