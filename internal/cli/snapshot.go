package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

// A snapshotCommand freezes an image, of which a child goes on.
type snapshotCommand struct {
	o           vhdx.SnapshotOptions
	options     []string
	json, force bool
}

func newSnapshot() *cobra.Command {
	var c snapshotCommand
	cmd := &cobra.Command{
		Use:   "snapshot [--keep-name] [flags] IMAGE|MOUNTPOINT [NEW]",
		Short: "Freeze an image, and go on in a new differencing child of it, mounted or not",
		Long: `Make a differencing child of IMAGE, which is a parent from now on and must not be written any more, or the child
is lost. The disk goes on in the child; IMAGE keeps what it was.

The child is the new file NEW, by default IMAGE-DATE-TIME.avhdx beside IMAGE. What used IMAGE, such as an fstab or a
virtual machine, has to be told of the child. With --keep-name it has not: IMAGE is renamed to NEW, by default with
date and time in its name, and the child gets the name IMAGE. After a power cut either file may have that name, but
never none.

An image that is mounted, here and for writing, is frozen by the program that serves it, while disk.raw is in use:
reads go on, changes and syncs wait for a moment. The frozen image has all that was written to disk.raw before. What a
file system on it has only in memory it has not, so freeze that as well: fsfreeze -f, snapshot, fsfreeze -u. NEW is in
the folder of IMAGE then. Use --keep-name where an fstab or a unit names IMAGE: without, the next mount has to name the
child, and to mount IMAGE again for writing would lose the child. Only root and who made the mount may ask for it.
Whatever goes wrong before the child is complete leaves the mount as it was.

Any other program that has IMAGE open for writing has to be stopped before.

To go back, remove the child, and with --keep-name rename the frozen image. To keep what was written, merge the
child.`,
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
			}
			return c.run(cmd, path, name)
		},
		ValidArgsFunction: completeImage,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.o.KeepName, "keep-name", false, "give the child the name IMAGE, and the frozen image a new one")
	f.BoolVar(&c.force, "force", false, "with --keep-name: rename the image although it has children already")
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
	switch m, notMounted := findMounted(path); {
	case notMounted == nil && (m.Mode == "rw" || m.State != stateServing || !sameFile(path, m.Image)):
		r, err = c.online(ctx, m, name)
	case notMounted != nil && isDir(path):
		return usageError("%w", notMounted)
	default:
		if c.o.KeepName && !c.force {
			if err := checkRenamed(path, c.o.Open); err != nil {
				return err
			}
		}
		r, err = vhdx.Snapshot(ctx, path, name, c.o)
		err = interrupted(err, "nothing was changed")
	}
	if err != nil {
		return createError(err)
	}
	warnOutside(cmd.ErrOrStderr(), r.Child, r.Frozen)
	if c.json {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: frozen\n%s: the disk goes on here\n", printable(r.Frozen), printable(r.Child))
	return err
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// checkRenamed refuses to rename an image whose children would not find it any more.
func checkRenamed(path string, o vhdx.Options) error {
	children, err := childrenBeside(path, o)
	if err != nil || len(children) == 0 {
		return err
	}
	return usageError("%s has children already, which look for it by its name: %s; make the snapshot without --keep-name, or use --force and then set-parent",
		path, strings.Join(children, ", "))
}
