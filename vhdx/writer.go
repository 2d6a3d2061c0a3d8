package vhdx

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A writer changes the image file of a chain, its top layer. What must never break:
//
//   - The first change renews FileWriteGuid and DataWriteGuid in the headers, durably, before it is made.
//   - A block is mapped in memory only after its bytes are in the file.
//   - Metadata reaches the file through the log alone: first a durable log entry, then, later, its place.
//   - A mapping that must not be durable before its bytes are has them synced before its log entry is written:
//     where the space is recycled, and where the disk has a parent.
//   - Space given up is given away only when the entry that unmaps it is durable and no read uses it any more.
//   - After a failed sync nothing more is written.
//
// Locks, in the order in which they are taken: reshaping, gate, a block's lock, chunkMu, fillMu, rounds.mu,
// committer.mu, headers.mu, dirty.mu, space.mu. dirty.mu is held for memory only, space.mu also while the file grows. No read ever
// wants one of them.
//
// It only joins what has the state, each with a lock of its own, and calls it in the right order.
type writer struct {
	*failure
	counters counters
	own      *atomic.Pointer[layer] // see current
	file     File                   // that of the current layer, with its syncs counted; who holds the gate may use it, see replace
	frozen   *frozenLayer           // set for a parent that a merge changes while it is read; else nil

	lease     atomic.Pointer[lease.File] // of the current layer; nil without one
	whenTaken atomic.Pointer[func()]     // see WhenTakenOver

	detectZeroes bool
	trims        bool // discards change the mapping
	lockMode     LockMode
	byOption     bool // Options.Parents names parents

	reshaping sync.Mutex               // held by Compact, Merge, Resize and Snapshot
	follower  atomic.Pointer[follower] // learns of changes while a merge copies the disk; else nil

	gate    sync.RWMutex // held shared by every operation that changes something, alone to make the image clean
	blocks  blockLocks
	chunkMu sync.Mutex // held while a chunk gets its sector bitmap block
	fillMu  sync.Mutex // held while a page of metadata gets its space

	committer committer   // the log
	headers   headerState // and what they tell of changes
	dirty     dirtyPages  // what is not in the log yet
	space     allocator   // of the file
	worker    *worker     // in the background
}

// newWriter makes the top layer l of a chain writable. Where its log has to be replayed that is done now: the
// image was checked as it is after the replay, so one that is refused was not touched.
func newWriter(op *opener, l *layer) (*writer, error) { return newWriterOf(op, l, nil) }

// newWriterOf is newWriter for the layer of a parent, if frozen is not nil.
func newWriterOf(op *opener, l *layer, frozen *frozenLayer) (*writer, error) {
	if l.log().Length == 0 {
		return nil, errors.New("the image has no log and cannot be written safely; mount it read-only, or convert it")
	}
	if err := l.mayGrow(); err != nil {
		return nil, err
	}
	l, held, err := op.takeLease(l)
	if err != nil {
		return nil, err
	}
	w := &writer{
		failure:      &failure{log: op.Log},
		own:          new(atomic.Pointer[layer]),
		detectZeroes: op.DetectZeroes,
		lockMode:     op.Lock,
		byOption:     len(op.Parents) > 0,
		frozen:       frozen,
	}
	w.own.Store(l)
	w.file = w.fileOf(l)
	w.under(held)
	w.headers.failure, w.headers.counters, w.headers.newFileWrite = w.failure, &w.counters, w.newFileWrite
	w.headers.use(l, w.file, true)
	w.dirty.init()
	c := &w.committer
	c.failure, c.counters, c.own, c.file = w.failure, &w.counters, w.own, w.file
	c.headers, c.space, c.dirty = &w.headers, &w.space, &w.dirty
	c.init()
	if w.log == nil {
		w.log = nowhere()
	}
	w.worker = newWorker(w, w.failure, op.Commit, op.IdleClean)
	w.trims = op.Discard != DiscardOff
	w.space.failure, w.space.gaveUp = w.failure, w.worker.freed
	w.space.discard = op.Discard
	w.space.reads = op.reads()
	w.space.use(l, w.file)
	if l.replay != nil {
		if err := w.replay(); err != nil {
			return nil, err
		}
		w.log.Warnf("%s was not closed cleanly; its log was replayed", l.path)
		if gap := l.logGap(); gap != "" {
			w.log.Warnf("%s: %s", l.path, gap)
		}
	}
	w.space.settled.Store(w.current().wasValidated())
	go w.worker.run()
	return w, nil
}

// current returns the layer that is written to, which is the one that is read. A change finds the same one until it gives up
// the gate.
func (w *writer) current() *layer { return w.own.Load() }

// metered returns f with its syncs counted.
func (w *writer) metered(f File) File { return meteredFile{f, &w.counters.fileSyncs} }

// fileOf returns the file to which changes of l are written, with its syncs counted.
func (w *writer) fileOf(l *layer) File {
	if w.frozen != nil {
		return w.metered(w.frozen.file)
	}
	return w.metered(l.file)
}

