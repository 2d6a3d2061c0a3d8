package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

func newInfo() *cobra.Command {
	var c imageCommand
	var zeros bool
	cmd := c.command(&cobra.Command{
		Use: "info [flags] IMAGE...",
		Example: `  vhdxfs info data.vhdx
  vhdxfs info -v data.vhdx
  vhdxfs info --json data.vhdx | jq .disk_size`,
		Short: "Show type, size, use, contents, parent and state of an image",
		Long: `Show what an image is: its type, its sizes, the partitions and file systems on its disk, its parent, its state, and where
it is mounted. -v adds headers, log, regions, metadata and blocks, of the parents as well.`,
		Args: someArgs("IMAGE"),
	}, func(cmd *cobra.Command, paths []string, o vhdx.Options) error {
		confineReader(cmd.Context(), paths, o)
		o.MissingParent, o.Mixed = true, true // what the file itself says is still shown
		var list []any
		for i, path := range paths {
			if disk.IsVHD(path) {
				in, err := describeVHD(path, o)
				if err == nil && !c.json {
					err = printVHD(cmd, in, i > 0)
				}
				if err != nil {
					return err
				}
				list = append(list, in)
				continue
			}
			err := withImage(path, o, func(im *vhdx.Image) error {
				won, err := reclaimable(cmd, im, zeros)
				if err != nil {
					return err
				}
				in := imageInfo{im.Info(), won, untrimmed(im), partition.Inside(im, im.Size(), im.SectorSize())}
				list = append(list, in)
				if c.json {
					return nil
				}
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				return printInfo(cmd, in, zeros)
			})
			if err != nil {
				return err
			}
		}
		switch {
		case !c.json:
			return nil
		case len(list) == 1:
			return writeJSON(cmd.OutOrStdout(), list[0])
		}
		return writeJSON(cmd.OutOrStdout(), list)
	})
	cmd.Flags().BoolVar(&zeros, "zeros", false, "read all blocks and count those that hold only zeros")
	return cmd
}

// An imageInfo is what the JSON of info says.
type imageInfo struct {
	*vhdx.Info
	Reclaimable vhdx.Reclaimable  `json:"reclaimable"`     // by compact
	Untrimmed   int64             `json:"untrimmed_bytes"` // by compact --trim, about, beside that
	Inside      partition.Content `json:"inside"`
}

// reclaimable returns what compact could reclaim, and shows progress where that takes time.
func reclaimable(cmd *cobra.Command, im *vhdx.Image, zeros bool) (vhdx.Reclaimable, error) {
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
	defer p.end()
	r, err := im.Reclaimable(ctx, zeros, vhdx.CompactOptions{Phase: p.phase, Progress: p.add})
	return r, interrupted(err, "nothing was changed")
}

// printInfo describes an image in some lines for people, and with -v in detail, with its parents.
func printInfo(cmd *cobra.Command, in imageInfo, zeros bool) error {
	p := &infoPrinter{size: sizesOf(cmd), w: tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)}
	p.summary(in, zeros)
	if err := p.flush(); err != nil || !isVerbose(cmd) {
		return err
	}
	for level, image := 0, in.Info; ; level++ {
		p.printf("\n")
		if level > 0 {
			p.printf("Parent, level %d\n", level)
		}
		p.image(image)
		if level == 0 {
			p.reclaimable(in.Reclaimable, zeros)
		}
		if err := p.flush(); err != nil {
			return err
		}
		if image.Parent == nil || image.Parent.Image == nil {
			return nil
		}
		image = image.Parent.Image
	}
}

// summary writes what most people want to know.
func (p *infoPrinter) summary(in imageInfo, zeros bool) {
	p.line("image", "%s", printable(in.Path))
	sectors := ""
	if in.LogicalSectorSize != 512 {
		sectors = fmt.Sprintf(", sectors of %s (losetup --sector-size %[2]d)", p.size(in.LogicalSectorSize), in.LogicalSectorSize)
	}
	p.line("type", "%s, blocks of %s%s", in.Type, p.size(in.BlockSize), sectors)
	p.line("disk size", "%s", p.size(in.DiskSize))
	reclaim := ""
	if in.Reclaimable.Total > 0 {
		reclaim = fmt.Sprintf("; vhdxfs compact reclaims %s", p.size(in.Reclaimable.Total))
	}
	if in.Untrimmed > 0 {
		reclaim += fmt.Sprintf("; vhdxfs compact --trim reclaims about %s of free space of the file systems inside", p.size(in.Untrimmed))
	}
	p.line("file size", "%s, %s used by the disk%s", p.size(in.FileSize), p.size(in.AllocatedBytes), reclaim)
	if zeros {
		p.line("zeros", "%s in blocks that hold only zeros", p.size(in.Reclaimable.Zero))
	}
	p.contents(in.Inside, in.Parent != nil && in.Parent.Image == nil)
	p.line("parent", "%s", parentText(in.Parent))
	state := logText(in.Log)
	if len(in.Warnings) > 0 {
		state += fmt.Sprintf("; %s, see vhdxfs check", plural(len(in.Warnings), "warning"))
	}
	p.line("state", "%s", state)
	if l := in.Lease; l != nil && l.State != vhdx.LeaseReleased {
		p.lease(l)
	}
	p.line("mounted", "%s", tellMounted(in.Path))
}

