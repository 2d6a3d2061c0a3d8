package cli

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// mount(8) finds the program that mounts a type by its name, /sbin/mount.TYPE, and umount(8) the one that
// unmounts. This program is installed under those names as well. They hand over arguments of their own kind, and
// print nothing themselves when the helper fails.

// newHelper returns the command that the program is by that name, and nil where it is not one of mount(8)'s.
func newHelper(name string, args []string) *cobra.Command {
	switch {
	case strings.HasPrefix(name, "mount."):
		return newMountHelper(name, args)
	case strings.HasPrefix(name, "umount."):
		return newUmountHelper(name, args)
	}
	return nil
}

// newMountHelper returns the command that mount(8) calls:
//
//	NAME IMAGE MOUNTPOINT [-sfnvr] [-o LIST] [-t TYPE] [-N NAMESPACE]
func newMountHelper(name string, args []string) *cobra.Command {
	m := mountCommand{args: args, helper: true}
	cmd := &cobra.Command{
		Use:   name + " IMAGE MOUNTPOINT [-sfnvr] [-o LIST]",
		Short: "Mount a Hyper-V VHDX image for mount(8)",
		Long: `Mount the VHDX file IMAGE on the directory MOUNTPOINT, as vhdxfs does. mount(8) calls this program for

  mount -t vhdx -o LIST IMAGE MOUNTPOINT

and for lines of this type in /etc/fstab:

  /srv/data.vhdx       /mnt/vhdx  vhdx  nofail       0 0
  /mnt/vhdx/disk.raw   /mnt/data  ext4  loop,nofail  0 0

The types vhdx, vhdxfs and fuse.vhdxfs are the same. With the option remount, an existing mount becomes read-only or
writable. For all options, run: vhdxfs help options`,
		Example: `  mount -t vhdx data.vhdx /mnt/vhdx
  mount -t vhdx -o ro,parent_dir=/srv/base child.avhdx /mnt/vhdx
  mount -o loop /mnt/vhdx/disk.raw /mnt/data
  umount /mnt/data`,
		Args:              exactArgs("IMAGE", "MOUNTPOINT"),
		RunE:              m.run,
		ValidArgsFunction: completeMount,
		SilenceErrors:     true, // Run reports them
		SilenceUsage:      true,
	}
	cmd.Flags().BoolVarP(&m.sloppy, "sloppy", "s", false, "ignore unknown options")
	cmd.Flags().BoolVarP(&m.fake, "fake", "f", false, "check everything, but do not mount")
	cmd.Flags().BoolVarP(&m.readOnly, "read-only", "r", false, "same as -o ro")
	cmd.Flags().StringArrayVarP(&m.options, "options", "o", nil, "mount options, a `LIST` separated by commas; see vhdxfs help options")
	completeOptions(cmd, mountoption.Mount|mountoption.Image)
	helperFlags(cmd, "mount", &m.verbose, &m.namespace)
	return cmd
}

// helperFlags declares the flags of both kinds of helpers; work is what they do in a namespace.
func helperFlags(cmd *cobra.Command, work string, verbose *bool, namespace *string) {
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(verbose, "verbose", "v", false, "report what is done")
	f.StringVarP(namespace, "namespace", "N", "", work+" in the mount namespace of the file `PATH`")
	f.BoolP("no-mtab", "n", false, "ignored")
	f.StringP("types", "t", "", "ignored; the `TYPE` by which this program was found")
	addVersionFlag(cmd)
	finish(cmd)
	cmd.CompletionOptions.DisableDefaultCmd = true
}

// enterNamespace makes this process one of the mount namespace that the file path stands for, as mount -N wants
// it. A running Go program cannot change that for all its threads, so it begins anew in there, without the option.
// It returns only on failure.
func enterNamespace(path string, args []string) error {
	rest := withoutNamespace(args)
	if len(rest) == len(args) {
		return usageError("give option -N and its value as separate arguments")
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("option -N: %w", err)
	}
	defer ns.Close()
	self, err := unix.Open("/proc/self/exe", unix.O_PATH, 0) // without O_CLOEXEC: in there, its path may lead nowhere
	if err != nil {
		return fmt.Errorf("option -N: /proc/self/exe: %w", err)
	}
	defer unix.Close(self)
	runtime.LockOSThread() // for good: a thread in another namespace must serve nothing else
	err = unix.Unshare(unix.CLONE_FS)
	if err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	}
	if err == nil {
		argv := append([]string{os.Args[0]}, rest...)
		err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", self), argv, os.Environ())
	}
	return fmt.Errorf("cannot enter the mount namespace %s: %w; it needs root, and /proc there", path, err)
}

// withoutNamespace leaves the option -N out of a command line.
func withoutNamespace(args []string) []string {
	i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-N") })
	switch {
	case i < 0:
		return args
	case args[i] == "-N" && i+1 < len(args):
		return slices.Concat(args[:i], args[i+2:])
	}
	return slices.Concat(args[:i], args[i+1:])
}
