package delta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// ApplySuffix is behind the name of the base in that of the copy of the delta which is applied to it. The copy is there from
// the first change of the base to the last, so that after a power cut nothing is missing.
const ApplySuffix = ".apply"

// ApplyOptions says how to apply a delta. The functions must not be nil.
type ApplyOptions struct {
	Copy     string       // where the copy of the delta is; "" is beside the base, under its name and ApplySuffix
	Name     string       // what the delta is called in errors
	Open     vhdx.Options // of the base: where its own parents are, and locks
	Check    func() error // may refuse, when no other program can open the base any more; may be nil
	Phase    func(name string, total int64)
	Progress func(n int64)
}

// CopyOf returns where the copy of a delta for the base is.
func (o *ApplyOptions) CopyOf(base string) string { return cmp.Or(o.Copy, base+ApplySuffix) }

// FinishCommand returns the command that goes on where Apply was interrupted.
func (o *ApplyOptions) FinishCommand(base string) string {
	copied := terminal.Shell(o.CopyOf(base))
	command := "vhdxfs apply "
	if o.Copy != "" {
		command += "--copy " + copied + " "
	}
	return command + copied + " " + terminal.Shell(base)
}

// Unfinished says what may have become of a base whose delta was not applied to its end.
func (o *ApplyOptions) Unfinished(base string) string {
	return fmt.Sprintf("%s may have changed in part; finish with: %s", base, o.FinishCommand(base))
}

// An Applied says what Apply did. Sizes are in bytes.
type Applied struct {
	Base    string    `json:"base"`
	From    uuid.UUID `json:"parent_linkage"`  // that the base had, and the delta needs
	ID      uuid.UUID `json:"data_write_guid"` // that the base has now
	Already bool      `json:"already_applied"` // it had it before, so nothing was changed
	Data    int64     `json:"data_bytes"`      // written to the base
	Zero    int64     `json:"zero_bytes"`      // made zero in it
}

// An OtherBaseError says that a delta is not one of the base.
type OtherBaseError struct {
	Base       string
	Needs, Has uuid.UUID
}

func (e *OtherBaseError) Error() string {
	return fmt.Sprintf("the delta was made of another disk, or of another state of this one, than %s (it needs DataWriteGuid %s, not %s); nothing was changed",
		e.Base, e.Needs, e.Has)
}

// Apply copies the delta from in beside the base, verifies it, and writes it into the base, which then shows the disk that
// the delta leads to, under the identity of that disk. Until the delta is verified, nothing changes. An error that
// comes later leaves the copy, and Finish goes on.
func Apply(ctx context.Context, in io.Reader, inputs []safefile.Access, base string, o ApplyOptions) (*Applied, error) {
	f, err := newfile.Create(o.CopyOf(base), newfile.Options{Inputs: inputs})
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s is left from an interrupted vhdxfs apply; finish that first: %s", o.CopyOf(base), o.FinishCommand(base))
	}
	if err != nil {
		return nil, err
	}
	r, err := check(ctx, f, in, base, o)
	if err != nil || r.Already {
		return r, errors.Join(err, f.Discard())
	}
	if err := f.Commit(); err != nil {
		return nil, err
	}
	return finish(ctx, r, o, true)
}

// Finish goes on where Apply was interrupted.
func Finish(ctx context.Context, base string, o ApplyOptions) (*Applied, error) {
	o.Open.Mixed = true // as the base is
	r, err := verify(ctx, o.CopyOf(base), base, o)
	if _, other := errors.AsType[*OtherBaseError](err); other {
		return nil, fmt.Errorf("%s was written to after vhdxfs apply was interrupted, and may be a mix of two disks; restore it from a copy, remove %s, and apply the delta again",
			base, o.CopyOf(base))
	}
	if err != nil {
		return nil, err
	}
	if r.Already { // all but the last step was done
		return r, os.Remove(o.CopyOf(base))
	}
	return finish(ctx, r, o, false)
}

// Interrupted returns the path of the copy of a delta that was written to the base in part, and "" where there is none. Until
// Finish has written the rest, the base is a mix of two disks. It takes no lock.
func Interrupted(base string, o vhdx.Options) string {
	o.Parents, o.AnyParent, o.Lock = []string{base}, false, vhdx.LockOff
	k, err := vhdx.ParentLink(base+ApplySuffix, o)
	// While a base changes, it has a DataWriteGuid of its own, which the copy accepts beside the one that it was made for.
	if err != nil || k.State != vhdx.Linked || *k.Linkage == k.Parent.DataWriteGUID {
		return ""
	}
	return base + ApplySuffix
}

