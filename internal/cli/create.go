package cli

import (
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

const parentPathHelp = "another `PATH` of the parent for Windows, such as " + `D:\vm\base.vhdx, \\server\share\base.vhdx or \\?\Volume{GUID}\vm\base.vhdx; can be repeated`

// A createCommand makes an image: an empty one, a child, or one of a raw disk.
type createCommand struct {
	layout      layoutFlags
	size        sizeFlag
	from        string
	parent      string
	parentPaths []string
	copy        copyFlags
}

func newCreate() *cobra.Command {
	var c createCommand
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [SIZE]",
		Short: "Create an image: empty, a child, or from a raw disk",
		Long: `Create an image. Its disk reads as zeros, as the image PARENT, or as the file or block device RAW. RAW can be - for
standard input. IMAGE appears when it is complete. An existing file is kept unless --force is given.

With --parent, the image is a differencing image. It holds what is written to it and shows PARENT elsewhere. It takes
sector sizes, block size, disk ID and other disk metadata from PARENT, and its size unless you give a larger one. PARENT
must not change while it has children. To mount a child whose parent is in another directory, use -o parent_dir=.

` + sizeHelp,
		Example: `  vhdxfs create data.vhdx 100G
  vhdxfs create --size 10G --type fixed --logical-sector-size 4096 data.vhdx
  vhdxfs create --parent base.vhdx child.vhdx
  zstdcat disk.raw.zst | vhdxfs create --from - data.vhdx`,
		Args:              c.args,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&c.size, "size", "size of the disk")
	f.StringVar(&c.parent, "parent", "", "create a differencing image of the image `PARENT`")
	f.StringArrayVar(&c.parentPaths, "parent-path", nil, parentPathHelp)
	f.StringVar(&c.from, "from", "", "copy the raw disk `RAW` into the image; see also convert")
	f.StringVarP(&c.copy.input, "input-format", "f", "", "`FORMAT` of RAW: vhdx, vhd or raw; detected by default")
	c.copy.formatFlag = "-f"
	c.layout.add(cmd)
	c.copy.add(cmd)
	completeFlag(cmd, "input-format", disk.Formats...)
	return cmd
}

// args wants an image and, unless a flag says it, a size.
func (c *createCommand) args(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return exactArgs("IMAGE")(cmd, args)
	}
	if c.size != 0 {
		return usageError("unexpected argument %q: the size is given by --size", args[1])
	}
	if err := exactArgs("IMAGE", "SIZE")(cmd, args); err != nil {
		return err
	}
	if err := c.size.Set(args[1]); err != nil {
		if _, swapped := size.Parse(args[0]); swapped == nil {
			return usageError("%w; the size comes after the image: vhdxfs create %s %s", err, terminal.Shell(args[1]), terminal.Shell(args[0]))
		}
		return usageError("%w", err)
	}
	return nil
}

func (c *createCommand) run(cmd *cobra.Command, path string) error {
	open, err := openOptions(c.copy.options)
	if err != nil {
		return err
	}
	o := vhdx.CreateOptions{Size: int64(c.size), Parent: c.parent, ParentPaths: c.parentPaths, Open: open}
	c.layout.apply(&o)
	if err := checkImageName(path); err != nil {
		return err
	}
	switch {
	case c.from == "" && c.copy.input != "":
		return usageError("-f is the format of the input, and needs --from; to replace a file, use --force")
	case c.from != "" && c.parent != "":
		return usageError("--from and --parent exclude each other")
	case c.from != "":
		return c.copy.toImage(cmd, c.from, path, o, false)
	case c.size == 0 && c.parent == "":
		return usageError("missing SIZE, --parent or --from; usage: %s", cmd.UseLine())
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	if err := vhdx.CreateContext(ctx, path, o); err != nil {
		return createError(interrupted(err, left(path)))
	}
	if c.parent != "" {
		warnOutside(cmd, path, c.parent)
	}
	if !c.copy.json {
		return nil
	}
	o.Open.Lock = vhdx.LockTry // it may be in use already
	return withImage(path, o.Open, func(im *vhdx.Image) error { return writeJSON(cmd.OutOrStdout(), im.Info()) })
}
