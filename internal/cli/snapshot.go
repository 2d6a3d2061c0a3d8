package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A snapshotCommand freezes an image, of which a child goes on.
type snapshotCommand struct {
	o           vhdx.SnapshotOptions
	options     []string
	json, force bool
	branch      bool
}

func newSnapshot() *cobra.Command {
	var c snapshotCommand
	cmd := &cobra.Command{
		Use:   "snapshot [flags] IMAGE|MOUNTPOINT [NEW]",
		Short: "Freeze an image and continue in a new child",
		Long: `Create a differencing child of IMAGE. From now on the child is the active image. IMAGE is frozen as its parent and must not
be written, or the child is lost.

The child is the new file NEW, by default IMAGE-DATE-TIME.avhdx beside IMAGE. Whatever used IMAGE, such as an fstab or a
virtual machine, must use the child instead. This is not needed with --keep-name: IMAGE is renamed to NEW, by default with
date and time in its name, and the child gets the name IMAGE. After a power cut, IMAGE names one of the two, but it always
exists.

If IMAGE is mounted read/write on this host, its server freezes it while disk.raw is in use. Reads continue; writes and
syncs wait for a moment. The frozen image has everything that was written to disk.raw before. Data that a file system on
the disk only has in memory is not included; to include it, run fsfreeze -f, then the snapshot, then fsfreeze -u. NEW must
be in the directory of IMAGE. Use --keep-name if an fstab or a unit names IMAGE. Otherwise the next mount must name the child;
mounting IMAGE read/write would lose the child. Only root and the owner of the mount may do this. If it fails, the mount
is unchanged.

If an image in the directory of IMAGE is already its child, that is probably the active image. The snapshot is refused then,
unless --branch says that you want a second child.

Stop any other program that has IMAGE open for writing first.

To go back, remove the child and, with --keep-name, rename the frozen image. To keep the changes, merge the child.`,
		Example: `  vhdxfs snapshot data.vhdx
  vhdxfs snapshot --keep-name data.vhdx before-update.vhdx
  vhdxfs snapshot --keep-name /mnt/vhdx
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
				if err := checkImageName(name); err != nil {
					return err
				}
			}
			return c.run(cmd, path, name)
		},
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.o.KeepName, "keep-name", false, "give the child the name IMAGE; rename the frozen image")
	f.BoolVar(&c.force, "force", false, "with --keep-name: rename the image even if it has children")
	f.BoolVar(&c.branch, "branch", false, "begin a second branch: proceed even if the image has a child")
	f.StringArrayVar(&c.o.ParentPaths, "parent-path", nil, parentPathHelp)
	addChainFlags(cmd, &c.json, &c.options)
	return cmd
}

func (c *snapshotCommand) run(cmd *cobra.Command, path, name string) error {
	var err error
	if c.o.Open, err = chainOptions(c.options); err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	var r *vhdx.SnapshotResult
	switch m, notMounted := active.Find(path); {
	case notMounted == nil && (m.Mode == "rw" || m.State != active.Serving || !sameFile(path, m.Image)):
		r, err = c.online(ctx, m, name)
	case notMounted != nil && isDir(path):
		return usageError("%w", notMounted)
	default:
		if err := c.checkChildren(path, "", c.o.Open); err != nil {
			return err
		}
		c.o.Check = func(child string) error { return c.checkChildren(path, child, c.o.Open) }
		r, err = vhdx.Snapshot(ctx, path, name, c.o)
		err = interrupted(err, "nothing was changed")
	}
	if err != nil {
		return createError(err)
	}
	warnOutside(cmd, r.Child, r.Frozen)
	if c.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%[2]s is now the active image; %[1]s is frozen as its parent\n", printable(r.Frozen), printable(r.Child))
	return err
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// checkChildren refuses to rename an image whose children would not find it any more, and to give one another child that the
// user may have taken for the active image. The one at own is no reason.
func (c *snapshotCommand) checkChildren(path, own string, o vhdx.Options) error {
	if c.o.KeepName && c.force || !c.o.KeepName && c.branch {
		return nil
	}
	children, err := childrenBeside(path, o)
	if err != nil && !c.o.KeepName {
		return nil // what is not seen is not renamed either
	}
	if own != "" {
		children = slices.DeleteFunc(children, func(child string) bool { return sameFile(child, own) })
	}
	switch names := strings.Join(children, ", "); {
	case err != nil || len(children) == 0:
		return err
	case c.o.KeepName:
		return usageError("%s already has children that expect its name: %s%s; take the snapshot without --keep-name, or use --force and then set-parent", path, names, leftOverNote([]string{path}, o))
	default:
		return usageError("%s already has a child: %s%s; take a snapshot of the child, or use --branch to start a second branch", path, names, leftOverNote([]string{path}, o))
	}
}