// replace makes l the current layer: after a replay, after the disk was resized, and at a snapshot of a disk in use. l was
// loaded from a file that is clean, and reads as the current layer does, or as the resized disk. All state of the writer that
// belongs to a layer is set here: the file, its size and its free space; space that was given up, which l does not know; and,
// with another file, the headers, which have told of no change yet. Those of the same file stay as they were written: what
// the file has in their places may be newer, and not durable.
//
// The caller holds the gate alone, and the committer's mu, unless nothing else has the writer yet. Reads find l from then on. Those that
// began before may still use the old layer, so the caller calls awaitReads before the next change.
func (w *writer) replace(l *layer, anotherFile bool) {
	file := w.fileOf(l)
	if anotherFile {
		w.under(leaseOf(l.file))
	}
	w.headers.use(l, file, anotherFile)
	w.committer.file = file // the caller holds its mu
	w.dirty.forgetUnmapped()
	w.space.mu.Lock()
	defer w.space.mu.Unlock()
	w.file = file
	w.space.take(l, file)
	w.own.Store(l) // with the space, so that what looks at both sees those of one layer
	if w.frozen != nil {
		w.frozen.replaced(l)
	}
}

// rename makes path that of the current layer, whose file has another name by now. No other goroutine uses the writer.
func (w *writer) rename(path string) {
	l := w.current().as(path)
	w.headers.use(l, w.file, false)
	w.own.Store(l)
	if w.frozen != nil {
		w.frozen.replaced(l)
	}
}

// nowhere returns a log that discards its entries.
func nowhere() logrus.FieldLogger {
	return &logrus.Logger{Out: io.Discard, Formatter: new(logrus.TextFormatter)}
}

// mayGrow returns an error where the place of new blocks would not be safe.
func (l *layer) mayGrow() error {
	if l.unwritable != "" {
		return fmt.Errorf("%s, where new blocks would go; mount the image read-only, or convert it", l.unwritable)
	}
	return nil
}

// reshape calls do while no other change of the image as a whole is under way, when it is known which space of the file is free.
// It returns ErrReshaping at once where there is another.
func (im *Image) reshape(do func(w *writer) error) (err error) {
	w := im.writer
	if w == nil {
		return ErrReadOnly
	}
	if !w.reshaping.TryLock() {
		return ErrReshaping
	}
	defer w.catch(&err)
	defer w.reshaping.Unlock()
	if err := w.settle(); err != nil {
		return err
	}
	return do(w)
}

// settle waits until it is known which space of the file is free, which for a large BAT may be some time after the image
// was opened. It comes before every change, and is called without a lock.
func (w *writer) settle() (err error) {
	defer w.catch(&err)
	if w.space.settled.Load() {
		return nil
	}
	l := w.current() // nothing replaces it before
	if err := l.validated(); err != nil {
		return err
	}
	if err := l.mayGrow(); err != nil {
		return err
	}
	w.space.settle(l)
	return nil
}

// replay replays the log into the file and loads the layer anew from there (MS-VHDX 2.3.3). What the disk's user
// sees stays what it was, so DataWriteGuid does: a new one would cut the image's children off.
func (w *writer) replay() error {
	l := w.current()
	if err := w.headers.update(func(h *ondisk.Header) { h.FileWriteGUID = w.newFileWrite() }); err != nil {
		return err
	}
	if size := l.replay.Size(); !w.space.holes && size > l.fileSize {
		if err := w.space.fill(l.fileSize, size-l.fileSize); err != nil {
			return fmt.Errorf("grow the file for its log: %w", err)
		}
	}
	if err := journal.Apply(w.file, l.sequence); err != nil {
		return err
	}
	if err := w.headers.update(func(h *ondisk.Header) { h.LogGUID = uuid.Nil }); err != nil {
		return err
	}
	fresh := l.again()
	fresh.mayLate = l.mayLate // it was found valid as it is now
	if err := fresh.load(); err != nil {
		return fmt.Errorf("after the log was replayed: %w", err)
	}
	w.replace(fresh, false)
	w.headers.opened = true // the space behind the last block is cut off, where the session before left what it did not come to use
	return nil
}

// announce has to be called before every change, with the gate held. The first change renews FileWriteGuid, the first
// one that a reader of the disk can see DataWriteGuid also, durably, and so do the first ones after the image was
// made clean: a copy made meanwhile is another disk from then on.
func (w *writer) announce(kind writeKind) error {
	if err := w.err(); err != nil || w.headers.told() >= kind {
		return err
	}
	return w.headers.announce(kind, w.reserveLog, w.repairTables)
}

// reserveLog gives the log its space before blocks take what is left: without, nothing written could ever be
// committed.
func (w *writer) reserveLog() error {
	log := w.current().log()
	if err := w.file.Allocate(log.Offset, log.Length); err != nil && !imagefile.IsUnsupported(err) {
		return fmt.Errorf("reserve space for the log: %w", err)
	}
	return nil
}

// inUse reports whether a change was announced since the image was clean.
func (w *writer) inUse() bool { return w.headers.told() > noWrite }

// changed says that a change was made, which a sync has to make durable.
func (w *writer) changed() {
	w.worker.used()
	if w.committer.wrote() {
		w.worker.awake()
	}
}

// repairTables puts the region table that counts into the log for both copies, if they are not alike, and reports whether it
// did. The caller holds the mu of the headers.
func (w *writer) repairTables() bool {
	t := w.current().tables
	if t.err == [2]error{} && !t.differ {
		return false
	}
	b := ondisk.EncodeRegionTable(t.regions)
	pages := make(map[int64]*[ondisk.PageSize]byte)
	for _, off := range ondisk.RegionTableOffsets {
		for i := int64(0); i < ondisk.RegionTableSize; i += ondisk.PageSize {
			pages[off+i] = (*[ondisk.PageSize]byte)(b[i:])
		}
	}
	w.dirty.addRaw(pages, false)
	return true
}
