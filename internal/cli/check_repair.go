package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// mend repairs the image at path and says what was done.
func (c *checkCommand) mend(cmd *cobra.Command, path string, o vhdx.Options) error {
	if o.AnyParent {
		return usageError("option ignore_parent_mismatch does not apply to a repair: the parents must fit")
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
	c.repair.Open, c.repair.Phase, c.repair.Progress = o, p.phase, p.add
	r, err := vhdx.Repair(ctx, path, c.repair)
	p.end()
	if err != nil {
		return createError(interrupted(explainLock(err), path+" is unchanged"))
	}
	if c.json {
		err = writeJSON(cmd.OutOrStdout(), r)
	} else {
		err = printRepair(cmd.OutOrStdout(), sizesOf(cmd), r)
	}
	switch {
	case err != nil:
		return err
	case r.DryRun:
		return reportStatus(r.Before)
	case len(r.Left) > 0:
		return &statusError{statusDamaged, nil}
	}
	if err := reportStatus(r.After); err != nil || !r.Damaged() {
		return err
	}
	return &statusError{statusWarnings, nil}
}

// printRepair writes what was found, what was done, and what the image is like now.
func printRepair(out io.Writer, size sizeWriter, r *vhdx.RepairReport) error {
	if err := printReport(out, size, r.Before); err != nil {
		return err
	}
	done := "repaired"
	if r.DryRun {
		done = "would be repaired"
	}
	var lines []string
	for _, f := range r.Fixes {
		lines = append(lines, fmt.Sprintf("%s: %s: %s%s", done, findingText(f.Finding), f.Done, harm(f, size)))
	}
	for _, f := range r.Left {
		lines = append(lines, "cannot be repaired: "+findingText(f))
	}
	switch {
	case len(r.Left) > 0:
		lines = append(lines, "nothing was changed")
	case r.Changed:
		lines = append(lines, fmt.Sprintf("the undo file is %s (%s); to undo the repair, run %s", printable(r.UndoFile), size(r.UndoSize), vhdx.UndoCommand(r.UndoFile, r.Path)))
	case len(r.Fixes) == 0:
		lines = append(lines, "nothing to repair")
	default:
		lines = append(lines, fmt.Sprintf("nothing was changed; the undo file would be %s (%s)", printable(r.UndoFile), size(r.UndoSize)))
	}
	for _, line := range append(lines, r.Advice...) {
		if _, err := fmt.Fprintf(out, "%s: %s\n", printable(r.Path), oneLine(line)); err != nil {
			return err
		}
	}
	if !r.Changed && !r.DryRun || len(r.Fixes) == 0 {
		return nil
	}
	return printReport(out, size, r.After)
}

// harm says what a repair means for the disk.
func harm(f vhdx.Fix, size sizeWriter) string {
	if f.Effect == vhdx.Harmless {
		return ""
	}
	var ranges []string
	for _, g := range f.Ranges {
		ranges = append(ranges, fmt.Sprintf("%#x (%s)", g.Start, size(g.Length)))
	}
	const most = 8 // the rest is in the JSON
	if n := len(ranges); n > most {
		ranges = append(slices.Clip(ranges[:most]), fmt.Sprintf("and %d more", n-most))
	}
	of := ""
	if len(ranges) > 0 {
		of = ", on the disk at " + strings.Join(ranges, ", ")
	}
	return fmt.Sprintf(" [%s%s]", f.Effect, of)
}

// takeBack undoes a repair.
func (c *checkCommand) takeBack(cmd *cobra.Command, args []string, o vhdx.Options) error {
	p := newProgress(cmd)
	u := vhdx.UndoOptions{Force: c.force, Lock: o.Lock, Phase: p.phase, Progress: p.add}
	if len(args) > 0 {
		u.Image = args[0]
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	r, err := vhdx.Undo(ctx, c.undoFile, u)
	p.end()
	if errors.Is(err, vhdx.ErrChanged) {
		return &statusError{statusUsage, err}
	}
	if err != nil {
		return interrupted(explainLock(err), "run the same command to continue")
	}
	if c.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	what := "restored from " + printable(r.UndoFile)
	if r.Restored == 0 {
		what = "already as it was before the repair"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(r.Path), what)
	return err
}
