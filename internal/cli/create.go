package cli

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

func newCreate() *cobra.Command {
	var size, blockSize, logicalSector, physicalSector, logSize sizeFlag
	var diskType string
	var zeroBlocks bool
	cmd := &cobra.Command{
		Use:   "create --size SIZE [flags] IMAGE",
		Short: "Make a new, empty image",
		Long: `Make a new image whose disk reads as zeros. IMAGE must not exist. A SIZE is in bytes, or has a unit: K, M,
G, T, also written as KiB; all are powers of 1024.`,
		Example: `  vhdxfs create --size 100G data.vhdx
  vhdxfs create --size 10G --type fixed --logical-sector-size 4096 data.vhdx`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == 0 {
				return usageError("create needs the size of the disk, such as --size 10G")
			}
			return createError(vhdx.Create(args[0], vhdx.CreateOptions{
				Size:               int64(size),
				Type:               vhdx.DiskType(diskType),
				BlockSize:          int64(blockSize),
				LogicalSectorSize:  int64(logicalSector),
				PhysicalSectorSize: int64(physicalSector),
				LogSize:            int64(logSize),
				ZeroBlocks:         zeroBlocks,
			}))
		},
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&size, "size", "size of the disk")
	f.StringVar(&diskType, "type", string(vhdx.Dynamic), "`TYPE` of the image: dynamic, which grows as it is written, or fixed")
	f.Var(&blockSize, "block-size", "unit in which a dynamic image grows: a power of two from 1M to 256M (by default 1M to 32M, by the size of the disk)")
	f.Var(&logicalSector, "logical-sector-size", "512 or 4096 (default 512)")
	f.Var(&physicalSector, "physical-sector-size", "512 or 4096 (default 4096)")
	f.Var(&logSize, "log-size", "room for the log: a multiple of 1M (default 1M)")
	f.BoolVar(&zeroBlocks, "zero-blocks", false, "blocks of a dynamic image begin as ZERO, as Windows makes them, not as NOT_PRESENT")
	types := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{string(vhdx.Dynamic), string(vhdx.Fixed)}, cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("type", types); err != nil {
		panic(err) // a name mistyped here: every start of the program would show it
	}
	return cmd
}

// createError gives an error that no file operation made the status of wrong usage: what was asked for is
// no image that can be.
func createError(err error) error {
	var path *fs.PathError
	var errno syscall.Errno
	if err == nil || errors.As(err, &path) || errors.As(err, &errno) {
		return err
	}
	return &statusError{statusUsage, err}
}
