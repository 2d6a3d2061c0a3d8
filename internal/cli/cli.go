package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Run executes a command line, which begins with the name of the program, and returns the exit status. By the
// name the program knows that mount(8) or umount(8) has called it. On a failure it has written one line to stderr.
// When ctx ends, a mount that Run serves is unmounted. For a mount in the background, stdout and stderr have to be
// files: the second process writes to them by itself.
func Run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	name, args := filepath.Base(argv[0]), argv[1:]
	root := newHelper(name, args)
	if root == nil {
		name, root = "vhdxfs", newRoot(args)
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	helpError := watchHelp(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = helpError()
	}
	if err == nil {
		return statusOK
	}
	if msg := oneLine(err.Error()); msg != "" {
		fmt.Fprintf(stderr, "%s: %s\n", name, msg)
	}
	return statusOf(err)
}

// newRoot returns the command that mounts, with the others below it. args is the whole command line, which
// a mount in the background starts again.
func newRoot(args []string) *cobra.Command {
	m := mountCommand{args: args}
	root := &cobra.Command{
		Use:   "vhdxfs [-f] [-r] [-o LIST] IMAGE MOUNTPOINT",
		Short: "Mount a Hyper-V VHDX image as one raw file",
		Long: `Mount the VHDX file IMAGE at the directory MOUNTPOINT. The mount holds one file, disk.raw: the virtual
disk's bytes, to attach to a loop device, to copy, or to hand to a virtual machine. What is written to it is
written to the image, and is durable after fsync(2) or close(2). The program returns when disk.raw can be used,
and serves it in the background until it is unmounted with umount or fusermount3 -u.

An image whose name is that of a command below is mounted as ./NAME.

Options for -o, separated by commas; a value with commas goes into double quotes:

` + optionsHelp() + `
Exit status:

` + exitStatusHelp(),
		Example: `  vhdxfs data.vhdx /mnt/vhdx
  losetup --find --show --partscan /mnt/vhdx/disk.raw
  vhdxfs -o ro,parent_dir=/srv/base,allow_other child.avhdx /mnt/vhdx
  umount /mnt/vhdx`,
		Args:              exactArgs("IMAGE", "MOUNTPOINT"),
		RunE:              m.run,
		ValidArgsFunction: completeMount,
		PersistentPreRunE: refuseEmptyFlags,
		SilenceErrors:     true, // Run reports them
		SilenceUsage:      true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w; see %s --help", err, cmd.CommandPath())
	})
	root.Flags().SortFlags = false
	addVersionFlag(root)
	root.Flags().BoolVarP(&m.foreground, "foreground", "f", false, "stay in the foreground")
	root.Flags().BoolVarP(&m.readOnly, "read-only", "r", false, "as -o ro")
	root.Flags().StringArrayVarP(&m.options, "options", "o", nil, "mount options, a `LIST` separated by commas; see above")
	completeOptions(root, aboutMount|aboutImage)
	root.AddCommand(newInfo(), newCheck(), newMap(), newCreate(), newConvert(), newFlatten(), newMerge(), newSetParent(), newSnapshot(), newCompact(), newResize(), newCompare(), newDiff(), newChain(), newAttach(), newDetach(), newList(), newCompletion(), newVersion())
	root.SetUsageFunc(printUsage)
	root.DisableFlagsInUseLine = true
	for _, c := range root.Commands() {
		c.DisableFlagsInUseLine = true
	}
	return root
}

// refuseEmptyFlags returns an error where a flag has the value of a variable that is not set, which would count as a flag
// that was not given. Lists are taken, as in -o "".
func refuseEmptyFlags(cmd *cobra.Command, _ []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && f.Value.Type() == "string" && f.Value.String() == "" {
			err = usageError("--%s is empty; see %s --help", f.Name, cmd.CommandPath())
		}
	})
	return err
}

// exactArgs wants one argument for each name, and names the first that is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names) && cmd.HasSubCommands() && len(args) == 0:
			return usageError("no %s is given; see %s --help", names[0], cmd.CommandPath())
		case len(args) < len(names) && cmd.HasSubCommands() && nearest(args[0], commandNames(cmd)) != "":
			return usageError("%s is missing; do you mean the command %s?", names[1], nearest(args[0], commandNames(cmd)))
		case len(args) < len(names):
			return usageError("%s is missing; usage: %s", names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return usageError("%q is one argument too many; usage: %s", args[len(names)], cmd.UseLine())
		}
		// Of a variable that is not set, in a script, say. As a path it would be the working directory.
		if i := slices.Index(args, ""); i >= 0 {
			return usageError("%s is empty; usage: %s", names[i], cmd.UseLine())
		}
		return nil
	}
}

// imageExtensions are the usual ends of an image's name, for completion.
var imageExtensions = []string{"vhdx", "avhdx"}

// completeMount completes an image and a mount point. Where the word may become that of a command, those come first: the
// shells take all that comes with a filter for a part of it.
func completeMount(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	isCommand := func(name string) bool { return strings.HasPrefix(name, word) }
	switch {
	case len(args) == 0 && cmd.Flags().NFlag() == 0 && slices.ContainsFunc(commandNames(cmd), isCommand):
		return nil, cobra.ShellCompDirectiveDefault
	case len(args) == 0:
		return imageExtensions, cobra.ShellCompDirectiveFilterFileExt
	case len(args) == 1:
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func completeImage(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return imageExtensions, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
