package cli

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// layoutFlags are the flags of commands that make an image: how it is laid out.
type layoutFlags struct {
	diskType, creator                                 string
	blockSize, logicalSector, physicalSector, logSize sizeFlag
	zeroBlocks, force                                 bool
}

func (l *layoutFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.diskType, "type", "", "`TYPE` of the image: dynamic (grows as it is written) or fixed")
	f.Var(&l.blockSize, "block-size", "block size: a power of two from 1M to 256M; by default 1M to 32M, depending on the disk size")
	f.Var(&l.logicalSector, "logical-sector-size", "512 (default) or 4096")
	f.Var(&l.physicalSector, "physical-sector-size", "512 or 4096 (default)")
	f.Var(&l.logSize, "log-size", "size of the log: a multiple of 1M; 1M by default")
	f.BoolVar(&l.zeroBlocks, "zero-blocks", false, "start with blocks in the state ZERO, as Windows does, not NOT_PRESENT")
	f.StringVar(&l.creator, "creator", "", "`NAME` of the creating program in the image; "+vhdx.DefaultCreator+" by default")
	f.BoolVar(&l.force, "force", false, "replace an existing file")
	completeFlag(cmd, "type", string(vhdx.Dynamic), string(vhdx.Fixed))
}

// given returns the first flag that was given and concerns images alone, "" if none was.
func (l *layoutFlags) given(cmd *cobra.Command) string {
	if names := l.allGiven(cmd); len(names) > 0 {
		return names[0]
	}
	return ""
}

// allGiven returns all such flags.
func (l *layoutFlags) allGiven(cmd *cobra.Command) (names []string) {
	for _, name := range []string{"type", "block-size", "logical-sector-size", "physical-sector-size", "log-size", "zero-blocks", "creator"} {
		if cmd.Flags().Changed(name) {
			names = append(names, name)
		}
	}
	return names
}

// apply puts the flags that were given into the options.
func (l *layoutFlags) apply(o *vhdx.CreateOptions) {
	set := func(p *int64, v sizeFlag) {
		if v != 0 {
			*p = int64(v)
		}
	}
	if l.diskType != "" {
		o.Type = vhdx.DiskType(l.diskType)
	}
	set(&o.BlockSize, l.blockSize)
	set(&o.LogicalSectorSize, l.logicalSector)
	set(&o.PhysicalSectorSize, l.physicalSector)
	set(&o.LogSize, l.logSize)
	o.ZeroBlocks, o.Creator, o.Replace = l.zeroBlocks, l.creator, l.force
}

// completeFlag has the shell complete a flag by the words.
func completeFlag(cmd *cobra.Command, name string, words ...string) {
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // a name mistyped here: every start of the program would show it
	}
}

// createError gives an error the status of wrong usage, where what was asked for cannot be, or a file is in the way.
// Of an image that is in use, it says which mount uses it.
func createError(err error) error {
	if _, explained := errors.AsType[*lockError](err); errors.Is(err, vhdx.ErrLocked) && !explained {
		err = explainLock(err)
	}
	if errors.Is(err, vhdx.ErrOptions) || errors.Is(err, fs.ErrExist) || errors.Is(err, disk.ErrFormat) {
		return &statusError{statusUsage, err}
	}
	return err
}