// contents writes what is on the disk, or that a missing parent hides it.
func (p *infoPrinter) contents(in partition.Content, orphan bool) {
	name := "contents"
	if in.Table != "" {
		p.line(name, "%s partition table", strings.ToUpper(in.Table))
		name = ""
	}
	for _, v := range in.Volumes {
		text := p.volume(v)
		if name == "" {
			p.printf("\t  %s\n", text)
		} else {
			p.line(name, "%s", text)
		}
	}
	switch {
	case in.Table != "" || len(in.Volumes) > 0:
	case orphan:
		p.line(name, "unknown without the parent")
	default:
		p.line(name, "no known partition table or file system")
	}
}

// volume describes a partition, or the only file system of a disk.
func (p *infoPrinter) volume(v partition.Volume) string {
	text := v.FileSystem
	if text == "" {
		text = "unknown"
	}
	if v.Label != "" {
		text += fmt.Sprintf(" %q", v.Label)
	}
	if v.Number == 0 {
		return text + ", without a partition table"
	}
	return fmt.Sprintf("%d: %s, %s", v.Number, p.size(v.Len), text)
}

func parentText(in *vhdx.ParentInfo) string {
	switch {
	case in == nil:
		return "none"
	case in.Image == nil:
		return printable(in.Missing) + ", missing"
	}
	return printable(in.Image.Path)
}

// tellMounted is mountedText. A process that is confined has asked before.
var tellMounted = mountedText

// mountedText says where the image is mounted, and with which devices.
func mountedText(path string) string {
	m, err := active.Find(path)
	if err != nil {
		return "no"
	}
	text := fmt.Sprintf("on %s, %s", printable(m.MountPoint), modeText(m.Mode))
	for _, d := range m.Devices {
		text += ", " + d.Path
	}
	switch why, off := strings.CutPrefix(m.Kernel, "off: "); {
	case off:
		text += fmt.Sprintf(", kernel=on without effect (%s)", printable(why))
	case m.Kernel == mountoption.KernelOn:
		text += ", read by the kernel"
	}
	if m.Sandbox != "" {
		text += ", sandbox " + printable(m.Sandbox)
	}
	return text
}

func modeText(mode string) string {
	if mode == "ro" {
		return "read-only"
	}
	return "read/write"
}

// An infoPrinter writes lines of a name and a value, and keeps the first error.
type infoPrinter struct {
	w    *tabwriter.Writer
	size sizeWriter
	err  error
}

func (p *infoPrinter) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// flush writes what is pending.
func (p *infoPrinter) flush() error {
	if err := p.w.Flush(); err != nil {
		return err
	}
	return p.err
}

func (p *infoPrinter) line(name, format string, args ...any) {
	p.printf("%s:\t%s\n", name, fmt.Sprintf(format, args...))
}

