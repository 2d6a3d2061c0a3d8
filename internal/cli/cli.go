package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// Run executes a command line, which begins with the name of the program, and returns the exit status. By the
// name the program knows that mount(8) or umount(8) has called it. On a failure it has written one line to stderr.
// When ctx ends, a mount that Run serves is unmounted. For a mount in the background, stdout and stderr have to be
// files: the second process writes to them by itself.
func Run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	name, args := filepath.Base(argv[0]), argv[1:]
	if status, ran := mounts.Answer(args, stdout); ran {
		return status
	}
	if monitor.Is(args) {
		return runMonitor()
	}
	root := newHelper(name, args)
	if root == nil {
		name, root = "vhdxfs", newRoot(args)
	}
	root.SetArgs(negativeLast(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	helpError := watchHelp(root)
	logrus.SetFormatter(messageFormatter{})
	cmd, err := execute(context.WithValue(ctx, ownProcess{}, slices.Equal(argv, os.Args)), root)
	if err == nil {
		err = helpError()
	}
	if err == nil {
		return statusOK
	}
	if mounts.LacksProc(err) { // of any command
		err = &statusError{statusSystem, fmt.Errorf("%w; mount /proc", err)}
	}
	reportError(stderr, name, err, wantsJSON(cmd, args))
	if f, ok := errors.AsType[*fault.Error](err); ok {
		stderr.Write(f.Stack)
	}
	return statusOf(err)
}

// execute executes the command line, and returns the command that it names. A panic is an error.
func execute(ctx context.Context, root *cobra.Command) (cmd *cobra.Command, err error) {
	defer fault.Catch(&err)
	return root.ExecuteContextC(ctx)
}

// negativeLast moves a size such as -50G, which resize takes, behind the flags, where it is not one of them.
func negativeLast(args []string) []string {
	negative := func(a string) bool { return len(a) > 1 && a[0] == '-' && '0' <= a[1] && a[1] <= '9' }
	i := slices.IndexFunc(args, negative)
	if i < 0 || slices.Contains(args, "--") || !slices.Contains(args[:i], "resize") {
		return args
	}
	return slices.Concat(args[:i], args[i+1:], []string{"--", args[i]})
}

// longMount is the description of mounting, for the command and for the program.
const longMount = `Mount the VHDX file IMAGE on the directory MOUNTPOINT. The mount holds one file, disk.raw: the bytes of the virtual
disk. Attach disk.raw to a loop device, copy it, or give it to a virtual machine. Writes to disk.raw change the image. They
are durable after fsync(2) or close(2).

The command returns when disk.raw is ready and serves it in the background. Unmount it with vhdxfs umount, umount(8) or
fusermount3 -u.`

// newRoot returns the command that mounts, with the others below it. args is the whole command line, which
// a mount in the background starts again.
func newRoot(args []string) *cobra.Command {
	m := mountCommand{args: args}
	root := &cobra.Command{
		Use:   "vhdxfs [mount] [flags] IMAGE MOUNTPOINT",
		Short: "Mount a Hyper-V VHDX image as one raw file, and work on images",
		Long:  longMount,
		Example: `  vhdxfs attach data.vhdx             # mount it, with loop devices
  vhdxfs detach data.vhdx
  vhdxfs -o ro data.vhdx /mnt/vhdx    # mount it, without loop devices
  umount /mnt/vhdx`,
		Args:              commandOrMount,
		RunE:              m.run,
		ValidArgsFunction: completeMount,
		PersistentPreRunE: refuseOddFlags,
		SilenceErrors:     true, // Run reports them
		SilenceUsage:      true,
	}
	addVersionFlag(root)
	m.addFlags(root)
	root.PersistentFlags().BoolP("quiet", "q", false, "show no progress and no warnings")
	root.PersistentFlags().Bool("bytes", false, "show sizes in bytes, not rounded")
	root.PersistentFlags().BoolP("verbose", "v", false, "show more details")
	for _, g := range commandGroups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	for group, commands := range map[string][]*cobra.Command{
		"mount":  {newOpen(), newClose(), newAttach(), newDetach(), newMount(args), newUmount(), newList(), newStats()},
		"look":   {newInfo(), newFiles(), newExtract(), newCheck(), newMap(), newChain(), newCompare(), newDiff(), newHash(), newProbe()},
		"make":   {newCreate(), newConvert(), newFlatten()},
		"change": {newSnapshot(), newMerge(), newApply(), newSetParent(), newCompact(), newResize(), newBreakLease()},
		"more":   {newCompletion(), newVersion()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	help := newHelp()
	help.GroupID = "more"
	root.SetHelpCommand(help)
	root.AddCommand(help)
	finish(root)
	for _, c := range root.Commands() {
		finish(c)
	}
	return root
}

// newMount returns the command that mounts by its name.
func newMount(args []string) *cobra.Command {
	m := mountCommand{args: args}
	cmd := &cobra.Command{
		Use:   "mount [flags] IMAGE MOUNTPOINT",
		Short: "Mount an image; its file disk.raw is the disk",
		Long:  longMount + "\n\nFor all options, run: vhdxfs help options",
		Example: `  vhdxfs mount data.vhdx /mnt/vhdx
  vhdxfs mount -o ro,parent_dir=/srv/base child.avhdx /mnt/vhdx
  losetup --find --show --partscan /mnt/vhdx/disk.raw`,
		Args:              exactArgs("IMAGE", "MOUNTPOINT"),
		RunE:              m.run,
		ValidArgsFunction: completeMount,
	}
	m.addFlags(cmd)
	return cmd
}

// addFlags adds the flags for mounting by hand.
func (m *mountCommand) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(&m.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVarP(&m.readOnly, "read-only", "r", false, "same as -o ro")
	f.Bool("json", false, "print an error as JSON")
	_ = f.MarkHidden("json") // for attach, which starts the program again
	f.BoolVar(&m.allowOther, "allow-other", false, "same as -o allow_other")
	f.StringArrayVarP(&m.options, "options", "o", nil, "mount options, a `LIST` separated by commas; see vhdxfs help options")
	completeOptions(cmd, mountoption.Mount|mountoption.Image)
}

// refuseOddFlags returns an error where a flag has the value of a variable that is not set, which would count as a flag
// that was not given, and where its value is another flag, since it was forgotten. Lists are taken, as in -o "".
func refuseOddFlags(cmd *cobra.Command, _ []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err != nil || f.Value.Type() != "string" {
			return
		}
		value := f.Value.String()
		name, isFlag := strings.CutPrefix(value, "--")
		switch {
		case value == "":
			err = usageError("--%s is empty; see %s --help", f.Name, cmd.CommandPath())
		case isFlag && cmd.Flags().Lookup(name) != nil:
			err = usageError("flag --%s needs a value: %s; for a file called %s, write ./%[3]s", f.Name, flagValue(f), value)
		}
	})
	return err
}

// commandOrMount checks the arguments of the program without a command, which are those of a mount. What is neither a
// command nor a file is taken for a command that was mistyped.
func commandOrMount(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError("missing command or IMAGE; see vhdxfs help")
	}
	if word := args[0]; word != "" && !strings.ContainsAny(word, "./") && isMissing(word) {
		return usageError("unknown command %q%s", word, suggestion(word, commandNames(cmd), "vhdxfs help"))
	}
	return exactArgs("IMAGE", "MOUNTPOINT")(cmd, args)
}

