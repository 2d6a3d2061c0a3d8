package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

func newSnapshot() *cobra.Command {
	var o vhdx.SnapshotOptions
	var options []string
	var asJSON, force bool
	cmd := &cobra.Command{
		Use:   "snapshot [--keep-name] [flags] IMAGE [NEW]",
		Short: "Freeze an image, and go on in a new differencing child of it",
		Long: `Make a differencing child of IMAGE, which is a parent from now on and must not be written any more, or the child
is lost. The disk goes on in the child; IMAGE keeps what it was. IMAGE must not be in use for writing.

The child is the new file NEW, by default IMAGE-DATE-TIME.avhdx beside IMAGE. What used IMAGE, such as an fstab or a
virtual machine, has to be told of the child. With --keep-name it has not: IMAGE is renamed to NEW, by default with
date and time in its name, and the child gets the name IMAGE. After a power cut either file may have that name, but
never none.

To go back, remove the child, and with --keep-name rename the frozen image. To keep what was written, merge the
child.`,
		Example: `  vhdxfs snapshot data.vhdx
  vhdxfs snapshot --keep-name data.vhdx before-update.vhdx
  vhdxfs merge --keep-name data.vhdx`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return exactArgs("IMAGE", "NEW")(cmd, args)
			}
			return exactArgs("IMAGE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, name := args[0], ""
			if len(args) == 2 {
				name = args[1]
			}
			var err error
			if o.Open, err = chainOptions(options); err != nil {
				return err
			}
			if o.KeepName && !force {
				if err := checkRenamed(path, o.Open); err != nil {
					return err
				}
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			r, err := vhdx.Snapshot(ctx, path, name, o)
			if err != nil {
				return createError(interrupted(err, "nothing was changed"))
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: frozen\n%s: the disk goes on here\n", r.Frozen, r.Child)
			return err
		},
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&o.KeepName, "keep-name", false, "give the child the name IMAGE, and the frozen image a new one")
	f.BoolVar(&force, "force", false, "with --keep-name: rename the image although it has children already")
	f.StringArrayVar(&o.ParentPaths, "parent-path", nil, parentPathHelp)
	addChainFlags(cmd, &asJSON, &options)
	return cmd
}

// checkRenamed refuses to rename an image whose children would not find it any more.
func checkRenamed(path string, o vhdx.Options) error {
	children, err := childrenOf([]string{path}, o)
	if err != nil || len(children) == 0 {
		return err
	}
	var names []string
	for _, c := range children {
		names = append(names, c.path)
	}
	return usageError("%s has children already, which look for it by its name: %s; make the snapshot without --keep-name, or use --force and then set-parent",
		path, strings.Join(names, ", "))
}
