package cli

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A checkCommand examines an image, and repairs it where it is told to.
type checkCommand struct {
	options  []string
	json     bool
	repairs  bool
	repair   vhdx.RepairOptions
	undoFile string
	force    bool
}

func newCheck() *cobra.Command {
	var c checkCommand
	cmd := &cobra.Command{
		Use:   "check [flags] IMAGE",
		Short: "Check an image against the format, and repair it",
		Long: `Check an image and its parents against every rule of the format. Nothing is changed. The exit status is the result.

With --repair, repair IMAGE, but not its parents. No other program may have it open. The repair is planned first. If a
broken rule would remain, nothing is changed. Otherwise everything that will change is saved in an undo file, by default
IMAGE.undo, and then the image is changed. --undo restores the image, byte for byte, if it was not written in between.
So you can try a repair: look at the disk, then undo it.

A repair covers: a log that was not replayed; a damaged copy of the headers or of the region table; blocks that point
outside the file or to the place of another block; sector bitmaps; a file that was cut off or is longer than needed;
metadata that the disk does not need. If data of the disk is lost or may be wrong, its ranges are printed and the exit
status is 3. Lost data reads as zeros; it is never replaced by data of a parent.`,
		Example: `  vhdxfs check data.vhdx
  vhdxfs check --repair --dry-run data.vhdx
  vhdxfs check --repair data.vhdx
  vhdxfs check --undo data.vhdx.undo`,
		Args:              c.args,
		RunE:              c.run,
		ValidArgsFunction: completeReadable,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.repairs, "repair", false, "repair the image")
	f.BoolVar(&c.repair.DryRun, "dry-run", false, "with --repair: show what would be done, but change nothing")
	f.StringVar(&c.repair.UndoFile, "undo-file", "", "with --repair: the undo file, a new `FILE`; by default IMAGE.undo")
	f.BoolVar(&c.repair.DropLog, "drop-log", false, "with --repair: discard a log that cannot be replayed; the last changes may be lost")
	f.BoolVar(&c.repair.FreeLeaks, "free-leaks", false, "with --repair: release unused space even if it holds data")
	f.StringVar(&c.undoFile, "undo", "", "undo the repair that wrote the undo file `FILE`")
	f.BoolVar(&c.force, "force", false, "with --undo: restore even if the image was changed since; those changes are lost")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	return cmd
}

// args wants an image, which an undo file may name itself.
func (c *checkCommand) args(cmd *cobra.Command, args []string) error {
	if cmd.Flags().Changed("undo") && len(args) == 0 {
		return nil
	}
	return exactArgs("IMAGE")(cmd, args)
}

func (c *checkCommand) run(cmd *cobra.Command, args []string) error {
	undo := cmd.Flags().Changed("undo")
	for _, name := range []string{"dry-run", "undo-file", "drop-log", "free-leaks"} {
		if cmd.Flags().Changed(name) && !c.repairs {
			return usageError("--%s needs --repair", name)
		}
	}
	switch {
	case undo && c.repairs:
		return usageError("--repair and --undo exclude each other")
	case c.force && !undo:
		return usageError("--force needs --undo")
	}
	o, err := openOptions(c.options)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case undo:
		return c.takeBack(cmd, args, o)
	case c.repairs && disk.IsVHD(args[0]):
		return usageError("%s is an old VHD image; only VHDX images can be repaired", args[0])
	case c.repairs:
		return c.mend(cmd, args[0], o)
	}
	path, err := imageNamed(args[0])
	if err != nil {
		return err
	}
	confineReader(cmd.Context(), []string{path}, o)
	var r *vhdx.Report
	err = beside(cmd, o, []string{path}, func(o vhdx.Options) (err error) {
		if disk.IsVHD(path) {
			r, err = vhd.Check(path, o)
		} else {
			r, err = vhdx.Check(path, o)
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.json {
		err = writeJSON(out, r)
	} else {
		err = printReport(out, sizesOf(cmd), r)
	}
	if err != nil {
		return err
	}
	return reportStatus(r)
}

// reportStatus returns the exit status for what was found. The report has said the rest.
func reportStatus(r *vhdx.Report) error {
	switch {
	case !r.Sound():
		return &statusError{statusDamaged, nil}
	case !r.Clean():
		return &statusError{statusWarnings, nil}
	}
	return nil
}

// printReport writes a line for each finding, and one for each image of the chain.
func printReport(out io.Writer, size sizeWriter, r *vhdx.Report) error {
	for ; r != nil; r = r.Parent {
		for _, f := range r.Errors {
			if err := printFinding(out, r.Path, "error", f); err != nil {
				return err
			}
		}
		for _, f := range r.Warnings {
			if err := printFinding(out, r.Path, "warning", f); err != nil {
				return err
			}
		}
		result := "clean"
		if len(r.Errors)+len(r.Warnings) > 0 {
			result = plural(len(r.Errors), "error") + ", " + plural(len(r.Warnings), "warning")
		}
		if r.Dropped > 0 {
			result += fmt.Sprintf(", and %d more that are not listed", r.Dropped)
		}
		switch {
		case r.Leaked > 0 && r.Lost:
			result += fmt.Sprintf("; %s of the file is unused and may hold lost blocks", size(r.Leaked))
		case r.Leaked > 0 && isBlockDevice(r.Path):
			result += fmt.Sprintf("; %s of the device is unused", size(r.Leaked))
		case r.Leaked > 0:
			result += fmt.Sprintf("; %s of the file is unused; unless data is missing from the disk, vhdxfs compact reclaims it", size(r.Leaked))
		}
		if r.Advice != "" {
			if _, err := fmt.Fprintf(out, "%s: %s\n", printable(r.Path), oneLine(r.Advice)); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(out, "%s: %s\n", printable(r.Path), result); err != nil {
			return err
		}
	}
	return nil
}

// isBlockDevice reports whether path leads to a block device, which keeps its size.
func isBlockDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == fs.ModeDevice
}

func printFinding(out io.Writer, path, kind string, f vhdx.Finding) error {
	_, err := fmt.Fprintf(out, "%s: %s: %s\n", printable(path), kind, findingText(f))
	return err
}

// findingText writes a finding as an error writes one: what is wrong, and then (structure, offset, rule).
func findingText(f vhdx.Finding) string {
	var where []string
	if f.Structure != "" {
		where = append(where, f.Structure, fmt.Sprintf("offset %#x", f.Offset))
	}
	if f.Rule != "" {
		where = append(where, "rule "+f.Rule)
	}
	if len(where) == 0 {
		return oneLine(f.Message)
	}
	return oneLine(f.Message) + " (" + strings.Join(where, ", ") + ")"
}
