package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

func newSetParent() *cobra.Command {
	var o vhdx.SetParentOptions
	var options []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "set-parent [flags] CHILD PARENT",
		Aliases: []string{"rebase"},
		Short:   "Record where the parent of an image is",
		Long: `Write into the differencing image CHILD that its parent is at PARENT. Use it after one of them was moved, or if another file
holds the same disk, such as after a merge. PARENT must be the image that CHILD was created from; its DataWriteGuid shows
that. No data is copied, and the disk reads as before.

With --unsafe, any parent is accepted, such as one that was written by mistake. Data that CHILD does not hold is then
read from that parent: a file system on the disk may be damaged, and children of CHILD no longer accept it. Keep a copy.

To mount a child whose parent is in another directory, use -o parent_dir=.`,
		Example: `  vhdxfs set-parent child.avhdx /srv/base/windows.vhdx
  vhdxfs set-parent --parent-path 'D:\vm\base.vhdx' child.avhdx base.vhdx`,
		Args: exactArgs("CHILD", "PARENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Open, err = chainOptions(options); err != nil {
				return err
			}
			r, err := vhdx.SetParent(args[0], args[1], o)
			if errors.Is(err, vhdx.ErrParentMismatch) {
				return fmt.Errorf("%w; --unsafe accepts it", err)
			}
			if err != nil {
				return createError(err)
			}
			changed := "have changed"
			if o.DryRun {
				changed = "would change"
			}
			if r.Foreign {
				warn(cmd, "%s: %s is a different parent; the contents of the disk %s", printable(args[0]), printable(args[1]), changed)
			}
			warnOutside(cmd, args[0], args[1])
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			text := "the parent is now %s"
			if o.DryRun {
				text = "the parent can be %s; nothing was changed"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: "+text+"\n", printable(args[0]), printable(args[1]))
			return err
		},
		ValidArgsFunction: completeImages,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&o.Unsafe, "unsafe", false, "accept PARENT even if it is another disk or was changed after CHILD was created")
	f.BoolVar(&o.DryRun, "dry-run", false, "check whether PARENT fits, but change nothing")
	f.StringArrayVar(&o.ParentPaths, "parent-path", nil, parentPathHelp)
	addChainFlags(cmd, &asJSON, &options)
	return cmd
}

// completeImages completes two images.
func completeImages(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		args = nil
	}
	return completeImage(cmd, args, word)
}
