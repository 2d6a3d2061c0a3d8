package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

func newList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List mounted images, their loop devices and partitions",
		Long: `List every mount of a VHDX image with its server process, the loop devices on its disk.raw, their partitions and file
systems, and where these are mounted.
A mount is "dead" if its server has died, and "not answering" if its server does not answer within some seconds. A mount
that another user made only for that user is "unknown". After another host has taken an image over, its mount here fails
every read and write.`,
		Example: `  vhdxfs list
  vhdxfs list --json | jq -r '.[].devices[].device'`,
		Args:              exactArgs(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := active.List()
			if err != nil {
				return err
			}
			lookInside(list)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printMounts(cmd.OutOrStdout(), sizesOf(cmd), list)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// printMounts writes a table with a line for each mount, and below it one for each device and partition.
func printMounts(out io.Writer, size sizeWriter, list []*active.Mount) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSIZE\tTYPE\tFILESYSTEM\tLABEL\tUSED BY")
	for _, m := range list {
		name := printable(m.Image)
		switch {
		case m.ImageState == mounts.StateRenamed && m.ImageNow != "":
			name += fmt.Sprintf(" (renamed to %s)", printable(m.ImageNow))
		case m.ImageState != "":
			name += fmt.Sprintf(" (%s)", m.ImageState)
		}
		kind := m.Mode
		if m.State != active.Serving {
			kind += ", " + m.State
		}
		if m.TakenOver != "" {
			kind += fmt.Sprintf(", taken over by another host (%s)", printable(m.TakenOver))
		}
		if m.Partition != 0 {
			kind += fmt.Sprintf(", partition %d", m.Partition)
		}
		if m.Overlay != "" {
			kind += ", overlay " + printable(m.Overlay)
		}
		if m.Kernel == mountoption.KernelOn {
			kind += ", read by the kernel"
		}
		switch word, _, _ := strings.Cut(m.Sandbox, ":"); word {
		case mountoption.SandboxOff:
			kind += ", not confined"
		case "partly":
			kind += ", partly confined"
		}
		at := "mounted at " + printable(m.MountPoint)
		if m.PID != 0 {
			at += fmt.Sprintf(", process %d", m.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t\t\t%s\n", name, sizeOr(size, m.DiskSize), kind, at)
		for _, d := range m.Devices {
			writeDevice(w, "  "+d.Path, size(d.Size), "loop", d.Content, d.Uses)
			for _, p := range d.Partitions {
				writeDevice(w, "    "+p.Path, size(p.Size), "part", p.Content, p.Uses)
			}
		}
	}
	return w.Flush()
}

// sizeOr writes a size that may be unknown.
func sizeOr(size sizeWriter, n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

func writeDevice(w io.Writer, path, size, kind string, c loop.Content, uses []string) {
	var used []string
	for _, u := range uses {
		used = append(used, printable(u))
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", path, size, kind, c.FileSystem, printable(c.Label), strings.Join(used, ", "))
}
