package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/content"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// imageNames are the ends of names that only images have. A disk in such a file that looks like none is a damaged image,
// or something else than what its name says. In either case it must not be taken for a raw disk silently.
// VMDK is not among them: its parts may be raw.
var imageNames = []string{".vhdx", ".avhdx", ".vhds", ".vhd", ".avhd", ".qcow2", ".qcow", ".vdi", ".qed"}

// A ForeignError says that something is neither a VHDX or VHD image nor, by its bytes and its name, a raw disk.
type ForeignError struct {
	Path string // "-" is standard input
	Kind *content.Kind
}

func (e *ForeignError) Error() string {
	path := e.Path
	if path == "-" {
		path = "standard input"
	}
	msg := fmt.Sprintf("%s is not a raw disk: it looks like %v", path, e.Kind)
	if e.Kind.IsDisk() {
		msg = fmt.Sprintf("%s is not the image that its name says: it looks like %v", path, e.Kind)
	}
	if advice := e.Kind.Advice(e.Path); advice != "" && !e.Kind.IsDisk() {
		msg += "; " + advice
	}
	return msg
}

// IsVHD reports whether the file at path is a VHD image. What cannot be read is none.
func IsVHD(path string) bool {
	format, err := detect(path)
	return err == nil && format == VHD
}

// detect finds out the format of the file at path. What is known to be of another than those here is an error.
func detect(path string) (Format, error) {
	f, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		return Auto, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return Auto, err
	}
	kind, err := content.Identify(f, size)
	if err != nil {
		return Auto, fmt.Errorf("%s: %w", path, err)
	}
	return FormatOf(kind, path)
}

// FormatOf returns the format of what is of the given kind and named so, and a ForeignError where it is none of those here.
func FormatOf(kind *content.Kind, path string) (Format, error) {
	named := hasEnd(path, imageNames)
	switch {
	case kind.IsVHDX(), kind.IsDisk() && hasEnd(path, imageNames[:2]): // what is wrong with it is for its reader to say
		return VHDX, nil
	case kind == content.VHD:
		return VHD, nil
	case kind.IsDisk() && !named:
		return Raw, nil
	}
	return Auto, &ForeignError{path, kind}
}

func hasEnd(path string, ends []string) bool {
	ext := strings.ToLower(filepath.Ext(path))
	for _, e := range ends {
		if ext == e {
			return true
		}
	}
	return false
}

// openImage opens the image at path.
func openImage(path string, o vhdx.Options) (*Disk, error) {
	im, err := vhdx.Open(path, o)
	if err != nil {
		return nil, err
	}
	return &Disk{Path: path, Format: VHDX, Image: im, SectorSize: im.SectorSize(), ReaderAt: imageReader{im}, size: im.Size()}, nil
}
