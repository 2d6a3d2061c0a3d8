package cli

import (
	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

const parentPathHelp = "where Windows finds the parent, beside the path relative to the child: a `PATH` such as\n" +
	`D:\vm\base.vhdx, \\server\share\base.vhdx or \\?\Volume{GUID}\vm\base.vhdx; can be given twice`

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
		Use:   "create {--size SIZE | --parent PARENT | --from RAW} [flags] IMAGE",
		Short: "Make a new image: an empty one, a child of another, or one with the bytes of a raw disk",
		Long: `Make a new image. Its disk reads as zeros, or as that of PARENT, or as the file or block device RAW, for
which - is standard input. IMAGE appears when it is complete, and what has that name already stays as it is,
unless --force is given.

With --parent the image is a differencing one. It holds what is written to it, and shows PARENT elsewhere.
Sector sizes, block size, disk id and further metadata of the disk are PARENT's, and so is the size unless a
larger one is given. PARENT must not be changed as long as it has children. To mount a child whose parent is
in another folder, name that folder with -o parent_dir=.

` + sizeHelp,
		Example: `  vhdxfs create --size 100G data.vhdx
  vhdxfs create --size 10G --type fixed --logical-sector-size 4096 data.vhdx
  vhdxfs create --parent base.vhdx child.vhdx
  zstdcat disk.raw.zst | vhdxfs create --from - data.vhdx`,
		Args:              exactArgs("IMAGE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&c.size, "size", "size of the disk")
	f.StringVar(&c.parent, "parent", "", "make a differencing image over the image `PARENT`")
	f.StringArrayVar(&c.parentPaths, "parent-path", nil, parentPathHelp)
	f.StringVar(&c.from, "from", "", "fill the image with the bytes of `RAW`; see convert for other inputs")
	c.layout.add(cmd)
	c.copy.add(cmd)
	return cmd
}

func (c *createCommand) run(cmd *cobra.Command, path string) error {
	open, err := parseOptions(c.copy.options, aboutImage)
	if err != nil {
		return err
	}
	o := vhdx.CreateOptions{Size: int64(c.size), Parent: c.parent, ParentPaths: c.parentPaths, Open: open.image}
	c.layout.apply(&o)
	switch {
	case c.from != "" && c.parent != "":
		return usageError("an image is made from a raw disk or over a parent, not both")
	case c.from != "":
		return c.copy.toImage(cmd, c.from, path, o, false)
	case c.size == 0 && c.parent == "":
		return usageError("create needs the size of the disk, such as --size 10G, or --parent, or --from")
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	if err := vhdx.CreateContext(ctx, path, o); err != nil {
		return createError(interrupted(err, left(path)))
	}
	if c.parent != "" {
		warnOutside(cmd.ErrOrStderr(), path, c.parent)
	}
	if !c.copy.json {
		return nil
	}
	o.Open.Lock = vhdx.LockTry // it may be in use already
	return withImage(path, o.Open, func(im *vhdx.Image) error { return writeJSON(cmd.OutOrStdout(), im.Info()) })
}
