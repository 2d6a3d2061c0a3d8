package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// DiskType is the type of a virtual disk.
type DiskType string

// The types of MS-VHDX 1.3.
const (
	Fixed        DiskType = "fixed"
	Dynamic      DiskType = "dynamic"
	Differencing DiskType = "differencing"
)

// Options says how to open an image.
type Options struct {
	Parents    []string // files to take as parents, for the levels of the chain in turn
	ParentDirs []string // further directories in which parents may be looked for
	AnyParent  bool     // take a parent that was changed since the child was made; what the disk reads as is then unknown
	CacheSize  int64    // bytes of BAT and sector bitmap pages to keep, for the whole chain; 0 is the default
	Lock       LockMode // "" is LockLease for a writer on a file system that other hosts may share, and else LockOn
	Salvage    bool     // open a damaged image, too, to read what can be read of it; see Image.Damage
	Assume     Assumed  // with Salvage: what to take for the image itself where it does not say any more

	Mixed         bool // open an image into which a merge was interrupted; see ErrMixed
	MissingParent bool // open an image whose parent is not found, to tell of it: what is left to the parent reads as zero
	WithoutParent bool // read a differencing image alone: what it does not hold itself reads as zero; see Image.LeftToParent

	LateScan bool // do not wait until all of a large BAT of the image itself is validated; see Image.Validated

	Writable     bool               // open the image for writing; its parents are never written
	Discard      DiscardMode        // "" is DiscardAuto
	DetectZeroes bool               // writing zeros to what reads as zero allocates nothing
	Commit       time.Duration      // after which changes without a sync are made durable; 0 is never
	IdleClean    time.Duration      // without changes, after which the image is made clean; 0 is never
	Log          logrus.FieldLogger // for what happens in the background; nil is nowhere
}

// DiscardMode says what becomes of space that is discarded.
type DiscardMode string

// The modes of Options.Discard.
const (
	DiscardAuto  DiscardMode = "auto"  // DiscardPunch where holes in the file are harmless, else DiscardUnmap
	DiscardUnmap DiscardMode = "unmap" // it can be used for other blocks, and is cut off where it is at the end of the file
	DiscardPunch DiscardMode = "punch" // it is also given back to the host's file system, as holes in the file
	DiscardOff   DiscardMode = "off"   // discards are refused
)

// ErrNoDiscard is what Discard returns with DiscardOff.
var ErrNoDiscard = errors.New("the image is open without discards")

// DefaultCacheSize is the bound in bytes on cached BAT and sector bitmap pages.
const DefaultCacheSize = 32 << 20

// An Image is an open virtual disk: an image file and the chain of its parents.
// Any number of goroutines may use it at once, but for Close, and for Resize to a smaller size, which no other call may overlap.
// Methods that change the image fail with ErrReadOnly unless Options.Writable was set, with ErrFailed after a failed sync, and with
// ErrTakenOver if another host has the image. Offsets and sizes are in bytes.
type Image struct {
	own    *atomic.Pointer[layer] // see current; its writer's, if it has one
	writer *writer                // nil when the image is read-only
	close  func() error
}

// Open opens the image at path. It changes no byte of it, unless Options.Writable is set: then a log that has to be replayed is
// replayed into the file, and a lease is recorded in the headers. Otherwise the log is laid over the file in memory (MS-VHDX
// 2.3.3). An error that matches ErrCorrupt says which rule the image breaks, and one that matches ErrLocked that another program
// or host uses it.
func Open(path string, o Options) (*Image, error) {
	if o.Writable && (o.Salvage || o.WithoutParent || o.MissingParent) {
		return nil, errors.New("an image that is damaged or without its parent cannot be opened for writing")
	}
	op := newOpener(o)
	op.collect = o.Salvage
	l, err := op.open(path)
	if err != nil {
		return nil, err
	}
	if err := op.refuseMixed(l); err != nil {
		return nil, errors.Join(err, l.close())
	}
	op.tellOfWriters(l)
	im := newImage(l)
	im.close = sync.OnceValue(im.closeAll)
	if o.Writable {
		if im.writer, err = newWriter(op, l); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
		}
		im.own = im.writer.own
	}
	im.startLateScan(o.Log)
	return im, nil
}

// Writable reports whether the image was opened for writing.
func (im *Image) Writable() bool { return im.writer != nil }

// Close makes an image that was written clean and releases the files and their locks. No other method may be
// called during or after it. After an error the file still opens and replays what was synced.
func (im *Image) Close() error { return im.close() }

func (im *Image) closeAll() error {
	var err error
	if im.writer != nil {
		err = im.writer.close()
	}
	return errors.Join(err, im.current().close())
}

// Sync makes everything durable that was written before the call. Calls that wait at the same time share the work. After an
// error other than one of space, every later change and Sync fails, too; see ErrFailed and ErrTakenOver.
func (im *Image) Sync() error {
	if im.writer == nil {
		return nil
	}
	return im.writer.sync()
}

// Clean does what Sync does, and leaves the file as Close would: with nothing to replay, and no longer than it has to
// be, unless it may have no holes: where growing means to write, the space at its end is kept for the next writer.
func (im *Image) Clean() error {
	if im.writer == nil {
		return nil
	}
	if !im.current().file.Sparse() {
		return im.writer.clean()
	}
	return im.writer.leave()
}

// BeginRead announces that the extents that Resolve returns from now on are going to be read: their space is not
// given to other blocks before EndRead was called with what BeginRead returned. ReadAt does so by itself.
func (im *Image) BeginRead() uint64 {
	if im.writer == nil {
		return 0
	}
	return im.writer.space.reads.enter()
}

