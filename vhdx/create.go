package vhdx

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

const (
	// DefaultLogSize is the length in bytes of a new image's log, that of Windows too.
	DefaultLogSize = 1 * ondisk.MiB
	maxLogSize     = 4096*ondisk.MiB - ondisk.MiB // a 32-bit field holds it

	// DefaultCreator is the Creator field of a new image.
	DefaultCreator = "vhdxfs"
)

// CreateOptions describes a new image. Sizes are in bytes; zero values choose the default.
type CreateOptions struct {
	Size               int64    // of the virtual disk: a multiple of the logical sector size up to 64 TiB
	SizeLater          bool     // a Builder learns the size by SetSize when all content is written; Size is 0
	Type               DiskType // Dynamic, Fixed, or Differencing; default Dynamic, with Parent Differencing
	BlockSize          int64    // default: see DefaultBlockSize; with Parent that of the parent
	LogicalSectorSize  int64    // default 512; with Parent that of the parent, which cannot be changed
	PhysicalSectorSize int64    // default 4096; with Parent that of the parent
	LogSize            int64    // default DefaultLogSize
	Creator            string   // default DefaultCreator
	ZeroBlocks         bool     // blocks of a dynamic disk begin in state ZERO instead of NOT_PRESENT
	DiskID             uuid.UUID
	Replace            bool // an existing regular file is replaced once the new one is complete

	// Inputs are those of the files whose content the image is made of: it is never more open than any of them. Parent
	// and its own parents are among them without being told.
	Inputs []safefile.Access

	Parent      string   // path of the parent of a differencing disk; it is opened and checked
	ParentPaths []string // paths by which Windows finds the parent, beside the relative one: D:\folder\parent.vhdx, \\server\share\parent.vhdx, or \\?\Volume{GUID}\folder\parent.vhdx
	Open        Options  // how to open the parent: where its own parents are, and locks

	items     []diskItem  // metadata of the virtual disk, other than what has a field here
	locator   [][2]string // keys and values of the parent locator
	dataWrite uuid.UUID   // DataWriteGuid; zero is a new one
}

// DefaultBlockSize returns the block size for a disk of the given size, both in bytes: small for small disks,
// where a large block would waste much, and for large ones 32 MiB, as Windows has it.
func DefaultBlockSize(diskSize int64) int64 {
	b := int64(ondisk.MinBlockSize)
	for b < 32*ondisk.MiB && diskSize > b<<10 {
		b <<= 1
	}
	return b
}

// withDefaults returns the options with every default filled in, or says what is wrong with them.
func (o CreateOptions) withDefaults() (CreateOptions, error) {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	if o.SizeLater {
		def(&o.BlockSize, DefaultBlockSize(ondisk.MaxDiskSize))
	}
	def(&o.BlockSize, DefaultBlockSize(o.Size))
	def(&o.LogicalSectorSize, 512)
	def(&o.PhysicalSectorSize, 4096)
	def(&o.LogSize, DefaultLogSize)
	if o.Type == "" {
		o.Type = Dynamic
	}
	if o.Creator == "" {
		o.Creator = DefaultCreator
	}
	if o.DiskID == uuid.Nil {
		o.DiskID = uuid.New()
	}
	switch b := o.BlockSize; {
	case o.Type != Dynamic && o.Type != Fixed && o.Type != Differencing:
		return o, fmt.Errorf("invalid type %q: must be dynamic or fixed", o.Type)
	case o.Type == Differencing && o.Parent == "":
		return o, errors.New("a differencing image needs --parent")
	case o.Type != Differencing && o.Parent != "":
		return o, fmt.Errorf("a %s image has no parent", o.Type)
	case o.Parent == "" && len(o.ParentPaths) > 0:
		return o, errors.New("--parent-path needs --parent")
	case b < ondisk.MinBlockSize || b > ondisk.MaxBlockSize || b&(b-1) != 0:
		return o, fmt.Errorf("invalid block size %s: must be a power of two from 1 MiB to 256 MiB", sizes.Exact(b))
	case o.LogicalSectorSize != 512 && o.LogicalSectorSize != 4096:
		return o, fmt.Errorf("invalid logical sector size %d: must be 512 or 4096", o.LogicalSectorSize)
	case o.PhysicalSectorSize != 512 && o.PhysicalSectorSize != 4096:
		return o, fmt.Errorf("invalid physical sector size %d: must be 512 or 4096", o.PhysicalSectorSize)
	case o.LogSize < ondisk.MiB || o.LogSize%ondisk.MiB != 0 || o.LogSize > maxLogSize:
		return o, fmt.Errorf("invalid log size %s: must be a multiple of 1 MiB, at most 4095 MiB", sizes.Exact(o.LogSize))
	case len(utf16.Encode([]rune(o.Creator)))*2 > ondisk.CreatorSize:
		return o, fmt.Errorf("creator %q is too long: at most 256 characters", o.Creator)
	case o.ZeroBlocks && o.Type != Dynamic:
		return o, errors.New("--zero-blocks needs a dynamic image")
	case o.SizeLater:
		return o, nil
	}
	return o, o.checkSize(o.Size)
}

func (o *CreateOptions) checkSize(size int64) error {
	if size <= 0 || size > ondisk.MaxDiskSize || size%o.LogicalSectorSize != 0 {
		return fmt.Errorf("invalid disk size %s: must be a multiple of %d bytes and at most 64 TiB", sizes.Exact(size), o.LogicalSectorSize)
	}
	return nil
}

// Create makes a new image at path whose disk reads as zeros, or as its parent. It appears under that name when it
// is complete and durable, and not at all if that fails. An error that matches ErrOptions says that there can be no
// such image.
func Create(path string, o CreateOptions) error {
	return CreateContext(context.Background(), path, o)
}

// CreateContext is Create, ended by ctx.
func CreateContext(ctx context.Context, path string, o CreateOptions) error {
	b, err := NewBuilder(ctx, path, o)
	if err != nil {
		return err
	}
	if err := b.Finish(); err != nil {
		return errors.Join(err, b.Discard())
	}
	return b.Commit()
}

// ErrOptions is matched by the errors that say that the arguments, or the options, do not fit each other or the image: nothing was
// changed, and another call may succeed.
var ErrOptions = errors.New("no such image is possible")

// An optionsError matches ErrOptions and reads as its cause.
type optionsError struct{ error }

func (e optionsError) Unwrap() []error { return []error{ErrOptions, e.error} }
