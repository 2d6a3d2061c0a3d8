package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/internal/content"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A layer is one image file of a chain.
type layer struct {
	path     string
	file     File
	src      File             // the file, with its log replayed over it where it has one; for reading
	fileSize int64            // of the file itself, bytes
	replay   *journal.Overlay // src, or nil when there was nothing to replay
	size     int64            // of src, bytes

	creator string
	headers *headers
	tables  *regionTables
	items   []ondisk.MetadataItem
	meta    metadata
	geo     ondisk.Geometry

	sequence *journal.Sequence // what was replayed
	bat      *cache.Span
	bitmaps  []atomic.Pointer[cache.Span] // by chunk; only in differencing disks
	cache    *cache.Cache
	space    *spaceMap
	objects  []fileRange // see findObjects

	unwritable string // why the file cannot be changed safely, though it can be read; "" if it can
	keptShared bool   // places that blocks keep without being present are used otherwise, too

	late *lateScan   // nil where the whole BAT was validated when the layer was loaded
	wary atomic.Bool // BAT entries are validated when they are used

	mu     sync.Mutex // guards counts, headers and findings once the image is open
	counts BlockCounts

	next  atomic.Pointer[layer]     // see parent
	told  atomic.Pointer[toldInfo]  // see asParent
	owner atomic.Pointer[allocator] // of the space, where there is or was a writer
	below atomic.Uint64             // an absence: blocks of which no parent holds anything

	warnings []Finding
	errors   []Finding // with collect: the broken rules
	dropped  int       // findings beyond the bound

	maxFindings int // the bound, 0 is the usual one

	collect bool
	salvage bool    // load goes on where it can without what is damaged
	assume  Assumed // values for what is damaged
	orphan  bool    // the parent is not opened

	unfound *parentSearchError // why there is no parent, where that is no error; see Options.MissingParent
	homes   []*safefile.Dir    // where the file is: its own directory, and that of a symbolic link to it; until the parent was looked for

	lost    bool // Check has found data of which the BAT may have lost the entries
	skim    bool // load does not look at the BAT, so nothing can be read
	mayLate bool // load need not wait until all of a large BAT is validated
}

// newLayer returns the layer of file f, which was opened at path; load reads it.
func newLayer(f File, path string, c *cache.Cache) *layer {
	return &layer{path: path, file: f, cache: c}
}

// again returns a layer of the same file and with the same parent that is not loaded yet, for when the file has become another.
func (l *layer) again() *layer {
	fresh := newLayer(l.file, l.path, l.cache)
	fresh.setParent(l.parent())
	return fresh
}

// parent returns the layer that has what this one does not hold, and nil for the last of a chain. A merge of a disk in use gives a
// layer another one, so who looks twice may find two; both show the same disk.
func (l *layer) parent() *layer { return l.next.Load() }

func (l *layer) setParent(p *layer) { l.next.Store(p) }

// log returns where the log is.
func (l *layer) log() journal.Region {
	l.mu.Lock()
	h := l.headers.header()
	l.mu.Unlock()
	return journal.Region{Offset: int64(h.LogOffset), Length: int64(h.LogLength), GUID: h.LogGUID} // #nosec G115 -- inside the file, or the validation has refused or reported it, and reads fail
}

// maxFindings bounds what an image can make us remember about it: warnings and errors, each.
const maxFindings = 1000

func (l *layer) findingsBound() int { return cmp.Or(l.maxFindings, maxFindings) }

// room reports whether one more finding of a list would be kept, and counts it as dropped if not. A check that may have
// millions of findings asks before it makes the text.
func (l *layer) room(list *[]Finding) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(*list) >= l.findingsBound() {
		l.dropped++
		return false
	}
	return true
}

// warn remembers something odd at file offset off that breaks no rule.
func (l *layer) warn(structure string, off int64, format string, args ...any) {
	l.remember(&l.warnings, Finding{Structure: structure, Offset: off, Message: fmt.Sprintf(format, args...)})
}

// report takes a broken rule that does not end the examination by itself. It returns it as the error with which
// to refuse the image, or, for Check, writes it down and returns nil.
func (l *layer) report(e *FormatError) error {
	if !l.collect {
		return e
	}
	l.remember(&l.errors, newFinding(e))
	return nil
}