// EndRead ends what BeginRead began.
func (im *Image) EndRead(epoch uint64) {
	if im.writer != nil {
		im.writer.space.reads.leave(epoch)
	}
}

// Path returns where the image is, as it was opened: after a Snapshot without KeepName, the child. It takes no lock.
func (im *Image) Path() string { return im.current().path }

// Size returns the size of the virtual disk in bytes.
func (im *Image) Size() int64 { return im.current().geo.DiskSize }

// current returns the image's own layer as it is now: a snapshot of a disk in use, and a disk that grows, put another one in
// its place; see writer.replace. A caller that goes on to use it must have called BeginRead, unless nothing can replace it
// meanwhile.
func (im *Image) current() *layer { return im.own.Load() }

// newImage returns the image that has l as its own layer, for reading.
func newImage(l *layer) *Image {
	im := &Image{own: new(atomic.Pointer[layer]), close: l.close}
	im.own.Store(l)
	return im
}

// AllocatedBytes returns how many bytes of the disk are held in files, parents included. A block that is
// present in several layers counts in each, but the sum is never above the size of the disk.
func (im *Image) AllocatedBytes() int64 {
	var n int64
	for l := im.current(); l != nil; l = l.parent() {
		n += l.allocated()
	}
	return min(n, im.Size())
}

// Counted reports whether AllocatedBytes tells what there is, and not just a bound, as before the BAT is validated.
func (im *Image) Counted() bool { return im.current().wasValidated() }

// allocated returns how many bytes the layer's payload blocks take in its file, and the size of the file as long as that
// is not known: some programs do not read a file that takes no space.
func (l *layer) allocated() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.wasValidated() {
		return l.fileSize
	}
	return (l.counts.FullyPresent + l.counts.PartiallyPresent) << l.geo.BlockShift
}

// An opener opens the layers of one chain.
type opener struct {
	Options
	cache   *cache.Cache
	writing int      // how many layers, from the top down, are opened for writing
	collect bool     // broken rules are collected, not errors; see layer.report
	skim    bool     // BATs are not looked at
	chain   []*layer // opened so far, the image itself first
	tries   int      // files opened as parents, the right ones and others

	epochs *readEpochs // of the chain; nil before the first writer
}

func newOpener(o Options) *opener {
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	op := &opener{Options: o, cache: cache.New(o.CacheSize)}
	if o.Writable {
		op.writing = 1
	}
	return op
}

// reads returns the epochs of the reads of the chain.
func (o *opener) reads() *readEpochs {
	if o.epochs == nil {
		o.epochs = newReadEpochs()
	}
	return o.epochs
}

// next returns how the next layer of the chain is opened and locked.
func (o *opener) next() (flags int, kind imagefile.LockKind) {
	if len(o.chain) < o.writing {
		return os.O_RDWR, imagefile.Exclusive
	}
	return os.O_RDONLY, imagefile.Shared
}

// open opens the image at path and its parents. It leaves nothing open when it fails.
func (o *opener) open(path string) (*layer, error) {
	flags, kind := o.next()
	l, err := o.openLayer(path, flags, kind)
	if err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
	}
	if err := o.openParent(l); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.close())
	}
	for p := l; p != nil; p = p.parent() {
		p.leaveHomes()
	}
	return l, nil
}

// openLayer opens and locks the image file at path, and reads nothing yet.
func (o *opener) openLayer(path string, flags int, kind imagefile.LockKind) (*layer, error) {
	// Open the directory first, and the file through it. Even if other programs change names meanwhile, the image is in the
	// directory in which its parent is looked for.
	d, name, err := safefile.Split(path)
	if err != nil {
		return nil, err
	}
	f, err := d.Follow(name, path, flags)
	if err != nil {
		d.Close()
		return nil, err
	}
	return o.lockLayer(f, path, kind, d, name)
}

// openBeneath does the same for a parent at the path rel, which does not lead out of the directory.
func (o *opener) openBeneath(in *safefile.Dir, rel, path string, flags int, kind imagefile.LockKind) (*layer, error) {
	f, err := in.Open(rel, flags)
	if err != nil {
		return nil, err
	}
	d, err := in.OpenDir(filepath.Dir(rel))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return o.lockLayer(f, path, kind, d, filepath.Base(rel))
}

// lockLayer locks the open file, which is called name in d.
func (o *opener) lockLayer(file *os.File, path string, kind imagefile.LockKind, d *safefile.Dir, name string) (*layer, error) {
	f := imagefile.Of(file)
	l := o.newLayer(f, path)
	l.homes = []*safefile.Dir{d}
	if !d.Has(name, file) { // it is a symbolic link
		if real, _, err := safefile.DirOf(file); err == nil {
			l.homes = append(l.homes, real)
		}
	}
	// A file of the chain is locked already, and would seem to be held by another program.
	err := o.notInChain(f)
	if err == nil {
		err = f.Lock(o.Lock, kind)
	}
	if err != nil {
		l.leaveHomes()
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// newLayer returns the layer of a file that is opened as the options say.
func (o *opener) newLayer(f File, path string) *layer {
	l := newLayer(f, path, o.cache)
	l.collect, l.skim, l.salvage = o.collect, o.skim, o.Salvage
	if len(o.chain) == 0 {
		l.assume, l.orphan = o.Assume, o.WithoutParent
	}
	l.mayLate = o.LateScan && !o.collect && len(o.chain) == 0
	l.wary.Store(o.collect)
	return l
}
