package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

func newSetParent() *cobra.Command {
	var o vhdx.SetParentOptions
	var options []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "set-parent [--unsafe] [flags] CHILD PARENT",
		Aliases: []string{"rebase"},
		Short:   "Tell a differencing image where its parent is",
		Long: `Write into the differencing image CHILD that its parent is at PARENT: after one of them has moved, or where another
file holds the same disk, as after a merge. PARENT has to be what CHILD was made with, as its DataWriteGuid tells.
Nothing is copied, and the disk reads as before.

With --unsafe another parent is taken, such as one that was written by mistake. What CHILD does not hold then reads
as that parent has it: a filesystem inside may be damaged, and children of CHILD do not accept it any more. Keep a
copy.

To mount a child whose parent is in another folder, name that folder with -o parent_dir=.`,
		Example: `  vhdxfs set-parent child.avhdx /srv/base/windows.vhdx
  vhdxfs set-parent --parent-path 'D:\base\windows.vhdx' child.avhdx /srv/base/windows.vhdx`,
		Args: exactArgs("CHILD", "PARENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Open, err = chainOptions(options); err != nil {
				return err
			}
			r, err := vhdx.SetParent(args[0], args[1], o)
			if errors.Is(err, vhdx.ErrParentMismatch) {
				return fmt.Errorf("%w; --unsafe takes it all the same", err)
			}
			if err != nil {
				return createError(err)
			}
			if r.Foreign {
				fmt.Fprintf(cmd.ErrOrStderr(), "vhdxfs: warning: %s is another parent than %s had; what the disk reads as has changed\n", printable(args[1]), printable(args[0]))
			}
			warnOutside(cmd.ErrOrStderr(), args[0], args[1])
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: its parent is %s\n", printable(args[0]), printable(args[1]))
			return err
		},
		ValidArgsFunction: completeImages,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&o.Unsafe, "unsafe", false, "take PARENT although it is another disk, or was changed after CHILD was made")
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
