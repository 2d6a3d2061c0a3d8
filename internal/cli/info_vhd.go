package cli

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A vhdInfo is what the JSON of info says of a VHD image.
type vhdInfo struct {
	*vhd.Info
	Inside partition.Content `json:"inside"`
}

// describeVHD opens the VHD image at path and looks what it is.
func describeVHD(path string, o vhdx.Options) (in vhdInfo, err error) {
	im, err := vhd.Open(path, o)
	if err != nil {
		return in, withAdvice(explainLock(err))
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	return vhdInfo{im.Describe(), partition.Inside(im, im.Size(), im.SectorSize())}, nil
}

// printVHD describes the image in some lines for people, and with -v in detail, with its parents.
func printVHD(cmd *cobra.Command, in vhdInfo, again bool) error {
	if again {
		fmt.Fprintln(cmd.OutOrStdout())
	}
	p := &infoPrinter{size: sizesOf(cmd), w: tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)}
	p.line("image", "%s", printable(in.Path))
	blocks := ""
	if in.BlockSize > 0 {
		blocks = ", blocks of " + p.size(in.BlockSize)
	}
	p.line("type", "%s VHD%s", in.Type, blocks)
	p.line("disk size", "%s", p.size(in.DiskSize))
	p.line("file size", "%s, %s used by the disk", p.size(in.FileSize), p.size(in.AllocatedBytes))
	p.contents(in.Inside, in.Parent == nil && in.ParentID != nil)
	parent := "none"
	switch {
	case in.Parent != nil:
		parent = printable(in.Parent.Path)
	case in.ParentID != nil:
		parent = printable(in.ParentMissing) + ", missing"
	}
	p.line("parent", "%s", parent)
	state := "can only be read"
	if len(in.Warnings) > 0 {
		state += fmt.Sprintf("; %s, see vhdxfs check", plural(len(in.Warnings), "warning"))
	}
	p.line("state", "%s", state)
	p.line("mounted", "%s", tellMounted(in.Path))
	for level, image := 0, in.Info; image != nil && isVerbose(cmd); level, image = level+1, image.Parent {
		p.printf("\n")
		if level > 0 {
			p.printf("Parent, level %d\n", level)
		}
		p.vhd(image)
	}
	return p.flush()
}

func (p *infoPrinter) vhd(in *vhd.Info) {
	p.line("image", "%s", printable(in.Path))
	p.line("disk size", "%s (%d bytes)", p.size(in.DiskSize), in.DiskSize)
	p.line("original size", "%s", p.size(in.OriginalSize))
	p.line("geometry", "%d cylinders, %d heads, %d sectors", in.Geometry.Cylinders, in.Geometry.Heads, in.Geometry.Sectors)
	p.line("disk id", "%s", guidOrNone(in.DiskID))
	p.line("creator", "%q on %q, %s", in.Creator, in.CreatorHost, in.Created.Format("2006-01-02 15:04:05 MST"))
	p.line("blocks", "%d in the file", in.Blocks)
	if in.SavedState {
		p.line("saved state", "yes")
	}
	if in.ParentID != nil {
		p.line("parent id", "%s", in.ParentID)
	}
	if in.ParentMissing != "" {
		p.line("parent", "%q, missing", in.ParentMissing)
	}
	for _, w := range in.Warnings {
		p.line("warning", "%s", w)
	}
}
