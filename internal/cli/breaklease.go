package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

func newBreakLease() *cobra.Command {
	var options []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "break-lease [flags] IMAGE",
		Short: "Allow an image to be mounted soon after its host was switched off",
		Long: `Record in IMAGE, which lies on a file system that several hosts use, that no host writes it. A host that writes an image there
holds a lease (see -o lock=lease in vhdxfs help options). If that host did not close the image, the next mount waits for 13
seconds, until the old host can no longer write. This command takes 3 seconds, and the next mount does not wait.

Switch the other host off first, or cut it off from the storage. If it is still running, it loses the image. If it is running
and does not reach the storage at the moment, both hosts may write later, and the image may be damaged. An image that is locked
is refused.`,
		Example: `  vhdxfs break-lease /srv/cluster/data.vhdx`,
		Args:    exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := openOptions(options)
			if err != nil {
				return err
			}
			r, err := vhdx.BreakLease(args[0], o)
			if err != nil {
				return explainLock(err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			text := "no host holds a lease; nothing was changed"
			switch {
			case r.Broken && r.Lease != nil:
				text = fmt.Sprintf("the lease of %s is broken; the next mount does not wait", vhdx.HostText(r.Lease.Host, r.Lease.Since))
			case r.Broken:
				text = "the log is in use, but no host holds a lease; the next mount does not wait"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(args[0]), text)
			return err
		},
		ValidArgsFunction: completeImage,
	}
	cmd.Flags().SortFlags = false
	addChainFlags(cmd, &asJSON, &options)
	return cmd
}

func init() {
	vhdx.TellWait = func(why string) { fmt.Fprintf(os.Stderr, "vhdxfs: %s\n", printable(why)) }
}
