package delta

import (
	"context"
	"errors"
	"fmt"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The errors for an image that is no delta, and for one that is not whole.
var (
	ErrNoDelta = errors.New("not a delta of vhdxfs diff --output")
	ErrDamaged = errors.New("the delta is damaged")
)

// Verify reads all that the delta im holds and compares its digest. The image is open with its parent.
func Verify(ctx context.Context, im *vhdx.Image, progress func(n int64)) error {
	want, ok, err := im.DeltaDigest()
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%s: %w: it has no digest; vhdxfs merge merges an image into its parent", im.Path(), ErrNoDelta)
	}
	sum := newDigest(im.Size(), im.DataWriteGUID())
	buf := make([]byte, pieceSize)
	for off := int64(0); off < im.Size(); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e, err := im.Extent(off)
		if err != nil {
			return err
		}
		off = e.End()
		switch {
		case e.Layer > 0:
			continue
		case e.File == nil:
			sum.zero(e.DiskOff, e.Len)
			continue
		}
		for at := e.DiskOff; at < off; {
			part := e
			part.DiskOff, part.FileOff, part.Len = at, e.FileOff+at-e.DiskOff, min(off-at, pieceSize)
			if err := part.Read(buf[:part.Len]); err != nil {
				return err
			}
			sum.data(at, buf[:part.Len])
			progress(part.Len)
			at += part.Len
		}
	}
	if sum.sum() != want {
		return fmt.Errorf("%s: %w: its SHA-256 is not that of what it holds; copy it again", im.Path(), ErrDamaged)
	}
	return nil
}
