package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// standardStream is the name of an input that is read from standard input, and of an output that is written to standard
// output.
const standardStream = "-"

// copyFlags are the flags of commands that copy a disk.
type copyFlags struct {
	options       []string
	verify, json  bool
	rescue        rescueFlags
	mayRescue     bool   // the command has the rescue flags
	formatFlag    string // that says the format of the input; "" is none
	workers       int
	reflink       string
	force, dryRun bool
	input, output string   // formats
	warnings      []string // that were printed
	progress      *progress
	stdout        *os.File // where the disk is written to it
}

func (c *copyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&c.verify, "verify", false, "read the output from the disk again and compare it")
	f.IntVar(&c.workers, "workers", convert.DefaultWorkers, "copy `N` pieces of the disk at once")
	addReflink(cmd, &c.reflink, "share space with the input instead of copying: `WHEN` is auto, always or never")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
}

var reflinks = []string{string(convert.ReflinkAuto), string(convert.ReflinkAlways), string(convert.ReflinkNever)}

// addReflink adds the flag --reflink.
func addReflink(cmd *cobra.Command, when *string, help string) {
	f := cmd.Flags()
	f.StringVar(when, "reflink", string(convert.ReflinkAuto), help)
	f.Lookup("reflink").NoOptDefVal = string(convert.ReflinkAlways) // as in cp
	completeFlag(cmd, "reflink", reflinks...)
}

func checkReflink(when string) error {
	if !slices.Contains(reflinks, when) {
		return usageError("--reflink=%s: must be auto, always or never", when)
	}
	return nil
}

type convertCommand struct {
	layout layoutFlags
	copy   copyFlags
}

func newConvert() *cobra.Command {
	var c convertCommand
	cmd := &cobra.Command{
		Use:   "convert [flags] INPUT OUTPUT",
		Short: "Copy a disk between raw, VHDX and VHD, or to another type",
		Long: `Copy the disk INPUT to OUTPUT. INPUT is a VHDX or VHD image with its parents, a raw file, a block device, or - for
standard input. Its format is detected by its contents; images of other formats and compressed files are refused. OUTPUT
becomes a VHDX image if its name ends in .vhdx or .avhdx, a VHD image if it ends in .vhd, otherwise a raw file. To choose
the formats yourself, use -f and -O, as in qemu-img. Zeros take no space in OUTPUT.

If OUTPUT is -, the disk is written to standard output, from its start to its end: as a raw disk, or with -O vhdx as an image
that stores only blocks with data. Messages go to standard error. Use -O vhdx to send a disk through a pipe: the receiver
then sees whether anything is missing at the end, which a raw disk does not always tell. An image from a pipe is copied
while it arrives. If that is not possible, because the image has a parent, a log to replay, or its tables at the end, it is
first put into a temporary file, and a message says so.

Where the file system can (XFS, Btrfs), OUTPUT shares the space of INPUT instead of copying it, as with cp --reflink. Zeros
in what is shared are kept. A fixed image is shared only with --reflink=always. What OUTPUT shares takes space when it is
overwritten.

A new file appears under its name when it is complete and durable. If the command fails, no file is left. An existing file
is kept unless --force is given. A block device is overwritten only with --force, and only if it is not mounted.

An image that is copied to an image keeps its type, sector sizes, block size and disk metadata. A differencing image
becomes dynamic, and the disk ID is new. An image made of a raw disk gets the sector size of its partition table or block
device. Partition tables count in sectors: with another --logical-sector-size, the partitions are no longer found.

To rescue a damaged image, use --skip-errors. It also works without valid headers, region tables or metadata; give the
values that the image no longer records with --assume-block-size and the like. If the parent of a differencing image is
lost, --without-parent copies what the image holds itself.

A VHD image holds up to 2040 GiB, in sectors of 512 bytes, and a whole number of MiB: as Azure needs it, the disk is rounded
up. Azure takes fixed images (--type fixed).

For QCOW2, VMDK, VDI and others, use qemu-img convert to or from a raw disk.

` + sizeHelp,
		Example: `  vhdxfs convert disk.raw disk.vhdx
  vhdxfs convert --verify child.avhdx disk.raw
  vhdxfs convert --type fixed --block-size 2M dynamic.vhdx fixed.vhdx
  vhdxfs convert --type fixed disk.vhdx azure.vhd
  vhdxfs convert --force disk.vhdx /dev/sdx
  zstdcat disk.raw.zst | vhdxfs convert - disk.vhdx
  vhdxfs convert -O vhdx disk.vhdx - | ssh host vhdxfs convert - disk.vhdx`,
		Args: exactArgs("INPUT", "OUTPUT"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0], args[1]) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&c.copy.input, "input-format", "f", "", "`FORMAT` of INPUT: vhdx, vhd or raw; detected by default")
	f.StringVarP(&c.copy.output, "output-format", "O", "", "`FORMAT` of OUTPUT: vhdx, vhd or raw; chosen by its name by default")
	c.copy.formatFlag, c.copy.mayRescue = "-f", true
	c.copy.rescue.add(cmd)
	f.BoolVar(&c.copy.dryRun, "dry-run", false, "show what would be created or overwritten, but change nothing")
	c.copy.add(cmd)
	c.layout.add(cmd)
	completeFlag(cmd, "input-format", disk.Formats...)
	completeFlag(cmd, "output-format", disk.Formats...)
	return cmd
}

