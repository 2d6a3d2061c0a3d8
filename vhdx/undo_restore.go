package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
	"github.com/vhdxfs/vhdxfs/vhdx/undofile"
)

// UndoOptions says what to restore.
type UndoOptions struct {
	Image string   // "" is the one beside the undo file that this names
	Force bool     // restore although the image is not as the repair has left it
	Lock  LockMode // as in Options

	Phase    func(name string, total int64) // begins a part of the work, of so many bytes; may be nil
	Progress func(n int64)                  // n more of them are done; may be nil
}

// An UndoResult says what Undo did.
type UndoResult struct {
	Path     string `json:"path"`
	UndoFile string `json:"undo_file"`
	Restored int64  `json:"restored_bytes"` // 0 where the image was as before the repair already
}

// ErrChanged is matched by the error for an image that is not as its repair has left it.
var ErrChanged = errors.New("the image was changed after the repair")

// Undo takes a repair back: the image has every byte again that it had before, and its size. The undo file is read to
// its end and the image is compared with it before anything is changed: each sector has to be as the repair has found
// it or as it has left it, so a repair or an undo that was interrupted can be undone, and an image that was written
// since cannot, unless Force is set. Every program that writes an image changes its headers, which the repair did too,
// so that shows. Undo can be run again; the undo file stays.
func Undo(ctx context.Context, undoFile string, o UndoOptions) (_ *UndoResult, err error) {
	d, name, err := safefile.Split(undoFile)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	in, err := imagefile.Open(undoFile, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	u, err := readUndo(in, undoFile)
	if err != nil {
		return nil, err
	}
	if desc, ok := descriptorOf(in, undoFile); ok && !d.Has(name, desc) { // a symbolic link: the image is beside the file, as at its creation
		d.Close()
		if d, _, err = safefile.DirOf(desc); err != nil {
			return nil, fmt.Errorf("the directory of %s is unknown; name the image instead: %w", undoFile, err)
		}
		defer d.Close()
	}
	f, path, err := u.image(d, o.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Lock(o.Lock, imagefile.Exclusive); err != nil {
		return nil, err
	}
	withoutNil(&o.Phase, &o.Progress)
	u.phase, u.progress = o.Phase, o.Progress
	if f, err = u.underLease(f, path, o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	n, err := u.restore(ctx, f, o.Force)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &UndoResult{Path: path, UndoFile: undoFile, Restored: n}, nil
}

// underLease takes the lease of the image in f, where there is to be one and something to restore, and returns the file to restore.
func (u *undoReader) underLease(f File, path string, o UndoOptions) (File, error) {
	if !wantsLease(o.Lock, f) {
		return f, nil
	}
	size, err := f.Size()
	if err != nil {
		return f, err
	}
	switch as, err := u.compare(f, size); {
	case err != nil:
		return f, err
	case as.foreign != nil && !o.Force, as.old && size == u.OldSize:
		return f, nil // restore says so
	}
	held, err := holdLease(o.Lock, f, lease.Options{Path: path, Waiting: TellWait})
	switch {
	case errors.Is(err, ErrCorrupt): // damaged headers tell of no host
		return f, nil
	case err != nil:
		return f, err
	}
	return held, nil
}

// image opens the image at path, or, if that is "", the one that is beside the undo file, in d. An undo file may come from
// anyone, and names the image that is going to be written, so a path in it leads nowhere else.
func (u *undoReader) image(d *safefile.Dir, path string) (File, string, error) {
	if path != "" {
		f, err := imagefile.Open(path, os.O_RDWR)
		return f, path, err
	}
	name := filepath.Base(u.Path)
	f, err := d.Open(name, os.O_RDWR)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, safefile.ErrOutside):
		return nil, "", optionsError{fmt.Errorf("the image %q is not beside the undo file (%w); name it: vhdxfs check --undo FILE IMAGE", name, err)}
	case err != nil:
		return nil, "", err
	}
	return imagefile.Of(f), f.Name(), nil
}

// restore brings f back to what it was before the repair, and returns how many bytes of it were compared and put back.
// While it is at work one header, and no more, is that of the repair, so that an undo that was interrupted shows. The other one is
// restored before all else, or is the mark of a lease.
func (u *undoReader) restore(ctx context.Context, f File, force bool) (int64, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	as, err := u.compare(f, size)
	if err != nil {
		return 0, err
	}
	switch {
	case as.foreign != nil && !force:
		return 0, as.foreign
	case as.old && size == u.OldSize:
		return 0, nil
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if size < u.OldSize {
		if err := lengthen(f, size, u.OldSize); err != nil {
			return 0, err
		}
	}
	first, last := ondisk.HeaderOffsets[0], ondisk.HeaderOffsets[1]
	if as.repaired[0] {
		first, last = last, first
	}
	var n int64
	var firstHeader, lastHeader []byte
	held := leaseOf(f) != nil
	u.phase("restore", u.Size)
	err = u.Each(func(rec *undofile.Record) error {
		n += int64(len(rec.Old))
		u.progress(int64(len(rec.Old)))
		if err := context.Cause(ctx); err != nil {
			return err
		}
		switch header := len(rec.Old) <= ondisk.HeaderSize; {
		case header && rec.Off == last && lastHeader == nil:
			lastHeader = bytes.Clone(rec.Old)
			return nil
		case header && rec.Off == first && firstHeader == nil && held: // the mark of the lease is there
			firstHeader = bytes.Clone(rec.Old)
			return nil
		}
		if _, err := f.WriteAt(rec.Old, rec.Off); err != nil || rec.Off != first {
			return err
		}
		return f.Sync()
	})
	if err != nil {
		return 0, fmt.Errorf("the undo did not finish; run it again: %w", err)
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if size > u.OldSize {
		if err := f.Truncate(u.OldSize); err != nil {
			return 0, err
		}
	}
	err = f.Sync()
	if err == nil && firstHeader != nil {
		err = writeSynced(f, firstHeader, first)
	}
	if err == nil && lastHeader != nil { // a repair changes both headers, but an undo file may say anything
		err = writeSynced(f, lastHeader, last)
	}
	return n, err
}

// gave reports whether a header is one that the repair has written.
func (u *undoReader) gave(h ondisk.Header) bool {
	return lease.Released(h.FileWriteGUID) == lease.Released(u.FileWriteGUID)
}

// A comparison is what an image is like, beside its undo file.
type comparison struct {
	old      bool    // all that the repair was to change is as before
	repaired [2]bool // the header has the FileWriteGuid that the repair gave it
	foreign  error   // something is neither as the repair has found it nor as it has left it
}

// compare reads all of the undo file, and compares f, of size bytes, with it.
func (u *undoReader) compare(f File, size int64) (*comparison, error) {
	c := &comparison{old: true}
	if size < min(u.OldSize, u.NewSize) || size > max(u.OldSize, u.NewSize) {
		c.foreign = fmt.Errorf("%w: the repair left %s, now the file has %s. Undoing it would lose later changes; --force restores anyway",
			ErrChanged, sizes.Exact(u.NewSize), sizes.Exact(size))
	}
	headers := 0
	var copies [2]ondisk.Header
	for i, off := range ondisk.HeaderOffsets {
		var b [ondisk.HeaderSize]byte
		if err := readZeroPast(f, b[:], off, size); err != nil {
			return nil, err
		}
		if string(b[:4]) == ondisk.HeaderSignature {
			headers++
			c.repaired[i] = u.gave(ondisk.Header{FileWriteGUID: ondisk.GUID(b[16:])})
		}
		copies[i], _ = ondisk.DecodeHeader(&b, off) // a damaged one is no mark
	}
	mark := int64(-1)
	for i, off := range ondisk.HeaderOffsets {
		if lease.IsMark(copies[i], copies[1-i]) {
			mark = off
		}
	}
	if headers == 0 && c.foreign == nil { // even if the undo file says otherwise: it may come from anyone, and name any file
		c.foreign = fmt.Errorf("%w: it has no header of a VHDX image. It was overwritten, or is another file; --force restores anyway", ErrChanged)
	}
	u.phase("compare", u.Size)
	buf := make([]byte, undofile.MaxRecord)
	err := u.Each(func(rec *undofile.Record) error {
		u.progress(int64(len(rec.Old)))
		if rec.Off == mark && len(rec.Old) <= ondisk.HeaderSize { // a host has come in, and changed nothing else
			c.old = false
			return nil
		}
		now := buf[:len(rec.Old)]
		if err := readZeroPast(f, now, rec.Off, size); err != nil {
			return err
		}
		for i := 0; i*undofile.SectorSize < len(now); i++ {
			sector := now[i*undofile.SectorSize : min((i+1)*undofile.SectorSize, len(now))]
			if !rec.Knows(i, sector) && c.foreign == nil {
				c.foreign = fmt.Errorf("%w, at offset %#x: undoing it would lose those changes. Undo later repairs first; --force restores anyway",
					ErrChanged, rec.Off+int64(i*undofile.SectorSize))
			}
		}
		c.old = c.old && string(now) == string(rec.Old)
		return nil
	})
	return c, err
}
