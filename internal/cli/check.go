package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

// A checkCommand examines an image, and repairs it where it is told to.
type checkCommand struct {
	options  []string
	json     bool
	repairs  bool
	repair   vhdx.RepairOptions
	undoFile string
	force    bool
	quiet    bool
}

func newCheck() *cobra.Command {
	var c checkCommand
	cmd := &cobra.Command{
		Use:   "check [--repair | --undo FILE] [flags] IMAGE",
		Short: "Check an image and its parents against every rule of the format; repair it",
		Long: `Check an image and its parents against every rule of the format, and change nothing. The exit status
tells the result; errors come before warnings.

With --repair, repair IMAGE, but not its parents; nobody else may have it open. Everything is planned first, and where
a broken rule would remain, nothing is changed. Then all that is going to change is saved in an undo file, IMAGE.undo
if that name is free, and only then the image changes. --undo brings it back, byte for byte, as long as the image was
not written meanwhile. So a repair can be tried: look at the disk, and undo it.

What is repaired: a log that was not replayed; a damaged copy of the headers or of the region table; blocks that point
nowhere, or to a place that another block has; sector bitmaps; a file that was cut off, or is longer than what is used;
metadata that the disk can do without. Where bytes of the disk are lost, or may be wrong, the ranges are printed, and the
exit status is 3. Lost bytes read as zeros, and in a child never as its parent's.

Exit status:

` + exitStatusHelp(),
		Example: `  vhdxfs check data.vhdx
  vhdxfs check --repair --dry-run data.vhdx
  vhdxfs check --repair data.vhdx
  vhdxfs check --undo data.vhdx.undo`,
		Args:              c.args,
		RunE:              c.run,
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.repairs, "repair", false, "repair the image")
	f.BoolVar(&c.repair.DryRun, "dry-run", false, "with --repair: say what would be done, and change nothing")
	f.StringVar(&c.repair.UndoFile, "undo-file", "", "with --repair: save what is changed in `FILE`, which must not exist, and not in IMAGE.undo")
	f.BoolVar(&c.repair.DropLog, "drop-log", false, "with --repair: give up a log that cannot be replayed; what was changed last may be lost")
	f.BoolVar(&c.repair.FreeLeaks, "free-leaks", false, "with --repair: give space back that nothing uses, even if it holds data")
	f.StringVar(&c.undoFile, "undo", "", "take the repair back that made the undo file `FILE`")
	f.BoolVar(&c.force, "force", false, "with --undo: restore although the image was changed since, which is lost then")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&c.json, "json", false, "print JSON, with sizes and offsets in bytes")
	f.StringArrayVarP(&c.options, "options", "o", nil, "a `LIST` of the options parent=, parent_dir=, lock= and cache_size=; see vhdxfs --help")
	completeOptions(cmd, aboutImage)
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
			return usageError("--%s is for --repair", name)
		}
	}
	switch {
	case undo && c.repairs:
		return usageError("--repair and --undo do not go together")
	case c.force && !undo:
		return usageError("--force is for --undo")
	}
	o, err := parseOptions(c.options, aboutImage)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case undo:
		return c.takeBack(cmd, args, o.image)
	case c.repairs:
		return c.mend(cmd, args[0], o.image)
	}
	r, err := vhdx.Check(args[0], o.image)
	if err != nil {
		return err
	}
	if c.json {
		err = writeJSON(out, r)
	} else {
		err = printReport(out, r)
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
func printReport(out io.Writer, r *vhdx.Report) error {
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
		if r.Leaked > 0 {
			result += fmt.Sprintf("; %s inside the file used by nothing", humanSize(r.Leaked))
		}
		if _, err := fmt.Fprintf(out, "%s: %s\n", printable(r.Path), result); err != nil {
			return err
		}
	}
	return nil
}

func printFinding(out io.Writer, path, kind string, f vhdx.Finding) error {
	where := ""
	if f.Structure != "" {
		where = fmt.Sprintf("%s at offset %#x: ", f.Structure, f.Offset)
	}
	rule := ""
	if f.Rule != "" {
		rule = " (" + f.Rule + ")"
	}
	_, err := fmt.Fprintf(out, "%s: %s: %s%s%s\n", printable(path), kind, where, oneLine(f.Message), rule)
	return err
}
