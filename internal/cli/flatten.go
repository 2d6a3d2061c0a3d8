package cli

import (
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

func newFlatten() *cobra.Command {
	var layout layoutFlags
	var c copyFlags
	cmd := &cobra.Command{
		Use:   "flatten [flags] IMAGE OUTPUT",
		Short: "Combine an image and its parents in one new image",
		Long: `Copy the disk of IMAGE, its own data and that of its parents, to the new image OUTPUT, which has no parent. The disk stays
the same, with the same disk ID and disk metadata. IMAGE and its parents are only read. See also vhdxfs help convert.

` + sizeHelp,
		Example: `  vhdxfs flatten child.avhdx disk.vhdx
  vhdxfs flatten --verify -o parent_dir=/srv/base child.avhdx disk.vhdx`,
		Args: exactArgs("IMAGE", "OUTPUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := vhdx.CreateOptions{Type: vhdx.Dynamic}
			layout.apply(&o)
			if err := checkImageName(args[1]); err != nil {
				return err
			}
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