// check copies the delta to f and verifies it.
func check(ctx context.Context, f *newfile.File, in io.Reader, base string, o ApplyOptions) (*Applied, error) {
	o.Phase("receive", -1)
	done := make(chan error, 1)
	go func() {
		defer fault.Then(func(err error) { done <- err })
		done <- copyAll(f, in, o.Progress)
	}()
	select {
	case err := <-done:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done(): // the stream may give nothing more
		return nil, context.Cause(ctx)
	}
	return verify(ctx, f.TempPath(), base, o)
}

// copyAll copies in to the empty file f and leaves holes for zeros. It does not read the holes of a file, which can have many TiB.
func copyAll(f *newfile.File, in io.Reader, progress func(n int64)) error {
	skip := func() (int64, error) { return 0, nil }
	if file, ok := in.(*os.File); ok {
		st, err := file.Stat()
		if err != nil {
			return err
		}
		if st.Mode().IsRegular() {
			source := imagefile.Of(file)
			skip = func() (int64, error) { return skipHole(file, source) }
		}
	}
	b := make([]byte, pieceSize)
	for off := int64(0); ; {
		hole, err := skip()
		if err != nil {
			return fmt.Errorf("find data of the delta behind byte %d: %w", off, err)
		}
		off += hole
		n, err := io.ReadFull(in, b)
		if string(b[:n]) != string(zeros[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		progress(int64(n))
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(off)
		case err != nil:
			return fmt.Errorf("read the delta at byte %d: %w", off, err)
		}
	}
}

// skipHole moves the offset of a file to its next data, or to its end, and returns by how much.
func skipHole(f *os.File, source imagefile.File) (int64, error) {
	from, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	to, err := source.NextData(from)
	if errors.Is(err, io.EOF) {
		to, err = source.Size()
	}
	if err != nil {
		return 0, err
	}
	to, err = f.Seek(max(from, to), io.SeekStart)
	return to - from, err
}

// verify returns what the delta at path is, if it is whole, and one of the base.
func verify(ctx context.Context, path, base string, o ApplyOptions) (_ *Applied, err error) {
	o.Open.Writable = false
	alone := o.Open
	alone.WithoutParent = true
	d, err := vhdx.Open(path, alone)
	if err != nil {
		return nil, unnamed(path, o.Name, err)
	}
	needs, child := d.Linkage()
	_, isDelta, err := d.DeltaDigest()
	id := d.DataWriteGUID()
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, unnamed(path, o.Name, err)
	}
	if !child || !isDelta {
		return nil, fmt.Errorf("%s: %w", o.Name, ErrNoDelta)
	}
	b, err := vhdx.Open(base, o.Open)
	if err != nil {
		return nil, err
	}
	has := b.DataWriteGUID()
	if err := b.Close(); err != nil {
		return nil, err
	}
	r := &Applied{Base: base, From: needs, ID: id, Already: has == id}
	if r.Already {
		return r, nil
	}
	whole := o.Open
	whole.Parents = append([]string{base}, o.Open.Parents...)
	d, err = vhdx.Open(path, whole)
	switch {
	case errors.Is(err, vhdx.ErrLocked):
		return nil, err
	case err != nil && has != needs:
		return nil, &OtherBaseError{base, needs, has}
	case err != nil:
		return nil, unnamed(path, o.Name, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	o.Phase("verify", -1)
	return r, unnamed(path, o.Name, Verify(ctx, d, o.Progress))
}

// finish merges the copy of the delta into the base and removes it. With untouched, nothing of it is in the base yet; otherwise
// the base may need the copy after any error.
func finish(ctx context.Context, r *Applied, o ApplyOptions, untouched bool) (*Applied, error) {
	o.Open.Parents = append([]string{r.Base}, o.Open.Parents...)
	check := func() error {
		if o.Check != nil {
			if err := o.Check(); err != nil {
				return err
			}
		}
		untouched = false
		return nil
	}
	m, err := vhdx.Merge(ctx, o.CopyOf(r.Base), vhdx.MergeOptions{Open: o.Open, Delete: true, Check: check, Phase: o.Phase, Progress: o.Progress})
	switch {
	case err != nil && untouched:
		return nil, errors.Join(err, os.Remove(o.CopyOf(r.Base)))
	case err != nil:
		return nil, fmt.Errorf("%w; %s", err, o.Unfinished(r.Base))
	}
	r.Data, r.Zero = m.Data, m.Zero
	return r, nil
}

// An unnamedError names the delta where an error names the file that stands for it.
type unnamedError struct {
	path, name string
	err        error
}

func unnamed(path, name string, err error) error {
	if err == nil {
		return nil
	}
	return &unnamedError{path, name, err}
}

func (e *unnamedError) Error() string { return strings.ReplaceAll(e.err.Error(), e.path, e.name) }
func (e *unnamedError) Unwrap() error { return e.err }