func (p *infoPrinter) image(in *vhdx.Info) {
	p.line("image", "%s", printable(in.Path))
	p.line("type", "%s", in.Type)
	p.line("disk size", "%s (%d bytes)", p.size(in.DiskSize), in.DiskSize)
	p.line("file size", "%s, %s used by the disk, %s unused", p.size(in.FileSize), p.size(in.AllocatedBytes), p.size(in.FreeBytes))
	p.line("block size", "%s", p.size(in.BlockSize))
	p.line("sectors", "logical %s, physical %s", p.size(in.LogicalSectorSize), p.sizeOrUnknown(in.PhysicalSectorSize))
	if in.LogicalSectorSize != 512 {
		p.line("loop device", "needs losetup --sector-size %d", in.LogicalSectorSize)
	}
	p.line("disk id", "%s", guidOrNone(in.DiskID))
	p.line("creator", "%q", in.Creator)
	if in.LeaveBlockAllocated {
		p.line("blocks", "always allocated")
	}
	p.lease(in.Lease)
	p.line("log", "%s; %s at %#x", logText(in.Log), p.size(in.Log.Length), in.Log.Offset)
	for i, h := range in.Headers {
		p.header(i+1, h, in.CurrentHeader)
	}
	for _, r := range in.Regions {
		p.line("region", "%s at %#x, %s%s", named(r.Name, r.GUID), r.Offset, p.size(r.Length), required(r.Required))
	}
	for _, m := range in.Metadata {
		p.line("metadata", "%s at %#x, %s%s", named(m.Name, m.GUID), m.Offset, p.size(m.Length), required(m.Required))
	}
	b := in.Blocks
	p.line("BAT", "%d entries, %d blocks per sector bitmap", in.BATEntries, in.ChunkRatio)
	var states []string
	for _, s := range []struct {
		n    int64
		name string
	}{
		{b.FullyPresent, "fully present"}, {b.PartiallyPresent, "partially present"}, {b.NotPresent, "not present"},
		{b.Zero, "zero"}, {b.Unmapped, "unmapped"}, {b.Undefined, "undefined"},
	} {
		if s.n > 0 {
			states = append(states, fmt.Sprintf("%d %s", s.n, s.name))
		}
	}
	p.line("block states", "%s", strings.Join(states, ", "))
	if b.SectorBitmaps > 0 {
		p.line("sector bitmaps", "%d", b.SectorBitmaps)
	}
	if in.Parent != nil {
		p.parent(in.Parent)
	}
	for _, w := range in.Warnings {
		p.line("warning", "%s", w)
	}
}

func (p *infoPrinter) reclaimable(r vhdx.Reclaimable, zeros bool) {
	var parts []string
	for _, part := range []struct {
		n    int64
		name string
	}{{r.Free, "unused"}, {r.Unmapped, "of trimmed blocks"}, {r.BAT, "of the BAT"}, {r.Zero, "in blocks of zeros"}} {
		if part.n > 0 {
			parts = append(parts, p.size(part.n)+" "+part.name)
		}
	}
	won := p.size(r.Total)
	if len(parts) > 0 {
		won += ": " + strings.Join(parts, ", ")
	}
	if !zeros {
		won += "; --zeros also finds blocks of zeros"
	}
	p.line("compact can reclaim", "%s", won)
}

func (p *infoPrinter) header(n int, h vhdx.HeaderInfo, current int) {
	name := fmt.Sprintf("header %d", n)
	if n == current {
		name += ", current"
	}
	if !h.Valid {
		p.line(name, "invalid: %s", h.Problem)
		return
	}
	p.line(name, "sequence number %d, version %d, log version %d", h.SequenceNumber, h.Version, h.LogVersion)
	p.line("  file write GUID", "%s", h.FileWriteGUID)
	p.line("  data write GUID", "%s", h.DataWriteGUID)
	p.line("  log GUID", "%s", guidOrNone(h.LogGUID))
}

func (p *infoPrinter) parent(in *vhdx.ParentInfo) {
	if in.Missing != "" {
		p.line("parent", "%s, missing", printable(in.Missing))
	}
	p.line("parent linkage", "%s", in.Linkage)
	if in.Linkage2 != nil {
		p.line("parent linkage 2", "%s", *in.Linkage2)
	}
	for _, v := range []struct{ name, path string }{
		{"relative path", in.RelativePath},
		{"volume path", in.VolumePath},
		{"absolute path", in.AbsoluteWin32Path},
	} {
		if v.path != "" {
			p.line("  "+v.name, "%q", v.path) // it comes from the image: no control characters
		}
	}
	if in.Image != nil {
		p.line("  found at", "%s", printable(in.Image.Path))
	}
}

// lease says what became of a lease, if there was one.
func (p *infoPrinter) lease(l *vhdx.LeaseInfo) {
	if l != nil {
		p.line("lease", "%s: %s", l.State, printable(vhdx.HostText(l.Host, l.Since)))
	}
}

func logText(l vhdx.LogInfo) string {
	if l.State == vhdx.LogClean {
		return string(l.State)
	}
	return fmt.Sprintf("%s, %d entries with %d updates", l.State, l.Entries, l.Updates)
}

func named(name string, id uuid.UUID) string {
	if name == "unknown" {
		return fmt.Sprintf("%s %s", name, id)
	}
	return name
}

func required(yes bool) string {
	if yes {
		return ", required"
	}
	return ""
}

func guidOrNone(id uuid.UUID) string {
	if id == (uuid.UUID{}) {
		return "none"
	}
	return id.String()
}

func (p *infoPrinter) sizeOrUnknown(n int64) string {
	if n == 0 {
		return "unknown"
	}
	return p.size(n)
}

// plural returns n and the word, in the form that fits.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %s", n, word+"s")
}