// toVHD copies input to a new VHD image.
func (c *convertCommand) toVHD(cmd *cobra.Command, input, output string) error {
	if err := c.vhdFlags(cmd); err != nil {
		return err
	}
	if convert.IsDevice(output) {
		return usageError("%s is a block device; an image must be a file. To write the disk itself to the device, use convert -O raw", output)
	}
	if c.copy.output == "" && c.layout.diskType == "" { // a name alone may not mean it
		c.copy.warner(cmd)("%s becomes a VHD image because of its name; use -O vhd to confirm this, or -O raw for a raw disk", printable(output))
	}
	return c.copy.copy(cmd, input, output, disk.VHD, func(_ context.Context, in convert.Input) (convert.Target, error) {
		size, fixed, err := c.vhdLayout(cmd, in)
		if err != nil {
			return nil, err
		}
		inputs, err := in.Access()
		if err != nil {
			return nil, err
		}
		return convert.NewVHD(output, size, fixed, newfile.Options{Replace: c.layout.force, Inputs: inputs})
	})
}

// vhdFlags returns an error if a flag is given that concerns VHDX images alone.
func (c *convertCommand) vhdFlags(cmd *cobra.Command) error {
	for _, name := range c.layout.allGiven(cmd) {
		if name != "type" {
			return usageError("--%s applies to VHDX images; for a VHD image, only --type can be chosen", name)
		}
	}
	if t := vhdx.DiskType(c.layout.diskType); t != "" && t != vhdx.Fixed && t != vhdx.Dynamic {
		return usageError("invalid type %q: must be dynamic or fixed", t)
	}
	return nil
}

// vhdLayout returns the size and the type of a VHD image of the input, and warns of what becomes of the disk.
func (c *convertCommand) vhdLayout(cmd *cobra.Command, in convert.Input) (size int64, fixed bool, err error) {
	fixed = isFixed(in)
	if c.layout.diskType != "" {
		fixed = vhdx.DiskType(c.layout.diskType) == vhdx.Fixed
	}
	warnSectors(c.copy.warner(cmd), in, "a VHD image", "", 512)
	size, known := in.Size()
	if !known {
		return 0, fixed, nil
	}
	padded, err := vhd.PaddedSize(size)
	if err != nil {
		return 0, fixed, &statusError{statusUsage, err}
	}
	if padded != size {
		c.copy.warner(cmd)("the disk has %s; in a VHD image it becomes %s, a whole number of MiB", sizes.Exact(size), sizes.Exact(padded))
	}
	return size, fixed, nil
}

// isFixed reports whether the input is a fixed image.
func isFixed(in convert.Input) bool {
	if in.Disk != nil && in.Disk.VHD != nil {
		return in.Disk.VHD.Describe().Type == vhdx.Fixed
	}
	im := in.Image()
	return im != nil && im.Info().Type == vhdx.Fixed
}

func (c *convertCommand) run(cmd *cobra.Command, input, output string) error {
	c.copy.force = c.layout.force
	format := disk.Format(c.copy.output)
	switch {
	case output == standardStream:
		return c.toStdout(cmd, input, format)
	case format != disk.Auto:
	case isImageName(output):
		format = disk.VHDX
	case extension(output) == "vhd":
		format = disk.VHD
	default:
		if err := checkRawName(output); err != nil && !convert.IsDevice(output) {
			return err
		}
		format = disk.Raw
	}
	switch format {
	case disk.VHDX:
		var o vhdx.CreateOptions
		c.layout.apply(&o)
		return c.copy.toImage(cmd, input, output, o, false)
	case disk.VHD:
		return c.toVHD(cmd, input, output)
	case disk.Raw:
		if err := c.imageFlags(cmd, output); err != nil {
			return err
		}
		return c.copy.copy(cmd, input, output, disk.Raw, func(_ context.Context, in convert.Input) (convert.Target, error) {
			warnSectors(c.copy.warner(cmd), in, output, output, disk.DeviceSectors(output))
			size, _ := in.Size()
			inputs, err := in.Access()
			if err != nil {
				return nil, err
			}
			return convert.NewRaw(output, size, newfile.Options{Replace: c.layout.force, Inputs: inputs})
		})
	}
	return createError(disk.UnknownFormat(format))
}

