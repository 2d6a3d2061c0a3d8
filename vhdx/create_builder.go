package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A Builder makes a new image of known content. It needs no log: until Finish the file has no signature, so that
// what a crash leaves behind opens as nothing, and until Commit it has a temporary name.
//
//	NewBuilder → WriteAt, as often as wanted → Finish → Commit
//
// Discard ends it at any point. Its memory does not grow with the disk: the BAT is in the file from the beginning. Any number of
// goroutines may call WriteAt, Reserve and Place; the other methods are for one goroutine, when these have returned.
type Builder struct {
	file File
	o    CreateOptions
	l    layout
	new  *newfile.File // nil in tests that bring a file of their own
	path string

	sparse bool // the file may have holes

	mu  sync.Mutex // guards BAT entries and end
	end int64      // of the file: where the next block is going to be
}

// NewBuilder begins an image that is going to be at path. Where something is there already it fails, unless
// CreateOptions.Replace is set. On a host without holes this writes all that is zero, until ctx ends.
func NewBuilder(ctx context.Context, path string, o CreateOptions) (*Builder, error) {
	o, release, err := o.withParent(path)
	if err != nil {
		return nil, named(path, err)
	}
	defer release() // the locks of the parents, which are to stay as they are until they were looked at
	return newBuilder(ctx, path, o)
}

// newBuilder is NewBuilder with options that say all about the parent.
func newBuilder(ctx context.Context, path string, o CreateOptions) (_ *Builder, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, optionsError{err}
	}
	b := &Builder{o: o, path: path}
	if b.new, err = newfile.Create(path, newfile.Options{Replace: o.Replace, Inputs: o.Inputs}); err != nil {
		return nil, err
	}
	f := imagefile.Of(b.new.File)
	if err := b.begin(ctx, f); err != nil {
		return nil, errors.Join(b.wrap(err), b.Discard())
	}
	return b, nil
}

