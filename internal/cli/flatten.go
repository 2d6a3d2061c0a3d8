package cli

import (
	"github.com/spf13/cobra"

	"vhdxfs/internal/disk"
	"vhdxfs/vhdx"
)

func newFlatten() *cobra.Command {
	var layout layoutFlags
	var c copyFlags
	cmd := &cobra.Command{
		Use:   "flatten [flags] IMAGE OUTPUT",
		Short: "Make one new image of a differencing image and its parents",
		Long: `Copy what IMAGE shows, its own bytes and those of its parents, to the new image OUTPUT, which has no parent.
It stands for the same disk: with the disk id and all other metadata of it. IMAGE and its parents are only
read. For the rest this is convert, whose help tells more.

` + sizeHelp,
		Example: `  vhdxfs flatten child.avhdx disk.vhdx
  vhdxfs flatten --verify -o parent_dir=/srv/base child.avhdx disk.vhdx`,
		Args: exactArgs("IMAGE", "OUTPUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := vhdx.CreateOptions{Type: vhdx.Dynamic}
			layout.apply(&o)
			c.input = string(disk.VHDX)
			return c.toImage(cmd, args[0], args[1], o, true)
		},
		ValidArgsFunction: completeImage,
	}
	cmd.Flags().SortFlags = false
	c.add(cmd)
	layout.add(cmd)
	return cmd
}