func (l *layer) remember(list *[]Finding, f Finding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(*list) >= l.findingsBound() {
		l.dropped++
		return
	}
	*list = append(*list, f)
}

// load reads and checks everything of the layer but its parent. As MS-VHDX 2.3.3 demands, nothing but the header section and the
// log is looked at before the log is replayed.
func (l *layer) load() error {
	size, err := l.file.Size()
	if err != nil {
		return fmt.Errorf("size of the image: %w", err)
	}
	l.fileSize = size
	l.size, l.src = size, l.file
	if size < ondisk.HeaderSectionSize {
		return l.tooSmall()
	}
	if size > ondisk.MaxFileSize {
		return fmt.Errorf("the file has %s; at most 256 TiB are supported", sizes.Text(size))
	}
	if l.creator, err = readIdentifier(l.file); errors.Is(err, ondisk.ErrNoIdentifier) {
		err = l.noIdentifier()
	}
	if err := l.tolerate(err); err != nil {
		return err
	}
	if err := l.tolerate(l.loadHeaders()); err != nil {
		return err
	}
	if err := l.tolerate(l.replayLog()); err != nil {
		return err
	}
	l.tables, err = readRegionTables(l.src)
	if err := l.tolerate(err); err != nil {
		return err
	}
	if l.tables == nil { // to salvage
		l.tables = l.searchRegions()
	}
	for i, err := range l.tables.err {
		if err != nil {
			l.warn("region table", ondisk.RegionTableOffsets[i], "copy %d is invalid: %v", i+1, ondisk.Finding(err))
		}
	}
	if l.tables.differ {
		l.warn("region table", ondisk.RegionTableOffsets[1], "copy 2 differs from copy 1, which is used")
	}
	if err := l.tolerate(l.validateRegions()); err != nil {
		return err
	}
	if err := l.tolerate(l.readMetadata()); err != nil {
		return err
	}
	if l.salvage {
		if err := l.complete(); err != nil {
			return err
		}
	}
	l.geo = ondisk.NewGeometry(int64(l.meta.diskSize), int64(l.meta.blockSize), int64(l.meta.logicalSectorSize), l.meta.hasParent) // #nosec G115 -- at most 64 TiB, readItems has seen to it
	if l.skim {
		return nil
	}
	return l.loadBAT()
}

// tooSmall says of a file that is too small for an image what it is.
func (l *layer) tooSmall() error {
	kind, err := content.Identify(l.file, l.size)
	switch {
	case err != nil:
		return err
	case kind.IsVHDX():
		return ondisk.Corrupt(ondisk.RuleFileTooSmall, "file", 0, "the file has only %s, but a VHDX file has at least 1 MiB; was the file cut off?", sizes.Text(l.size))
	}
	if !kind.IsDisk() || kind == content.Empty {
		return ondisk.Corrupt(ondisk.RuleFileTooSmall, "file", 0, "%s", kind.NotVHDX(l.path))
	}
	return ondisk.Corrupt(ondisk.RuleFileTooSmall, "file", 0, "not a VHDX file: it has only %s, a VHDX file has at least 1 MiB", sizes.Text(l.size))
}

// noIdentifier says of a file that does not begin as an image what it is.
func (l *layer) noIdentifier() error {
	kind, err := content.Identify(l.file, l.size)
	if err != nil {
		return err
	}
	return ondisk.Corrupt(ondisk.RuleFileSignature, "file type identifier", 0, "%s", kind.NotVHDX(l.path))
}