// named puts the path of the new image before an error that does not begin with it.
func named(path string, err error) error {
	if strings.HasPrefix(err.Error(), path+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

func (b *Builder) wrap(err error) error {
	if err == nil {
		return nil
	}
	return named(b.path, err)
}

// begin prepares the empty file f.
func (b *Builder) begin(ctx context.Context, f File) error {
	b.file, b.sparse = f, f.Sparse()
	b.l = b.o.layout(b.o.Size)
	b.end = b.l.dataOff
	fixed := b.o.Type == Fixed && !b.o.SizeLater
	if fixed {
		b.end += b.l.geo.PayloadBlocks() * b.o.BlockSize
	}
	if fixed || !b.sparse {
		// A fixed disk gets its space now, where the file system can promise it.
		if err := f.Allocate(0, b.end); !imagefile.IsUnsupported(err) {
			return err
		}
	}
	if b.sparse {
		return f.Truncate(b.end)
	}
	return writeZeros(interruptibleWriter{ctx, f}, 0, b.end)
}

// An interruptibleWriter fails when its context has ended.
type interruptibleWriter struct {
	ctx context.Context
	io.WriterAt
}

func (w interruptibleWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	return w.WriterAt.WriteAt(p, off)
}

// Size returns the size of the disk in bytes, 0 while it is not known.
func (b *Builder) Size() int64 { return b.l.geo.DiskSize }

// SetSize says how large the disk is, in bytes, if CreateOptions.SizeLater was set: a multiple of the logical
// sector size, and not below what was written.
func (b *Builder) SetSize(size int64) error {
	if err := b.o.checkSize(size); err != nil {
		return b.wrap(err)
	}
	b.o.Size, b.o.SizeLater = size, false
	b.l.geo = ondisk.NewGeometry(size, b.o.BlockSize, b.o.LogicalSectorSize, false)
	if b.o.Type == Fixed {
		b.end = b.l.dataOff + b.l.geo.PayloadBlocks()*b.o.BlockSize
		return b.wrap(b.file.Truncate(b.end))
	}
	return nil
}

// Reserve gives places in the file to the blocks of the n bytes of the disk from byte off on. WriteAt does so by
// itself; called in the order of the disk, Reserve makes the file have that order too. In a differencing image both
// fail.
func (b *Builder) Reserve(off, n int64) error {
	for end := off + n; off < end; off = (off>>b.l.geo.BlockShift + 1) << b.l.geo.BlockShift {
		if _, err := b.place(off >> b.l.geo.BlockShift); err != nil {
			return b.wrap(err)
		}
	}
	return nil
}

// WriteAt writes p to the disk at byte off. Any number of goroutines may call it for ranges that do not overlap.
// What is not written reads as zero.
func (b *Builder) WriteAt(p []byte, off int64) (int, error) {
	if limit := b.limit(); off < 0 || off > limit || int64(len(p)) > limit-off {
		return 0, fmt.Errorf("%d bytes at %d are not inside a disk of %d", len(p), off, limit)
	}
	written := 0
	for len(p) > 0 {
		in := b.l.geo.InBlock(off)
		n := min(int64(len(p)), b.o.BlockSize-in)
		at, err := b.place(off >> b.l.geo.BlockShift)
		if err == nil {
			_, err = b.file.WriteAt(p[:n], at+in)
		}
		if err != nil {
			return written, b.wrap(err)
		}
		imagefile.StartWriteback(b.file, at+in, n)
		written, off, p = written+int(n), off+n, p[n:]
	}
	return written, nil
}

func (b *Builder) limit() int64 {
	if b.o.SizeLater {
		return ondisk.MaxDiskSize
	}
	return b.o.Size
}

// File returns the file that is written, to share space with others.
func (b *Builder) File() File { return b.file }

// Place returns where in the file the bytes of the disk from byte off on are, and how many of the n bytes lie together
// there. Blocks get places as by Reserve.
func (b *Builder) Place(off, n int64) (fileOff, together int64, err error) {
	if limit := b.limit(); off < 0 || n <= 0 || n > limit-off {
		return 0, 0, fmt.Errorf("%d bytes at %d are not inside a disk of %d", n, off, limit)
	}
	for together < n {
		at, err := b.place((off + together) >> b.l.geo.BlockShift)
		if err != nil {
			return 0, 0, b.wrap(err)
		}
		in := b.l.geo.InBlock(off + together)
		if together == 0 {
			fileOff = at + in
		} else if at+in != fileOff+together {
			break
		}
		together = min(n, together+b.o.BlockSize-in)
	}
	return fileOff, together, nil
}

// place returns where payload block n is in the file, after giving it a place if it has none.
func (b *Builder) place(n int64) (int64, error) {
	switch b.o.Type {
	case Fixed:
		return b.l.dataOff + n*b.o.BlockSize, nil
	case Differencing: // a block in part would hide the parent
		return 0, errors.New("a new differencing image must be empty")
	}
	var raw [ondisk.BATEntrySize]byte
	at := b.l.batOff + b.l.geo.PayloadEntry(n)*ondisk.BATEntrySize
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := readFull(b.file, raw[:], at, "BAT entry"); err != nil {
		return 0, err
	}
	if e := ondisk.BATEntry(ondisk.LE.Uint64(raw[:])); e != 0 {
		return e.FileOff(), nil
	}
	off := b.end
	if off+b.o.BlockSize > ondisk.MaxFileSize {
		return 0, errors.New("the file would be larger than 256 TiB")
	}
	if !b.sparse {
		if err := writeZeros(b.file, off, b.o.BlockSize); err != nil {
			return 0, err
		}
	}
	ondisk.LE.PutUint64(raw[:], uint64(ondisk.NewBATEntry(ondisk.FullyPresent, off)))
	if _, err := b.file.WriteAt(raw[:], at); err != nil {
		return 0, err
	}
	b.end += b.o.BlockSize
	return off, nil
}

// Finish completes the image and makes it durable: it opens from now on, by the path that TempPath returns. Only
// Commit and Discard may be called afterwards.
func (b *Builder) Finish() error { return b.wrap(b.finish()) }

func (b *Builder) finish() error {
	if b.o.SizeLater {
		return errors.New("the size of the disk is unknown")
	}
	if err := b.file.Truncate(b.end); err != nil {
		return err
	}
	if err := b.o.writeHeaders(b.file, b.l); err != nil {
		return err
	}
	if err := b.o.writeMetadata(b.file, b.l); err != nil {
		return err
	}
	if err := b.writeBAT(); err != nil {
		return err
	}
	// What makes it an image comes last, when everything else is on stable media.
	if err := b.file.Sync(); err != nil {
		return err
	}
	if _, err := b.file.WriteAt(b.o.identifier(), 0); err != nil {
		return err
	}
	return b.file.Sync()
}

// TempPath returns a path by which this process can open the file until Commit.
func (b *Builder) TempPath() string { return b.new.TempPath() }

// give gives the new file the owner and the permissions of another.
func (b *Builder) give(a safefile.Access) error { return a.Give(b.new.File, nil) }

// Commit gives the finished image its name. When that fails, the file is removed.
func (b *Builder) Commit() error {
	return b.wrap(b.new.Commit())
}

// Discard removes what was made so far. After Commit it does nothing.
func (b *Builder) Discard() error {
	return b.new.Discard()
}
