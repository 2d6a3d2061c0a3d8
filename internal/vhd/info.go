package vhd

import (
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Info describes an open image for people and programs. Sizes are in bytes.
type Info struct {
	Path           string        `json:"path"`
	Format         string        `json:"format"` // "vhd"
	FileSize       int64         `json:"file_size"`
	Type           vhdx.DiskType `json:"type"`
	DiskSize       int64         `json:"disk_size"`
	OriginalSize   int64         `json:"original_size"`
	BlockSize      int64         `json:"block_size,omitempty"` // not of a fixed image
	Geometry       Geometry      `json:"geometry"`
	DiskID         uuid.UUID     `json:"disk_id"`
	Creator        string        `json:"creator"`
	CreatorHost    string        `json:"creator_host"`
	Created        time.Time     `json:"created"`
	SavedState     bool          `json:"saved_state"`
	Blocks         int64         `json:"blocks"` // in the file
	AllocatedBytes int64         `json:"allocated_bytes"`
	ParentID       *uuid.UUID    `json:"parent_id,omitempty"`
	ParentMissing  string        `json:"parent_missing,omitempty"`
	Parent         *Info         `json:"parent,omitempty"`
	Warnings       []string      `json:"warnings,omitempty"`
}

// Geometry is what old programs see of the disk.
type Geometry struct {
	Cylinders int `json:"cylinders"`
	Heads     int `json:"heads"`
	Sectors   int `json:"sectors"`
}

// Describe describes the image, with its parents.
func (im *Image) Describe() *Info { return im.top.describe() }

var diskTypes = map[uint32]vhdx.DiskType{typeFixed: vhdx.Fixed, typeDynamic: vhdx.Dynamic, typeDifferencing: vhdx.Differencing}

func (l *layer) describe() *Info {
	f := &l.footer
	in := &Info{
		Path: l.path, Format: "vhd", FileSize: l.size, Type: diskTypes[f.diskType], DiskSize: l.diskSize,
		OriginalSize: int64(f.originalSize), // #nosec G115 -- shown alone
		Geometry:     Geometry{int(f.geometry.cylinders), int(f.geometry.heads), int(f.geometry.sectors)},
		DiskID:       f.id, Creator: text(f.creator), CreatorHost: text(f.creatorHost),
		Created:    epoch.Add(time.Duration(f.timeStamp) * time.Second),
		SavedState: f.savedState != 0, Blocks: l.used, AllocatedBytes: l.used * l.blockSize,
		ParentMissing: l.missing,
	}
	if f.diskType != typeFixed {
		in.BlockSize = l.blockSize
	}
	if f.diskType == typeDifferencing {
		in.ParentID = &l.head.parentID
	}
	if l.parent != nil {
		in.Parent = l.parent.describe()
	}
	for _, w := range l.warnings {
		in.Warnings = append(in.Warnings, w.Message)
	}
	return in
}

// text returns a word of four characters from an image.
func text(b [4]byte) string {
	return strings.TrimRight(strings.ToValidUTF8(string(b[:]), "?"), "\x00 ")
}

// Warnings returns what is odd about the images of the chain, for people.
func (im *Image) Warnings() (list []string) {
	for l := im.top; l != nil; l = l.parent {
		for _, w := range l.warnings {
			list = append(list, w.Message)
		}
	}
	return list
}

// Info describes the image in the words of VHDX, as far as they fit, for what tells of a mount.
func (im *Image) Info() *vhdx.Info { return im.top.info() }

func (l *layer) info() *vhdx.Info {
	in := &vhdx.Info{
		Path: l.path, FileSize: l.size, Creator: text(l.footer.creator), Type: diskTypes[l.footer.diskType],
		DiskSize: l.diskSize, BlockSize: l.blockSize, LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize,
		DiskID: l.footer.id, Log: vhdx.LogInfo{State: vhdx.LogClean}, BATEntries: int64(len(l.bat)),
		AllocatedBytes: l.used * l.blockSize,
	}
	blocks := blocksOf(l.diskSize, l.blockSize)
	in.Blocks.NotPresent = blocks - l.used
	in.Blocks.FullyPresent = l.used
	if l.footer.diskType == typeDifferencing {
		in.Blocks.FullyPresent, in.Blocks.PartiallyPresent = 0, l.used
		in.Parent = &vhdx.ParentInfo{Linkage: l.head.parentID}
	}
	if l.parent != nil {
		in.Parent.Image = l.parent.info()
	}
	return in
}

// Check looks for everything that is wrong with the image at path, or odd, and with its parents. The error is for what keeps
// it from being read at all.
func Check(path string, o vhdx.Options) (*vhdx.Report, error) {
	op := &opener{o: o, collect: true}
	l, err := op.open(path)
	if broken, ok := errors.AsType[*FormatError](err); ok {
		f := vhdx.Finding{Structure: broken.Structure, Offset: broken.Offset, Message: broken.Err.Error()}
		return &vhdx.Report{Path: path, Errors: []vhdx.Finding{f}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer l.close()
	return l.checked(), nil
}

func (l *layer) checked() *vhdx.Report {
	r := &vhdx.Report{Path: l.path, Errors: l.errors, Warnings: l.warnings, Dropped: l.dropped}
	if l.parent != nil {
		r.Parent = l.parent.checked()
	}
	return r
}