// imageFlags returns an error if a flag is given that concerns images alone, where none is made.
func (c *convertCommand) imageFlags(cmd *cobra.Command, output string) error {
	name := c.layout.given(cmd)
	switch {
	case name == "":
		return nil
	case output == standardStream:
		return usageError("--%s applies to images, but standard output gets a raw disk; use -O vhdx", name)
	}
	return usageError("--%s applies to images, but %s becomes a raw disk; use a name with .vhdx, or -O vhdx", name, output)
}

// toImage copies input to a new image. What the options leave open is as in an input that is an image; with keepID
// it stands for the same disk.
func (c *copyFlags) toImage(cmd *cobra.Command, input, output string, o vhdx.CreateOptions, keepID bool) error {
	if output == standardStream {
		return usageError("only convert writes to standard output: vhdxfs convert -O vhdx %s -", terminal.Shell(input))
	}
	if convert.IsDevice(output) {
		return usageError("%s is a block device; an image must be a file. To write the disk itself to the device, use convert -O raw", output)
	}
	return c.copy(cmd, input, output, disk.VHDX, func(ctx context.Context, in convert.Input) (convert.Target, error) {
		warnSectors(c.warner(cmd), in, "the image", output, cmp.Or(o.LogicalSectorSize, in.SectorSize))
		o, err := imageOptions(in, o, keepID)
		if err != nil {
			return nil, err
		}
		if o.Inputs, err = in.Access(); err != nil {
			return nil, err
		}
		return convert.NewImage(ctx, output, o)
	})
}

// imageOptions completes the options for an image of the input.
func imageOptions(in convert.Input, o vhdx.CreateOptions, keepID bool) (vhdx.CreateOptions, error) {
	o.LogicalSectorSize = cmp.Or(o.LogicalSectorSize, in.SectorSize)
	size, known := in.Size()
	if !known {
		o.SizeLater = o.Size == 0
		return o, nil
	}
	name := "standard input"
	if in.Disk != nil {
		name = in.Disk.Path
	}
	if size == 0 {
		return o, usageError("%s is empty; a disk has at least one sector", name)
	}
	if o.Size != 0 && o.Size < size {
		return o, usageError("a disk of %s cannot hold the %s of %s", sizes.Exact(o.Size), sizes.Exact(size), name)
	}
	o.Size = max(o.Size, size)
	im := in.Image()
	if im == nil {
		if isFixed(in) {
			o.Type = cmp.Or(o.Type, vhdx.Fixed)
		}
		return o, nil
	}
	like, err := im.Like()
	if err != nil {
		return o, err
	}
	if im.Info().Type == vhdx.Fixed {
		like.Type = vhdx.Fixed
	}
	if !keepID {
		like.DiskID = uuid.Nil // two disks are two
	}
	return o.Inherit(like), nil
}