func (l *layer) loadHeaders() error {
	var err error
	if l.headers, err = readHeaders(l.file); err != nil {
		if l.headers == nil { // to salvage; nothing else looks at them after an error
			l.headers = &headers{err: [2]error{err, err}}
		}
		return err
	}
	for i, err := range l.headers.err {
		if err != nil {
			l.warn("header", ondisk.HeaderOffsets[i], "header %d is invalid: %v", i+1, ondisk.Finding(err))
		}
	}
	if a, b := l.headers.copies[0], l.headers.copies[1]; l.headers.err == [2]error{} && a == b {
		l.warn("header", ondisk.HeaderOffsets[1], "both headers are identical")
	}
	h := l.headers.header()
	if err := h.Validate(ondisk.HeaderOffsets[l.headers.current], l.size); err != nil {
		l.headers.dropLog()
		return err
	}
	if h.LogVersion != 0 {
		l.warn("header", ondisk.HeaderOffsets[l.headers.current], "log version %d", h.LogVersion)
	}
	if h.LogLength == 0 {
		l.warn("header", ondisk.HeaderOffsets[l.headers.current], "no log; the image can be read, but not written safely")
	}
	return nil
}

// replayLog lays the log over the file, if it has to be replayed (MS-VHDX 2.3.3).
func (l *layer) replayLog() error {
	if !l.headers.header().Dirty() {
		return nil
	}
	seq, err := journal.Find(l.file, l.log())
	if err != nil {
		return err
	}
	if l.replay, err = journal.NewOverlay(l.file, l.size, seq); err != nil {
		return err
	}
	if l.replay.Size() > ondisk.MaxFileSize {
		defer func() { l.replay = nil }()
		return ondisk.Corrupt(ondisk.RuleLogTarget, "log", l.log().Offset, "the replayed file has %s; at most 256 TiB are supported", sizes.Text(l.replay.Size()))
	}
	l.sequence, l.size = seq, l.replay.Size()
	l.src = view{ReaderAt: l.replay, file: l.file, size: l.size}
	if gap := l.logGap(); gap != "" {
		l.remember(&l.warnings, Finding{Rule: ondisk.RuleLogSequence.Name(), Structure: "log", Offset: seq.Region.Offset, Message: gap + "; writing to the image makes the loss final, so keep a copy"})
	}
	return nil
}

// A view is an image file that reads otherwise than it is, as with its log replayed over it. It is for reading, cannot be
// spliced from, and its holes are not known.
type view struct {
	imagefile.Plain
	io.ReaderAt
	file File
	size int64 // bytes
}

func (v view) WriteAt(p []byte, off int64) (int, error) { return 0, ErrReadOnly }
func (v view) Truncate(size int64) error                { return ErrReadOnly }
func (v view) Sync() error                              { return nil }
func (v view) Size() (int64, error)                     { return v.size, nil }
func (v view) Close() error                             { return v.file.Close() }

// logGap says what is lost where a log is damaged in its middle, and "" where it is not. A writer that
// waits for an entry before it writes the next, as this package does, leaves none behind one that a power cut tore.
func (l *layer) logGap() string {
	if l.sequence.Newer == 0 {
		return ""
	}
	return fmt.Sprintf("an entry behind number %d is damaged or missing, and %d newer entries cannot be replayed without it: the last changes "+
		"may be lost", l.sequence.SequenceNumber, l.sequence.Newer)
}

// count notes that n more payload blocks are in the given state.
func (l *layer) count(s ondisk.BlockState, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.add(s, n)
}

// countBitmap notes that there is one more sector bitmap block.
func (l *layer) countBitmap() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.SectorBitmaps++
}

// dataWriteGUID returns the DataWriteGuid as the headers have it now.
func (l *layer) dataWriteGUID() uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.headers.header().DataWriteGUID
}

// setHeader remembers what the copy of the header in the given slot says now, for Info.
func (l *layer) setHeader(h ondisk.Header, slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hs := &headers{copies: [2]ondisk.Header{h, h}, current: slot}
	hs.copies[1-slot].SequenceNumber--
	l.headers = hs
}

// close closes the layer's file and those of its parents.
func (l *layer) close() error {
	var errs []error
	for ; l != nil; l = l.parent() {
		l.endLateScan()
		errs = append(errs, l.abandon())
	}
	return errors.Join(errs...)
}

// abandon closes the file alone.
func (l *layer) abandon() error {
	l.leaveHomes()
	return l.file.Close()
}

// leaveHomes closes the directories of the file, when no parent is looked for any more.
func (l *layer) leaveHomes() {
	for _, d := range l.homes {
		_ = d.Close() // nothing was written
	}
	l.homes = nil
}