// exactArgs wants one argument for each name, and names the first that is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError("missing %s; usage: %s", names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return usageError("unexpected argument %q; usage: %s", args[len(names)], cmd.UseLine())
		}
		// It comes from a variable that is not set, in a script for example. As a path it would be the working directory.
		if i := slices.Index(args, ""); i >= 0 {
			return usageError("%s is empty; usage: %s", names[i], cmd.UseLine())
		}
		return nil
	}
}

// someArgs wants one argument or more.
func someArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return exactArgs(name)(cmd, args)
		case slices.Contains(args, ""):
			return exactArgs(name)(cmd, []string{""})
		}
		return nil
	}
}

// imageExtensions are the usual ends of an image's name, for completion.
var imageExtensions = []string{"vhdx", "avhdx"}

// readableExtensions are also those of old images, for commands that read them.
var readableExtensions = append(slices.Clone(imageExtensions), "vhd", "avhd")

// completeMount completes an image and a mount point. Where the word may become that of a command, those come first: the
// shells take all that comes with a filter for a part of it.
func completeMount(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	isCommand := func(name string) bool { return strings.HasPrefix(name, word) }
	switch {
	case len(args) == 0 && cmd.Flags().NFlag() == 0 && slices.ContainsFunc(commandNames(cmd), isCommand):
		return nil, cobra.ShellCompDirectiveDefault
	case len(args) == 0:
		return readableExtensions, cobra.ShellCompDirectiveFilterFileExt
	case len(args) == 1:
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeReadable completes an image that may be an old one.
func completeReadable(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return readableExtensions, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeTwo completes two images.
func completeTwo(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) < 2 {
		return imageExtensions, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func completeImage(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return imageExtensions, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