// copy copies input to the target that open returns.
func (c *copyFlags) copy(cmd *cobra.Command, input, output string, format disk.Format, open func(context.Context, convert.Input) (convert.Target, error)) (err error) {
	if c.workers < 1 || c.workers > 256 {
		return usageError("--workers %d: give 1 to 256", c.workers)
	}
	if err := checkReflink(c.reflink); err != nil {
		return err
	}
	if c.rescue.skipErrors && c.reflink == string(convert.ReflinkAlways) {
		return usageError("--reflink=always does not apply with --skip-errors, which has to read everything")
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	in, err := c.openInput(ctx, cmd, input, output)
	if err != nil {
		return createError(interrupted(err, "nothing was changed"))
	}
	if in.Disk != nil {
		defer func() { err = errors.Join(err, in.Disk.Close()) }()
	}
	if c.dryRun {
		return c.dryRunReport(cmd, in, input, output, format)
	}
	p := newProgress(cmd)
	c.progress = p
	t, err := open(ctx, in)
	if err != nil {
		p.end()
		return createError(interrupted(err, left(output)))
	}
	r, err := convert.Run(ctx, in, t, convert.Options{
		Workers: c.workers, Verify: c.verify, SkipErrors: c.rescue.skipErrors, Reflink: convert.Reflink(c.reflink),
		Phase: p.phase, Progress: p.add, Shared: p.share,
	})
	p.end()
	if err != nil {
		return createError(interrupted(err, left(output)))
	}
	report := copyReport{Input: input, Output: output, OutputFormat: format, Warnings: c.warnings, Result: r}
	if in.Disk != nil && in.Disk.Image != nil {
		report.Damage = in.Disk.Image.Damage()
		if report.LeftToParent, err = in.Disk.Image.LeftToParent(); err != nil {
			return err
		}
	}
	if err := c.report(cmd, report); err != nil {
		return err
	}
	if report.LeftToParent > 0 && len(r.Skipped)+len(report.Damage) == 0 {
		return &statusError{statusWarnings, fmt.Errorf("%s was copied without its parent; what only the parent has is zero in %s", input, output)}
	}
	if len(r.Skipped) == 0 && len(report.Damage) > 0 {
		return &statusError{statusWarnings, fmt.Errorf("%s is damaged; no unreadable range was found, but check the data in %s", input, output)}
	}
	if len(r.Skipped) > 0 {
		return &statusError{statusWarnings, fmt.Errorf("%s is damaged; unreadable ranges are zeros in %s", input, output)}
	}
	return nil
}

// left says what an interrupted copy has left.
func left(output string) string {
	if output == standardStream {
		return "standard output has only part of the disk"
	}
	if convert.IsDevice(output) {
		return output + " holds part of the disk"
	}
	return "no file is left"
}

// A copyReport is what the JSON of a copy says.
type copyReport struct {
	Input        string         `json:"input"`
	Output       string         `json:"output"`
	OutputFormat disk.Format    `json:"output_format"`
	Damage       []vhdx.Finding `json:"damage,omitempty"` // of the input
	LeftToParent int64          `json:"left_to_parent_bytes,omitempty"`
	Warnings     []string       `json:"warnings,omitempty"`
	DryRun       bool           `json:"dry_run,omitempty"`
	Overwrites   string         `json:"overwrites,omitempty"` // with DryRun: what is at Output
	*convert.Result
}

func (c *copyFlags) report(cmd *cobra.Command, r copyReport) error {
	w, size := c.messages(cmd), sizesOf(cmd)
	if c.json {
		return writeJSON(w, r)
	}
	if c.stdout != nil && isQuiet(cmd) {
		return nil
	}
	for _, f := range r.Damage {
		if err := printFinding(w, r.Input, "error", f); err != nil {
			return err
		}
	}
	for _, s := range r.Skipped {
		if _, err := fmt.Fprintf(w, "%s: %s at %#x of the disk could not be read: %s\n", printable(r.Input), size(s.Length), s.Offset, oneLine(s.Error)); err != nil {
			return err
		}
	}
	if r.LeftToParent > 0 {
		if _, err := fmt.Fprintf(w, "%s: %s of the disk is in the parent alone and zero in %s\n", printable(r.Input), size(r.LeftToParent), c.outputName(r.Output)); err != nil {
			return err
		}
	}
	notes := ""
	if r.Shared > 0 {
		notes = fmt.Sprintf(", %s of it shared with %s", size(r.Shared), printable(r.Input))
	}
	if r.Verified {
		notes += ", verified"
	}
	_, err := fmt.Fprintf(w, "%s: %s disk, %s used%s\n", c.outputName(r.Output), size(r.DiskSize), size(r.Data), notes)
	return err
}

// warner returns a function that prints a warning and keeps it for the report.
func (c *copyFlags) warner(cmd *cobra.Command) func(format string, args ...any) {
	return func(format string, args ...any) {
		msg := oneLine(fmt.Sprintf(format, withText(args)...))
		c.warnings = append(c.warnings, msg)
		fmt.Fprintf(cmd.ErrOrStderr(), "vhdxfs: warning: %s\n", msg)
	}
}

// dryRunReport says what the copy would create or overwrite.
func (c *copyFlags) dryRunReport(cmd *cobra.Command, in convert.Input, input, output string, format disk.Format) error {
	r := copyReport{Input: input, Output: output, OutputFormat: format, DryRun: true, Result: new(convert.Result)}
	r.InputSize, _ = in.Size()
	r.DiskSize = r.InputSize
	if convert.IsDevice(output) {
		warnSectors(c.warner(cmd), in, output, output, disk.DeviceSectors(output))
	}
	r.Warnings = c.warnings
	inputs, err := in.Access()
	if err != nil {
		return err
	}
	text := "would be created"
	if c.stdout != nil {
		text = "would be written"
	} else if r.Overwrites, err = convert.Overwritten(output, r.DiskSize, newfile.Options{Replace: c.force, Inputs: inputs}); err != nil {
		return createError(err)
	}
	w := c.messages(cmd)
	if c.json {
		return writeJSON(w, r)
	}
	if r.Overwrites != "" {
		text = "holds " + r.Overwrites + ", which would be overwritten"
	}
	_, err = fmt.Fprintf(w, "%s: %s; %s disk; nothing was changed\n", c.outputName(output), text, sizesOf(cmd)(r.DiskSize))
	return err
}
