package convert

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An Input is where the bytes come from: a disk, an image that comes through a stream, or a stream of the bytes of a disk,
// whose size shows at its end. One of the three is set.
type Input struct {
	Disk   *disk.Disk
	Front  *disk.Front
	Stream io.Reader

	SectorSize int64             // of the disk's logical sectors, in bytes; 0 where nothing tells
	From       []safefile.Access // of the file that Front or Stream is read from; none for a pipe
}

// Size returns the size of the disk in bytes, and false where only the end of the stream tells.
func (in Input) Size() (n int64, known bool) {
	switch im := in.Image(); {
	case in.Disk != nil:
		return in.Disk.Size(), true
	case im != nil:
		return im.Size(), true
	}
	return 0, false
}

// Image returns the image that the disk is in, or nil.
func (in Input) Image() *vhdx.Image {
	switch {
	case in.Disk != nil:
		return in.Disk.Image
	case in.Front != nil:
		return in.Front.Image
	}
	return nil
}

// Access returns the owner, permissions and ACL of each file that the input is read from, as far as there are files.
func (in Input) Access() ([]safefile.Access, error) {
	if in.Disk != nil {
		return in.Disk.Access()
	}
	return in.From, nil
}

// Options says how to copy.
type Options struct {
	Workers    int  // that read and write at once; 0 is DefaultWorkers
	Verify     bool // read the output again and compare
	SkipErrors bool // zeros for what cannot be read; nothing is shared
	Reflink    Reflink

	// Phase, if not nil, is told what begins, "copy" or "verify", and how many bytes it is going to be, -1 where
	// that is unknown. Progress is told how many more bytes are done, by several goroutines at once, and Shared how many more
	// are shared with the input, which are among those or will be.
	Phase    func(name string, total int64)
	Progress func(n int64)
	Shared   func(n int64)
}

// DefaultWorkers keeps a disk of some queue depth busy without taking much memory.
const DefaultWorkers = 8

// A Result says what was done. Sizes and offsets are in bytes of the disk.
type Result struct {
	InputSize int64     `json:"input_size"`
	DiskSize  int64     `json:"disk_size"`  // of the output: larger where the last sector was filled up, or on request
	Data      int64     `json:"data_bytes"` // written or shared; the rest is zero
	Shared    int64     `json:"shared_bytes"`
	Verified  bool      `json:"verified"`
	Skipped   []Skipped `json:"skipped,omitempty"`
	Dropped   int       `json:"skipped_more,omitempty"` // skipped ranges that are not listed
}

// Skipped is a range that could not be read and is zero in the output.
type Skipped struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Error  string `json:"error"`
}

// ErrVerify is what Run returns where the output does not read as what was written to it.
var ErrVerify = errors.New("the output does not match the written data and was removed")

// Run copies the input to the target and commits it. When it fails, or ctx ends, the target is discarded.
func Run(ctx context.Context, in Input, t Target, o Options) (r *Result, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Discard())
		}
	}()
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	if o.Phase == nil {
		o.Phase = func(string, int64) {}
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	if o.Shared == nil {
		o.Shared = func(int64) {}
	}
	c := &copier{target: t, o: o, result: &Result{}}
	_, c.ordered = t.(*stream)
	if c.sharer, err = newSharer(in, t, o); err != nil {
		return nil, err
	}
	if o.Verify {
		c.sum = newSum()
	}
	if err := c.copy(ctx, in); err != nil {
		return nil, err
	}
	if n := len(c.result.Skipped) - maxSkipped; n > 0 {
		c.result.Skipped = c.result.Skipped[:maxSkipped]
		c.result.Dropped += n
	}
	if c.result.InputSize == 0 { // as of a pipe whose writer failed
		return nil, errors.New("the input is empty; a disk has at least one sector")
	}
	if c.result.DiskSize, err = t.SetSize(c.result.InputSize); err != nil {
		return nil, err
	}
	if err := t.Finish(); err != nil {
		return nil, err
	}
	if o.Verify {
		if err := c.verify(ctx); err != nil {
			return nil, err
		}
		c.result.Verified = true
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return c.result, t.Commit()
}

// verify reads the finished output.
func (c *copier) verify(ctx context.Context) error {
	d, err := c.target.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVerify, err)
	}
	defer d.Close()
	if d.Size() < c.result.DiskSize {
		return ErrVerify
	}
	v := &copier{target: nothing{}, o: Options{Workers: c.o.Workers, Phase: c.o.Phase, Progress: c.o.Progress}, sharer: new(sharer), result: &Result{}, sum: c.sum.again(), phase: "verify"}
	if err := v.copy(ctx, Input{Disk: d}); err != nil {
		return err
	}
	if !v.sum.equal(c.sum) {
		return ErrVerify
	}
	return nil
}
