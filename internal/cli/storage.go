package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A storageReport is what probe prints.
type storageReport struct {
	Path   string        `json:"path"`
	Type   string        `json:"type"`   // of the file system
	Shared bool          `json:"shared"` // other hosts may use it, so a writer takes a lease
	Facts  []storageFact `json:"facts"`
}

// A storageFact is one thing that a storage can do.
type storageFact struct {
	Name  string `json:"name"`
	Found string `json:"found"` // yes, no or unknown
	Known string `json:"known"` // of this type of file system
	Means string `json:"means"`
}

func newProbe() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "probe [flags] DIR [OTHER]",
		Short: "Show what the storage of a directory can do for images",
		Long: `Create a file of 8 MiB in DIR, try what images need of a file system, and remove the file. The column "known" shows what
vhdxfs knows of this type of file system and what it therefore relies on.

OTHER is the same directory as another host sees it, such as a second mount of the same share. With it, the command also
tries whether locks and synced data are seen there.`,
		Example: `  vhdxfs probe /srv/images
  vhdxfs probe /mnt/nfs/images /mnt/nfs-second/images`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return exactArgs("DIR", "OTHER")(cmd, args)
			}
			return exactArgs("DIR")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			other := ""
			if len(args) > 1 {
				other = args[1]
			}
			t, err := imagefile.Try(args[0], other)
			if err != nil {
				return err
			}
			r := reportStorage(args[0], other != "", t)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			lease := "only this host uses it; a writer takes locks"
			if r.Shared {
				lease = "other hosts may use it; a writer takes locks and a lease"
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintf(w, "%s: %s; %s\n\n", printable(r.Path), printable(r.Type), lease)
			fmt.Fprintln(w, "FEATURE\tFOUND\tKNOWN\tMEANING")
			for _, f := range r.Facts {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Name, f.Found, f.Known, f.Means)
			}
			return w.Flush()
		},
	}
	cmd.Flags().SortFlags = false
	addJSON(cmd, &asJSON)
	return cmd
}

// reportStorage says what a trial has found, and what that means.
func reportStorage(path string, elsewhere bool, t *imagefile.Trial) *storageReport {
	h := t.Host
	r := &storageReport{Path: path, Type: h.Type, Shared: h.Shared}
	add := func(name string, found, known imagefile.Fact, means string) {
		r.Facts = append(r.Facts, storageFact{name, found.String(), known.String(), means})
	}
	if elsewhere {
		add("locks seen by OTHER", t.Locks, h.Locks, "another host is refused while an image is in use")
		add("data seen by OTHER", t.Sees, imagefile.Unknown, "another host reads what was synced")
	} else if h.Shared {
		add("locks", t.Locks, imagefile.Unknown, "programs on this host are refused; name OTHER to try another host")
	} else {
		add("locks", t.Locks, h.Locks, "another program is refused while an image is in use")
	}
	add("direct reads", t.Direct, imagefile.Unknown, "a lease is checked past the cache")
	add("holes", t.Holes, h.Holes, "known: discard=auto returns space to the file system")
	add("finding holes", t.FindsHoles, h.FindsHoles, "known: holes are found without reading")
	add("files without a name", t.TmpFile, h.TmpFile, "a command that is killed leaves no partial file")
	add("sharing ranges", t.Copies, h.Copies, "convert copies without moving data")
	return r
}
