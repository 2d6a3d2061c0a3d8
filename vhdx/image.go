package vhdx

import (
	"errors"
	"fmt"
	"sync"

	"vhdxfs/cache"
)

// DiskType is the type of a virtual disk.
type DiskType string

// The types of MS-VHDX 1.3.
const (
	Fixed        DiskType = "fixed"
	Dynamic      DiskType = "dynamic"
	Differencing DiskType = "differencing"
)

// BlockState is the state of a payload or sector bitmap block (MS-VHDX 2.5.1).
type BlockState uint8

// Options says how to open an image.
type Options struct {
	Parents    []string // files to take as parents, for the levels of the chain in turn
	ParentDirs []string // further folders in which parents may be looked for
	CacheSize  int64    // bytes of BAT and sector bitmap pages to keep, for the whole chain; 0 is the default
	Lock       LockMode // "" is LockOn
}

// DefaultCacheSize is the bound in bytes on cached BAT and sector bitmap pages.
const DefaultCacheSize = 32 << 20

// An Image is an open virtual disk: an image file and the chain of its parents.
// Any number of goroutines may use it at once.
type Image struct {
	top   *layer
	close func() error
}

// Open opens the image at path for reading and changes no byte of it. A log that has to be replayed is laid
// over the file in memory. An error that matches ErrCorrupt says which rule the image breaks.
func Open(path string, o Options) (*Image, error) {
	top, err := newOpener(o).open(path)
	if err != nil {
		return nil, err
	}
	return &Image{top: top, close: sync.OnceValue(top.close)}, nil
}

// Close releases the files and their locks. No other method may be called during or after it.
func (im *Image) Close() error { return im.close() }

// Size returns the size of the virtual disk in bytes.
func (im *Image) Size() int64 { return im.top.geo.diskSize }

// AllocatedBytes returns how many bytes of the disk are held in files, parents included. A block that is
// present in several layers counts in each, but the sum is never above the size of the disk.
func (im *Image) AllocatedBytes() int64 {
	var n int64
	for l := im.top; l != nil; l = l.parent {
		n += l.allocated()
	}
	return min(n, im.Size())
}

// allocated returns how many bytes the layer's payload blocks take in its file.
func (l *layer) allocated() int64 {
	return (l.counts.FullyPresent + l.counts.PartiallyPresent) << l.geo.blockShift
}

// An opener opens the layers of one chain.
type opener struct {
	Options
	cache   *cache.Cache
	collect bool     // broken rules are collected, not errors; see layer.report
	chain   []*layer // opened so far, the image itself first
	tries   int      // files opened as parents, the right ones and others
}

func newOpener(o Options) *opener {
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	return &opener{Options: o, cache: cache.New(o.CacheSize)}
}

// open opens the image at path and its parents. It leaves nothing open when it fails.
func (o *opener) open(path string) (*layer, error) {
	l, err := o.openLayer(path)
	if err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
	}
	if err := o.openParent(l); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
	}
	return l, nil
}

// openLayer opens and locks the image file at path, and reads nothing yet.
func (o *opener) openLayer(path string) (*layer, error) {
	f, err := openReadOnly(path)
	if err != nil {
		return nil, err
	}
	if err := f.lock(o.Lock, sharedLock); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return o.newLayer(f, path), nil
}

func (o *opener) newLayer(f File, path string) *layer {
	return &layer{path: path, file: f, cache: o.cache, collect: o.collect}
}
