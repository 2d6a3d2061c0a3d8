package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

func newCheck() *cobra.Command {
	var c imageCommand
	return c.command(&cobra.Command{
		Use:   "check [--json] [-o LIST] IMAGE",
		Short: "Check an image and its parents against every rule of the format",
		Long: `Check an image and its parents against every rule of the format, and change nothing. The exit status
tells the result; errors come before warnings.

Exit status:

` + exitStatusHelp(),
	}, func(cmd *cobra.Command, path string, o vhdx.Options) error {
		r, err := vhdx.Check(path, o)
		if err != nil {
			return err
		}
		if c.json {
			err = writeJSON(cmd.OutOrStdout(), r)
		} else {
			err = printReport(cmd.OutOrStdout(), r)
		}
		switch {
		case err != nil:
			return err
		case !r.Sound():
			return &statusError{statusDamaged, nil} // the report has said it
		case !r.Clean():
			return &statusError{statusWarnings, nil}
		}
		return nil
	})
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
		if _, err := fmt.Fprintf(out, "%s: %s\n", r.Path, result); err != nil {
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
	_, err := fmt.Fprintf(out, "%s: %s: %s%s%s\n", path, kind, where, oneLine(f.Message), rule)
	return err
}
