package vhdx

import "io"

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

// LockMode says how an image and its parents are locked against other programs.
type LockMode string

// The modes of Options.Lock.
const (
	LockOn  LockMode = "on"  // a lock that cannot be had is an error
	LockTry LockMode = "try" // file systems without locks are tolerated
	LockOff LockMode = "off"
)

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
type Image struct{}

// Open opens the image at path for reading and changes no byte of it. A log that has to be replayed is
// laid over the file in memory. An error that matches ErrCorrupt says which rule the image breaks.
func Open(path string, o Options) (*Image, error) { panic("skeleton") }

// Size returns the size of the virtual disk in bytes.
func (im *Image) Size() int64 { panic("skeleton") }

// ReadAt reads len(p) bytes of the virtual disk from byte off, which need not be aligned.
func (im *Image) ReadAt(p []byte, off int64) (int, error) { panic("skeleton") }

// Resolve appends to dst the extents that hold the n bytes from byte off, which must lie inside the disk.
// It neither locks nor allocates where dst has room and the BAT pages are cached.
func (im *Image) Resolve(dst []Extent, off, n int64) ([]Extent, error) { panic("skeleton") }

// Extent returns the longest extent that begins at byte off, merging neighbours: holes of any length in
// one call, data as far as it lies together in one file. It returns io.EOF at the end of the disk.
func (im *Image) Extent(off int64) (Extent, error) { panic("skeleton") }

// SeekData returns the first byte at or after off that is held in a file, and io.EOF when none follows.
func (im *Image) SeekData(off int64) (int64, error) { return 0, io.EOF }

// SeekHole returns the first byte at or after off that reads as zero because nothing holds it.
// The end of the disk counts as one.
func (im *Image) SeekHole(off int64) (int64, error) { panic("skeleton") }

// AllocatedBytes returns how many bytes of the disk are held in files, parents included.
func (im *Image) AllocatedBytes() int64 { panic("skeleton") }

// Info describes the image and its chain.
func (im *Image) Info() *Info { panic("skeleton") }

// Close releases the files and their locks.
func (im *Image) Close() error { panic("skeleton") }
