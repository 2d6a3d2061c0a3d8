package vhd

import (
	"context"
	"errors"
	"os"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// What follows is what a mount asks of a disk besides its bytes. Nothing changes.

// Path returns where the image is, as it was opened.
func (im *Image) Path() string { return im.top.path }

// Close releases the files and their locks.
func (im *Image) Close() error { return im.top.close() }

// Type returns the type of the disk.
func (im *Image) Type() vhdx.DiskType { return diskTypes[im.top.footer.diskType] }

// SectorSize returns the size of a logical sector in bytes; there is no other.
func (im *Image) SectorSize() int64 { return sectorSize }

// Validated returns at once: all of the image was looked at when it was opened.
func (im *Image) Validated() error { return nil }

// Counted reports that AllocatedBytes is no bound.
func (im *Image) Counted() bool { return true }

// AllocatedBytes returns how many bytes of the disk are held in files, parents included, as vhdx.Image does.
func (im *Image) AllocatedBytes() int64 {
	n := int64(0)
	for l := im.top; l != nil; l = l.parent {
		n += l.used * l.blockSize
	}
	return min(n, im.Size())
}

// Stats returns no numbers but that of bytes.
func (im *Image) Stats() vhdx.Stats { return vhdx.Stats{AllocatedNow: im.AllocatedBytes()} }

// InMemory reports whether Resolve has to read nothing. A sector bitmap is read so rarely that it is not worth to ask.
func (im *Image) InMemory(int64, int64) bool { return true }

// BeginRead and EndRead do nothing: no space is ever used again.
func (im *Image) BeginRead() uint64 { return 0 }

// EndRead does nothing.
func (im *Image) EndRead(uint64) {}

// Writable reports that it is not.
func (im *Image) Writable() bool { return false }

func (im *Image) level(n int) *layer {
	l := im.top
	for ; n > 0 && l != nil; n-- {
		l = l.parent
	}
	return l
}

// File returns the open file of the image, or of its parent of that level.
func (im *Image) File(level int) (*vhdx.ImageFile, error) {
	l := im.level(level)
	if l == nil {
		return nil, errors.New("no such parent")
	}
	st, err := l.os.Stat()
	return &vhdx.ImageFile{Path: l.path, Now: l.file.PathNow(), Info: st}, err
}

// Way returns the way to the file that File returns.
func (im *Image) Way(level int) (safefile.Way, error) {
	l := im.level(level)
	if l == nil {
		return nil, errors.New("no such parent")
	}
	return safefile.WayTo(l.os)
}

// Access returns the owner, permissions and ACL of each file of the chain.
func (im *Image) Access() (list []safefile.Access, err error) {
	for l := im.top; l != nil; l = l.parent {
		a, err := safefile.AccessOf(l.os)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// Holds reports whether the file at path is that of the image, or of one of its parents.
func (im *Image) Holds(path string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	for l := im.top; l != nil; l = l.parent {
		if own, err := l.os.Stat(); err == nil && os.SameFile(own, st) {
			return true
		}
	}
	return false
}

// WhenTakenOver does nothing: nothing is taken from a program that only reads.
func (im *Image) WhenTakenOver(func()) {}

// WriteAt fails, as all does that changes an image.
func (im *Image) WriteAt([]byte, int64) (int, error) { return 0, vhdx.ErrReadOnly }

// Zero fails.
func (im *Image) Zero(int64, int64) error { return vhdx.ErrReadOnly }

// Discard fails.
func (im *Image) Discard(int64, int64) error { return vhdx.ErrReadOnly }

// Allocate fails.
func (im *Image) Allocate(int64, int64) error { return vhdx.ErrReadOnly }

// Sync has nothing to do.
func (im *Image) Sync() error { return nil }

// Clean has nothing to do.
func (im *Image) Clean() error { return nil }

// Grow fails.
func (im *Image) Grow(context.Context, int64) error { return vhdx.ErrReadOnly }

// Compact fails.
func (im *Image) Compact(context.Context, vhdx.CompactOptions) (*vhdx.CompactResult, error) {
	return nil, vhdx.ErrReadOnly
}

// Merge fails.
func (im *Image) Merge(context.Context, string, vhdx.MergeOptions) (*vhdx.MergeResult, error) {
	return nil, vhdx.ErrReadOnly
}

// Snapshot fails.
func (im *Image) Snapshot(context.Context, string, vhdx.SnapshotOptions) (*vhdx.SnapshotResult, error) {
	return nil, vhdx.ErrReadOnly
}
